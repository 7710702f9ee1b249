"""The course of a training as a figure: one panel for each kind of figure that its records hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from netspace.report.class_figures import between_course
from netspace.report.drawing import (
    GREEN,
    GREY,
    INK,
    PREDICTED,
    PURPLE,
    TARGET,
    WORST_R2,
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

NOT_LOSSES = ("stage", "step", "rate", "steps_a_second")  # what a record of metrics.jsonl holds beside the terms
FLOOR = 1e-4  # losses of spaces of several architectures are drawn down to this
BETWEEN, CLASSID = "val_between_", "_classid"  # accuracy, and share taken for the architecture, of what lies between
SHARES = (("val_r2", "R²", TARGET), ("val_agreement", "agreement", GREEN), ("val_classid", "ClassId", PURPLE))
BESIDE: dict[str, Any] = {  # the title
    "loc": "lower right",
    "bbox_to_anchor": (1.01, 0.97),
    "ncols": 3,
    "borderaxespad": 0.2,
}
Records = Sequence[Mapping[str, Any]]


def training(records: Records, archs: Sequence[str] = ()) -> Figure:
    """Loss terms and validation figures over steps; `archs` are ids in the order of their ClassIds."""
    terms = [name for name in named(records) if not name.startswith("val_") and name not in NOT_LOSSES]
    between = [name for name in named(records) if name.startswith(BETWEEN)]
    panels: list[Callable[[Axes], None]] = []
    if terms:
        panels.append(lambda axes: _losses(axes, records, terms))
    if of_several(records):
        panels.append(lambda axes: _error(axes, records))
    elif series(records, "val_mae")[0].size:
        panels.append(lambda axes: _difference(axes, records))
    if any(series(records, name)[0].size for name, _, _ in SHARES):
        panels.append(lambda axes: _shares(axes, records))
    if between:
        panels.append(lambda axes: _between(axes, records, between, archs))
    legends = 0.5 * (len(terms) > 3 or "classid" in terms) + 0.5 * bool(between)
    figure, stack = new(0.6 + legends + 2.15 * max(len(panels), 1), max(len(panels), 1), sharex=True)
    for axes, draw in zip(stack, panels, strict=False):
        draw(axes)
    stack[-1].set_xlabel("training step")
    return figure


def of_several(records: Records) -> bool:
    """Whether records are of a space of several architectures, which keeps the checkpoint of the least error."""
    return bool(series(records, "val_classid")[0].size and series(records, "val_error")[0].size)


def _losses(axes: Axes, records: Records, terms: Sequence[str]) -> None:
    for name, colour in zip(terms, (TARGET, PREDICTED, GREEN, PURPLE, GREY) * len(terms), strict=False):
        steps, values = series(records, name)
        curve(axes, steps, np.where(values > 0, values, np.nan), colour, plain(name))
    several = "classid" in terms  # whose loss vanishes where the others do not
    logarithmic(axes, FLOOR if several else 0.0)
    if len(terms) <= 3 and not several:
        axes.set_title("training: loss by term (log scale)")
        axes.legend(**(BESIDE if len(terms) < 3 else {"loc": "upper right"}))
        return
    _named_above(axes, "training: loss by term (log scale)", len(terms))


def _named_above(axes: Axes, title: str, entries: int) -> None:
    """A legend of many entries between the title and the panel, three in a row."""
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "borderaxespad": 0.2}
    axes.legend(ncols=3, **place)
    axes.set_title(title, pad=9 + 18 * -(-entries // 3))


def _difference(axes: Axes, records: Records) -> None:
    steps, values = series(records, "val_mae")
    curve(axes, steps, 100 * values, PREDICTED, "mean difference")
    _ring(axes, steps, values)
    axes.set_title("validation: mean difference of accuracy, points")
    axes.set_ylim(0, 108 * max(float(values.max()), 0.01))


def _error(axes: Axes, records: Records) -> None:
    """The error that chooses the checkpoint, with the difference from targets beside it."""
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
    axes.legend(**BESIDE)


def _ring(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    """Around the least value, that of the checkpoint that is kept."""
    best = int(values.argmin())
    axes.plot(steps[best], 100 * values[best], "o", color=INK, markersize=7, markerfacecolor="none")


def _shares(axes: Axes, records: Records) -> None:
    present = []
    for name, label, colour in SHARES:
        steps, values = series(records, name)
        if steps.size:
            curve(axes, steps, np.maximum(values, WORST_R2), colour, label)
            present.append(label)
    several = "ClassId" in present
    axes.set_title("validation: fractions" if several else "validation: R² and agreement, fractions")
    axes.set_ylim(top=1.05)
    axes.legend(**BESIDE)


def _between(axes: Axes, records: Records, names: Sequence[str], archs: Sequence[str]) -> None:
    known = {name.removeprefix(BETWEEN) for name in names}
    shown = [name for name in known if not (name.endswith(CLASSID) and name.removesuffix(CLASSID) in known)]
    order = list(dict.fromkeys([*archs, *sorted(shown)]))
    between_course(axes, [(name, *series(records, BETWEEN + name)) for name in order if name in shown], looks(order))
    _named_above(axes, "validation: accuracy between the ends, %", len(shown))
