"""Figures of a latent space: functions from arrays to a matplotlib `Figure`; nothing is read or written here.

Axes: M members, S points of a line or starts, E latent size, P parameters, K records. Accuracies come as fractions and
are drawn as per cent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from netspace.report.drawing import (
    GREEN,
    GREY,
    INK,
    MAX_SINGLE,
    PREDICTED,
    PURPLE,
    TARGET,
    WORST_R2,
    Look,
    curve,
    logarithmic,
    looks,
    named,
    new,
    plain,
    series,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_WIDTH = 400  # pixels in which an image of parameters is drawn; wider ones are not averaged
START_COLOURS = (PREDICTED, TARGET, GREEN, PURPLE, INK, GREY)  # of an optimisation's starts, in their order


def members(target: np.ndarray, predicted: np.ndarray) -> Figure:
    """Draw accuracies (M,) of targets, sorted, and of their predictions (NetSpace, Fig. 3 a and c)."""
    figure, axes = new(3.9)
    order = np.argsort(target, kind="stable")
    rank, first, second = np.arange(1, len(order) + 1), 100 * target[order], 100 * predicted[order]
    few = len(order) <= MAX_SINGLE
    if few:
        axes.vlines(rank, first, second, color="#c8c8c8", linewidth=1, zorder=1)
    dots: dict[str, Any] = {"s": 26} if few else {"s": 9, "alpha": 0.5}
    axes.scatter(rank, second, marker="D", color=PREDICTED, label="predicted", linewidths=0, zorder=3, **dots)
    line: dict[str, Any] = {"marker": "o", "markersize": 4.5, "zorder": 2} if few else {"zorder": 4}
    axes.plot(rank, first, color=TARGET, linewidth=1.8, label="target", **line)
    axes.set(xlabel="member, sorted by its target's accuracy", ylabel="accuracy on test images, %")
    axes.legend(loc="best", markerscale=1 if few else 2)
    return figure


def scatter(target: np.ndarray, predicted: np.ndarray, title: str) -> Figure:
    """Draw predicted over target accuracies (M,), with the diagonal of equality."""
    figure, axes = new(6.1)
    both = np.concatenate([target, predicted]) * 100
    low, high = float(np.nanmin(both)), float(np.nanmax(both))
    margin = max(0.06 * (high - low), 0.5)
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color=GREY, linewidth=1.2, linestyle=(0, (5, 3)), label="equality")
    few = len(target) <= MAX_SINGLE
    style = {"s": 36, "alpha": 0.85, "edgecolors": "white"} if few else {"s": 14, "alpha": 0.5, "edgecolors": "none"}
    axes.scatter(100 * target, 100 * predicted, color=PREDICTED, linewidths=0.6, label="member", zorder=3, **style)
    axes.set(xlim=limits, ylim=limits, xlabel="target's accuracy, %", ylabel="predicted accuracy, %", title=title)
    axes.set_aspect("equal")
    axes.legend(loc="upper left")
    return figure


def baselines(rows: Sequence[tuple[str, Mapping[str, float | None]]]) -> Figure:
    """Draw bars of R2, mean absolute difference and agreement; the first row is the space, the others are baselines."""
    panels = (
        ("r2", "R² (1 is best)", 1.0),
        ("mae", "mean difference, points (0 is best)", 100.0),
        ("agreement", "same answer, % of images (100 is best)", 100.0),
    )
    figure, stack = new(2.5 + 0.72 * len(rows), len(panels))
    names = [name for name, _ in rows]
    colours = [PREDICTED, *["#9a9a9a"] * (len(rows) - 1)]
    for axes, (key, title, scale) in zip(stack, panels, strict=True):
        values = [np.nan if of_row.get(key) is None else scale * float(of_row[key] or 0.0) for _, of_row in rows]
        drawn = np.maximum(values, WORST_R2) if key == "r2" else np.array(values)
        axes.barh(names, np.nan_to_num(drawn), color=colours, height=0.68)
        axes.axvline(0, color=GREY, linewidth=1)
        for row, (value, end) in enumerate(zip(values, drawn, strict=True)):
            digits = 3 if key == "r2" else 1
            text = "–" if np.isnan(value) else f"{value:.{digits}f}".replace("-", "−")
            text = f"{text} (beyond the axis)" if key == "r2" and value < WORST_R2 else text
            start = 0.0 if np.isnan(end) else max(end, 0.0)
            axes.annotate(text, (start, row), (4, 0), textcoords="offset points", va="center", fontsize=10)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        if key == "mae":
            axes.set_xlim(0, 1.18 * max(float(np.nanmax(np.nan_to_num(drawn))), 0.1))
        else:
            low = WORST_R2 if key == "r2" and np.nanmin(np.nan_to_num(drawn)) < 0 else 0.0
            top = 1.0 if key == "r2" else 100.0
            axes.set_xlim(1.06 * low, top + 0.16 * (top - low))
        axes.set_title(title)
    return figure


def interpolation(
    gamma: np.ndarray,
    latent: np.ndarray,
    weights: np.ndarray | None,
    title: str,
    chance: float | None = None,
    aligned: np.ndarray | None = None,
) -> Figure:
    """Draw accuracies (S,) along the line between two latents, and between their weights, as they are and aligned.

    NetSpace, Fig. 3 b and d.
    """
    figure, axes = new(4.3)
    if chance is not None:
        axes.axhline(100 * chance, color=GREY, linewidth=1.2, linestyle=(0, (1, 2)), label="chance")
    style: dict[str, Any]
    if weights is not None:
        style = {"color": TARGET, "marker": "s", "markersize": 5, "linestyle": (0, (5, 2))}
        axes.plot(gamma, 100 * weights, label="weights", linewidth=1.6, **style)
    if aligned is not None:
        style = {"color": GREEN, "marker": "^", "markersize": 5.5, "linestyle": (0, (5, 2, 1, 2))}
        axes.plot(gamma, 100 * aligned, label="aligned weights", linewidth=1.6, **style)
    style = {"color": PREDICTED, "marker": "D", "markersize": 5.5}
    axes.plot(gamma, 100 * latent, label="latents", linewidth=2, **style)
    axes.set(xlabel="γ: 0 is the start, 1 the end", ylabel="accuracy on test images, %", title=plain(title))
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def optimization(
    steps: np.ndarray, accuracy: np.ndarray, starts: Sequence[str], styles: Sequence[Look] | None = None
) -> Figure:
    """Draw accuracies (K, S) of S starts over the steps (K,) of a latent-space optimisation; `styles` by architecture."""
    figure, axes = new(4.3)
    for number, (name, values) in enumerate(zip(starts, accuracy.T, strict=True)):
        style: dict[str, Any] = {"color": START_COLOURS[number % len(START_COLOURS)], "marker": "o", "markersize": 3.5}
        turn = number // len(START_COLOURS)
        if styles is not None:
            style = {"color": styles[number].colour, "marker": styles[number].marker, "markersize": 5}
            turn = list(styles[:number]).count(styles[number])  # of its architecture
        style["linestyle"] = ("-", "--", ":")[turn % 3]
        axes.plot(steps, 100 * values, linewidth=1.8, label=plain(name, 24), **style)
    axes.set(xlabel="step", ylabel="accuracy on validation images, %")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def preps(pairs: Sequence[tuple[str, np.ndarray, str, np.ndarray]]) -> Figure:
    """Draw networks as images (NetSpace, Suppl. Fig. 5): title and parameters (P,) of target and prediction, one pair a row.

    All have one symmetric scale: up to the 99th percentile of |value|, beyond which colours no longer change.
    """
    from matplotlib import colormaps

    figure, _ = new(1.85 * len(pairs) + 0.9, 0)
    grid = figure.subplots(len(pairs), 2, squeeze=False)
    values = np.concatenate([value for _, first, _, second in pairs for value in (first, second)])
    values = np.abs(values[np.isfinite(values)])
    limit = (float(np.percentile(values, 99)) if values.size else 0.0) or 1.0
    colours = colormaps["RdBu_r"].with_extremes(bad="#d9d9d9")
    for row, (first_title, first, second_title, second) in zip(grid, pairs, strict=True):
        for axes, title, flat in zip(row, (first_title, second_title), (first, second), strict=True):
            pixels = as_image(np.where(np.isfinite(flat), flat, np.nan))
            how = "nearest" if pixels.shape[1] > MAX_WIDTH else None  # averaged, values that differ in sign would pale
            image = axes.imshow(pixels, cmap=colours, vmin=-limit, vmax=limit, aspect="equal", interpolation=how)
            axes.set_title(plain(title), fontsize=10, pad=5)
            axes.set(xticks=[], yticks=[])
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=grid, location="bottom", shrink=0.6, aspect=36, pad=0.02, extend="both")
    bar.set_label("value of the parameter")
    bar.outline.set_visible(False)
    return figure


def as_image(flat: np.ndarray) -> np.ndarray:
    """Return parameters (P,) row by row as an image about twice as wide as high; NaN after the last."""
    width = max(int(np.ceil(np.sqrt(2 * len(flat)))), 1)
    rows = -(-len(flat) // width)
    image = np.full(rows * width, np.nan)
    image[: len(flat)] = flat
    return image.reshape(rows, width)


def latent_map(sets: Sequence[tuple[str, np.ndarray, np.ndarray]], variances: tuple[float, float]) -> Figure:
    """Draw positions (M, 2) and accuracies (M,) of sets of members; the last set is in front, the others faint behind."""
    from matplotlib.colors import Normalize

    figure, axes = new(5.6)
    everything = 100 * np.concatenate([accuracy for _, _, accuracy in sets])
    scale = Normalize(float(np.nanmin(everything)), float(np.nanmax(everything)))
    for number, (name, positions, accuracy) in enumerate(sets):
        front = number == len(sets) - 1
        style = {"s": 44, "edgecolors": INK, "linewidths": 0.8} if front else {"s": 16, "alpha": 0.35, "linewidths": 0}
        drawn = axes.scatter(
            *positions.T, c=100 * accuracy, cmap="viridis", norm=scale, label=name, zorder=2 + front, **style
        )
    label_axes(axes, variances)
    figure.colorbar(drawn, ax=axes, label="target's accuracy, %", pad=0.02).outline.set_visible(False)
    if len(sets) > 1:
        axes.legend(loc="best")
    return figure


def label_axes(axes: Axes, variances: tuple[float, float]) -> None:
    """Label the axes of a latent map with their fractions of the variance."""
    texts = [f"{100 * variance:.1f} % of the variance" for variance in variances]
    axes.set(xlabel=f"first principal axis ({texts[0]})", ylabel=f"second principal axis ({texts[1]})")


def principal(latents: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Return the first two principal components (M, 2) of latents (M, E), and their fractions of the variance.

    They are eigenvectors of the smaller of the two Gram matrices. An axis's largest entry is positive, so that equal
    latents give equal maps.
    """
    centred = latents.astype(np.float64) - latents.mean(0, dtype=np.float64)
    wide = centred.shape[1] > centred.shape[0]
    values, vectors = np.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    values, vectors = np.maximum(values[::-1][:2], 0), vectors[:, ::-1][:, :2]
    components = vectors * np.sqrt(values) if wide else centred @ vectors
    components = np.pad(components, ((0, 0), (0, 2 - components.shape[1])))
    components *= np.where(components[np.abs(components).argmax(0), [0, 1]] < 0, -1, 1)
    total = float((centred**2).sum()) or 1.0
    variances = [float(value) / total for value in values]
    return components, (variances[0], variances[1] if len(variances) > 1 else 0.0)


# --- the course of a training: one panel for each kind of values in its records ---

NOT_LOSSES = (
    "stage",
    "step",
    "rate",
    "steps_a_second",
)  # keys of a record of metrics.jsonl that are no terms of the loss
MIN_LOSS = 1e-4  # down to which losses of spaces of several architectures are drawn
# of points between the ends, by architecture: the prefix of their accuracy, and the suffix of the fraction read as it
BETWEEN, CLASSID = "val_between_", "_classid"
FRACTIONS = (("val_r2", "R²", TARGET), ("val_agreement", "agreement", GREEN), ("val_classid", "ClassId", PURPLE))
# of a legend next to the title
TITLE_LEGEND: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1.01, 0.97), "ncols": 3, "borderaxespad": 0.2}
Records = Sequence[Mapping[str, Any]]


def training(records: Records, archs: Sequence[str] = ()) -> Figure:
    """Draw loss terms and validation figures over steps; `archs` are ids in the order of their ClassIds."""
    terms = [name for name in named(records) if not name.startswith("val_") and name not in NOT_LOSSES]
    between = [name for name in named(records) if name.startswith(BETWEEN)]
    panels: list[Callable[[Axes], None]] = []
    if terms:
        panels.append(lambda axes: _losses(axes, records, terms))
    if is_multi(records):
        panels.append(lambda axes: _error(axes, records))
    elif series(records, "val_mae")[0].size:
        panels.append(lambda axes: _difference(axes, records))
    if any(series(records, name)[0].size for name, _, _ in FRACTIONS):
        panels.append(lambda axes: _fractions(axes, records))
    if between:
        panels.append(lambda axes: _between(axes, records, between, archs))
    legends = 0.5 * (len(terms) > 3 or "classid" in terms) + 0.5 * bool(between)
    figure, stack = new(0.6 + legends + 2.15 * max(len(panels), 1), max(len(panels), 1), sharex=True)
    for axes, draw in zip(stack, panels, strict=False):
        draw(axes)
    stack[-1].set_xlabel("training step")
    return figure


def is_multi(records: Records) -> bool:
    """Return whether records are of a space of several architectures, which chooses the checkpoint by its error."""
    return bool(series(records, "val_classid")[0].size and series(records, "val_error")[0].size)


def _losses(axes: Axes, records: Records, terms: Sequence[str]) -> None:
    for name, colour in zip(terms, (TARGET, PREDICTED, GREEN, PURPLE, GREY) * len(terms), strict=False):
        steps, values = series(records, name)
        curve(axes, steps, np.where(values > 0, values, np.nan), colour, plain(name))
    multi = "classid" in terms  # whose loss vanishes while the others do not
    logarithmic(axes, MIN_LOSS if multi else 0.0)
    if len(terms) <= 3 and not multi:
        axes.set_title("training: loss by term (log scale)")
        axes.legend(**(TITLE_LEGEND if len(terms) < 3 else {"loc": "upper right"}))
        return
    _legend_above(axes, "training: loss by term (log scale)", len(terms))


def _legend_above(axes: Axes, title: str, entries: int) -> None:
    """Put a legend between the title and the panel, three entries in a row."""
    axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderaxespad=0.2)
    axes.set_title(title, pad=9 + 18 * -(-entries // 3))


def _difference(axes: Axes, records: Records) -> None:
    steps, values = series(records, "val_mae")
    curve(axes, steps, 100 * values, PREDICTED, "mean difference")
    _ring(axes, steps, values)
    axes.set_title("validation: mean difference of accuracy, points")
    axes.set_ylim(0, 108 * max(float(values.max()), 0.01))


def _error(axes: Axes, records: Records) -> None:
    """Draw the error by which the checkpoint is chosen, and the difference from targets."""
    steps, values = series(records, "val_error")
    top = float(values.max())
    curve(axes, steps, 100 * values, PREDICTED, "error")
    _ring(axes, steps, values)
    steps, values = series(records, "val_mae")
    if steps.size:
        curve(axes, steps, 100 * values, TARGET, "mean difference")
        top = max(top, float(values.max()))
    axes.set_title("validation: less is better, %")
    axes.set_ylim(0, 108 * max(top, 0.01))
    axes.legend(**TITLE_LEGEND)


def _ring(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    """Mark the smallest value, that of the best checkpoint."""
    best = int(values.argmin())
    axes.plot(steps[best], 100 * values[best], "o", color=INK, markersize=7, markerfacecolor="none")


def _fractions(axes: Axes, records: Records) -> None:
    present = []
    for name, label, colour in FRACTIONS:
        steps, values = series(records, name)
        if steps.size:
            curve(axes, steps, np.maximum(values, WORST_R2), colour, label)
            present.append(label)
    axes.set_title("validation: fractions" if "ClassId" in present else "validation: R² and agreement, fractions")
    axes.set_ylim(top=1.05)
    axes.legend(**TITLE_LEGEND)


def _between(axes: Axes, records: Records, names: Sequence[str], archs: Sequence[str]) -> None:
    known = {name.removeprefix(BETWEEN) for name in names}
    present = [name for name in known if not (name.endswith(CLASSID) and name.removesuffix(CLASSID) in known)]
    order = list(dict.fromkeys([*archs, *sorted(present)]))
    between_course(axes, [(name, *series(records, BETWEEN + name)) for name in order if name in present], looks(order))
    _legend_above(axes, "validation: accuracy between the ends, %", len(present))


def between_course(
    axes: Axes, curves: Iterable[tuple[str, np.ndarray, np.ndarray]], styles: Mapping[str, Look]
) -> None:
    """Draw accuracies of points between the ends over training steps, by architecture."""
    from matplotlib.ticker import MaxNLocator

    for name, steps, values in curves:
        look = styles.get(name, Look(GREY, "o"))
        style: dict[str, Any] = {"color": look.colour, "linewidth": 1.7, "markersize": 5}
        axes.plot(steps, 100 * values, marker=look.marker if len(steps) <= 40 else "", label=plain(name, 18), **style)
    axes.yaxis.set_major_locator(MaxNLocator(5))
