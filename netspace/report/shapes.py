"""The shapes that `eval` and `interpolate` keep for the report: reading them, and their pictures.

Axes: M members, S points of a line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from netspace.errors import NetspaceError
from netspace.rendering import View
from netspace.report.drawing import WIDTH, Picture, count, joined, number, shortened
from netspace.report.strips import LABEL, ROWS, strip
from netspace.report.viewer import Viewer
from netspace.results.spaces import SavedEvaluation
from netspace.surfaces import Surface, read_surfaces

if TYPE_CHECKING:
    from netspace.report.runs import Run

MAX_COLUMNS = 7  # of a picture in the page
PAIR = ("target", "predicted")
PANES = {"latent": "latents", "weights": "weights", "aligned": "weights, aligned"}


@dataclass(frozen=True)
class Shown:
    """Surfaces of members and of one line."""

    shapes: Mapping[str, list[Surface]]  # target, predicted: (M,); latent, weights, aligned: (S,)
    members: list[str]  # (M,)
    iou: list[float]  # (M,) of predictions with their targets
    start: str
    end: str
    gamma: list[float]  # (S,)
    view: View


def read_shown(path: Path) -> Shown:
    """Read what `netspace.commands.shapes` wrote. Raises `NetspaceError` for another file."""
    surfaces, notes = read_surfaces(path)
    shapes: dict[str, list[Surface]] = {}
    for name in sorted(surfaces):
        shapes.setdefault(name.rpartition(".")[0], []).append(surfaces[name])
    try:
        members, overlap, gamma = (json.loads(notes.get(name, "[]")) for name in ("members", "iou", "gamma"))
        shown = Shown(
            shapes=shapes,
            members=[str(each) for each in members],
            iou=[float(each) for each in overlap],
            start=notes.get("from", ""),
            end=notes.get("to", ""),
            gamma=[float(each) for each in gamma],
            view=View(*_upright(notes)),
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise NetspaceError(f"{path} says nothing of its shapes that can be read ({error}): make it again") from None
    pairs = all(len(shapes.get(name, [])) == len(shown.members) == len(shown.iou) for name in PAIR)
    lines = all(len(shapes[name]) == len(shown.gamma) for name in PANES if name in shapes)
    if not pairs or not lines:
        raise NetspaceError(
            f"{path} was expected to have a shape for every member and every point of its line: make it again"
        )
    return shown


def _upright(notes: Mapping[str, str]) -> tuple[int, int]:
    up, front = json.loads(notes.get("upright", "[1, 2]"))
    if {up, front} not in ({0, 1}, {0, 2}, {1, 2}):
        raise ValueError(f"{up} and {front} are not two of three axes")
    return up, front


def member_picture(split: str, shown: Shown, figures: SavedEvaluation) -> Iterator[Picture]:
    """Yield the picture of members and their predictions; none if no member was kept."""
    if not shown.members:
        return
    names = [shortened(name, 20) for name in shown.members]
    texts = [f"{name}: IoU {number(value)}" for name, value in zip(shown.members, shown.iou, strict=True)]
    rows = {name: shown.shapes[name] for name in PAIR}
    yield Picture(
        f"shapes-{split}",
        "shapes",
        f"Targets and predictions, {split} split",
        strip(rows, names, shown.view, _side(len(names)), WIDTH),
        f"Surfaces of {count(len(names))} networks above those of their predictions: {'; '.join(texts)}.",
        "The surfaces where networks are 0, from the worst predicted member (smallest intersection over union of the insides) "
        f"to the best: {'; '.join(texts)}. Means over all members: IoU {number(figures.iou)}, Chamfer distance "
        f"{number(figures.chamfer, 3)} of a cube of side 2.",
        viewer=Viewer(rows, texts, "member", len(texts) - 1, shown.view),
    )


def line_picture(name: str, shown: Shown) -> Iterator[Picture]:
    """Yield the picture of a line between two shapes (NetSpace, Fig. 4); none if there is no line."""
    if not shown.gamma:
        return
    rows = {kind: shown.shapes[kind] for kind in ROWS if kind in shown.shapes}
    texts = [f"γ {number(value)}" for value in shown.gamma]
    columns = np.unique(np.linspace(0, len(texts) - 1, min(MAX_COLUMNS, len(texts))).round().astype(int)).tolist()
    counted = [
        f"{PANES[kind]} {count(sum(not each.empty for each in shapes))} of {count(len(shapes))}"
        for kind, shapes in rows.items()
    ]
    yield Picture(
        f"shapes-{name[:120]}",
        "shapes",
        f"From {shown.start} to {shown.end}",
        strip(
            {ROWS[kind]: [shapes[column] for column in columns] for kind, shapes in rows.items()},
            [texts[column] for column in columns],
            shown.view,
            _side(len(columns)),
            WIDTH,
        ),
        f"Surfaces on the line from {shown.start} to {shown.end}; not empty: {joined(counted)}.",
        "Above, networks decoded from interpolated latents; below, networks whose weights were interpolated as they are"
        f"{', and after their channels were aligned' if 'aligned' in rows else ''}. Not empty are: {joined(counted)}. "
        "NetSpace, Fig. 4.",
        viewer=Viewer({PANES[kind]: shapes for kind, shapes in rows.items()}, texts, "γ", len(texts) // 2, shown.view),
    )


def shapes(run: Run) -> Iterator[Picture]:
    """Yield the pictures of evaluated members, and of lines between two: chosen ones, else the evaluations' own."""
    for split, shown in run.shapes.items():
        if split in run.evaluations:
            yield from member_picture(split, shown, run.evaluations[split].figures)
    lines = run.shape_lines or run.shapes
    for name, shown in lines.items():
        yield from line_picture(f"line-{name}", shown)


def _side(columns: int) -> float:
    """Return the inches of a cell in a picture that is as wide as others."""
    return min((WIDTH - LABEL) / columns, 1.4)
