"""The report of a fit with a size: accuracy against bytes for all ways, and the table of what was tried.

Axes: P points, the sizes of one way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from netspace.report.drawing import (
    GREEN,
    GREY,
    INK,
    MISSING,
    PREDICTED,
    PURPLE,
    TARGET,
    Look,
    Picture,
    count,
    handle,
    legend_below,
    legend_rows,
    logarithmic,
    new,
    number,
    percent,
    plain,
    styled,
)
from netspace.report.tables import Table
from netspace.results.budget import BudgetFit, WayRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS = {
    "rounded": Look("#E69F00", "s"),
    "coded": Look(PREDICTED, "D"),
    "pruned": Look(PURPLE, "v"),
    "mixed": Look("#56B4E9", "^"),
    "coordinate": Look(GREEN, "o"),
    "nncodec": Look(TARGET, "X"),
    "rounding": Look(INK, "P"),
    "torch-int8": Look(INK, "h"),
    "torchao": Look(INK, "*"),
    "student": Look("#882255", "p"),
}
OTHER = Look(GREY, "d")
BASES = {
    "task": ("accuracy on validation images, %", "accuracy on validation images"),
    "pictures": ("same answers as the original, %", "answers like the original's on pictures"),
    "noise": ("same answers as the original, %", "answers like the original's on noise"),
    "weights": ("relative error of the weights", "the relative error of the weights"),
    "outputs": ("relative error of outputs", "the relative error of outputs"),
}
Series = tuple[str, np.ndarray, np.ndarray, Look]  # name, bytes (P,), values (P,), look
EDGE: dict[str, Any] = {
    "markersize": 9,
    "markeredgecolor": INK,
    "markeredgewidth": 1.2,
    "linestyle": "",
}  # of trained ones


def draw_sizes(
    curves: Sequence[Series],
    trained: Sequence[Series],
    chosen: tuple[float, float],
    level: float | None,
    label: str,
) -> Figure:
    """Draw values of ways over the bytes of their files, a ring around the one that was `chosen` (bytes, value).

    Files without training are joined by lines; `trained` ones are larger and have an edge. `level` is the original's value.
    """
    names = {name: look for name, _, _, look in [*curves, *trained]}
    handles = [
        handle(name, color=look.colour, marker=look.marker, linewidth=1.7, markersize=6) for name, look in names.items()
    ]
    if trained:
        handles.append(handle("trained", color=GREY, marker="o", **EDGE))
    style: dict[str, Any] = {"markersize": 14, "markerfacecolor": "none", "markeredgecolor": INK}
    handles.append(handle("taken", marker="o", linestyle="", **{**style, "markersize": 11}))
    if level is not None:
        handles.append(handle("the original", color=GREY, linewidth=1.2, linestyle=(0, (1, 2))))
    figure, axes = new(3.9 + 0.22 * legend_rows(len(handles), handles))
    if level is not None:
        axes.axhline(level, color=GREY, linewidth=1.2, linestyle=(0, (1, 2)))
    for _, sizes, values, look in curves:
        axes.plot(sizes, values, color=look.colour, marker=look.marker, linewidth=1.7, markersize=6)
    for _, sizes, values, look in trained:
        axes.plot(sizes, values, color=look.colour, marker=look.marker, **EDGE)
    axes.plot(*chosen, marker="o", markeredgewidth=1.5, linestyle="", **style)
    axes.set(title=label, xlabel="bytes of the file (log scale)")
    _byte_ticks(axes)
    if level is None and "error" in label:
        logarithmic(axes)
    legend_below(figure, handles)
    return figure


def _byte_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _size(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _size(value: float) -> str:
    """Return bytes in the unit that suits them.

    >>> _size(2_500_000), _size(70_000), _size(800)
    ('2.5 MB', '70 KB', '800')
    """
    for unit, name in ((1e6, " MB"), (1e3, " KB")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def size_pictures(figures: BudgetFit) -> list[Picture]:
    """Return the picture of accuracy against bytes; none if nothing was measured."""
    with styled():
        return list(_sizes(figures))


def _sizes(figures: BudgetFit) -> Iterator[Picture]:
    basis = "outputs" if figures.output_error is not None else figures.inputs
    value = _value(basis)
    rows = [row for row in [*figures.table, *figures.sizes] if row.bytes and value(row) is not None]
    curves = _series([row for row in rows if not row.steps], value)
    trained = _series([row for row in figures.table if row.steps and row in rows], value)
    chosen = next((row for row in rows if row.chosen), None)
    if chosen is None or chosen.bytes is None:
        return
    label, noun = BASES.get(basis, BASES["weights"])
    original = figures.accuracy_original_val
    level = (None if original is None else 100 * original) if figures.inputs == "task" else None
    texts = [
        f"{name}: {', '.join(f'{_text(basis, each)} in {count(size)}' for size, each in _ends(sizes, values))}"
        for name, sizes, values, _ in [*curves, *((f"{each[0]}, trained", *each[1:]) for each in trained)]
    ]
    yield Picture(
        "sizes",
        "sizes",
        "Which way is best in how many bytes",
        draw_sizes(curves, trained, (chosen.bytes, value(chosen) or 0.0), level, label),
        f"{label.capitalize()} against bytes of the file. {'; '.join(texts)}.",
        f"Each point is a file, and the ring is the one that was taken, by {noun}. What is joined by lines was not "
        "trained. "
        + (f"Rivals, of the same bytes: {', '.join(_rivals(figures))}." if _rivals(figures) else "")
        + f" {plain('; '.join(texts), 400)}.",
    )


def _series(rows: Sequence[WayRow], value: Callable[[WayRow], float | None]) -> list[Series]:
    """Return the points of each way, by bytes."""
    found = []
    for name in dict.fromkeys(row.way for row in rows):
        points = sorted((row.bytes or 0, value(row) or 0.0) for row in rows if row.way == name)
        sizes, values = (np.array(column) for column in zip(*points, strict=True))
        found.append((name, sizes, values, LOOKS.get(name, OTHER)))
    return found


def _rivals(figures: BudgetFit) -> list[str]:
    return [row.way for row in figures.table if row.rival and row.bytes is not None]


def _ends(sizes: np.ndarray, values: np.ndarray) -> list[tuple[float, float]]:
    indices = sorted({0, len(sizes) - 1})
    return [(float(sizes[index]), float(values[index])) for index in indices]


def _text(inputs: str, value: float) -> str:
    return number(value, 3) if inputs in ("weights", "outputs") else f"{number(value, 1)} %"


def _value(inputs: str) -> Callable[[WayRow], float | None]:
    """Return what rows are drawn and were chosen by, in the units of the picture."""
    if inputs == "task":
        return lambda row: None if row.accuracy_val is None else 100 * row.accuracy_val
    if inputs == "outputs":
        return lambda row: row.output_error_val
    if inputs in ("pictures", "noise"):
        return lambda row: None if row.agreement_val is None else 100 * row.agreement_val
    return lambda row: row.relative_error


def size_tables(figures: BudgetFit) -> list[Table]:
    """Return the table of all that was tried at the size that was asked for."""
    task, values = figures.inputs == "task", figures.output_error is not None
    rows = [
        [
            f"{row.way}{' (taken)' if row.chosen else ' (rival)' if row.rival else ''}",
            count(row.bytes),
            (row.setting or MISSING) + (f", {count(row.steps)} steps" if row.steps else ""),
            percent(row.accuracy, 2),
            number(row.output_error, 3) if values else percent(row.agreement),
            number(row.relative_error, 3),
            number(row.output_error_val, 3) if values else percent(row.accuracy_val if task else row.agreement_val, 2),
        ]
        for row in figures.table
    ]
    alike = f"error of {figures.output or 'outputs'}" if values else "same answer"
    last = "accuracy, validation" if task else f"{alike}, to choose by"
    caption = (
        f"At most {count(figures.bytes_budget)} bytes, where the original's weights take {count(figures.bytes_original)}. "
        "Accuracy and answers are those on test images, or on other inputs than those that a way was chosen by. Of each way "
        "the best trial has a row."
    )
    notes = "; ".join(f"{row.way}: {row.note}" for row in figures.table if row.note)
    caption += f" {notes[:1].upper()}{notes[1:]}." if notes else ""
    return [Table(["", "bytes", "how", "accuracy", alike, "relative error", last], rows, caption)]


def size_summary(figures: BudgetFit) -> str:
    """Return the summary of a fit with a size."""
    sentences = [
        f"The file has {count(figures.bytes_file)} bytes, and at most {count(figures.bytes_budget)} were allowed; the original's "
        f"weights take {count(figures.bytes_original)}, {_ratio(figures)} times as many. {figures.why[:1].upper()}{figures.why[1:]}."
    ]
    if figures.accuracy_reconstructed is not None:
        sentences.append(
            f"On the test images it scores {percent(figures.accuracy_reconstructed, 2)} and the original "
            f"{percent(figures.accuracy_original, 2)}; they give the same answer on {percent(figures.agreement)} of them."
        )
    return " ".join(sentences)


def size_tiles(figures: BudgetFit) -> list[tuple[str, str]]:
    """Return the main figures as (name, value)."""
    entries = [
        ("way", figures.way),
        ("bytes of the file", count(figures.bytes_file)),
        ("original's bytes, over the file's", _ratio(figures)),
        ("accuracy, original", percent(figures.accuracy_original, 2)),
        ("accuracy, from the file", percent(figures.accuracy_reconstructed, 2)),
        ("same answer as the original", percent(figures.agreement)),
        ("relative error of outputs", number(figures.output_error, 3)),
        ("relative error of the weights", number(figures.relative_error, 3)),
    ]
    return [(name, value) for name, value in entries if value != MISSING]


def _ratio(figures: BudgetFit) -> str:
    whole, part = figures.bytes_original, figures.bytes_file
    return number(whole / part, 1) if whole and part else MISSING
