"""The part of docs/benchmarks-compress.md on coordinate networks, from files of `netspace compress` and of tools in one folder.

Folders in it: `decoupled`, `joint`, `joint-pool` (with a `pool` in its stage), `large` and `smooth` (fits of zoo/resnet20-fashion, and of
its smooth variant), `ablations` and `optimizers` (`tools/ablations.py`); `notes.md` is copied. What is missing is named as such.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ablations import table

from netspace.config import read_back
from netspace.training.recipe import FitConfig

FITS = ("decoupled", "joint", "joint-pool", "large", "smooth")
MAX_MINUTES = 30  # of a fit on two cores
ABOVE = "| figure | aim | reached | holds |\n|---|---|---|---|"


def compressed(folder: Path, measured: dict[str, Any]) -> str:
    """Return the whole section; `measured` is the output of `tools/bench.py --json`, or empty."""
    fits = {name: _read(folder / name / "fit.json") for name in FITS}
    uses = {
        name: _read(folder / "decoupled" / f"{name}.json") for name in ("quantise-8", "quantise-4", "prune", "analysis")
    }
    parts = [
        "## One network in a smaller one\n\nBy `netspace zoo build zoo/resnet20-fashion` and `compress fit best --recipe "
        "compress/...`: ResNet20 on Fashion-MNIST, test images; checkpoints are chosen on validation images.",
        _aims(fits, measured),
        _fits(folder, fits),
        used({name: figures for name, figures in uses.items() if figures}),
        _ablations(_read(folder / "ablations" / "ablations.json")),
        _optimizers(_read(folder / "optimizers" / "ablations.json")),
        _notes(folder),
    ]
    return "\n\n".join(part for part in parts if part)


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _aims(fits: dict[str, dict[str, Any] | None], measured: dict[str, Any]) -> str:
    """Return the aims, and the figures that were reached."""
    rows = [_close(fits["decoupled"], "decoupled", 0.005), _close(fits["joint"], "by the whole loss (`joint`)", 0.01)]
    if fits["decoupled"]:
        share = fits["decoupled"]["parameters_predictor"] / fits["decoupled"]["parameters_represented"]
        rows.append(
            ("size of the predictor, of the convolutions", "about 44 %", f"{share:.1%}", abs(share - 0.44) < 0.02)
        )
    if fits["joint"] and fits["joint"].get("seconds"):
        took = fits["joint"]["seconds"] / 60
        rows.append(("minutes of the whole loss", f"<= {MAX_MINUTES}", f"{took:.1f}", took <= MAX_MINUTES))
    if fits["large"]:
        more = fits["large"]["accuracy_reconstructed"] - fits["large"]["accuracy_original"]
        share = fits["large"]["parameters_predictor"] / fits["large"]["parameters_represented"]
        what = f"a predictor of {share:.0%} of the convolutions (`large`) over the original"
        rows.append((what, ">= 0", f"{100 * more:+.2f} points", more >= 0))
    rows += _speeds(measured)
    body = "\n".join(f"| {what} | {aim} | {value} | {'yes' if ok else 'NO'} |" for what, aim, value, ok in rows)
    return f"{ABOVE}\n{body}"


def _speeds(measured: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Return rows on the time of orders and of a step, if they were measured."""
    orders = {(row["name"].split(",")[0], row["kind"], row["way"]): row for row in measured.get("orders", ())}
    large, small, plain, compiled = (
        next(
            (
                row
                for (name, kind, way), row in orders.items()
                if (kind, way) == ("cross-filter", by) and big == ("18" in name)
            ),
            None,
        )
        for big, by in ((True, "ours"), (False, "ours"), (False, "greedy, numpy"), (False, "greedy, compiled"))
    )
    rows = []
    if large is not None:
        what = f"cross-filter orders of ResNet18's size ({large['kernels']:,} kernels)"
        rows.append((what, "< 120 s", f"{large['seconds']:.1f} s", large["seconds"] < 120))
    if small is not None and plain is not None and compiled is not None:
        less = 1 - small["length"] / plain["length"]
        rows.append(("path through ResNet20's kernels, under greedy's", ">= 5 %", f"{less:.1%}", less >= 0.05))
        took, limit = small["seconds"], plain["seconds"]
        rows.append(("its seconds, greedy's in numpy", f"<= {limit:.2f}", f"{took:.2f}", took <= limit))
        rows.append(
            ("the same, greedy's compiled", f"<= {compiled['seconds']:.2f}", f"{took:.2f}", took <= compiled["seconds"])
        )
    for row in measured.get("rows", ()):
        if row["name"].startswith("nern"):
            how = row["name"].partition("the same, ")[2]
            what = f"a step of the whole loss{f' ({how})' if how else ''}, ratio to the plain way"
            rows.append((what, ">= 3", f"{row['ratio']:.2f}", row["ratio"] >= 3))
    rows.append(("a whole fit on a GPU", "<= 10 minutes", "not measured, no GPU", False))
    return rows


def _notes(folder: Path) -> str:
    """Return the text on measurements with files that are not in the repository."""
    path = folder / "notes.md"
    return path.read_text().strip() if path.exists() else ""


def _close(figures: dict[str, Any] | None, name: str, limit: float) -> tuple[str, str, str, bool]:
    what, aim = f"accuracy under the original's, {name}", f"<= {100 * limit} points"
    if figures is None:
        return what, aim, "not run", False
    difference = figures["accuracy_original"] - figures["accuracy_reconstructed"]
    return what, aim, f"{100 * difference:.2f} points", difference <= limit


def _fits(folder: Path, fits: dict[str, dict[str, Any] | None]) -> str:
    rows = []
    for name, fit in fits.items():
        if fit is not None:
            fraction = fit["parameters_predictor"] / fit["parameters_represented"]
            rows.append(
                f"| {_label(folder, name)} | {fraction:.1%} | {fit['bytes_file']:,} of {fit['bytes_original']:,} | "
                f"{fit['relative_error']:.3f} | {fit['accuracy_original']:.2%} | {fit['accuracy_reconstructed']:.2%} | "
                f"{fit['agreement']:.1%} |"
            )
    head = "| fit | predictor, of the convolutions | bytes | relative error | original | reconstructed | same answer |"
    return "\n".join([head, "|---" * 7 + "|", *rows])


def _label(folder: Path, name: str) -> str:
    """Return the name of a fit's recipe, with its pool of images if it has one."""
    file = folder / name / "config.yaml"
    stages = read_back(FitConfig, file).stages if file.exists() else ()
    pools = [f"`pool` {stage.pool:,}" for stage in stages if stage.pool is not None]
    return ", ".join([name.removesuffix("-pool"), *pools])


def _ablations(ablations: dict[str, Any] | None) -> str:
    if ablations is None:
        return "NeRN's ablations: not run."
    seeds, steps = max(len(rows) for rows in ablations["variants"].values()), ablations["steps"]
    return (
        f"NeRN's ablations, by `python tools/ablations.py best --zoo resnet20.h5 --out ablations --steps {steps} --seeds "
        f"{' '.join(map(str, range(seeds)))}`: {steps} steps, terms of distillation at {ablations['weight']:g}, means of "
        f"{seeds} seeds; the orders that the paper reports:\n\n{table(ablations['variants'])}"
    )


def _optimizers(ablations: dict[str, Any] | None) -> str:
    if ablations is None:
        return ""
    rows = "\n".join(
        f"| {name} | {sum(row['relative_error'] for row in rows) / len(rows):.3f} |"
        for name, rows in ablations["variants"].items()
    )
    return f"Optimisers, by reconstruction alone, {ablations['steps']} steps (`--group optimizers`):\n\n| optimiser | relative error |\n|---|---|\n{rows}"


def used(uses: dict[str, dict[str, Any]]) -> str:
    """Return tables of `compress quantise`, `prune` and `analyse` after a fit, without further training."""
    parts = [
        "After it, by `compress quantise`, `compress prune` and `compress analyse`, test images; without further training."
    ]
    rows = {}
    for bits in (8, 4):
        for name, row in uses.get(f"quantise-{bits}", {"networks": {}})["networks"].items():
            label = {"original_quantised": f"original in {bits} bits", "quantised": f"predictor in {bits} bits"}.get(
                name, name
            )
            rows[label] = (
                f"| {label} | {row['bytes']:,} | {row['accuracy']:.1%} | {row['agreement']:.1%} | {row['relative_error']:.3f} |"
            )
    if rows:
        lines = sorted(rows.values(), key=lambda line: ("predictor" in line, "reconstructed" in line))
        parts.append(
            "| what | bytes | accuracy | same answers | relative error |\n|---|---|---|---|---|\n" + "\n".join(lines)
        )
    if "prune" in uses:
        shares = [f"{row['share']:.0%}" for row in uses["prune"]["predictor"]]
        table = [f"| share pruned by magnitude | {' | '.join(shares)} |", "|---" * (len(shares) + 1) + "|"]
        for name in ("predictor", "original"):
            cells = " | ".join(f"{row['accuracy']:.1%}" for row in uses["prune"][name])
            table.append(f"| of the {name} | {cells} |")
        parts.append("\n".join(table))
    if "analysis" in uses:
        analysis = uses["analysis"]
        ratios = [sum(each) / len(each) for each in analysis["singular_ratio"].values()]
        cka = analysis["cka"]
        gaps = [analysis["generalisation"][name] for name in ("original", "reconstructed")]
        parts.append(
            f"Linear CKA with the original: at least {min(cka['reconstructed']):.3f}, of fresh weights "
            f"{sum(cka['random']) / len(cka['random']):.3f} on the mean. Mean S_ratio {ratios[0]:.4f} before and {ratios[1]:.4f} after. Gaps "
            f"between training and test images, before and after: accuracy {100 * gaps[0]['gap_accuracy']:.2f} and "
            f"{100 * gaps[1]['gap_accuracy']:.2f} points, cross-entropy {gaps[0]['gap_loss']:.4f} and {gaps[1]['gap_loss']:.4f}."
        )
    return "\n\n".join(parts)
