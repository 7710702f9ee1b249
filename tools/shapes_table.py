"""The table of a space of shapes in docs/benchmarks-shapes.md, from what `netspace eval RUN --json` printed or left in the run.

    python tools/shapes_table.py runs/chairs/eval-test.json

Of test networks against what their latents decode to, and of baselines; a baseline that does better than the space is marked. Below
it stands how whole shapes are on lines, and what completion reached, as far as `eval` measured it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = {  # of baselines, in the order of the table
    "nearest_function": "nearest training network by its outputs (shared points)",
    "nearest_agreement": "the one that agrees at most points",
    "five_nearest": "mean outputs of the five nearest",
    "nearest": "nearest training network by weights",
    "mean": "the mean of all weights",
    "aligned_average": "the mean of the ten best, aligned",
    "deepsdf": "**DeepSDF**: one auto-decoder for all shapes",
}
Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A figure of the table, and whether more of it is better."""

    key: str
    title: str
    text: Callable[[float], str]
    sign: int


def percent(value: float) -> str:
    """Return a fraction as per cent.

    >>> percent(0.8987)
    '89.9 %'
    """
    return f"{100 * value:.1f} %"


COLUMNS = (
    Column("within", "within 0.01 of the target's", percent, 1),
    Column("score_predicted", "within 0.01 of the shape's", percent, 1),
    Column("kl", "mean squared difference", lambda value: f"{value:#.2g}", -1),
    Column("iou", "IoU", lambda value: f"{value:.3f}", 1),
    Column("chamfer", "Chamfer", lambda value: f"{value:.4f}", -1),
    Column("valid", "in one piece", percent, 1),
)
OF_TARGETS = {"within": 1.0, "kl": 0.0, "iou": 1.0, "chamfer": 0.0}


def table(figures: Figures) -> str:
    """Return the rows of targets, the space, its refined latents and baselines."""
    targets = {**OF_TARGETS, "score_predicted": figures["score_target"], "valid": figures["shapes"]["target"]["valid"]}
    rows = [_row("targets", targets), _row("**the space**", figures)]
    if refined := figures.get("refined"):
        rows.append(_row(f"the space, latents refined by {refined['steps']:,} steps", refined, figures))
    for key, name in NAMES.items():
        if baseline := figures["baselines"].get(key):
            more = f", {baseline['parameters']:,} parameters, {baseline['steps']:,} steps" if key == "deepsdf" else ""
            rows.append(_row(name + more, baseline, figures))
    head = f"| {figures['members']} {figures['split']} networks | " + " | ".join(each.title for each in COLUMNS) + " |"
    return "\n".join([head, "|---" * (len(COLUMNS) + 1) + "|", *rows])


def _row(name: str, of_row: Figures, space: Figures | None = None) -> str:
    """Return a row; with `space`, cells that are better than the space's are marked."""
    cells = []
    for column in COLUMNS:
        value, own = _number(of_row.get(column.key)), _number(space.get(column.key)) if space else None
        better = own is not None and value is not None and column.sign * value > column.sign * own
        cells.append("-" if value is None else column.text(value) + (", better" if better else ""))
    return f"| {name} | " + " | ".join(cells) + " |"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def sentences(figures: Figures) -> list[str]:
    """Return what was measured of identity, of lines between members, and of completion."""
    told = []
    own = _number(figures.get("identity", {}).get("own_minus_peers"))
    if own is not None:
        told.append(
            f"Predicted networks agree with their own target at {100 * own:.1f} points more of 100 than with others."
        )
    if lines := figures["shapes"].get("lines"):
        kinds = {"latent": "between latents", "weights": "between weights", "aligned": "between aligned weights"}
        parts = [
            f"{name} {percent(lines[kind]['valid'])} of shapes are in one piece and {percent(lines[kind]['empty'])} empty"
            f" ({lines[kind]['valid_lines']} whole lines)"
            for kind, name in kinds.items()
            if lines.get(kind)
        ]
        told.append(f"On {lines['lines']} lines, {lines['steps']} steps each: {'; '.join(parts)}.")
    if completion := figures.get("completion"):
        names = {"iou": "", "iou_scratch": "from scratch ", "iou_nearest": "nearest ", "iou_target": "the member "}
        parts = [f"{name}{completion[key]:.3f}" for key, name in names.items()]
        told.append(
            f"From {completion['points']} points, {completion['members']} members: IoU {parts[0]} ({', '.join(parts[1:])})."
        )
    return told


def main() -> None:
    """Print the table and the sentences of a file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, help="what eval --json printed, or eval-test.json of a run")
    figures = json.loads(parser.parse_args().file.read_text(encoding="utf-8"))
    if not figures.get("shapes"):
        parser.error("this is no evaluation of a space of shapes")
    print("\n".join([table(figures), "", *sentences(figures)]))


if __name__ == "__main__":
    main()
