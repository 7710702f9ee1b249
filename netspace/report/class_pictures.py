"""The pictures of spaces of several architectures, with their words (NetSpace, Fig. 5).

Axes: A architectures by ClassId, M members, S points of a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from netspace.report import class_figures
from netspace.report.classes import Classes, ClassLine, factors
from netspace.report.collect import Evaluation, Line, Run
from netspace.report.drawing import looks, to_png
from netspace.report.numbers import away, count, joined, number, percent, points
from netspace.report.picture import Picture

PIECES = 8  # of a line, named one by one in its alternative text at most


def members(found: Evaluation, classes: Classes, wide: bool) -> Picture:
    """Targets and predictions by ClassId (NetSpace, Fig. 5, left)."""
    seen = " These members were used in training." if found.split == "train" else ""
    told = []
    for place in np.unique(classes.target):
        mine = classes.target == place
        means = percent(found.target[mine].mean()), percent(found.predicted[mine].mean())
        told.append(f"{classes.archs[place]} {means[0]} (predicted {means[1]})")
    right = int((classes.target == classes.predicted).sum())
    return Picture(
        f"members-{found.split}",
        "behaviour",
        f"Targets and predictions, {found.split} split",
        to_png(class_figures.members(found.target, found.predicted, classes.target, classes.predicted, classes.archs)),
        f"{count(len(found.member))} members sorted by ClassId; mean accuracies of targets: {joined(told)}.",
        "Each place on the horizontal axis is one network of the zoo: by ClassId, the smallest architecture first, then "
        "by accuracy. A line is the accuracy of the networks themselves on the test images, a marker that of the network "
        "decoded from one's latent, in the colour of the architecture as which it was decoded: "
        f"{count(right)} of {count(len(found.member))} as their own.{seen} NetSpace, Fig. 5, left.",
        wide=wide,
    )


def scatter(found: Evaluation, classes: Classes) -> Picture:
    """Predicted over target accuracy, by architecture."""
    told = found.figures
    other = bool((classes.target != classes.predicted).any())
    ringed = " A ring marks networks that were decoded as another architecture." if other else ""
    measured = f"R² {number(told.get('r2'))} · mean difference {points(told.get('mae'))}"
    drawn = class_figures.scatter(
        found.target, found.predicted, classes.target, classes.predicted, classes.archs, measured
    )
    return Picture(
        f"scatter-{found.split}",
        "behaviour",
        f"Predicted over target accuracy, {found.split} split",
        to_png(drawn),
        f"Predicted over target accuracy of {count(len(found.member))} members of "
        f"{count(len(np.unique(classes.target)))} architectures. {measured}.",
        "Each marker is one network; on the dashed diagonal the decoded network is exactly as accurate as its target. R² "
        f"over all members also counts how architectures differ from each other; the table has it within each.{ringed}",
        wide=False,
    )


def confusion(found: Evaluation, classes: Classes) -> Picture:
    """Which architecture was decoded as which."""
    rows = np.flatnonzero(classes.confusion.sum(1) > 0).tolist()
    wrong = [
        f"{count(classes.confusion[row, column])} {classes.archs[row]} as {classes.archs[column]}"
        for row, column in np.argwhere(classes.confusion > 0)
        if row != column
    ]
    said = f"Decoded as another: {joined(wrong)}." if wrong else "None was decoded as another."
    without = [name for place, name in enumerate(classes.archs) if place not in rows]
    rest = f" Of {joined(without)} the evaluation has no members." if without else ""
    return Picture(
        f"confusion-{found.split}",
        "behaviour",
        f"Architectures read from latents, {found.split} split",
        to_png(class_figures.confusion(classes.confusion, classes.archs, rows)),
        f"Counts of members by their architecture and that as which they were decoded. {said}",
        f"Rows are the networks' architectures, columns those that the ClassId head read from their latents; counts of "
        f"members. {said}{rest} NetSpace, Eq. 6.",
        wide=False,
    )


def evaluated_line(run: Run, found: Evaluation, line: ClassLine) -> Picture:
    """The line of an evaluation from the smallest to the largest architecture."""
    how = (
        f"From the best network of the smallest to the best of the largest architecture ({line.start} to {line.end}), "
        "chosen on validation images."
    )
    title = f"Smallest to largest architecture, {found.split} split"
    return _line(run, line, f"classes-{found.split}", title, how)


def chosen_line(run: Run, line: Line) -> Picture | None:
    """An interpolation as a line through several architectures; None where it stays in one."""
    if len(set(line.arch)) < 2:
        return None
    ends, order = (line.arch[0], line.arch[-1]), run.order
    known = len(order) > 2 and ends in ((order[0], order[-1]), (order[-1], order[0]))
    meant = factors(order, backwards=ends[0] != order[0]) if known else []
    found = ClassLine(line.start, line.end, line.gamma, line.latent, line.arch, meant, line.ends)
    title, how = f"From {line.start} to {line.end}", "The line between two chosen networks."
    return _line(run, found, f"interpolation-{line.name[:120]}", title, how, line.weights)


def _line(run: Run, line: ClassLine, name: str, title: str, how: str, weights: np.ndarray | None = None) -> Picture:
    archs = list(dict.fromkeys([*run.order, *line.arch]))
    unseen = [each for each in run.unseen if each in line.arch]
    stars = any(abs(gamma - place) < class_figures.ON_FACTOR for place, _ in line.factors for gamma in line.gamma)
    marks = "Rings are the ends"
    if line.factors:
        marks += ", stars the networks" if stars else ", dotted lines stand"
        marks += " at the factors of Eq. 12"
        marks += (
            "; a dotted line has the colour of the architecture that is meant there"
            if stars
            else (" in the colour of the architecture that is meant there")
        )
    rest = f" Never shown to the space: {joined(unseen)}." if unseen else ""
    direct = (
        " The grey dashed line are networks whose weights were interpolated directly." if weights is not None else ""
    )
    figure = "right" if run.unseen else "centre"
    return Picture(
        name,
        "lines",
        title,
        to_png(class_figures.line(line, looks(archs), run.unseen, run.chance, weights)),
        f"{title}: {_pieces(line)}.",
        f"{how} Each point is a network decoded from a latent of the line, of the architecture that the latent tells. "
        f"{marks}.{away(line.ends)}{rest}{direct} NetSpace, Fig. 5, {figure}.",
        wide=False,
    )


def _pieces(line: ClassLine) -> str:
    """Which architectures follow each other, with the ranges of gamma and of accuracy."""
    told = []
    for arch, group in groupby(range(len(line.arch)), key=line.arch.__getitem__):
        places = list(group)
        accuracy = line.accuracy[places]
        ranges = f"γ {number(line.gamma[places[0]])} to {number(line.gamma[places[-1]])}"
        told.append(f"{arch} ({ranges}, accuracy {percent(accuracy.min())} to {percent(accuracy.max())})")
    if len(told) > PIECES:
        return f"{len(told)} stretches of {joined(list(dict.fromkeys(line.arch)))}"
    return joined(told)


def latent_map(
    sets: Sequence[tuple[str, np.ndarray, np.ndarray]], archs: list[str], shares: tuple[float, float]
) -> Picture:
    """Latents by architecture: sets of places (M, 2) and ClassIds (M,)."""
    present = [archs[place] for place in np.unique(np.concatenate([ids for _, _, ids in sets]))]
    return Picture(
        "latents",
        "preps",
        "Map of the latent space",
        to_png(class_figures.latent_map(sets, archs, shares)),
        f"{joined([f'{count(len(piece))} latents of the {name}' for name, piece, _ in sets])} on their first two "
        f"principal axes, by architecture: {joined(present)}.",
        "Each marker is the latent of one network, projected on the two directions along which latents vary most (they "
        f"hold {percent(sum(shares))} of the variance); colour and marker are its architecture. What other directions "
        "hold is not seen here.",
        wide=False,
    )
