"""Figures of lines between networks, and of descent on latents (NetSpace, Fig. 3 b and d; Fig. 5, centre and right).

Axes: S points of a line or starts, K records. Accuracies come as fractions and are drawn as per cent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from netspace.report.drawing import (
    GREEN,
    GREY,
    INK,
    PREDICTED,
    PURPLE,
    TARGET,
    Look,
    Picture,
    count,
    end_words,
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
    ring,
    shortened,
)
from netspace.report.line_data import Line, class_line, mean_line
from netspace.report.runs import Evaluated, Run
from netspace.results.spaces import Optimization

if TYPE_CHECKING:
    from matplotlib.figure import Figure

START_COLOURS = (PREDICTED, TARGET, GREEN, PURPLE, INK, GREY)  # of an optimisation's starts, in their order
ON_FACTOR = 1e-4  # difference of gamma, which is stored with six decimals, from a factor
NEAR_CHANCE = 0.25  # chance is drawn if an accuracy comes so near to it
MIN_SPAN = 12.0  # per cent of accuracy that an axis spans, about
MAX_PIECES = 8  # of a line that its alternative text names one by one


def draw_line(
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


def draw_line_through(
    line: Line, styles: Mapping[str, Look], unseen: Sequence[str], chance: float | None = None
) -> Figure:
    """Draw accuracies (S,) along a line, by architecture: rings at the ends, stars at the factors of Eq. 12."""
    present = {name: styles[name] for name in styles if name in line.arch}
    handles = handles_of(present, unseen, dots=True)
    figure, axes = new(4.1 + 0.26 * legend_rows(len(handles) + 3 + (line.aligned is not None), handles))
    if chance is not None and not (line.accuracy > chance + NEAR_CHANCE).all():
        axes.axhline(100 * chance, color=GREY, linewidth=1.2, linestyle=(0, (1, 2)))
        handles.append(handle("chance", color=GREY, linewidth=1.2, linestyle=(0, (1, 2))))
    for values, label, colour, dashes in (
        (line.weights, "weights", GREY, (5, 2)),
        (line.aligned, "aligned weights", INK, (5, 2, 1, 2)),
    ):
        if values is not None:
            axes.plot(line.gamma, 100 * values, color=colour, linewidth=1.4, linestyle=(0, dashes))
            handles.append(handle(label, color=colour, linewidth=1.4, linestyle=(0, dashes)))
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
    handles.append(ring("end", 10))
    if stars.any():
        handles.append(handle("factor of Eq. 12", marker="*", linestyle="", color="white", markersize=13))
        handles[-1].set_markeredgecolor(INK)
    legend_below(figure, handles)
    return figure


def lines(run: Run) -> Iterator[Picture]:
    """Yield the figures of each evaluation's lines, and of those between two chosen networks."""
    for evaluated in run.evaluations.values():
        if evaluated.multi and evaluated.figures.line is not None:
            yield _class_line(run, evaluated, class_line(evaluated.figures.line, evaluated.archs))
        line = mean_line(evaluated.figures.interpolation)
        if line is not None and not evaluated.figures.of_signals:  # of which none is the best
            title = f"Mean over {count(evaluated.figures.interpolation.pairs)} lines of the {evaluated.split} split"
            how = (
                "Mean accuracy along lines that end in the best member and start in members of the lower half, chosen "
                "on validation images."
            )
            yield _line(run, line, f"interpolation-mean-{evaluated.split}", title, how, mean=True)
        refined = evaluated.figures.refined
        if refined is not None and refined.interpolation is not None and (line := mean_line(refined.interpolation)):
            how = f"The same lines between latents that went on by {count(refined.steps)} steps of descent."
            title = f"The same lines between refined latents, {evaluated.split} split"
            yield _line(run, line, f"interpolation-refined-{evaluated.split}", title, how, mean=True)
    for line in run.lines:
        name, title = f"interpolation-{line.name[:120]}", f"From {line.start} to {line.end}"
        title += f", latents refined by {count(line.refined)} steps" if line.refined else ""
        draw = _line_through if len(set(line.arch)) > 1 else _line
        yield draw(run, line, name, title, "The line between two chosen networks.")


def _line(run: Run, line: Line, name: str, title: str, how: str, mean: bool = False) -> Picture:
    kind = "mean rank correlation with γ" if mean else "rank correlation with γ"
    weights = f", weights {number(line.weight_spearman)}" if line.weights is not None else ""
    ranks = f"latents {number(line.spearman)}{weights}"
    straight, ends = _straight(line, mean), end_words(line.end_differences, mean)
    direct = "Blue squares are networks whose weights were interpolated directly. " if line.weights is not None else ""
    spread = ""
    if line.aligned is not None:
        direct += (
            "Green triangles are the same with aligned weights: the start's channels in the order of the end's, and hidden "
            "channels with the mean and spread that those of both ends have. "
        )
        low, high = (float(each(line.aligned)) for each in (np.nanmin, np.nanmax))
        spread = f" The accuracies of aligned weights are {percent(low)} to {percent(high)}."
    way = "rise" if run.score is None or run.score.higher_is_better else "fall"
    organised = f"in an organised space they {way} evenly.{straight}{ends}"
    correlation = f"; {kind} (Spearman): {ranks}.{straight}"
    heading = f"Spearman with γ: {ranks}"
    if run.score and run.score.own_targets:
        organised = f"between the ends accuracies are those on a mixture of what both were fitted to, which nothing in between has to be.{ends}"
        correlation, heading = ".", ""
    chance = " The dotted line (chance) is guessing among balanced classes." if run.chance else ""
    return Picture(
        name,
        "lines",
        title,
        draw_line(line.gamma, line.accuracy, line.weights, heading, run.chance, line.aligned),
        f"{title}: decoded networks go from {percent(line.accuracy[0])} to {percent(line.accuracy[-1])}{correlation}{spread}",
        f"{how} Orange diamonds are networks decoded from interpolated latents; {organised} {direct}NetSpace, Fig. 3 b and d.{chance}",
        wide=False,
        marks=line.marks,
        ends=(line.start, line.end),
    )


def _straight(line: Line, mean: bool) -> str:
    """Return a sentence on how straight a line of accuracies is; empty if it was not measured."""
    if line.linear_r2 is None:
        return ""
    weights = f", {number(line.weight_linear_r2)} of the weights'" if line.weights is not None else ""
    kind = "mean R² of straight lines" if mean else "R² of a straight line"
    return f" The {kind} through the accuracies is {number(line.linear_r2)} of the latents'{weights}."


def _class_line(run: Run, evaluated: Evaluated, line: Line) -> Picture:
    """Return the figure of an evaluation's line from the smallest to the largest architecture."""
    how = (
        f"From the best network of the smallest to the best of the largest architecture ({line.start} to {line.end}), "
        "chosen on validation images."
    )
    title = f"Smallest to largest architecture, {evaluated.split} split"
    return _line_through(run, line, f"classes-{evaluated.split}", title, how)


def _line_through(run: Run, line: Line, name: str, title: str, how: str) -> Picture:
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
        draw_line_through(line, looks(archs), run.unseen, run.chance),
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


def draw_optimization(
    steps: np.ndarray, accuracy: np.ndarray, starts: Sequence[str], styles: Sequence[Look] | None = None
) -> Figure:
    """Draw accuracies (K, S) of S starts over the steps (K,) of a latent-space optimisation; `styles` by architecture."""
    figure, axes = new(4.3)
    for start, (name, values) in enumerate(zip(starts, accuracy.T, strict=True)):
        style: dict[str, Any] = {"color": START_COLOURS[start % len(START_COLOURS)], "marker": "o", "markersize": 3.5}
        turn = start // len(START_COLOURS)
        if styles is not None:
            style = {"color": styles[start].colour, "marker": styles[start].marker, "markersize": 5}
            turn = list(styles[:start]).count(styles[start])  # of its architecture
        style["linestyle"] = ("-", "--", ":")[turn % 3]
        axes.plot(steps, 100 * values, linewidth=1.8, label=plain(name, 24), **style)
    axes.set(xlabel="step", ylabel="accuracy on validation images, %")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def taught_by(optimization: Optimization) -> str:
    """Return the teacher's name; of a member of another file, the member's alone."""
    return shortened(optimization.teacher.rpartition(".h5:")[2], 40)


def best_start(optimization: Optimization) -> int:
    """Return the index of the start that is best on validation images."""
    if optimization.best is not None:
        return optimization.best
    return int(np.nan_to_num(validation_curves(optimization), nan=-1.0).max(0).argmax())


def validation_curves(optimization: Optimization) -> np.ndarray:
    """Return accuracies (K, S) on validation images, by record and start."""
    return np.array([record.accuracy_val for record in optimization.curve], dtype=np.float64)


def optimizations(run: Run) -> Iterator[Picture]:
    """Yield a figure of each optimisation of latents."""
    for name, optimization in run.optimizations.items():
        multi = len(set(optimization.arch)) > 1
        order = list(dict.fromkeys([*run.order, *optimization.arch]))
        styles = [looks(order)[arch] for arch in optimization.arch] if multi else None
        same = " and still read as its architecture" if multi else ""
        steps = np.array([record.step for record in optimization.curve])
        gains = [
            f"{start} from {percent(before)} to {percent(after)}"
            for start, before, after in zip(
                optimization.starts, optimization.accuracy_before, optimization.accuracy_after, strict=True
            )
        ]
        yield Picture(
            f"optimized-{name[:120]}",
            "lines",
            f"Descent on latents, taught by {taught_by(optimization)}",
            draw_optimization(steps, validation_curves(optimization), optimization.starts, styles),
            f"{count(len(optimization.starts))} latents optimised for {count(steps[-1])} steps; on test images "
            f"{joined(gains)}.",
            "Encoder and decoder stay as they are; only the latents are trained, on the distillation loss from the teacher. The "
            f"best of each start is chosen on validation images{same}. On test images: {joined(gains)}; the best by validation is "
            f"{optimization.starts[best_start(optimization)]}. NetSpace, Latent Space Optimization.",
            wide=False,
        )
