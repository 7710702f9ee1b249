"""Figures of a compressed network: plain data in, a matplotlib `Figure` out.

Axes: S records of the fit, L layers, A amounts, N kernels, h w their sides. Accuracies come as fractions and are drawn as per cent. Blue is the original,
orange what was reconstructed, everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from netspace.report.course import BESIDE
from netspace.report.drawing import GREEN, GREY, PREDICTED, TARGET, curve, logarithmic, new, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW = 8  # kernels in a row
NAMED = 40  # layers that are named, at most: of more, some
Series = tuple[str, np.ndarray, str, str]  # name, values, colour, marker
ORIGINAL, RECONSTRUCTED = (TARGET, "o"), (PREDICTED, "D")


def course(
    steps: np.ndarray,
    error: np.ndarray,
    accuracy: np.ndarray,
    borders: Sequence[float],
    logged: np.ndarray,
    losses: Mapping[str, np.ndarray],
) -> Figure:
    """Relative error and accuracy on validation images (S,), and terms of the loss (R,) at the steps `logged`.

    NaN where unknown; `borders` are where stages begin.
    """
    known = bool(np.isfinite(accuracy).any())
    figure, stack = new(2.7 + 2.0 * (known + bool(losses)), 1 + known + bool(losses), sharex=True)
    for axes in stack:
        for border in borders:
            axes.axvline(border, color=GREY, linewidth=1.2, linestyle=(0, (5, 3)))
    curve(stack[0], steps, error, PREDICTED, "")
    logarithmic(stack[0])
    stack[0].set_title("relative error of the weights (log scale)")
    if known:
        curve(stack[1], steps, 100 * accuracy, PREDICTED, "")
        stack[1].set_title("accuracy on validation images, %")
    for (name, values), colour in zip(losses.items(), (TARGET, PREDICTED, GREEN) * len(losses), strict=False):
        there = np.isfinite(values)
        curve(stack[-1], logged[there], values[there], colour, plain(name))
    if losses:
        logarithmic(stack[-1])
        stack[-1].set_title("loss by term")
        stack[-1].legend(**BESIDE)
    stack[-1].set_xlabel("step, over all stages")
    return figure


def kernels(original: np.ndarray, reconstructed: np.ndarray) -> Figure:
    """Kernels (N, h, w) of both networks and their differences, side by side on one scale."""
    rows, cells = -(-len(original) // ROW), original.shape[1] + 1
    figure, _ = new(0.82 + 2.05 * (rows * cells) / (ROW * (original.shape[2] + 1)), 0)
    limit = float(np.abs(np.stack([original, reconstructed])).max()) or 1.0
    panels = figure.subplots(1, 3)
    for axes, title, values in zip(
        panels,
        ("original", "reconstructed", "difference"),
        (original, reconstructed, reconstructed - original),
        strict=True,
    ):
        shown = axes.imshow(mosaic(values), cmap="PRGn", vmin=-limit, vmax=limit, interpolation="nearest")
        axes.set(title=title, xticks=[], yticks=[], facecolor="#b4b4b4")
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set_visible(False)
    figure.colorbar(shown, ax=panels, location="bottom", shrink=0.6, aspect=35, ticks=[-limit, 0, limit], format="%.2g")
    return figure


def mosaic(values: np.ndarray) -> np.ndarray:
    """Kernels (N, h, w) as one picture, `ROW` a row, NaN between and around them."""
    count, height, width = values.shape
    rows = -(-count // ROW)
    tiles = np.full((rows * ROW, height + 1, width + 1), np.nan)
    tiles[:count, 1:, 1:] = values
    whole = tiles.reshape(rows, ROW, height + 1, width + 1).swapaxes(1, 2).reshape(rows * (height + 1), -1)
    return np.pad(whole, ((0, 1), (0, 1)), constant_values=np.nan)


def by_layer(names: Sequence[str], told: Sequence[Series], label: str) -> Figure:
    """Values (L,) by layer, from the input down, NaN where unknown."""
    count = len(names)
    every = -(-count // NAMED)
    figure, axes = new(1.6 + 0.26 * min(count, NAMED + 10))
    for place, (name, values, colour, marker) in enumerate(told):
        ring: dict[str, Any] = (
            {"markersize": 9, "markerfacecolor": "none"} if not place else {"markersize": 5}
        )  # none hides another
        axes.plot(values, np.arange(count), color=colour, marker=marker, linewidth=1, label=name, **ring)
    axes.set_yticks(np.arange(0, count, every), [plain(name.removesuffix(".weight"), 26) for name in names[::every]])
    axes.tick_params(axis="y", labelsize=9.5)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def changed(amounts: np.ndarray, accuracy: np.ndarray, ratio: np.ndarray, label: str) -> Figure:
    """Accuracy and mean S_ratio (A,) of the original changed by amounts, with both as it is at the right."""
    figure, stack = new(4.7, 2, sharex=True)
    for axes, values, title in (
        (stack[0], 100 * accuracy, "accuracy on test images, %"),
        (stack[1], ratio, "mean S_ratio of the layers"),
    ):
        axes.plot(amounts, values, color=TARGET, marker="o", markersize=5, linewidth=1.7)
        axes.set_title(title)
    stack[0].set_ylim(bottom=0)
    stack[1].set_xlabel(label)
    return figure


def pruning(told: Sequence[tuple[np.ndarray, Series]], label: str, level: float | None) -> Figure:
    """A measure over the share of weights set to zero, of the predictor and of the original; `level`: of the original."""
    figure, axes = new(4.3)
    if level is not None:
        axes.axhline(level, color=GREY, linewidth=1.2, linestyle=(0, (1, 2)), label="the original, whole")
    for share, (name, values, colour, marker) in told:
        axes.plot(100 * share, values, color=colour, marker=marker, markersize=5, linewidth=1.7, label=name)
    axes.set(xlabel="smallest weights set to zero, %", ylabel=label)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=3)
    return figure
