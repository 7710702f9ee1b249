"""Files of a run folder as checked values: whatever is broken is named with its file.

A part that is not there is empty; a number that is none (null, NaN, infinite) is None, or NaN in a list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from netspace.errors import NetspaceError
from netspace.io import read_json


def finite(value: Any) -> float | None:
    """`value` as a float; None for anything that is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def part(figures: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A mapping inside `figures`, empty if there is none."""
    value = figures.get(name)
    return value if isinstance(value, dict) else {}


def numbers_of(raw: Mapping[str, Any], name: str, file: Path) -> np.ndarray:
    """A list of numbers as float64; null is NaN, nothing is empty."""
    try:
        return np.array([math.nan if value is None else float(value) for value in raw.get(name) or []])
    except (TypeError, ValueError):
        raise NetspaceError(f"{file}: {name!r} was expected to be a list of numbers") from None


def ends_of(raw: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Decoded minus target accuracy at both ends of a line; None where it was not measured."""
    values = raw.get("end_differences")
    return (finite(values[0]), finite(values[1])) if isinstance(values, list) and len(values) == 2 else (None, None)


def names_of(raw: Mapping[str, Any], name: str, file: Path) -> list[str]:
    """A list of names; nothing is empty."""
    value = raw.get(name) or []
    if not isinstance(value, list):
        raise NetspaceError(f"{file}: {name!r} was expected to be a list of names")
    return [str(each) for each in value]


def mapping_of(file: Path) -> dict[str, Any]:
    """The JSON object that a file holds."""
    return read_json(file, dict[str, Any])
