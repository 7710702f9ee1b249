"""The parts of docs/benchmarks-spaces.md and of the README on spaces and their baselines, from the files of `netspace eval`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

NAMES = {
    "same_accuracy": "a random training network as accurate",
    "nearest_answers": "nearest training network by answers (KL)",
    "nearest_agreement": "nearest training network by answers (agreement)",
    "five_nearest": "mean answer of the 5 nearest",
    "constant": "one training network for all",
    "ensemble": "mean answer of all training networks",
    "distilled": "nearest by answers (KL), weights trained on the target's answers for as many steps",
    "nearest": "nearest training network (weights)",
    "nearest_latent": "nearest training network (latent)",
    "noise": "nearest (weights) + noise",
    "average": "average of training networks",
    "aligned_average": "average of the 10 best, aligned",
}
WITHIN_A_RUN = (
    "Within a run nothing sees a test figure: the checkpoint is chosen by validation members on validation images, baselines by validation "
    "images (the constant network by validation members too), ends of lines by validation accuracy."
)
# Decisions that saw a test figure before the run, by section. A recipe that is chosen by a test figure has to be named here.
SAW_TEST = {
    "quickstart": "Zoo and settings were chosen by validation members alone, on validation images, of this zoo and of one of longer runs "
    "with the same seed, before any test member of either was run; the steps by which probes correct latents (40) likewise, after test members "
    "had been evaluated with fewer.",
    "fashion": "Of the recipe, no decision saw a test figure: the number of steps was chosen by validation members.",
    "multi": "Of the recipes, weights of the loss were compared by the agreement of test members (docs/log.md), and nothing came of it.",
}


@dataclass(frozen=True)
class Column:
    """A figure of a table and which of two values is better."""

    key: str
    name: str
    text: Callable[[float], str]
    cost: Callable[[float], float]  # the smaller, the better


COLUMNS = (
    Column("r2", "R2 of accuracy", lambda value: f"{value:.3f}", lambda value: -value),
    Column("mae", "mean difference, points", lambda value: f"{100 * value:.2f}", lambda value: value),
    Column("bias", "bias, points", lambda value: f"{100 * value:+.2f}", abs),
    Column("agreement", "agreement", lambda value: f"{100 * value:.1f} %", lambda value: -value),
    Column("kl", "KL", lambda value: f"{value:.3f}", lambda value: value),
)


def best_baseline(figures: Mapping[str, Any], column: Column) -> tuple[str, float] | None:
    """Return name and value of the best baseline of a column, without those that are trained as latents are refined; or None."""
    known = {
        name: each[column.key]
        for name, each in figures["baselines"].items()
        if name != "distilled" and each and each.get(column.key) is not None
    }
    return min(known.items(), key=lambda item: column.cost(item[1])) if known else None


def beaten(figures: Mapping[str, Any], column: Column) -> bool:
    """Return whether a baseline does better than the space in a column."""
    best, own = best_baseline(figures, column), figures.get(column.key)
    return best is not None and own is not None and column.cost(best[1]) < column.cost(own)


def tables(evaluations: Mapping[str, Mapping[str, Any]], notes: Mapping[str, str]) -> str:
    """Return a table of each run with all its baselines; `notes` by run say which decision saw a test figure."""
    parts = [f"## Test members and baselines, on test images\n\nBy `netspace eval RUN`. {WITHIN_A_RUN}"]
    head = "| | accuracy | " + " | ".join(column.name for column in COLUMNS) + " |\n" + "|---" * 7 + "|"
    for name, figures in evaluations.items():
        others = figures["baselines"]
        rows = [("the space", figures)]
        if refined := figures.get("refined"):
            rows.append((f"the space, latents refined by {refined['steps']} steps", refined))
        rows = [*rows, *((called, others[key]) for key, called in NAMES.items() if key in others)]
        body = "\n".join(_row(what, values) for what, values in rows)
        parts.append(f"**{name}**: {_facts(figures)}{notes.get(name, '')}\n\n{head}\n{body}\n\n{_verdict(figures)}")
    return "\n\n".join(parts)


def _row(name: str, figures: Mapping[str, Any] | None) -> str:
    if not figures:
        return f"| {name} | missing" + " |" * 6
    return (
        f"| {name} | {100 * figures['accuracy_predicted']:.1f} % | "
        + " | ".join(_cell(figures, column) for column in COLUMNS)
        + " |"
    )


def _cell(figures: Mapping[str, Any], column: Column) -> str:
    value = figures.get(column.key)
    return "-" if value is None else column.text(value)


def _verdict(figures: Mapping[str, Any]) -> str:
    lost = [column for column in COLUMNS if beaten(figures, column)]
    if not lost:
        return "No baseline does better in any column."
    better = [
        f"{column.name}: {NAMES.get(best[0], best[0])}, {column.text(best[1])}"
        for column in lost
        if (best := best_baseline(figures, column))
    ]
    return f"Better than the space: {'; '.join(better)}."


def _facts(figures: Mapping[str, Any]) -> str:
    """Return the figures of a run that baselines do not have."""
    text = (
        f"{figures['members']} members (targets {100 * figures['accuracy_target']:.1f} %), latent {figures['latent']} for "
        f"{figures['parameters']:,} parameters ({100 * figures['compression']:.1f} %). Pairwise L2 of predicted networks "
        f"{figures['diversity']:.2f}, of the zoo's {figures['zoo_diversity']:.2f} (ratio "
        f"{figures['diversity'] / figures['zoo_diversity']:.2f}). "
    )
    return text + identity(figures) + line_figures(figures.get("interpolation"))


def identity(figures: Mapping[str, Any]) -> str:
    """Return whether predictions agree with their own targets more than with their peers."""
    each = figures.get("identity") or {}
    if each.get("own_minus_peers") is None:
        return "Identity was not measured. "
    return (
        f"Agreement with the own target over agreement with other members within a point of its accuracy: "
        f"{100 * each['own_minus_peers']:+.1f} points; overlap of mistakes (Jaccard) {each['jaccard_own']:.3f} own, "
        f"{each['jaccard_peers']:.3f} others ({each['without_peers']} of {figures['members']} members have none within a point). "
    )


def line_figures(line: Mapping[str, Any] | None) -> str:
    """Return means over the lines of an evaluation (NetSpace, Fig. 3)."""
    if not line or not line["pairs"]:
        return ""
    text = f"On {line['pairs']} lines: Spearman {_pair(line, 'spearman')}"
    if line.get("linear_r2_latent") is not None:
        text += f"; R2 of a straight line {_pair(line, 'linear_r2')}"
    if line.get("end_differences"):
        start, end = (f"{100 * value:+.1f}" for value in line["end_differences"])
        distances = " and ".join(f"{100 * value:.1f}" for value in line["end_distances"])
        text += f"; decoded ends minus their targets {start} and {end} points (absolute {distances})"
    return text + ". "


def _pair(line: Mapping[str, Any], name: str) -> str:
    values = (line.get(f"{name}_{kind}") for kind in ("latent", "weights"))
    first, second = ("-" if value is None else f"{value:.3f}" for value in values)
    return f"{first} latent, {second} weights"


def short_table(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the README's table: every space, and the best baseline of each column, marked if it is better."""
    columns = [column for column in COLUMNS if column.key != "kl"]
    rows = []
    for name, figures in evaluations.items():
        own = " | ".join(f"**{_cell(figures, column)}**" for column in columns)
        rows.append(f"| {name}, {figures['members']} test networks | {own} |")
        rows.append(
            "| best baseline of each column | " + " | ".join(_best(figures, column) for column in columns) + " |"
        )
        if refined := figures.get("refined"):
            steps, control = refined["steps"], figures["baselines"].get("distilled")
            own = " | ".join(f"**{_cell(refined, column)}**" for column in columns)
            rows.append(f"| the same, latents refined by {steps} steps on the networks' answers | {own} |")
            if control:
                others = " | ".join(_against(control, refined, column) for column in columns)
                rows.append(f"| the nearest training network by answers, its weights trained for as many | {others} |")
    head = "| | " + " | ".join(column.name for column in columns) + " |\n" + "|---" * (len(columns) + 1) + "|"
    lost = any(beaten(figures, column) for figures in evaluations.values() for column in columns)
    note = "\n\nA baseline that does better than the space is marked 'better'." if lost else ""
    return f"{head}\n" + "\n".join(rows) + note


def _best(figures: Mapping[str, Any], column: Column) -> str:
    best = best_baseline(figures, column)
    if best is None:
        return "-"
    return f"{column.text(best[1])} ({NAMES.get(best[0], best[0])}){', better' if beaten(figures, column) else ''}"


def _against(control: Mapping[str, Any], own: Mapping[str, Any], column: Column) -> str:
    """Return a figure of a control, marked if it is better than the space's own."""
    better = column.cost(control[column.key]) < column.cost(own[column.key])
    return column.text(control[column.key]) + (", better" if better else "")


def fashion_aims(figures: Mapping[str, Any]) -> str:
    """Return the aims of Fashion-MNIST: two figures, and every column above the best baseline."""
    rows = [
        ("R2 of accuracy", ">= 0.85", f"{figures['r2']:.3f}", figures["r2"] >= 0.85),
        ("agreement", ">= 85 %", f"{100 * figures['agreement']:.1f} %", figures["agreement"] >= 0.85),
    ]
    for column in COLUMNS:
        best = best_baseline(figures, column)
        aim = f"better than {column.text(best[1])} ({NAMES.get(best[0], best[0])})" if best else "-"
        rows.append((column.name, aim, _cell(figures, column), best is not None and not beaten(figures, column)))
    body = "\n".join(f"| {what} | {aim} | {value} | {'yes' if ok else 'NO'} |" for what, aim, value, ok in rows)
    return f"Aims of Fashion-MNIST:\n\n| figure | aim | reached | holds |\n|---|---|---|---|\n{body}"
