"""Numbers as people read them: fractions become per cent, differences of accuracy percentage points.

A number that is not there (None, NaN, infinite) reads '–' everywhere.
"""

from __future__ import annotations

from typing import Any

from netspace.report.reading import finite

NOTHING = "–"
MINUS = "−"


def number(value: Any, digits: int = 2) -> str:
    """With `digits` decimals.

    >>> number(-0.5), number(None)
    ('−0.50', '–')
    """
    found = finite(value)
    if found is None:
        return NOTHING
    text = f"{found:,.{digits}f}"
    if not float(text.replace(",", "")):  # no minus before a zero
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def percent(value: Any, digits: int = 1) -> str:
    """A fraction as per cent.

    >>> percent(0.1234)
    '12.3 %'
    """
    found = finite(value)
    return NOTHING if found is None else f"{number(100 * found, digits)} %"


def points(value: Any) -> str:
    """A difference of fractions, in percentage points.

    >>> points(0.0123)
    '1.2 points'
    """
    found = finite(value)
    return NOTHING if found is None else f"{number(100 * found, 1)} points"


def signed_points(value: Any) -> str:
    """A difference of fractions with its sign, in percentage points.

    >>> signed_points(0.0123), signed_points(-0.02), signed_points(None)
    ('+1.2 points', '−2.0 points', '–')
    """
    text = points(value)
    return text if text.startswith((NOTHING, MINUS)) else f"+{text}"


def count(value: Any) -> str:
    """A whole number, thousands set apart."""
    return number(value, 0)


def joined(names: list[str]) -> str:
    """A list in a sentence.

    >>> joined(["a", "b", "c"])
    'a, b and c'
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def away(ends: tuple[float | None, float | None], mean: bool = False) -> str:
    """A sentence on how far the decoded ends of a line are from their targets; empty where it is not known."""
    places = zip(("start", "end"), ends, strict=True)
    known = [f"{signed_points(value)} at the {place}" for place, value in places if value is not None]
    if not known:
        return ""
    return f" Decoded networks' accuracy minus their targets' is {'on average ' if mean else ''}{joined(known)}."
