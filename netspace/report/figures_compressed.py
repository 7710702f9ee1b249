"""Figures of a compressed network with their captions.

Axes: S records of the fit, R of its loss, L layers, A amounts, N kernels, h w their sides. Accuracies come as fractions
and are drawn as per cent. Blue is the original, orange the reconstructed network, everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from netspace.report.budgets import size_pictures
from netspace.report.drawing import (
    GREEN,
    GREY,
    PREDICTED,
    TARGET,
    Picture,
    count,
    curve,
    finite,
    logarithmic,
    named,
    new,
    number,
    percent,
    plain,
    styled,
)
from netspace.report.figures_nern import activation_pictures, embedding_pictures
from netspace.report.figures_training import NOT_LOSSES, TITLE_LEGEND
from netspace.report.line_data import floats
from netspace.report.runs import Fitted
from netspace.results.compressed import Analysis, ChangedNetwork, KernelSamples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW = 8  # kernels in a row
MAX_NAMED = 40  # layers that are named: of more, some
Series = tuple[str, np.ndarray, str, str]  # name, values, colour, marker
ORIGINAL, RECONSTRUCTED = (TARGET, "o"), (PREDICTED, "D")


def draw_course(
    steps: np.ndarray,
    error: np.ndarray,
    accuracy: np.ndarray,
    borders: Sequence[float],
    logged: np.ndarray,
    losses: Mapping[str, np.ndarray],
) -> Figure:
    """Draw relative error and accuracy on validation images (S,), and terms of the loss (R,) at the steps `logged`.

    Unknown values are NaN; stages begin at the steps `borders`.
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
        finite_values = np.isfinite(values)
        curve(stack[-1], logged[finite_values], values[finite_values], colour, plain(name))
    if losses:
        logarithmic(stack[-1])
        stack[-1].set_title("loss by term")
        stack[-1].legend(**TITLE_LEGEND)
    stack[-1].set_xlabel("step, over all stages")
    return figure


def draw_kernels(original: np.ndarray, reconstructed: np.ndarray) -> Figure:
    """Draw kernels (N, h, w) of both networks and their differences, side by side on one scale."""
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
        image = axes.imshow(mosaic(values), cmap="PRGn", vmin=-limit, vmax=limit, interpolation="nearest")
        axes.set(title=title, xticks=[], yticks=[], facecolor="#b4b4b4")
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set_visible(False)
    figure.colorbar(image, ax=panels, location="bottom", shrink=0.6, aspect=35, ticks=[-limit, 0, limit], format="%.2g")
    return figure


def mosaic(values: np.ndarray) -> np.ndarray:
    """Return kernels (N, h, w) as one image, `ROW` in a row, with NaN between and around them."""
    count, height, width = values.shape
    rows = -(-count // ROW)
    tiles = np.full((rows * ROW, height + 1, width + 1), np.nan)
    tiles[:count, 1:, 1:] = values
    whole = tiles.reshape(rows, ROW, height + 1, width + 1).swapaxes(1, 2).reshape(rows * (height + 1), -1)
    return np.pad(whole, ((0, 1), (0, 1)), constant_values=np.nan)


def draw_by_layer(names: Sequence[str], rows: Sequence[Series], label: str) -> Figure:
    """Draw values (L,) by layer, from the input down; unknown ones are NaN."""
    count = len(names)
    every = -(-count // MAX_NAMED)
    figure, axes = new(1.6 + 0.26 * min(count, MAX_NAMED + 10))
    for index, (name, values, colour, marker) in enumerate(rows):
        ring: dict[str, Any] = {"markersize": 5} if index else {"markersize": 9, "markerfacecolor": "none"}
        axes.plot(values, np.arange(count), color=colour, marker=marker, linewidth=1, label=name, **ring)
    axes.set_yticks(np.arange(0, count, every), [plain(name.removesuffix(".weight"), 26) for name in names[::every]])
    axes.tick_params(axis="y", labelsize=9.5)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def draw_changed(amounts: np.ndarray, accuracy: np.ndarray, ratio: np.ndarray, label: str) -> Figure:
    """Draw accuracy and mean S_ratio (A,) of the original changed by amounts; unchanged it is at the right."""
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


def draw_pruning(rows: Sequence[tuple[np.ndarray, Series]], label: str, level: float | None) -> Figure:
    """Draw a measure over the share of weights set to zero, in the predictor and the original; `level`: of the original."""
    figure, axes = new(4.3)
    if level is not None:
        axes.axhline(level, color=GREY, linewidth=1.2, linestyle=(0, (1, 2)), label="the original, whole")
    for share, (name, values, colour, marker) in rows:
        axes.plot(100 * share, values, color=colour, marker=marker, markersize=5, linewidth=1.7, label=name)
    axes.set(xlabel="smallest weights set to zero, %", ylabel=label)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


# --- the figures with their captions ---


def pictures(fitted: Fitted) -> list[Picture]:
    """Return all figures, in the order of the page."""
    with styled():
        return [
            *([] if fitted.budget is None else size_pictures(fitted.budget)),
            *_course(fitted),
            *_kernels(fitted.kernels),
            *activation_pictures(fitted.activations),
            *embedding_pictures(fitted.config),
            *_layers(fitted.analysis),
            *_changed(fitted.analysis),
            *_pruning(fitted),
        ]


def _course(fitted: Fitted) -> Iterator[Picture]:
    curve = fitted.figures.curve
    if not curve:
        return
    error, accuracy = floats([each.relative_error for each in curve]), floats([each.accuracy_val for each in curve])
    stages = sorted({each.stage for each in curve})
    lengths = [max(each.step for each in curve if each.stage == stage) for stage in stages]
    begins = np.concatenate([[0.0], np.cumsum(lengths)[:-1]])
    offsets = dict(zip(stages, begins.tolist(), strict=True))
    steps = np.array([each.step + offsets[each.stage] for each in curve])
    logged = np.array([record["step"] + offsets.get(record["stage"], 0.0) for record in fitted.losses])
    terms = [name for name in named(fitted.losses) if name not in NOT_LOSSES]
    losses = {name: floats([finite(record.get(name)) for record in fitted.losses]) for name in terms}
    several = " Dashed lines: where a stage begins, from the best weights of the one before." if len(stages) > 1 else ""
    yield Picture(
        "course",
        "course",
        "Error and accuracy over the steps",
        draw_course(steps, error, accuracy, begins[1:].tolist(), logged, losses),
        f"{count(steps.max())} steps in {len(stages)} stages; the relative error ends at {number(error[-1], 3)}, "
        f"accuracy on validation images at {percent(accuracy[-1])}.",
        f"The relative error is the norm of the difference of the weights over the norm of the weights.{several} The result of "
        "a stage are the weights that are best on validation images, or of the smallest error if there is no data.",
    )


def _kernels(samples: KernelSamples | None) -> Iterator[Picture]:
    if samples is None:
        return
    original, reconstructed = np.array(samples.original), np.array(samples.reconstructed)
    drawn, difference = len(original), np.abs(reconstructed - original)
    which = f"The first {count(drawn)} of {count(samples.count)}" if drawn < samples.count else f"All {count(drawn)}"
    yield Picture(
        "kernels",
        "layers",
        f"Kernels of {samples.layer}",
        draw_kernels(original, reconstructed),
        f"{count(drawn)} kernels of {samples.layer} in the original and reconstructed, and their differences, which are "
        f"{number(difference.mean(), 4)} on average where the original's weights are {number(np.abs(original).mean(), 4)}.",
        f"{which} kernels of the layer, filter by filter, {ROW} a row, on one scale (purple is negative, green "
        f"positive). By relative error ({number(samples.relative_error, 3)}) it is the median of {count(samples.layers)} layers.",
    )


def _layers(analysis: Analysis | None) -> Iterator[Picture]:
    if analysis is None:
        return
    first, second = floats(analysis.singular_ratio.original), floats(analysis.singular_ratio.reconstructed)
    means = [number(np.nanmean(values) if np.isfinite(values).any() else None, 3) for values in (first, second)]
    higher = int((second > first).sum())
    yield Picture(
        "singular",
        "layers",
        "S_ratio by layer",
        draw_by_layer(
            analysis.layers,
            [("original", first, *ORIGINAL), ("reconstructed", second, *RECONSTRUCTED)],
            "fraction in the larger half of singular values",
        ),
        f"S_ratio of {len(first)} layers, on average {means[0]} in the original and {means[1]} reconstructed.",
        "The sum of the larger half of a layer's singular values over the sum of all: higher is smoother. Reconstruction "
        f"raises it in {higher} of {len(first)} layers, on average from {means[0]} to {means[1]}.",
        wide=False,
    )
    if analysis.cka is not None:
        near, chance = floats(analysis.cka.reconstructed), floats(analysis.cka.random)
        yield Picture(
            "cka",
            "layers",
            "Similarity to the original by layer (linear CKA)",
            draw_by_layer(
                analysis.layers,
                [("reconstructed", near, *RECONSTRUCTED), ("random weights", chance, GREY, "s")],
                "CKA with the original, 1 is the same",
            ),
            f"Linear CKA with the original of {number(_minimum(near), 3)} or more; of random weights "
            f"{number(_minimum(chance), 3)} or more.",
            "How similar the outputs of a layer are in both networks for the same test images, up to rotation and scale; and the "
            "same for a network of random weights. Kornblith et al., 2019.",
            wide=False,
        )


def _minimum(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.min()) if len(known) else None


def _changed(analysis: Analysis | None) -> Iterator[Picture]:
    if analysis is None:
        return
    low = (
        "Frequencies of every represented layer's matrix above a fraction of the highest are taken out of the original."
    )
    small = "The smaller half of every represented layer's singular values is made smaller in the original."
    low_title, small_title = "The original under a low pass", "The original with smaller singular values"
    for name, rows, title, how, label in (
        ("low-pass", analysis.low_pass, low_title, low, "fraction of frequencies kept"),
        ("scale-small", analysis.scale_small, small_title, small, "factor of the smaller half"),
    ):
        if not rows:
            continue
        accuracy, ratio = floats([row.accuracy for row in rows]), floats([row.singular_ratio for row in rows])
        yield Picture(
            name,
            "smooth",
            title,
            draw_changed(np.array([row.amount for row in rows]), accuracy, ratio, label),
            f"{title}: accuracy on test images {_ends(rows)}.",
            f"{how} Its accuracy on test images is {_ends(rows)}.",
            wide=False,
        )


def _ends(rows: Sequence[ChangedNetwork]) -> str:
    """Return the accuracies of the first two amounts and the last."""
    indices = sorted({0, min(1, len(rows) - 1), len(rows) - 1})
    return ", ".join(f"{percent(rows[index].accuracy)} at {rows[index].amount:g}" for index in indices)


def _pruning(fitted: Fitted) -> Iterator[Picture]:
    if fitted.pruning is None:
        return
    kinds = {
        ("predictor", *RECONSTRUCTED): fitted.pruning.predictor,
        ("original, directly", *ORIGINAL): fitted.pruning.original,
    }
    kinds = {look: rows for look, rows in kinds.items() if rows}
    measured = any(row.accuracy is not None for rows in kinds.values() for row in rows)
    label = "accuracy on test images, %" if measured else "relative error"
    drawn, texts = [], []
    for (name, colour, marker), rows in kinds.items():
        values = [row.accuracy if measured else row.relative_error for row in rows]
        shares = np.array([row.share for row in rows])
        drawn.append((shares, (name, (100 if measured else 1) * floats(values), colour, marker)))
        texts.append(f"{name}: {_at(shares, values, measured)}")
    level = finite(fitted.figures.accuracy_original) if measured else None
    values_text = "; ".join(texts)
    yield Picture(
        "pruning",
        "smaller",
        "Pruned",
        draw_pruning(drawn, label, None if level is None else 100 * level),
        f"{label.capitalize()} over the share of weights set to zero. {values_text}.",
        "The smallest weights are set to zero: of the predictor (orange), and for comparison of the original itself (blue). "
        f"{values_text[:1].upper()}{values_text[1:]}. NeRN, Fig. 5 left.",
    )


def _at(shares: np.ndarray, values: Sequence[float | None], measured: bool) -> str:
    indices = sorted({0, len(shares) // 2, len(shares) - 1})
    show = percent if measured else (lambda value: number(value, 3))
    return ", ".join(f"{show(values[index])} at {100 * shares[index]:.0f} %" for index in indices)
