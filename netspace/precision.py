"""The fastest precision, or the fastest of several implementations, on this machine: timed once, then cached.

`fastest` times several ways of doing the same work and caches the winner; `choose` uses it for the precision of a step,
if products of matrices are faster in bf16 at all.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

from netspace.errors import NetspaceError
from netspace.hardware import cache_folder, machine
from netspace.io import read_json, write_json
from netspace.run_folder import package_version

ENOUGH = 1.0  # seconds after which ways are timed no more often than was asked for
MORE = 5  # times as often as was asked for, at most, before that
# environment variables that limit the instructions in use
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")


def fastest(
    subject: str, ways: Mapping[str, Callable[[], object]], repeats: int = 3, work: Mapping[str, float] | None = None
) -> str:
    """Return the name of the fastest of `ways` on this machine; a cached choice is returned without timing.

    Args:
        subject: names the work in the cache.
        ways: the alternatives by name; each runs once to warm up and then `repeats` times, in turns with the others, or more often
            where all of that takes less than a second. The fastest run counts.
        repeats: timed runs of each way, at least.
        work: units of work that each way does, if they differ; the least time per unit wins.

    A way that raises or runs out of memory is left out.

    Raises:
        Exception: what the first way raised, if all ways raise.
    """
    file = calibration_file()
    key = _key(subject, sorted(ways))
    known = _read(file)
    if known.get(key) in ways:
        return known[key]
    seconds = _in_turns(ways, repeats)
    choice = min(seconds, key=lambda name: seconds[name] / (work or {}).get(name, 1.0))
    try:
        write_json(file, {**_read(file), key: choice})
    except Exception:  # a read-only home is no reason to stop: the choice is not cached
        pass
    return choice


def calibration_file() -> Path:
    """Return the file that caches all choices."""
    return cache_folder() / "calibration.json"


def _in_turns(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the fastest run of each way after one to warm up, in seconds; raise what the first raised if none can run.

    In turns, as a machine that also does other work, or shares its processor, is fast one second and slow the next.
    """
    seconds, errors, start = dict[str, float](), list[Exception](), time.perf_counter()
    left = dict(ways)
    for turn in itertools.count():
        for name, way in list(left.items()):
            try:
                taken = _once(way)
            except Exception as error:  # for example networks that `vmap` cannot stack
                errors.append(error)
                seconds.pop(name, None)
                del left[name]
                continue
            seconds[name] = taken if turn <= 1 else min(seconds[name], taken)
        if not left:
            break
        if turn >= repeats and (turn >= MORE * repeats or time.perf_counter() - start > ENOUGH):
            break
    if not seconds:
        raise errors[0]
    return seconds


def _once(way: Callable[[], object]) -> float:
    """Return the seconds of one run; infinity if a GPU's memory runs out."""
    _synchronise()
    start = time.perf_counter()
    try:
        way()
        _synchronise()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return float("inf")
    return time.perf_counter() - start


def _seconds(way: Callable[[], object], repeats: int = 3) -> float:
    """Return the time of the fastest run after one to warm up, in seconds; infinity if a GPU's memory runs out."""
    return _in_turns({"": way}, repeats)[""]


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _key(subject: str, names: list[str]) -> str:
    here, versions = machine(), f"netspace {package_version('netspace')} torch {torch.__version__}"
    # the first number changes with the way of timing
    text = (
        f"2 {subject}|{names}|{here['processor']}|{instructions()}|{here['gpus']}|{torch.get_num_threads()}|{versions}"
    )
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@lru_cache
def instructions() -> str:
    """Return, as a text to compare, the instructions of the processor and the limits on what torch may use of them."""
    flags = ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    except OSError:
        pass
    limits = [os.environ.get(name, "") for name in LIMITS]
    return f"{torch.backends.cpu.get_cpu_capability()} {limits} {' '.join(sorted(set(flags.split())))}"


def _read(file: Path) -> dict[str, str]:
    try:
        return read_json(file, dict[str, str])
    except NetspaceError:
        return {}


Concrete = Literal["float32", "bf16"]
Precision = Literal["auto", "float32", "bf16"]
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
SIDES = {"cpu": 256, "cuda": 4096}  # side of the timed matrices: milliseconds of work, more than the launch of a kernel
SLOWER = 1.5  # factor over float32 from which a slow precision that the user asked for is reported


def choose(
    subject: str, asked: Mapping[str, Precision], trial: Callable[[dict[str, str]], object], device: torch.device
) -> dict[str, str]:
    """Return a precision for each name of `asked`: the one asked for, or for 'auto' the one with which `trial` is fastest.

    `trial` runs the work once with the precisions it is given. The choice is cached for this machine under `subject`. A
    precision that was asked for and is much slower than float32 here is reported in one line on standard error.
    """
    if set(asked.values()) == {"float32"}:
        return dict(asked)
    fast = bf16_is_fast(device)
    if "bf16" in asked.values() and not fast:
        _report_slow([name for name, precision in asked.items() if precision == "bf16"], device)
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
    """Return whether products of matrices are faster in bf16 than in float32 on a device; timed once per machine."""
    ways = {name: _run_product(dtype, device) for name, dtype in DTYPES.items()}
    return fastest(f"products of matrices {device.type}", ways) == "bf16"


@lru_cache
def matrix_rates(device: torch.device) -> dict[str, float]:
    """Return the rate of products of square matrices on a device, in operations per second, by precision."""
    work = 2 * _side(device) ** 3
    return {name: work / _seconds(_run_product(dtype, device)) for name, dtype in DTYPES.items()}


def _run_product(dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    matrix = torch.ones(_side(device), _side(device), dtype=dtype, device=device)
    return lambda: matrix @ matrix


def _side(device: torch.device) -> int:
    return SIDES.get(device.type, SIDES["cpu"])


def _report_slow(names: list[str], device: torch.device) -> None:
    """Print a line if bf16 is much slower than float32, for settings `names` that asked for it."""
    rates = matrix_rates(device)
    ratio = rates["float32"] / rates["bf16"]
    if ratio > SLOWER:
        print(
            f"{' and '.join(names)}: bf16 was asked for, but products of matrices take {ratio:.0f} times as long in it as in "
            f"float32 on this {'processor' if device.type == 'cpu' else 'device'}: `--set {names[0]}=auto` takes the faster",
            file=sys.stderr,
            flush=True,
        )
