"""What the report's figures share: look, colours, text that is safe to draw, and series of records.

matplotlib is imported when the first figure is drawn, without pyplot: no global state, nothing to close. Colours are
Okabe and Ito's, told apart with every common kind of colour vision; markers differ as well.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TARGET, PREDICTED, GREY, GREEN, PURPLE = "#0072B2", "#D55E00", "#767676", "#009E73", "#CC79A7"
INK = "#222222"
DOTS = 150  # an inch
WIDTH = 6.4  # inches: readable on a telephone too
MANY = 120  # members from which on single ones are no longer joined or ringed
WORST_R2 = -1.0  # what is worse is drawn as this, and said

# of architectures by ClassId: the first four are the hues of NetSpace, Fig. 5, wine stands for Okabe and Ito's yellow
ARCH_COLOURS = (PREDICTED, TARGET, GREEN, PURPLE, "#E69F00", "#56B4E9", "#882255", INK)
ARCH_MARKERS = ("s", "^", "D", "v", "P", "X", "p", "h")  # neither circles nor stars: these mean ends and factors


@dataclass(frozen=True)
class Look:
    """How networks of one architecture are drawn."""

    colour: str
    marker: str


def looks(archs: Sequence[str]) -> dict[str, Look]:
    """A look for each architecture, by its place; 64 of them differ."""
    return {
        arch: Look(ARCH_COLOURS[place % 8], ARCH_MARKERS[(place + place // 8) % 8]) for place, arch in enumerate(archs)
    }


@contextmanager
def styled() -> Iterator[None]:
    """Figures drawn and saved inside the block share one look."""
    from matplotlib import rc_context

    sizes = dict.fromkeys(("font.size", "axes.labelsize", "legend.fontsize", "xtick.labelsize", "ytick.labelsize"), 11)
    colours = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    lines = {"axes.edgecolor": GREY, "axes.grid": True, "grid.color": "#e4e4e4", "axes.axisbelow": True}
    spines = {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    titles = {"axes.titlesize": 11.5, "axes.titlelocation": "left", "axes.titlepad": 9}
    with rc_context({**sizes, **colours, **lines, **spines, **titles, "font.family": ["DejaVu Sans"]}):
        yield


def to_png(figure: Figure) -> bytes:
    """The figure as PNG, the same bytes for the same figure."""
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=DOTS, metadata={"Software": None})
    return held.getvalue()


def plain(text: str, longest: int = 64) -> str:
    """Text that matplotlib shows as it is: no formulae, no letters its font lacks, and not too long."""
    known = (letter if letter.isprintable() and (ord(letter) < 0x250 or letter in "γ–−…²") else "?" for letter in text)
    return shortened("".join(known), longest).replace("$", r"\$")


def shortened(text: str, longest: int) -> str:
    """`text`, its middle left out where it has more than `longest` letters."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[len(text) - longest + half + 1 :]}"


def new(high: float, panels: int = 1, sharex: bool = False) -> tuple[Figure, Any]:
    """A figure with one `Axes`, a list of several one below the other, or none."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(WIDTH, high), layout=ConstrainedLayoutEngine(w_pad=0.11, h_pad=0.11))
    if panels == 0:
        return figure, None
    stack = figure.subplots(panels, 1, squeeze=False, sharex=sharex)[:, 0]
    return figure, stack[0] if panels == 1 and not sharex else list(stack)


def named(records: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record if series([record], name)[0].size))


def series(records: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the records that have a finite number under `name`."""
    found = [(record["step"], record[name]) for record in records if isinstance(record.get(name), int | float)]
    pairs = np.array(found, dtype=np.float64).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(1)]
    return pairs[:, 0], pairs[:, 1]


def curve(axes: Axes, steps: np.ndarray, values: np.ndarray, colour: str, label: str) -> None:
    axes.plot(
        steps,
        values,
        color=colour,
        label=label,
        linewidth=1.7,
        marker="o" if len(steps) <= 40 else "",
        markersize=3.5,
    )


def logarithmic(axes: Axes, floor: float = 0.0) -> None:
    """A logarithmic vertical axis that does not go below `floor`."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log", nonpositive="mask")
    low, high = axes.get_ylim()
    if low < floor < high:
        low = axes.set_ylim(bottom=floor)[0]
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e3 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
