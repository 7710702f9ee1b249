"""Figures of how predicted networks behave (NetSpace, Fig. 3 a and c; Fig. 5, left): members, confusion, baselines.

Axes: A architectures by ClassId, M members. A single architecture is a family of one. Accuracies come as fractions and are
drawn as per cent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from netspace.report.drawing import (
    GREY,
    INK,
    MAX_SINGLE,
    PREDICTED,
    TARGET,
    WORST_R2,
    Look,
    Picture,
    count,
    finite,
    handle,
    handles_of,
    joined,
    legend_below,
    legend_rows,
    looks,
    new,
    number,
    percent,
    plain,
    points,
    ring,
)
from netspace.report.runs import Evaluated, Run
from netspace.results.shapes import listed
from netspace.results.spaces import Baseline, Evaluation, Measures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALL = {"s": 9, "alpha": 0.5, "linewidths": 0}  # dots of more than `MAX_SINGLE` members
PAIR = {"s": 34, "linewidths": 1.4, "facecolors": "white"}  # of single predictions
MEASURES = (("r2", 1), ("mae", -1), ("agreement", 1))  # 1: higher is better, -1: lower is
SIGNAL_MEASURES = (("agreement", 1), ("iou", 1), ("kl", -1))  # of networks that each were fitted to a signal of its own
BASELINES = {
    "same_accuracy": "a random training network of the same validation accuracy",
    "nearest_answers": "the training network with the nearest outputs for validation images (KL)",
    "nearest_agreement": "the training network that gives the same answer for most validation images",
    "five_nearest": "the mean output of the five nearest by their outputs",
    "constant": "one training network for every member, the best on validation members",
    "ensemble": "the mean output of all training networks",
    "nearest": "the training network with the nearest weights",
    "nearest_latent": "the training network with the nearest latent",
    "noise": "the nearest in weights plus Gaussian noise",
    "average": "the mean of all training networks' weights",
    "aligned_average": "the mean of the ten best after alignment of channels, with the statistics of its sources",
    "nearest_function": "the training network with the nearest outputs at shared points (mean squared difference)",
    "mean": "the mean of all training networks' weights",
    "distilled": "the training network with the nearest outputs (KL), its weights trained on the target's outputs for as many steps",
    "deepsdf": "an auto-decoder with as many parameters as the space's decoder, trained as long (DeepSDF)",
}
TRAINED = ("distilled",)  # baselines that learn from targets' outputs for training inputs, as refined latents do


PANELS = (  # of the figure of baselines: a measure, its title, and what is drawn as 1
    ("r2", "R² (1 is best)", 1.0),
    ("mae", "mean difference, points (0 is best)", 100.0),
    ("agreement", "same answer, % of images (100 is best)", 100.0),
)


def behaviour(run: Run) -> Iterator[Picture]:
    """Yield the figures of all evaluations' members, and of the main evaluation's scatter, confusion and baselines."""
    main = run.main
    if main is None:
        return
    others = main.figures.baselines
    odd = (len(run.evaluations) + bool(others)) % 2 == 1  # one more picture fills its row
    alone = len(run.evaluations) == 1 and not main.figures.of_signals
    for evaluated in run.evaluations.values():
        yield _members(evaluated, wide=odd and evaluated is main if evaluated.multi else alone)
    if not main.figures.of_signals:  # scores of fitted signals are all but equal
        yield _scatter(main)
    if main.multi:
        yield _confusion(main)
    if others:
        yield _baselines(main, others)


def baseline_names(others: Mapping[str, Baseline | None]) -> list[str]:
    """Return the baselines of an evaluation in the order of the page, unknown ones last, each under one name."""
    others = listed(others)
    return [*(name for name in BASELINES if name in others), *(name for name in others if name not in BASELINES)]


def measures_of(figures: Evaluation) -> tuple[tuple[str, int], ...]:
    """Return the measures by which a space is compared with baselines, and whether higher (1) or lower (-1) is better."""
    return SIGNAL_MEASURES if figures.of_signals else MEASURES


def better_baselines(evaluation: Evaluated) -> dict[str, list[str]]:
    """Return the measures (`measures_of`) in which each baseline does better than the space; only those that do in some.

    What is trained on the targets' outputs, as latents are refined, is compared with refined latents.
    """
    better: dict[str, list[str]] = {}
    figures = evaluation.figures
    for name, baseline in figures.listed_baselines.items():
        mine = (figures.refined or figures) if name in TRAINED else figures
        for measure, sign in measures_of(figures):
            own, value = finite(getattr(mine, measure)), finite(getattr(baseline, measure, None))
            if own is not None and value is not None and sign * value > sign * own:
                better.setdefault(name, []).append(measure)
    return better


def draw_members(
    target: np.ndarray, predicted: np.ndarray, ids: np.ndarray, decoded: np.ndarray, archs: Sequence[str]
) -> Figure:
    """Draw accuracies (M,) of targets of ClassIds `ids`, sorted by these, and of predictions of ClassIds `decoded`."""
    multi, few = len(archs) > 1, len(target) <= MAX_SINGLE
    figure, axes = new(4.9 + 0.26 * legend_rows(len(archs) + 2) if multi else 3.9)
    order = np.lexsort((target, ids))
    rank, first, second = np.arange(1, len(order) + 1), 100 * target[order], 100 * predicted[order]
    own, other = ids[order], decoded[order]
    if few:
        axes.vlines(rank, first, second, color="#c8c8c8", linewidth=1, zorder=1)
    by = "ClassId and its target's accuracy" if multi else "its target's accuracy"
    axes.set(xlabel=f"member, sorted by {by}", ylabel="accuracy on test images, %")
    dots: dict[str, Any]
    if not multi:
        dots = {"s": 26} if few else {"s": 9, "alpha": 0.5}
        axes.scatter(rank, second, marker="D", color=PREDICTED, label="predicted", linewidths=0, zorder=3, **dots)
        style: dict[str, Any] = {"marker": "o", "markersize": 4.5, "zorder": 2} if few else {"zorder": 4}
        axes.plot(rank, first, color=TARGET, linewidth=1.8, label="target", **style)
        axes.legend(loc="best", markerscale=1 if few else 2)
        return figure
    for border in np.flatnonzero(np.diff(own)):
        axes.axvline(border + 1.5, color="#c8c8c8", linewidth=1, linestyle=(0, (1, 2)))
    styles = looks(archs)
    for index, look in enumerate(styles.values()):
        mine, theirs = own == index, other == index
        axes.plot(rank[mine], first[mine], color=look.colour, linewidth=2, zorder=2)
        dots = PAIR if few else {**SMALL, "facecolors": look.colour}
        axes.scatter(rank[theirs], second[theirs], marker=look.marker, edgecolors=look.colour, zorder=3, **dots)
    shape = {"color": GREY, "markerfacecolor": "white"}
    present = {name: look for index, (name, look) in enumerate(styles.items()) if index in {*own, *other}}
    line = handle("target", color=GREY, linewidth=2)
    legend_below(
        figure, [*handles_of(present), line, handle("predicted", marker="o", linestyle="", markersize=6, **shape)]
    )
    return figure


def _members(evaluated: Evaluated, wide: bool) -> Picture:
    """Return the figure of targets and predictions (NetSpace, Fig. 3 a and c; Fig. 5, left)."""
    multi, members = evaluated.multi, count(len(evaluated.member))
    seen = " These members were used in training." if evaluated.split == "train" else ""
    if multi:
        texts = []
        for class_id in np.unique(evaluated.class_ids):
            mine = evaluated.class_ids == class_id
            means = percent(evaluated.target[mine].mean()), percent(evaluated.predicted[mine].mean())
            texts.append(f"{evaluated.archs[class_id]} {means[0]} (predicted {means[1]})")
        alt = f"{members} members sorted by ClassId; mean accuracies of targets: {joined(texts)}."
        right = count(int((evaluated.class_ids == evaluated.decoded_ids).sum()))
        caption = (
            "Each position on the horizontal axis is one network of the zoo: by ClassId, the smallest architecture first, then "
            "by accuracy. A line is the accuracy of the networks themselves on the test images, a marker that of the network "
            "decoded from its latent, in the colour of the architecture as which it was decoded: "
            f"{right} of {members} as their own.{seen} NetSpace, Fig. 5, left."
        )
    else:
        joins = " A grey line joins the two." if len(evaluated.member) <= MAX_SINGLE else ""
        alt = (
            f"{members} members sorted by their target's accuracy, from {percent(evaluated.target.min())} "
            f"to {percent(evaluated.target.max())}; predicted accuracies from {percent(evaluated.predicted.min())} to "
            f"{percent(evaluated.predicted.max())}, {points(evaluated.figures.mae)} away on average."
        )
        caption = (
            "Each position on the horizontal axis is one network of the zoo. The blue line is its accuracy on the test "
            f"images, the orange diamond that of the network decoded from its latent.{joins} The closer, the better."
            f"{seen} NetSpace, Fig. 3 a and c."
        )
    title = f"Targets and predictions, {evaluated.split} split"
    drawn = draw_members(*evaluated.pairs, evaluated.archs)
    return Picture(f"members-{evaluated.split}", "behaviour", title, drawn, alt, caption, wide=wide)


def draw_scatter(
    target: np.ndarray, predicted: np.ndarray, ids: np.ndarray, decoded: np.ndarray, archs: Sequence[str], title: str
) -> Figure:
    """Draw predicted over target accuracies (M,), by the target's ClassId; a ring marks those decoded as another."""
    multi, few = len(archs) > 1, len(target) <= MAX_SINGLE
    present = [index for index in range(len(archs)) if (ids == index).any()]
    figure, axes = new(6.0 + 0.26 * legend_rows(len(present) + 2) if multi else 6.1)
    both = np.concatenate([target, predicted]) * 100
    low, high = float(np.nanmin(both)), float(np.nanmax(both))
    margin = max(0.06 * (high - low), 0.5)
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color=GREY, linewidth=1.2, linestyle=(0, (5, 3)), label="equality")
    style: dict[str, Any] = {"s": 36, "alpha": 0.8 if multi else 0.85, "linewidths": 0.6, "edgecolors": "white"}
    style = style if few else {"s": 14, "alpha": 0.5, "linewidths": 0, "edgecolors": "face" if multi else "none"}
    styles = looks(archs) if multi else dict.fromkeys(archs, Look(PREDICTED, "o"))
    for index in present:
        mine, look = ids == index, styles[archs[index]]
        dots = axes.scatter(
            100 * target[mine], 100 * predicted[mine], marker=look.marker, color=look.colour, zorder=3, **style
        )
    axes.set(xlim=limits, ylim=limits, xlabel="target's accuracy, %", ylabel="predicted accuracy, %", title=title)
    axes.set_aspect("equal")
    if not multi:
        dots.set_label("member")
        axes.legend(loc="upper left")
        return figure
    handles = [*handles_of({archs[index]: styles[archs[index]] for index in present}, dots=True)]
    handles.append(handle("equality", color=GREY, linestyle=(0, (5, 3))))
    if (wrong := ids != decoded).any():
        rings: dict[str, Any] = {"facecolors": "none", "edgecolors": INK, "linewidths": 1.2}
        axes.scatter(100 * target[wrong], 100 * predicted[wrong], s=110 if few else 40, zorder=4, **rings)
        handles.append(ring("decoded as another", 10))
    legend_below(figure, handles)
    return figure


def _scatter(main: Evaluated) -> Picture:
    """Return the figure of predicted over target accuracy, by architecture."""
    figures, members = main.figures, count(len(main.member))
    measured = f"R² {number(figures.r2)} · mean difference {points(figures.mae)}"
    if main.multi:
        other = bool((main.class_ids != main.decoded_ids).any())
        ringed = " A ring marks networks that were decoded as another architecture." if other else ""
        of = f"{members} members of {count(len(np.unique(main.class_ids)))} architectures"
        marker = "marker"
        rest = f"R² over all members also counts how architectures differ from each other; the table has it within each.{ringed}"
    else:
        measured += f" · agreement {percent(figures.agreement)}"
        of, marker = f"{members} members", "dot"
        rest = "R² is 1 on the diagonal and 0 for predicting the targets' mean accuracy always."
    return Picture(
        f"scatter-{main.split}",
        "behaviour",
        f"Predicted over target accuracy, {main.split} split",
        draw_scatter(*main.pairs, main.archs, measured),
        f"Predicted over target accuracy of {of}. {measured}.",
        f"Each {marker} is one network; on the dashed diagonal the decoded network is exactly as accurate as its target. {rest}",
        wide=False,
    )


def draw_confusion(counts: np.ndarray, archs: Sequence[str], rows: Sequence[int]) -> Figure:
    """Draw counts (A, A) of members of each architecture decoded as each; `rows` are those with members."""
    figure, axes = new(2.1 + 0.55 * len(rows))
    counts = counts[list(rows)]
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
    for row, column in np.ndindex(*counts.shape):
        colour = "#fefefe" if fractions[row, column] > 0.6 else "#212121" if counts[row, column] else "#777777"
        axes.text(column, row, f"{counts[row, column]:,.0f}", ha="center", va="center", color=colour, fontsize=12)
    names = [plain(name, 20) for name in archs]
    slanted = (
        {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(names) * max(map(len, names)) > 44 else {}
    )
    axes.set_xticks(range(len(names)), names, **slanted)
    axes.set_yticks(range(len(rows)), [names[row] for row in rows])
    axes.set(xlabel="decoded as", ylabel="the network is")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(visible=True, which="minor", color="#d6d6d6", linewidth=1)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    return figure


def _confusion(evaluated: Evaluated) -> Picture:
    """Return the figure of the architectures as which members were decoded."""
    archs, counts = evaluated.archs, np.array(evaluated.figures.confusion)
    rows = np.flatnonzero(counts.sum(1) > 0).tolist()
    wrong = [
        f"{count(counts[row, column])} {archs[row]} as {archs[column]}"
        for row, column in np.argwhere(counts > 0)
        if row != column
    ]
    errors = f"Decoded as another: {joined(wrong)}." if wrong else "None was decoded as another."
    without = [name for class_id, name in enumerate(archs) if class_id not in rows]
    rest = f" Of {joined(without)} the evaluation has no members." if without else ""
    return Picture(
        f"confusion-{evaluated.split}",
        "behaviour",
        f"Architectures read from latents, {evaluated.split} split",
        draw_confusion(counts, archs, rows),
        f"Counts of members by their architecture and that as which they were decoded. {errors}",
        f"Rows are the networks' architectures, columns those that the ClassId head read from their latents; counts of "
        f"members. {errors}{rest} NetSpace, Eq. 6.",
        wide=False,
    )


def draw_baselines(rows: Sequence[tuple[str, Mapping[str, float | None]]]) -> Figure:
    """Draw bars of the measures that rows have; the space is the first, perhaps with refined latents the second, then baselines."""
    panels = [each for each in PANELS if each[0] in rows[0][1]] or list(PANELS)  # of a space without measures: all
    figure, stack = new((2.5 + 0.72 * len(rows)) * len(panels) / 3, len(panels))
    names = [name for name, _ in rows]
    colours = [PREDICTED if name in ("space", "refined") else "#9a9a9a" for name in names]
    for axes, (key, title, scale) in zip(np.atleast_1d(stack), panels, strict=True):
        values = [np.nan if of_row.get(key) is None else scale * float(of_row[key] or 0.0) for _, of_row in rows]
        drawn = np.maximum(values, WORST_R2) if key == "r2" else np.array(values)
        axes.barh(names, np.nan_to_num(drawn), color=colours, height=0.68)
        axes.axvline(0, color=GREY, linewidth=1)
        for row, (value, end) in enumerate(zip(values, drawn, strict=True)):
            digits = 1 if scale > 1 else 3
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
            top = scale
            axes.set_xlim(1.06 * low, top + 0.16 * (top - low))
        axes.set_title(title)
    return figure


def _baselines(main: Evaluated, others: Mapping[str, Baseline | None]) -> Picture:
    """Return the figure of baselines; of networks of signals without R2, which says nothing there."""
    signals = main.figures.of_signals
    drawn = [key for key, _ in measures_of(main.figures) if key in {name for name, _, _ in PANELS}]
    rows: list[tuple[str, Measures]] = [("space", main.figures)]
    rows += [("refined", main.figures.refined)] if main.figures.refined else []
    rows += [(name, each) for name in baseline_names(others) if (each := others[name]) is not None and each.payload()]
    clean = [(plain(name, 20), {key: finite(getattr(row, key)) for key in drawn}) for name, row in rows]
    values = [
        f"{name}: same answer {percent(row.agreement)}"
        if signals
        else f"{name}: R² {number(row.r2)}, {points(row.mae)}"
        for name, row in rows
    ]
    own = " All are networks of the target's own architecture." if main.multi else ""
    return Picture(
        f"baselines-{main.split}",
        "behaviour",
        "The space and baselines",
        draw_baselines(clean),
        f"Bars for the space and baselines. {'; '.join(values)}.",
        "Networks that the space reconstructs (orange) and baselines, which need no decoder (grey): "
        + ("refined is the space after descent on its latents; " if main.figures.refined else "")
        + f"{'; '.join(f'{name} is {BASELINES[name]}' for name, _ in rows if name in BASELINES)}.{own}",
        wide=False,
    )
