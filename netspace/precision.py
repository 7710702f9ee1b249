"""Which precision is the fastest here: measured by a trial of the work itself, not asked of a name in a recipe.

'auto' is float32, unless bf16 is faster on this device for the very step. Where products of matrices are not faster in
bf16 there is no trial of the step: it would take minutes on a processor without such instructions, which computes in bf16
some forty times slower than in float32.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Literal

import torch

from netspace.calibration import fastest

Concrete = Literal["float32", "bf16"]
Precision = Literal["auto", "float32", "bf16"]
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
SIDES = {"cpu": 256, "cuda": 4096}  # of the matrices whose products are timed: milliseconds, and not a launch alone
SLOWER = 1.5  # a precision that was asked for and is slower than float32 by more than this is pointed out


def choose(
    subject: str, asked: Mapping[str, Precision], trial: Callable[[dict[str, str]], object], device: torch.device
) -> dict[str, str]:
    """A precision for each name of `asked`: as it says, or for 'auto' the one with which `trial` is fastest.

    `trial` runs the work once, with the precision of each name. The choice is remembered for this machine under `subject`.
    What is asked for by name and is much slower than float32 here is said in one line on standard error.
    """
    if set(asked.values()) == {"float32"}:
        return dict(asked)
    fast = bf16_is_fast(device)
    if "bf16" in asked.values() and not fast:
        _point_out([name for name, precision in asked.items() if precision == "bf16"], device)
    options = [
        (("float32", "bf16") if fast else ("float32",)) if precision == "auto" else (precision,)
        for precision in asked.values()
    ]
    ways = {" ".join(way): dict(zip(asked, way, strict=True)) for way in itertools.product(*options)}
    if len(ways) == 1:
        return next(iter(ways.values()))
    chosen = fastest(
        f"precision {subject} {device.type}", {key: _run(trial, way) for key, way in ways.items()}, repeats=2
    )
    return ways[chosen]


def _run(trial: Callable[[dict[str, str]], object], way: dict[str, str]) -> Callable[[], object]:
    return lambda: trial(way)


def bf16_is_fast(device: torch.device) -> bool:
    """Whether products of matrices are faster in bf16 than in float32 on a device: timed once a machine, in milliseconds."""
    ways = {name: _run_product(dtype, device) for name, dtype in DTYPES.items()}
    return fastest(f"products of matrices {device.type}", ways) == "bf16"


@lru_cache
def matrix_rates(device: torch.device) -> dict[str, float]:
    """Operations per second of a product of square matrices on a device, by precision."""
    work = 2 * _side(device) ** 3
    return {name: work / _seconds(_run_product(dtype, device), device) for name, dtype in DTYPES.items()}


def _run_product(dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    matrix = torch.ones(_side(device), _side(device), dtype=dtype, device=device)
    return lambda: matrix @ matrix


def _side(device: torch.device) -> int:
    return SIDES.get(device.type, SIDES["cpu"])


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The least of a few runs."""
    best = float("inf")
    for _ in range(4):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def _point_out(names: list[str], device: torch.device) -> None:
    rates = matrix_rates(device)
    ratio = rates["float32"] / rates["bf16"]
    if ratio > SLOWER:
        print(
            f"{' and '.join(names)}: bf16 was asked for, but products of matrices take {ratio:.0f} times as long in it as in "
            f"float32 on this {'processor' if device.type == 'cpu' else 'device'}: `--set {names[0]}=auto` takes the faster",
            file=sys.stderr,
            flush=True,
        )
