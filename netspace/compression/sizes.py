"""Sizes in bytes as people write them, and the size that a compressed network may have."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from netspace.errors import UsageError

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}  # bytes
SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([a-z]*)", re.ASCII)


def parse_size(text: str) -> int:
    """Return the bytes of a size such as '100KB' (100,000), '2.3MB', '1MiB' (1,048,576) or '85000', rounded down.

    Raises `UsageError` for anything else, and for less than one byte.

    >>> parse_size("85kB"), parse_size("1.5 MiB")
    (85000, 1572864)
    """
    match = SIZE.fullmatch(text.strip().lower())
    size = int(Fraction(match[1]) * UNITS[match[2]]) if match and match[2] in UNITS and len(match[1]) < 16 else 0
    if size < 1:
        raise UsageError(
            f"--bytes {text!r} was expected to be a size of at least one byte, as in 100KB (100,000 bytes), 2.3MB, 1MiB "
            "(1,048,576 bytes) or 85000"
        )
    return size


def parse_budget(size: str | None, ratio: float | None, accuracy_drop: float | None) -> dict[str, Any]:
    """Return the settings of the budget that was given, empty if there is none.

    Raises `UsageError` for more than one, and for a ratio or a drop out of range.
    """
    given = {"--bytes": size, "--ratio": ratio, "--accuracy-drop": accuracy_drop}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise UsageError(f"{' and '.join(names)} each say how small the file is to be: give one of them")
    if ratio is not None and not 1 < ratio < float("inf"):
        raise UsageError(
            f"--ratio {ratio:g} was expected to be a number above 1: how many times smaller the file is to be"
        )
    if accuracy_drop is not None and not 0 <= accuracy_drop <= 100:
        raise UsageError(
            f"--accuracy-drop {accuracy_drop:g} was expected to be percentage points, from 0 to 100, as in 0.5"
        )
    settings = {"bytes": None if size is None else parse_size(size), "ratio": ratio, "accuracy_drop": accuracy_drop}
    return {name: value for name, value in settings.items() if value is not None}
