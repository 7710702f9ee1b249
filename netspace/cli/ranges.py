"""Numeric options: each says its range in its help, and a value outside is refused before a command begins."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import typer

from netspace.errors import UsageError

MAX_SEED = 2**63 - 1  # that torch's generators take
MAX_STEPS = 10**9  # of a training
MAX_NETWORKS = 10_000  # that one command decodes; memory may be the narrower limit
MAX_SHARDS = 100_000
MAX_POINTS = 10**6  # on a surface, or inputs of a measurement
MAX_WIDTH = 1000.0  # width factor of an architecture; memory may be the narrower limit
MAX_WIDER = 16  # times the width of the network that a morph was fitted to
MAX_DEPTH = 10_000  # layers
MAX_SIDE = 16_384  # of an image, in pixels
MAX_MEMBERS = 10**9  # that are listed or read at most
MAX_REPEATS = 1000  # of a whole training


def whole(low: int, high: int, help: str, *names: str, metavar: str | None = None) -> Any:
    """Return a typer option for whole numbers from `low` to `high`, both included.

    A value outside ends the command with a `UsageError`. `names` are as typer takes them, such as '--count'.
    """
    return typer.Option(
        *names, metavar=metavar, help=f"{help} From {low:,} to {high:,}.", callback=_within("whole number", low, high)
    )


def real(low: float, high: float, help: str, *names: str, metavar: str | None = None, with_low: bool = False) -> Any:
    """Return a typer option for numbers above `low` (or from it, `with_low`) up to `high`; nan and inf are refused.

    A value outside ends the command with a `UsageError`. `names` are as typer takes them, such as '--width'.
    """
    begin = f"From {low:g}" if with_low else f"Above {low:g},"
    return typer.Option(
        *names, metavar=metavar, help=f"{help} {begin} to {high:g}.", callback=_within("number", low, high, with_low)
    )


def _within(kind: str, low: float, high: float, with_low: bool = True) -> Callable[..., Any]:
    """Return the callback of an option that lets through values inside a range, and None."""
    begin = f"from {_text(low)}" if with_low else f"above {_text(low)} and up"

    def check(param: typer.CallbackParam, value: Any) -> Any:
        if value is None or (math.isfinite(value) and (low <= value if with_low else low < value) and value <= high):
            return value
        raise UsageError(
            f"{param.opts[0]} {value if isinstance(value, int) else _text(value)} was given, but a {kind} {begin} to {_text(high)} was expected: choose one in this "
            "range"
        )

    return check


def _text(value: float) -> str:
    """Return a whole number with commas, another one with the digits that count."""
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
