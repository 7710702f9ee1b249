"""Figures of spaces of several architectures: plain data in, a matplotlib `Figure` out (NetSpace, Fig. 5).

Axes: A architectures by ClassId, M members, S points of a line. An architecture has one colour and one marker in all
figures. Accuracies come as fractions and are drawn as per cent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from netspace.report.classes import ClassLine
from netspace.report.drawing import GREY, INK, MANY, Look, looks, new, plain, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

ON_FACTOR = 1e-4  # gamma is kept with six decimals
NEAR = 0.25  # chance is drawn where an accuracy comes so near to it
LEAST = 12.0  # per cent of accuracy that an axis spans, at least, about
PAIR = {"s": 34, "linewidths": 1.4, "facecolors": "white"}  # of a prediction beside its target


def members(
    target: np.ndarray, predicted: np.ndarray, ids: np.ndarray, decoded: np.ndarray, archs: list[str]
) -> Figure:
    """Accuracies (M,) of targets of ClassIds `ids`, sorted by these, and of predictions of ClassIds `decoded`."""
    styles = looks(archs)
    figure, axes = new(4.9 + 0.26 * _rows(len(archs) + 2))
    order = np.lexsort((target, ids))
    place, first, second = np.arange(1, len(order) + 1), 100 * target[order], 100 * predicted[order]
    own, other = ids[order], decoded[order]
    few = len(order) <= MANY
    if few:
        axes.vlines(place, first, second, color="#c8c8c8", linewidth=1, zorder=1)
    for border in np.flatnonzero(np.diff(own)):
        axes.axvline(border + 1.5, color="#c8c8c8", linewidth=1, linestyle=(0, (1, 2)))
    for number, look in enumerate(styles.values()):
        mine, theirs = own == number, other == number
        axes.plot(place[mine], first[mine], color=look.colour, linewidth=2, zorder=2)
        dots: dict[str, Any] = PAIR if few else {"s": 9, "alpha": 0.5, "linewidths": 0, "facecolors": look.colour}
        axes.scatter(place[theirs], second[theirs], marker=look.marker, edgecolors=look.colour, zorder=3, **dots)
    axes.set(xlabel="member, sorted by ClassId and its target's accuracy", ylabel="accuracy on test images, %")
    shape = {"color": GREY, "markerfacecolor": "white"}
    beside = [
        _handle("target", color=GREY, linewidth=2),
        _handle("predicted", marker="o", linestyle="", markersize=6, **shape),
    ]
    present = {name: look for number, (name, look) in enumerate(styles.items()) if number in {*own, *other}}
    _legend(figure, [*_handles(present), *beside])
    return figure


def scatter(
    target: np.ndarray, predicted: np.ndarray, ids: np.ndarray, decoded: np.ndarray, archs: list[str], title: str
) -> Figure:
    """Predicted over target accuracies (M,), by the target's ClassId; those decoded as another are ringed."""
    present = [number for number in range(len(archs)) if (ids == number).any()]
    figure, axes = new(6.0 + 0.26 * _rows(len(present) + 2))
    both = np.concatenate([target, predicted]) * 100
    low, high = float(np.nanmin(both)), float(np.nanmax(both))
    margin = max(0.06 * (high - low), 0.5)
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color=GREY, linewidth=1.2, linestyle=(0, (5, 3)))
    few = len(target) <= MANY
    style: dict[str, Any] = {"s": 36, "alpha": 0.8, "linewidths": 0.6, "edgecolors": "white"}
    style = style if few else {"s": 14, "alpha": 0.5, "linewidths": 0}
    styles = looks(archs)
    for number in present:
        mine, look = ids == number, styles[archs[number]]
        axes.scatter(
            100 * target[mine], 100 * predicted[mine], marker=look.marker, color=look.colour, zorder=3, **style
        )
    wrong = ids != decoded
    ring: dict[str, Any] = {"facecolors": "none", "edgecolors": INK, "linewidths": 1.2}
    axes.scatter(100 * target[wrong], 100 * predicted[wrong], s=110 if few else 40, zorder=4, **ring)
    axes.set(xlim=limits, ylim=limits, xlabel="target's accuracy, %", ylabel="predicted accuracy, %", title=title)
    axes.set_aspect("equal")
    handles = [*_handles({archs[number]: styles[archs[number]] for number in present}, dots=True)]
    handles.append(_handle("equality", color=GREY, linestyle=(0, (5, 3))))
    if wrong.any():
        handles.append(_ring("decoded as another", 10))
    _legend(figure, handles)
    return figure


def line(
    found: ClassLine,
    styles: Mapping[str, Look],
    unseen: Sequence[str],
    chance: float | None = None,
    weights: Any = None,
) -> Figure:
    """Accuracies (S,) along a line, by architecture: rings at the ends, stars at the factors of Eq. 12.

    `weights` (S,) are accuracies of networks whose weights were mixed, where the ends' can be.
    """
    present = {name: styles[name] for name in styles if name in found.arch}
    handles = _handles(present, unseen, dots=True)
    figure, axes = new(4.1 + 0.26 * _rows(len(handles) + 3, handles))
    if chance is not None and not (found.accuracy > chance + NEAR).all():
        axes.axhline(100 * chance, color=GREY, linewidth=1.2, linestyle=(0, (1, 2)))
        handles.append(_handle("chance", color=GREY, linewidth=1.2, linestyle=(0, (1, 2))))
    if weights is not None:
        axes.plot(found.gamma, 100 * weights, color=GREY, linewidth=1.4, linestyle=(0, (5, 2)))
        handles.append(_handle("weights", color=GREY, linewidth=1.4, linestyle=(0, (5, 2))))
    gamma, accuracy, arch = found.gamma, 100 * found.accuracy, np.array(found.arch)
    stars = np.array([bool(found.factors) and min(abs(g - f) for f, _ in found.factors) < ON_FACTOR for g in gamma])
    for place, name in found.factors:
        look = styles.get(name)
        axes.axvline(place, color=look.colour if look else GREY, linewidth=1.4, linestyle=(0, (1, 2)), alpha=0.9)
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
    missing = max(LEAST - (high - low), 0) / 2  # a level line is to look level
    axes.set_ylim(low - missing, min(high + missing, max(high, 101)))
    handles.append(_ring("end", 10))
    if stars.any():
        handles.append(_handle("factor of Eq. 12", marker="*", linestyle="", color="white", markersize=13))
        handles[-1].set_markeredgecolor(INK)
    _legend(figure, handles)
    return figure


def confusion(counts: np.ndarray, archs: Sequence[str], rows: Sequence[int]) -> Figure:
    """Counts (A, A) of how members of each architecture were decoded; only the given rows, those with members."""
    figure, axes = new(2.1 + 0.55 * len(rows))
    shown = counts[list(rows)]
    shares = shown / np.maximum(shown.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
    for row, column in np.ndindex(*shown.shape):
        colour = "white" if shares[row, column] > 0.6 else INK if shown[row, column] else GREY
        axes.text(column, row, f"{shown[row, column]:,.0f}", ha="center", va="center", color=colour, fontsize=12)
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


def latent_map(
    sets: Sequence[tuple[str, np.ndarray, np.ndarray]], archs: list[str], variances: tuple[float, float]
) -> Figure:
    """Places (M, 2) and ClassIds (M,) of sets of members; the last set is in front, the others faint behind."""
    styles, present = looks(archs), set(np.concatenate([ids for _, _, ids in sets]).tolist())
    shown = {name: styles[name] for number, name in enumerate(archs) if number in present}
    figure, axes = new(5.4 + 0.26 * _rows(len(shown) + len(sets)))
    for number, (_, place, ids) in enumerate(sets):
        front = number == len(sets) - 1
        style: dict[str, Any] = {"s": 44, "edgecolors": INK, "linewidths": 0.7}
        style = style if front else {"s": 16, "alpha": 0.35, "linewidths": 0}
        for arch, look in shown.items():
            mine = ids == archs.index(arch)
            axes.scatter(*place[mine].T, color=look.colour, marker=look.marker, zorder=2 + front, **style)
    shares = [f"{100 * share:.1f} % of the variance" for share in variances]
    axes.set(xlabel=f"first principal axis ({shares[0]})", ylabel=f"second principal axis ({shares[1]})")
    handles = _handles(shown, dots=True)
    if len(sets) > 1:
        dot = {"marker": "o", "linestyle": "", "color": GREY}
        handles += [_handle(name, markersize=4, alpha=0.5, **dot) for name, _, _ in sets[:-1]]
        handles.append(_handle(sets[-1][0], markersize=7, markeredgecolor=INK, **dot))
    _legend(figure, handles)
    return figure


def between_course(
    axes: Axes, curves: Iterable[tuple[str, np.ndarray, np.ndarray]], styles: Mapping[str, Look]
) -> None:
    """Accuracies over training steps of what lies between, by architecture."""
    from matplotlib.ticker import MaxNLocator

    for name, steps, values in curves:
        look = styles.get(name, Look(GREY, "o"))
        style: dict[str, Any] = {"color": look.colour, "linewidth": 1.7, "markersize": 5}
        axes.plot(steps, 100 * values, marker=look.marker if len(steps) <= 40 else "", label=plain(name, 18), **style)
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _handle(label: str, **style: Any) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], label=plain(label, 36), **style)


def _ring(label: str, size: float) -> Line2D:
    ring = {"markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.3}
    return _handle(label, marker="o", linestyle="", markersize=size, **ring)


def _handles(styles: Mapping[str, Look], unseen: Sequence[str] = (), dots: bool = False) -> list[Line2D]:
    """A legend's entries for architectures: a line with an open marker, or a dot."""
    found = []
    for name, look in styles.items():
        style: dict[str, Any] = {"marker": look.marker, "color": look.colour, "markersize": 6}
        style |= {"linestyle": ""} if dots else {"linewidth": 2, "markerfacecolor": "white"}
        label = f"{shortened(name, 20)} (never shown)" if name in unseen else shortened(name, 24)
        found.append(_handle(label, **style))
    return found


def _columns(handles: Sequence[Line2D]) -> int:
    return 2 if any(len(str(handle.get_label())) > 19 for handle in handles) else 3


def _rows(entries: int, handles: Sequence[Line2D] = ()) -> int:
    """How many rows a legend takes."""
    return -(-entries // _columns(handles))


def _legend(figure: Figure, handles: list[Line2D]) -> None:
    figure.legend(handles=handles, loc="outside lower center", ncols=_columns(handles))
