"""The picture of `netspace diff`: distances of two networks by layer, and their accuracies by class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from netspace.report.drawing import GREY, PREDICTED, TARGET, handle, new, plain, styled
from netspace.report.figures_training import TITLE_LEGEND
from netspace.results.diffs import ClassDifference, Difference, LayerDifference

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_NAMED = 40  # layers or classes that have a row each: of more, the ones that differ most
ROW = 0.24  # inches of height


def draw_difference(result: Difference) -> Figure:
    """Draw relative distances by layer, raw and aligned, and where classes are known the accuracies by class."""
    layers = _chosen_layers(result.layers)
    classes = _chosen_classes(result)
    heights = [ROW * max(len(rows), 2) for rows in (layers, classes) if rows]
    with styled():
        figure, _ = new(sum(heights) + 0.95 * len(heights) + 0.2, 0)
        if not heights:
            axes = figure.subplots()
            axes.set_axis_off()
            agreement = "" if result.answers is None else f"the same answer for {100 * result.answers.agreement:.1f} %"
            axes.text(0.5, 0.5, f"no layer in common; {agreement}", ha="center", va="center")
            return figure
        stack = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        names = f"{plain(result.first, 36)} and {plain(result.second, 36)}"
        figure.suptitle(names, x=0.01, ha="left", fontsize=12)
        if layers:
            _draw_layers(stack[0], layers)
        if classes:
            _draw_classes(stack[-1], classes, result)
    return figure


def _chosen_layers(layers: list[LayerDifference]) -> list[LayerDifference]:
    if len(layers) <= MAX_NAMED:
        return layers
    most = sorted(range(len(layers)), key=lambda row: -(layers[row].relative or 0.0))[:MAX_NAMED]
    return [layers[row] for row in sorted(most)]


def _chosen_classes(result: Difference) -> list[ClassDifference]:
    classes = [] if result.answers is None else result.answers.classes or []
    if len(classes) <= MAX_NAMED:
        return classes
    most = sorted(range(len(classes)), key=lambda row: -classes[row].changed)[:MAX_NAMED]
    return [classes[row] for row in sorted(most)]


def _rows(axes: Axes, names: list[str]) -> np.ndarray:
    """Give each name a row, the first on top, and return the rows' heights (R,)."""
    heights = np.arange(len(names))[::-1]
    axes.set_yticks(heights, [plain(name, 30) for name in names])
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.grid(axis="y", visible=False)
    return heights


def _draw_layers(axes: Axes, layers: list[LayerDifference]) -> None:
    """Draw a bar for each layer's distance, and an outline for the aligned one."""
    heights = _rows(axes, [each.layer for each in layers])
    raw = [100 * (each.relative or 0.0) for each in layers]
    axes.barh(heights, raw, height=0.62, color=PREDICTED, alpha=0.75)
    handles = [handle("as they are", marker="s", linestyle="", color=PREDICTED)]
    if any(each.aligned_relative is not None for each in layers):
        aligned = [100 * (each.aligned_relative or 0.0) for each in layers]
        axes.barh(heights, aligned, height=0.3, color=TARGET)
        handles.append(handle("channels aligned", marker="s", linestyle="", color=TARGET))
    axes.set_title("distance, % of the norm")
    axes.legend(handles=handles, **TITLE_LEGEND)
    axes.set_xlim(left=0)


def _draw_classes(axes: Axes, classes: list[ClassDifference], result: Difference) -> None:
    """Draw both accuracies of each class, joined by a line."""
    heights = _rows(axes, [each.name for each in classes])
    first, second = ([100 * getattr(each, f"accuracy_{name}") for each in classes] for name in ("first", "second"))
    axes.hlines(heights, first, second, color=GREY, linewidth=1.5)
    axes.plot(first, heights, "o", color=TARGET, markersize=6)
    axes.plot(second, heights, "D", color=PREDICTED, markersize=5)
    axes.set_title("accuracy by class, %")
    axes.legend(
        handles=[
            handle(result.first, marker="o", linestyle="", color=TARGET),
            handle(result.second, marker="D", linestyle="", color=PREDICTED),
        ],
        **TITLE_LEGEND,
    )
