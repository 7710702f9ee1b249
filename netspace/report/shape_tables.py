"""Tables of the page on networks that are shapes: how whole they are, and on lines between members."""

from __future__ import annotations

from netspace.report.drawing import MISSING, count, number, percent
from netspace.report.figures_behaviour import baseline_names
from netspace.report.runs import Run
from netspace.report.tables import Table
from netspace.results.shapes import ShapeLines, Solidity
from netspace.results.spaces import Measures

HEAD = ["one body", "without specks", "empty"]


def shape_tables(run: Run) -> list[Table]:
    """Return a table of shapes, and one of lines between them, for each split."""
    tables = []
    for split, evaluated in run.evaluations.items():
        figures = evaluated.figures
        if figures.shapes is None:
            continue
        entries = [
            ("the space", figures),
            *([("refined", figures.refined)] if figures.refined else []),
            *((name, figures.baselines[name]) for name in baseline_names(figures.baselines)),
        ]
        rows = [
            [name, number(each.iou), number(each.chamfer, 3), *_whole(each)]
            for name, each in entries
            if each is not None and each.iou is not None
        ]
        rows.append(["targets", MISSING, MISSING, *_whole(figures.shapes.target)])
        grid = count(figures.shapes.resolution)
        caption = (
            f"Shapes, {split} split, from values on a grid of {grid} x {grid} x {grid} points. IoU is intersection over union of "
            "the insides of predictions and their targets; the Chamfer distance is the mean distance from points of one surface to "
            "the other and back, in a cube of side 2, over shapes that are not empty. One body: a shape of at least a quarter "
            "of its target's area (on lines, of the smaller end's), of which pieces under 1 % do not count; without specks: there are none."
        )
        tables.append(Table(["", "IoU", "Chamfer", *HEAD], rows, caption))
        if figures.shapes.lines is not None:
            tables.append(_lines(split, figures.shapes.lines))
    return tables


def _whole(figures: Solidity | Measures) -> list[str]:
    return [percent(each) for each in (figures.valid, figures.single_body, figures.empty)]


def _lines(split: str, lines: ShapeLines) -> Table:
    kinds = (
        ("latents interpolated", lines.latent),
        ("weights interpolated", lines.weights),
        ("aligned weights interpolated", lines.aligned),
    )
    rows = [
        [name, *_whole(each), f"{count(each.valid_lines)} of {count(lines.lines)}"]
        for name, each in kinds
        if each is not None
    ]
    caption = (
        f"{count(lines.steps)} shapes on each of {count(lines.lines)} lines between members of the {split} split, ends left out; the last "
        "column counts lines on which every shape is one body."
    )
    return Table(["", *HEAD, "whole lines"], rows, caption)
