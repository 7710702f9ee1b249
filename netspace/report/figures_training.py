"""The course of a training of a space: one panel for each kind of values in its records.

Axes: K records. Fractions are drawn as per cent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from netspace.report.drawing import (
    GREEN,
    GREY,
    INK,
    PREDICTED,
    PURPLE,
    TARGET,
    WORST_R2,
    Look,
    Picture,
    count,
    curve,
    logarithmic,
    looks,
    named,
    new,
    plain,
    series,
)
from netspace.report.runs import Run
from netspace.run_folder import MERIT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


def draw_training(records: Records, archs: Sequence[str] = ()) -> Figure:
    """Draw loss terms and validation figures over steps; `archs` are ids in the order of their ClassIds."""
    terms = [name for name in named(records) if not name.startswith("val_") and name not in NOT_LOSSES]
    between = [name for name in named(records) if name.startswith(BETWEEN)]
    panels: list[Callable[[Axes], None]] = []
    if terms:
        panels.append(lambda axes: _losses(axes, records, terms))
    if is_multi(records):
        panels.append(lambda axes: _error(axes, records))
    elif series(records, "val_mae")[0].size and not of_signals(records):
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


def of_signals(records: Records) -> bool:
    """Return whether records are of a space whose checkpoint is chosen by agreement: of networks that are signals."""
    (_, merits), (_, agreements) = (series(records, name) for name in (MERIT, "val_agreement"))
    return bool(merits.size) and np.array_equal(merits, agreements)


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
    present, signals = [], of_signals(records)
    for name, label, colour in FRACTIONS:
        steps, values = series(records, name)
        if steps.size and not (signals and name == "val_r2"):
            curve(axes, steps, np.maximum(values, WORST_R2), colour, label)
            present.append(label)
    axes.set_ylim(top=1.05)
    if signals:
        steps, values = series(records, MERIT)
        best = int(values.argmax())
        axes.plot(steps[best], values[best], "o", color=INK, markersize=7, markerfacecolor="none")
        axes.set_title("validation: agreement, a fraction")
        return
    axes.set_title("validation: fractions" if "ClassId" in present else "validation: R² and agreement, fractions")
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


def training(run: Run) -> Iterator[Picture]:
    """Yield the figure of the course of the training, if there are records of it."""
    if not run.records:
        return
    last = max(float(record["step"]) for record in run.records)
    choice = "the checkpoint with the smallest mean difference of accuracy (circle) is evaluated. R² below −1 is drawn as −1."
    if of_signals(run.records):
        choice = "the checkpoint with the highest agreement (circle) is evaluated."
    if is_multi(run.records):
        choice = (
            "the error is 1 minus the mean accuracy of the networks decoded from members and from the points between the "
            "ends, and the checkpoint with the smallest (circle) is evaluated. Losses below 0.0001 are not drawn. R² below −1 is "
            "drawn as −1."
        )
    yield Picture(
        "training",
        "training",
        "Course of the training",
        draw_training(run.records, run.order),
        f"Loss terms and validation figures over {count(last)} steps.",
        "Loss terms are those of single batches, times their weights in the sum. Validation compares members of the "
        f"zoo's validation split with their predictions on validation images; {choice}",
    )
