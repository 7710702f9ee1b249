"""Figures of spaces of several architectures with their captions (NetSpace, Fig. 5).

Axes: A architectures by ClassId, M members, S points of a line. An architecture has one colour and one marker in all
figures. Accuracies come as fractions and are drawn as per cent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from netspace.report.drawing import (
    GREY,
    INK,
    MAX_SINGLE,
    Dot,
    Look,
    Picture,
    count,
    end_words,
    joined,
    looks,
    new,
    number,
    percent,
    plain,
    points,
    shortened,
)
from netspace.report.figures_space import label_axes
from netspace.report.runs import Evaluated, Line, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

SMALL = {"s": 9, "alpha": 0.5, "linewidths": 0}  # dots of more than `MAX_SINGLE` members
ON_FACTOR = 1e-4  # difference of gamma, which is stored with six decimals, from a factor
NEAR_CHANCE = 0.25  # chance is drawn if an accuracy comes so near to it
MIN_SPAN = 12.0  # per cent of accuracy that an axis spans, about
PAIR = {"s": 34, "linewidths": 1.4, "facecolors": "white"}  # of single predictions
MAX_PIECES = 8  # of a line that its alternative text names one by one


def draw_members(
    target: np.ndarray, predicted: np.ndarray, ids: np.ndarray, decoded: np.ndarray, archs: list[str]
) -> Figure:
    """Draw accuracies (M,) of targets of ClassIds `ids`, sorted by these, and of predictions of ClassIds `decoded`."""
    styles = looks(archs)
    figure, axes = new(4.9 + 0.26 * _rows(len(archs) + 2))
    order = np.lexsort((target, ids))
    rank, first, second = np.arange(1, len(order) + 1), 100 * target[order], 100 * predicted[order]
    own, other = ids[order], decoded[order]
    few = len(order) <= MAX_SINGLE
    if few:
        axes.vlines(rank, first, second, color="#c8c8c8", linewidth=1, zorder=1)
    for border in np.flatnonzero(np.diff(own)):
        axes.axvline(border + 1.5, color="#c8c8c8", linewidth=1, linestyle=(0, (1, 2)))
    for index, look in enumerate(styles.values()):
        mine, theirs = own == index, other == index
        axes.plot(rank[mine], first[mine], color=look.colour, linewidth=2, zorder=2)
        dots: dict[str, Any] = PAIR if few else {**SMALL, "facecolors": look.colour}
        axes.scatter(rank[theirs], second[theirs], marker=look.marker, edgecolors=look.colour, zorder=3, **dots)
    axes.set(xlabel="member, sorted by ClassId and its target's accuracy", ylabel="accuracy on test images, %")
    shape = {"color": GREY, "markerfacecolor": "white"}
    present = {name: look for index, (name, look) in enumerate(styles.items()) if index in {*own, *other}}
    line = _handle("target", color=GREY, linewidth=2)
    _legend(figure, [*_handles(present), line, _handle("predicted", marker="o", linestyle="", markersize=6, **shape)])
    return figure


def draw_scatter(
    target: np.ndarray, predicted: np.ndarray, ids: np.ndarray, decoded: np.ndarray, archs: list[str], title: str
) -> Figure:
    """Draw predicted over target accuracies (M,), by the target's ClassId; a ring marks those decoded as another."""
    present = [index for index in range(len(archs)) if (ids == index).any()]
    figure, axes = new(6.0 + 0.26 * _rows(len(present) + 2))
    both = np.concatenate([target, predicted]) * 100
    low, high = float(np.nanmin(both)), float(np.nanmax(both))
    margin = max(0.06 * (high - low), 0.5)
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color=GREY, linewidth=1.2, linestyle=(0, (5, 3)))
    few = len(target) <= MAX_SINGLE
    style: dict[str, Any] = {"s": 36, "alpha": 0.8, "linewidths": 0.6, "edgecolors": "white"}
    style = style if few else {"s": 14, "alpha": 0.5, "linewidths": 0}
    styles = looks(archs)
    for index in present:
        mine, look = ids == index, styles[archs[index]]
        axes.scatter(
            100 * target[mine], 100 * predicted[mine], marker=look.marker, color=look.colour, zorder=3, **style
        )
    wrong = ids != decoded
    ring: dict[str, Any] = {"facecolors": "none", "edgecolors": INK, "linewidths": 1.2}
    axes.scatter(100 * target[wrong], 100 * predicted[wrong], s=110 if few else 40, zorder=4, **ring)
    axes.set(xlim=limits, ylim=limits, xlabel="target's accuracy, %", ylabel="predicted accuracy, %", title=title)
    axes.set_aspect("equal")
    handles = [*_handles({archs[index]: styles[archs[index]] for index in present}, dots=True)]
    handles.append(_handle("equality", color=GREY, linestyle=(0, (5, 3))))
    if wrong.any():
        handles.append(_ring("decoded as another", 10))
    _legend(figure, handles)
    return figure


def draw_line(line: Line, styles: Mapping[str, Look], unseen: Sequence[str], chance: float | None = None) -> Figure:
    """Draw accuracies (S,) along a line, by architecture: rings at the ends, stars at the factors of Eq. 12."""
    present = {name: styles[name] for name in styles if name in line.arch}
    handles = _handles(present, unseen, dots=True)
    figure, axes = new(4.1 + 0.26 * _rows(len(handles) + 3 + (line.aligned is not None), handles))
    if chance is not None and not (line.accuracy > chance + NEAR_CHANCE).all():
        axes.axhline(100 * chance, color=GREY, linewidth=1.2, linestyle=(0, (1, 2)))
        handles.append(_handle("chance", color=GREY, linewidth=1.2, linestyle=(0, (1, 2))))
    for values, label, colour, dashes in (
        (line.weights, "weights", GREY, (5, 2)),
        (line.aligned, "aligned weights", INK, (5, 2, 1, 2)),
    ):
        if values is not None:
            axes.plot(line.gamma, 100 * values, color=colour, linewidth=1.4, linestyle=(0, dashes))
            handles.append(_handle(label, color=colour, linewidth=1.4, linestyle=(0, dashes)))
    gamma, accuracy, arch = line.gamma, 100 * line.accuracy, np.array(line.arch)
    stars = np.array([bool(line.factors) and min(abs(g - f) for f, _ in line.factors) < ON_FACTOR for g in gamma])
    for factor, name in line.factors:
        look = styles.get(name)
        axes.axvline(factor, color=look.colour if look else GREY, linewidth=1.4, linestyle=(0, (1, 2)), alpha=0.9)
    axes.plot(gamma, accuracy, color="#c8c8c8", linewidth=1.2, zorder=1)
    for name, look in present.items():
        mine, starred = (arch == name) & ~stars, (arch == name) & stars
        axes.scatter(gamma[mine], accuracy[mine], s=30, marker=look.marker, color=look.colour, linewidths=0, zorder=3)
        edge = {"edgecolors": INK, "linewidths": 0.8}
        axes.scatter(gamma[starred], accuracy[starred], s=210, marker="*", color=look.colour, zorder=4, **edge)
    ends = [0, -1]
    axes.scatter(gamma[ends], accuracy[ends], s=150, facecolors="none", edgecolors=INK, linewidths=1.3, zorder=4)
    axes.set(xlabel="γ: 0 is the start, 1 the end", ylabel="accuracy on test images, %")
    axes.margins(y=0.1)
    low, high = axes.get_ylim()
    missing = max(MIN_SPAN - (high - low), 0) / 2  # a level line looks level
    axes.set_ylim(low - missing, min(high + missing, max(high, 101)))
    handles.append(_ring("end", 10))
    if stars.any():
        handles.append(_handle("factor of Eq. 12", marker="*", linestyle="", color="white", markersize=13))
        handles[-1].set_markeredgecolor(INK)
    _legend(figure, handles)
    return figure


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


def draw_latent_map(
    sets: Sequence[tuple[str, np.ndarray, np.ndarray]], archs: list[str], variances: tuple[float, float]
) -> Figure:
    """Draw positions (M, 2) and ClassIds (M,) of sets of members; the last set is in front, the others faint behind."""
    ids_present = set(np.concatenate([ids for _, _, ids in sets]).tolist())
    present = {name: look for index, (name, look) in enumerate(looks(archs).items()) if index in ids_present}
    figure, axes = new(5.4 + 0.26 * _rows(len(present) + len(sets)))
    for index, (_, positions, ids) in enumerate(sets):
        front = index == len(sets) - 1
        style: dict[str, Any] = {"s": 44, "edgecolors": INK, "linewidths": 0.7}
        style = style if front else {"s": 16, "alpha": 0.35, "linewidths": 0}
        for arch, look in present.items():
            mine = ids == archs.index(arch)
            axes.scatter(*positions[mine].T, color=look.colour, marker=look.marker, zorder=2 + front, **style)
    label_axes(axes, variances)
    handles = _handles(present, dots=True)
    if len(sets) > 1:
        dot = {"marker": "o", "linestyle": "", "color": GREY}
        handles += [_handle(name, markersize=4, alpha=0.5, **dot) for name, _, _ in sets[:-1]]
        handles.append(_handle(sets[-1][0], markersize=7, markeredgecolor=INK, **dot))
    _legend(figure, handles)
    return figure


def _handle(label: str, **style: Any) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], label=plain(label, 36), **style)


def _ring(label: str, size: float) -> Line2D:
    ring = {"markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.3}
    return _handle(label, marker="o", linestyle="", markersize=size, **ring)


def _handles(styles: Mapping[str, Look], unseen: Sequence[str] = (), dots: bool = False) -> list[Line2D]:
    """Return a legend's entries for architectures: a line with an open marker, or a dot."""
    handles = []
    for name, look in styles.items():
        style: dict[str, Any] = {"marker": look.marker, "color": look.colour, "markersize": 6}
        style |= {"linestyle": ""} if dots else {"linewidth": 2, "markerfacecolor": "white"}
        label = f"{shortened(name, 24)} (unseen)" if name in unseen else shortened(name, 24)
        handles.append(_handle(label, **style))
    return handles


def _columns(handles: Sequence[Line2D]) -> int:
    return 2 if any(len(str(handle.get_label())) > 19 for handle in handles) else 3


def _rows(entries: int, handles: Sequence[Line2D] = ()) -> int:
    """Return the number of rows of a legend."""
    return -(-entries // _columns(handles))


def _legend(figure: Figure, handles: list[Line2D]) -> None:
    figure.legend(handles=handles, loc="outside lower center", ncols=_columns(handles))


# --- the figures with their captions ---


def members(evaluated: Evaluated, wide: bool) -> Picture:
    """Return the figure of targets and predictions by ClassId (NetSpace, Fig. 5, left)."""
    archs = evaluated.figures.archs
    seen = " These members were used in training." if evaluated.split == "train" else ""
    texts = []
    for class_id in np.unique(evaluated.class_ids):
        mine = evaluated.class_ids == class_id
        means = percent(evaluated.target[mine].mean()), percent(evaluated.predicted[mine].mean())
        texts.append(f"{archs[class_id]} {means[0]} (predicted {means[1]})")
    right = int((evaluated.class_ids == evaluated.decoded_ids).sum())
    return Picture(
        f"members-{evaluated.split}",
        "behaviour",
        f"Targets and predictions, {evaluated.split} split",
        draw_members(evaluated.target, evaluated.predicted, evaluated.class_ids, evaluated.decoded_ids, archs),
        f"{count(len(evaluated.member))} members sorted by ClassId; mean accuracies of targets: {joined(texts)}.",
        "Each position on the horizontal axis is one network of the zoo: by ClassId, the smallest architecture first, then "
        "by accuracy. A line is the accuracy of the networks themselves on the test images, a marker that of the network "
        "decoded from its latent, in the colour of the architecture as which it was decoded: "
        f"{count(right)} of {count(len(evaluated.member))} as their own.{seen} NetSpace, Fig. 5, left.",
        wide=wide,
    )


def scatter(evaluated: Evaluated) -> Picture:
    """Return the figure of predicted over target accuracy, by architecture."""
    figures = evaluated.figures
    other = bool((evaluated.class_ids != evaluated.decoded_ids).any())
    ringed = " A ring marks networks that were decoded as another architecture." if other else ""
    measured = f"R² {number(figures.r2)} · mean difference {points(figures.mae)}"
    drawn = draw_scatter(
        evaluated.target,
        evaluated.predicted,
        evaluated.class_ids,
        evaluated.decoded_ids,
        evaluated.figures.archs,
        measured,
    )
    return Picture(
        f"scatter-{evaluated.split}",
        "behaviour",
        f"Predicted over target accuracy, {evaluated.split} split",
        drawn,
        f"Predicted over target accuracy of {count(len(evaluated.member))} members of "
        f"{count(len(np.unique(evaluated.class_ids)))} architectures. {measured}.",
        "Each marker is one network; on the dashed diagonal the decoded network is exactly as accurate as its target. R² "
        f"over all members also counts how architectures differ from each other; the table has it within each.{ringed}",
        wide=False,
    )


def confusion(evaluated: Evaluated) -> Picture:
    """Return the figure of the architectures as which members were decoded."""
    archs, counts = evaluated.figures.archs, np.array(evaluated.figures.confusion)
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


def evaluated_line(run: Run, evaluated: Evaluated, line: Line) -> Picture:
    """Return the figure of an evaluation's line from the smallest to the largest architecture."""
    how = (
        f"From the best network of the smallest to the best of the largest architecture ({line.start} to {line.end}), "
        "chosen on validation images."
    )
    title = f"Smallest to largest architecture, {evaluated.split} split"
    return line_picture(run, line, f"classes-{evaluated.split}", title, how)


def line_picture(run: Run, line: Line, name: str, title: str, how: str) -> Picture:
    """Return the figure of a line through several architectures."""
    archs = list(dict.fromkeys([*run.order, *line.arch]))
    unseen = [each for each in run.unseen if each in line.arch]
    stars = any(abs(gamma - factor) < ON_FACTOR for factor, _ in line.factors for gamma in line.gamma)
    marks = "Rings are the ends"
    if stars:
        marks += (
            ", stars the networks at the factors of Eq. 12; a dotted line has the colour of the factor's architecture"
        )
    elif line.factors:
        marks += ", dotted lines are at the factors of Eq. 12, in the colours of their architectures"
    rest = f" Not seen in training: {joined(unseen)}." if unseen else ""
    dotted = ", that of dashes and dots the same with aligned weights" if line.aligned is not None else ""
    direct = f" The grey dashed line are networks whose weights were interpolated directly{dotted}."
    figure = "right" if run.unseen else "centre"
    return Picture(
        name,
        "lines",
        title,
        draw_line(line, looks(archs), run.unseen, run.chance),
        f"{title}: {_pieces(line)}.",
        f"{how} Each point is a network decoded from a latent of the line, of the architecture that the latent stands for. "
        f"{marks}.{end_words(line.end_differences)}{rest}{direct if line.weights is not None else ''} NetSpace, Fig. 5, "
        f"{figure}.",
        wide=False,
        marks=line.marks,
        ends=(line.start, line.end),
    )


def _pieces(line: Line) -> str:
    """Return the architectures in their order along the line, with ranges of gamma and accuracy."""
    texts = []
    for arch, group in groupby(range(len(line.arch)), key=line.arch.__getitem__):
        indices = list(group)
        accuracy = line.accuracy[indices]
        ranges = f"γ {number(line.gamma[indices[0]])} to {number(line.gamma[indices[-1]])}"
        texts.append(f"{arch} ({ranges}, accuracy {percent(accuracy.min())} to {percent(accuracy.max())})")
    if len(texts) > MAX_PIECES:
        return f"{len(texts)} stretches of {joined(list(dict.fromkeys(line.arch)))}"
    return joined(texts)


def latent_map(
    sets: Sequence[tuple[str, np.ndarray, np.ndarray]],
    archs: list[str],
    variances: tuple[float, float],
    dots: Sequence[Dot],
) -> Picture:
    """Return the map of latents by architecture: sets of positions (M, 2) and ClassIds (M,)."""
    present = [archs[class_id] for class_id in np.unique(np.concatenate([ids for _, _, ids in sets]))]
    return Picture(
        "latents",
        "preps",
        "Map of the latent space",
        draw_latent_map(sets, archs, variances),
        f"{joined([f'{count(len(piece))} latents of the {name}' for name, piece, _ in sets])} on their first two "
        f"principal axes, by architecture: {joined(present)}.",
        "Each marker is the latent of one network, projected on the two directions along which latents vary most (they "
        f"hold {percent(sum(variances))} of the variance); colour and marker are its architecture. Other directions are not "
        "drawn.",
        wide=False,
        dots=dots,
    )
