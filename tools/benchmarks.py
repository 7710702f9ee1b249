"""Print sections of the pages of benchmarks and the README's table from files that commands wrote, and draw the README's picture.

The section on the quickstart is for docs/benchmarks.md; those on baselines, encoders, `netspace optimize` and several architectures
are for docs/benchmarks-spaces.md, on coordinate networks for docs/benchmarks-compress.md, on time and speed for docs/benchmarks-speed.md.

python tools/benchmarks.py --quickstart runs/quickstart --fashion runs/fashion [--conv runs/conv] [--bench bench.md]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from bench import markdown
from check_quickstart import targets
from compressed_tables import compressed
from multi_tables import several, several_sentence
from space_tables import SAW_TEST, WITHIN_A_RUN, fashion_aims, line_figures, short_table, tables

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 360  # of the quickstart, on two cores without AVX-512
QUICKSTART, FASHION = "quickstart (digits, LeNetLike)", "Fashion-MNIST, ResNet8 at width 0.25"
MULTI = "four architectures in one space (digits)"


def main() -> None:
    """Read the runs and print what is to be put into the documents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quickstart", type=Path, required=True, help="run folder of `netspace quickstart`")
    parser.add_argument("--fashion", type=Path, help="run folder of space/fashion")
    parser.add_argument("--conv", type=Path, help="run folder of space/quickstart-conv on the quickstart's zoo")
    parser.add_argument("--multi", type=Path, help="run folder of space/multi-digits")
    parser.add_argument("--unseen", type=Path, help="run folder of space/multi-digits-unseen on the same zoo")
    parser.add_argument("--compress", type=Path, help="folder of fits; see tools/compressed_tables.py")
    parser.add_argument("--bench", type=Path, help="the output of `tools/bench.py --json`")
    parser.add_argument("--seconds", type=Path, help="JSON of seconds: {'fashion zoo': 1, 'fashion train': 2}")
    given = parser.parse_args()
    story = json.loads((given.quickstart / "quickstart.json").read_text())
    runs, notes = {QUICKSTART: given.quickstart}, {QUICKSTART: SAW_TEST["quickstart"], FASHION: SAW_TEST["fashion"]}
    if given.fashion:
        runs[FASHION] = given.fashion
    evaluations = {name: json.loads((run / "eval-test.json").read_text()) for name, run in runs.items()}
    parts = [quickstart(story), tables(evaluations, notes)]
    if given.fashion:
        parts.append(fashion_aims(evaluations[FASHION]))
    if given.conv:
        parts.append(
            encoders(evaluations[next(iter(evaluations))], json.loads((given.conv / "eval-test.json").read_text()))
        )
    optimizations = sorted((given.quickstart / "optimized").glob("*/optimize.json"))
    if optimizations:
        parts.append(
            optimised([json.loads(file.read_text()) for file in optimizations], evaluations[next(iter(evaluations))])
        )
    if given.multi:
        parts.append(several(given.multi, given.unseen))
    if given.compress:
        parts.append(compressed(given.compress, json.loads(given.bench.read_text()) if given.bench else {}))
    if given.seconds:
        parts.append(seconds(json.loads(given.seconds.read_text())))
    if given.bench:
        measured = json.loads(given.bench.read_text())
        parts.append(
            "## Speed: ratio to a plain reference\n\nBy `python tools/bench.py --repeats 3`; memory and several architectures by calls of their own, `python tools/bench.py memory` and `multi --repeats 3`.\n\n"
            + (f"{measured['note']}\n\n" if "note" in measured else "")
            + aims(measured)
            + "\n\n"
            + markdown(measured)
        )
    if given.multi:
        evaluations[MULTI] = json.loads((given.multi / "eval-test.json").read_text())
    more = f"\n\n{several_sentence(given.multi, given.unseen)}" if given.multi and given.unseen else ""
    parts.append(f"## The README's table\n\n{short_table(evaluations)}{more}")
    print("\n\n".join(parts))
    picture(given.quickstart)


def quickstart(story: dict[str, Any]) -> str:
    """Return the quickstart's targets and the figures that it reached."""
    figures, line, took = story["eval"], story["interpolate"], story["seconds"]
    rows = [
        (row.name, f"{row.kind} {row.text(row.bound)}", row.text(row.value), row.holds)
        for row in targets(story)
        if "floor" not in row.name
    ]
    rows.append(("seconds in all", f"at most {SECONDS}", f"{took['total']:.0f}", took["total"] <= SECONDS))
    body = "\n".join(f"| {what} | {aim} | {value} | {'yes' if ok else 'NO'} |" for what, aim, value, ok in rows)
    ends = [
        "not known" if value is None else f"{100 * value:+.1f}" for value in line.get("end_differences", [None, None])
    ]
    straight = "-" if line.get("linear_r2") is None else f"{line['linear_r2']:.3f}"
    return (
        f"## `netspace quickstart`\n\n{figures['members']} test members, each a training run of its own; "
        f"line from {line['from']} (lower quartile) to {line['to']} (best on validation): R2 of a straight line {straight}, decoded "
        f"ends minus their targets {ends[0]} and {ends[1]} points. Seconds: "
        f"{', '.join(f'{name} {value:.0f}' for name, value in took.items())}. {ran_on(story)} {WITHIN_A_RUN} "
        f"{SAW_TEST['quickstart']}\n\n"
        f"| figure | target | reached | holds |\n|---|---|---|---|\n{body}\n\n{line_figures(figures['interpolation']).strip()}"
    )


def ran_on(story: dict[str, Any]) -> str:
    """Return the machine of a quickstart, how fast it multiplies matrices, and the precisions that were chosen on it."""
    machine, precision = story["machine"], story["precision"]
    rates = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {name}" for name, rate in machine["operations_per_second"].items())
    return (
        f"On {machine['processor']}, {machine['threads']} threads, products of matrices at {rates}; chosen: {precision['precision']} for "
        f"the models, {precision['networks_precision']} for the networks."
    )


def encoders(probe: dict[str, Any], conv: dict[str, Any]) -> str:
    """Return a table of the same zoo with the paper's encoder and decoder."""
    rows = "\n".join(
        f"| {name} | {v['r2']:.3f} | {100 * v['mae']:.2f} | {100 * v['agreement']:.1f} % |"
        for name, v in (("probe, linear decoder", probe), ("conv, conv decoder (the paper's), weight term 0.1", conv))
    )
    return (
        "## The paper's encoder and decoder on the quickstart's zoo\n\n`netspace train space/quickstart-conv --zoo runs/quickstart/zoo.h5`, `netspace eval`. Decoder, batches, steps and noise differ from the quickstart's too.\n\n"
        f"| space | R2 | mean abs. difference, points | agreement |\n|---|---|---|---|\n{rows}"
    )


def aims(measured: dict[str, Any]) -> str:
    """Return the aims of speed on two cores, and the figures that were reached."""
    large = [row["ratio"] for row in measured["rows"] if row["name"].startswith("zoo") and "28x28" in row["name"]]
    mean = geometric_mean(large)
    step = next(row["ratio"] for row in measured["rows"] if row["name"].startswith("step: paper"))
    memory = measured["memory"]["peak_bytes"]
    alike = all(row["alike"] for row in measured["accuracy"])
    slowest = min(row["ratio"] for row in measured["rows"] if not row["name"].startswith("store"))
    rows = [
        ("zoo training at 28x28, geometric mean of the three", ">= 4", f"{mean:.2f}", mean >= 4),
        ("the least of the three", ">= 2", f"{min(large):.2f}", min(large) >= 2),
        ("a step at the paper's configuration", ">= 3", f"{step:.2f}", step >= 3),
        ("any path against the reference", ">= 1", f"{slowest:.2f}", slowest >= 1),
        (
            "reading members, fraction of the paper's step",
            "< 5 %",
            f"{measured['feeding']:.1%}",
            measured["feeding"] < 0.05,
        ),
        ("memory for a zoo of 100,000 ResNet8", "< 2 GB", f"{memory / 1e9:.2f} GB", memory < 2e9),
        ("networks as good as the reference's", "all", "all" if alike else "not all", alike),
    ]
    body = "\n".join(f"| {what} | {aim} | {value} | {'yes' if ok else 'NO'} |" for what, aim, value, ok in rows)
    return f"| figure | aim | reached | holds |\n|---|---|---|---|\n{body}\n\nWhy the zoo's aim is missed: docs/log.md, Speed."


def optimised(optimizations: list[dict[str, Any]], figures: dict[str, Any]) -> str:
    """Return a table of latents that were optimised in the quickstart's space."""
    best = max(figures["detail"]["accuracy_target"])
    rows = "\n".join(
        f"| {start} | {each['teacher']} | {each['steps']} | {100 * before:.1f} % | {100 * after:.1f} % | {100 * (after - before):+.1f} |"
        for each in optimizations
        for start, before, after in zip(each["from"], each["accuracy_before"], each["accuracy_after"], strict=True)
    )
    return (
        "## `netspace optimize` in the quickstart's space\n\nBy `netspace optimize --from worst --from lenetlike/1630 --from noise`. Test accuracy of the decoded start, before and after (chosen on "
        f"validation images); the best test member has {100 * best:.1f} %. Aim: at least 5 points up from a start at least 20 "
        "below the best.\n\n| start | teacher | steps | before | after | points |\n|---|---|---|---|---|---|\n" + rows
    )


def seconds(took: dict[str, float]) -> str:
    """Return the time of each part."""
    return "## Time\n\n| part | minutes |\n|---|---|\n" + "\n".join(f"| {k} | {v / 60:.1f} |" for k, v in took.items())


def picture(run: Path) -> None:
    """Write the README's picture: two of the report's figures side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = ("members-test.png", "interpolation-mean-test.png")
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.6), dpi=110)
    for axis, name in zip(axes, names, strict=True):
        axis.imshow(plt.imread(run / "figures" / name))
        axis.axis("off")
    figure.subplots_adjust(0, 0, 1, 1, 0.02, 0)
    figure.savefig(ROOT / "docs" / "figures" / "quickstart.png")


if __name__ == "__main__":
    main()
