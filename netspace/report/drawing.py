"""What all figures share: style, colours, text that is safe to draw, numbers as text, and the figure with its captions.

matplotlib is imported when the first figure is drawn, without pyplot: no global state, nothing to close. Colours are
Okabe and Ito's, which differ for every common kind of colour vision; markers differ as well.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from netspace.report.viewer import Viewer

TARGET, PREDICTED, GREY, GREEN, PURPLE = "#0072B2", "#D55E00", "#767676", "#009E73", "#CC79A7"
INK = "#222222"
DOTS = 150  # an inch
WIDTH = 6.4  # inches: readable on a telephone too
MAX_SINGLE = 120  # members that are drawn one by one, with lines and edges
WORST_R2 = -1.0  # worse values are drawn as this, and the caption says so

# of architectures by ClassId: the first four are the hues of NetSpace, Fig. 5, wine stands for Okabe and Ito's yellow
ARCH_COLOURS = (PREDICTED, TARGET, GREEN, PURPLE, "#E69F00", "#56B4E9", "#882255", INK)
ARCH_MARKERS = ("s", "^", "D", "v", "P", "X", "p", "h")  # neither circles nor stars: these mean ends and factors


# colours that follow the light or dark page, by the variables of its style sheet
VARIABLES = {
    INK: "--ink", GREY: "--grey", "#e4e4e4": "--grid", "#c8c8c8": "--faint", "#d6d6d6": "--faint", "#ffffff": "--paper",
    "#000000": "--ink", TARGET: "--blue", "#882255": "--wine",
}  # fmt: skip


@dataclass(frozen=True)
class Look:
    """How networks of one architecture are drawn."""

    colour: str
    marker: str


def looks(archs: Sequence[str]) -> dict[str, Look]:
    """Return a look for each architecture, by its index; 64 of them differ."""
    return {
        arch: Look(ARCH_COLOURS[index % 8], ARCH_MARKERS[(index + index // 8) % 8]) for index, arch in enumerate(archs)
    }


@contextmanager
def styled() -> Iterator[None]:
    """Give figures that are drawn and saved inside the block one style."""
    from matplotlib import rc_context

    sizes = dict.fromkeys(("font.size", "axes.labelsize", "legend.fontsize", "xtick.labelsize", "ytick.labelsize"), 11)
    colours = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    lines = {"axes.edgecolor": GREY, "axes.grid": True, "grid.color": "#e4e4e4", "axes.axisbelow": True}
    spines = {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    titles = {"axes.titlesize": 11.5, "axes.titlelocation": "left", "axes.titlepad": 9}
    svg = {"svg.fonttype": "none", "svg.hashsalt": "netspace", "font.family": ["DejaVu Sans"]}
    with rc_context({**sizes, **colours, **lines, **spines, **titles, **svg}):
        yield


@dataclass(frozen=True)
class Dot:
    """A network, or a point of a line, whose text the page shows when it is pointed at."""

    x: float  # in the units of the axes
    y: float
    name: str
    text: str


@dataclass(frozen=True)
class Picture:
    """One figure of the report with its texts, which are plain: the template escapes them."""

    name: str  # of its file, without suffix
    part: str  # the section of the page that it belongs to
    title: str
    figure: Figure
    alt: str
    caption: str
    wide: bool = True  # over the whole width of the page, not half of it
    dots: Sequence[Dot] = ()  # networks, of which two can be chosen
    marks: Sequence[Dot] = ()  # points of lines
    ends: tuple[str, str] = ("", "")  # the networks that a line joins
    viewer: Viewer | None = None  # of its shapes, which can be turned

    def worded(self, word: Callable[[str], str]) -> Picture:
        """Return the figure with `word` of what is written in it and shown at its points; the page says the rest."""
        from matplotlib.text import Text

        for axes in self.figure.axes:
            own = [each for each in axes.get_children() if isinstance(each, Text)]  # titles and annotations, no names
            for text in (axes.xaxis.label, axes.yaxis.label, *own):
                text.set_text(word(text.get_text()))
        dots, marks = ([replace(dot, text=word(dot.text)) for dot in each] for each in (self.dots, self.marks))
        return replace(self, alt=word(self.alt), dots=dots, marks=marks)

    def png(self) -> bytes:
        """Return the figure on white, the same bytes for the same figure."""
        return to_png(self.figure)

    def svg(self) -> Markup:
        """Return the figure as an element of an HTML page: transparent, its greys are variables of the style sheet."""
        from markupsafe import Markup, escape

        stream = io.BytesIO()
        with styled():
            self.figure.savefig(stream, format="svg", transparent=True, dpi=DOTS, metadata={"Date": None})
        self.figure.set_layout_engine(None)
        text = stream.getvalue().decode("utf-8")
        text = re.sub(
            r"<metadata>.*?</metadata>|<!--.*?-->|<defs>\s*<style.*?</style>\s*</defs>",
            "",
            text[text.index("<svg") :],
            flags=re.DOTALL,
        )
        text = re.sub(r' xmlns(?::xlink)?="[^"]*"', "", re.sub(r'<g id="[^"]*"', "<g", text))
        for colour, variable in VARIABLES.items():
            text = re.sub(rf"{colour}(?![0-9a-f])", f"var({variable})", text, flags=re.IGNORECASE)
        opening = f'<svg role="img" aria-label="{escape(self.alt)}"'
        return Markup(text.replace("<svg", opening, 1).replace("</svg>", f"{self._hit_areas()}</svg>"))

    def _hit_areas(self) -> str:
        """Return a circle over each dot and mark, in the points that an SVG of matplotlib is measured in."""
        from markupsafe import Markup

        scale, height = 72 / self.figure.dpi, 72 * self.figure.get_size_inches()[1]
        circle = Markup(
            '<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="6" tabindex="{}" data-name="{}" data-text="{}"></circle>'
        )
        reached = 0 if len(self.dots) <= MAX_SINGLE else -1  # by the keyboard: not hundreds of stops
        areas = [("dot", reached, dot) for dot in self.dots] + [("mark", -1, mark) for mark in self.marks]
        positions = [scale * self.figure.axes[0].transData.transform((dot.x, dot.y)) for _, _, dot in areas]
        return "".join(
            circle.format(kind, x, height - y, stop, dot.name, dot.text)
            for (x, y), (kind, stop, dot) in zip(positions, areas, strict=True)
        )


def to_png(figure: Figure) -> bytes:
    """Return the figure as PNG, the same bytes for the same figure."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS, metadata={"Software": None})
    figure.set_layout_engine(None)  # axes stay where they are when it is saved again: a layout takes as long as drawing
    return stream.getvalue()


def plain(text: str, longest: int = 64) -> str:
    """Return text that matplotlib draws as it is: no formulae, no letters that its font lacks, and not too long."""
    known = (letter if letter.isprintable() and (ord(letter) < 0x250 or letter in "γ–−…²") else "?" for letter in text)
    return shortened("".join(known), longest).replace("$", r"\$")


def shortened(text: str, longest: int) -> str:
    """Return `text` without its middle if it has more than `longest` letters."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[len(text) - longest + half + 1 :]}"


def new(high: float, panels: int = 1, sharex: bool = False) -> tuple[Figure, Any]:
    """Return a figure and its `Axes`: one, a list of several below each other, or None for no panels."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(WIDTH, high), layout=ConstrainedLayoutEngine(w_pad=0.11, h_pad=0.11))
    if panels == 0:
        return figure, None
    stack = figure.subplots(panels, 1, squeeze=False, sharex=sharex)[:, 0]
    return figure, stack[0] if panels == 1 and not sharex else list(stack)


def named(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names under which any of the records has a finite number."""
    return list(dict.fromkeys(name for record in records for name in record if series([record], name)[0].size))


def series(records: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and values of the records that have a finite number under `name`."""
    numbers = [(record["step"], record[name]) for record in records if isinstance(record.get(name), int | float)]
    pairs = np.array(numbers, dtype=np.float64).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(1)]
    return pairs[:, 0], pairs[:, 1]


def curve(axes: Axes, steps: np.ndarray, values: np.ndarray, colour: str, label: str) -> None:
    """Draw values over steps, with markers if there are few."""
    marker = "o" if len(steps) <= 40 else ""
    axes.plot(steps, values, color=colour, label=label, linewidth=1.7, marker=marker, markersize=3.5)


def logarithmic(axes: Axes, floor: float = 0.0) -> None:
    """Make the vertical axis logarithmic; it does not go below `floor`."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log", nonpositive="mask")
    low, high = axes.get_ylim()
    if low < floor < high:
        low = axes.set_ylim(bottom=floor)[0]
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e3 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


# --- legends ---


def handle(label: str, **style: Any) -> Line2D:
    """Return an entry of a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=plain(label, 36), **style)


def ring(label: str, size: float) -> Line2D:
    """Return an entry of a legend for a ring."""
    hollow = {"markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.3}
    return handle(label, marker="o", linestyle="", markersize=size, **hollow)


def handles_of(styles: Mapping[str, Look], unseen: Sequence[str] = (), dots: bool = False) -> list[Line2D]:
    """Return a legend's entries for architectures: a line with an open marker, or a dot."""
    handles = []
    for name, look in styles.items():
        style: dict[str, Any] = {"marker": look.marker, "color": look.colour, "markersize": 6}
        style |= {"linestyle": ""} if dots else {"linewidth": 2, "markerfacecolor": "white"}
        label = f"{shortened(name, 24)} (unseen)" if name in unseen else shortened(name, 24)
        handles.append(handle(label, **style))
    return handles


def legend_columns(handles: Sequence[Line2D]) -> int:
    """Return the number of columns of a legend: fewer if an entry is long."""
    return 2 if any(len(str(each.get_label())) > 19 for each in handles) else 3


def legend_rows(entries: int, handles: Sequence[Line2D] = ()) -> int:
    """Return the number of rows of a legend."""
    return -(-entries // legend_columns(handles))


def legend_below(figure: Figure, handles: list[Line2D]) -> None:
    """Put a legend below the panels."""
    figure.legend(handles=handles, loc="outside lower center", ncols=legend_columns(handles))


# --- numbers as text ---

MISSING = "–"  # of None, NaN and infinite values
MINUS = "−"


def finite(value: Any) -> float | None:
    """Return `value` as a float; None for anything that is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def number(value: float | None, digits: int = 2) -> str:
    """Return a number with `digits` decimals.

    >>> number(-0.5), number(None)
    ('−0.50', '–')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:,.{digits}f}"
    if not float(text.replace(",", "")):  # no minus before a zero
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def small(value: float | None) -> str:
    """Return a number of any size with two digits that count.

    >>> small(3.84e-05), small(0.1), small(None)
    ('3.8e−05', '0.10', '–')
    """
    return MISSING if value is None or not math.isfinite(value) else f"{value:#.2g}".rstrip(".").replace("-", MINUS)


def percent(value: float | None, digits: int = 1) -> str:
    """Return a fraction as per cent.

    >>> percent(0.1234)
    '12.3 %'
    """
    return MISSING if value is None or not math.isfinite(value) else f"{number(100 * value, digits)} %"


def points(value: float | None) -> str:
    """Return a difference of fractions in percentage points.

    >>> points(0.0123)
    '1.2 points'
    """
    return MISSING if value is None or not math.isfinite(value) else f"{number(100 * value, 1)} points"


def signed_points(value: float | None) -> str:
    """Return a difference of fractions in percentage points, with its sign.

    >>> signed_points(0.0123), signed_points(-0.02), signed_points(None)
    ('+1.2 points', '−2.0 points', '–')
    """
    text = points(value)
    return text if text.startswith((MISSING, MINUS)) else f"+{text}"


def count(value: float | None) -> str:
    """Return a whole number, thousands separated by commas."""
    return number(value, 0)


def joined(names: list[str]) -> str:
    """Return names as a list inside a sentence.

    >>> joined(["a", "b", "c"])
    'a, b and c'
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def end_words(ends: tuple[float | None, float | None] | None, mean: bool = False) -> str:
    """Return a sentence on how far the decoded ends of a line are from their targets; empty if that is not known."""
    pairs = zip(("start", "end"), ends or (None, None), strict=True)
    known = [f"{signed_points(value)} at the {end}" for end, value in pairs if value is not None]
    if not known:
        return ""
    return f" Decoded networks' accuracy minus their targets' is {'on average ' if mean else ''}{joined(known)}."
