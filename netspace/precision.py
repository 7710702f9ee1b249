"""Which precision, or which of several ways, is the fastest here: timed once, remembered for the processor.

`fastest` times any ways of doing the same and remembers the winner; `choose` asks it for the precision of a step, after
products of matrices have said whether bf16 can win at all.
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

LIMITS = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
)  # of the environment


def fastest(
    subject: str, ways: Mapping[str, Callable[[], object]], repeats: int = 3, work: Mapping[str, float] | None = None
) -> str:
    """The name of the fastest of `ways`, each run once to warm up and then `repeats` times (the best counts).

    `work` says how much each way gets done, where they differ: the least time for a unit wins. A way that runs
    out of memory is out of the race, and so is one that raises, unless all do. What was chosen before on this
    machine is returned untimed.
    """
    file = remembered()
    key = _key(subject, sorted(ways))
    known = _read(file)
    if known.get(key) in ways:
        return known[key]
    seconds, errors = dict[str, float](), list[Exception]()
    for name, way in ways.items():
        try:
            seconds[name] = _time(way, repeats) / (work or {}).get(name, 1.0)
        except Exception as error:  # such as networks that `vmap` cannot stack
            errors.append(error)
    if not seconds:
        raise errors[0]
    choice = min(seconds, key=lambda name: seconds[name])
    try:
        write_json(file, {**_read(file), key: choice})
    except Exception:  # a read-only home is no reason to stop: the choice holds for this process
        pass
    return choice


def remembered() -> Path:
    """The file that holds all choices."""
    return cache_folder() / "calibration.json"


def _time(way: Callable[[], object], repeats: int) -> float:
    best = float("inf")
    try:
        for trial in range(repeats + 1):
            _synchronise()
            start = time.perf_counter()
            way()
            _synchronise()
            if trial:
                best = min(best, time.perf_counter() - start)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return float("inf")
    return best


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _key(subject: str, names: list[str]) -> str:
    here, versions = machine(), f"netspace {package_version('netspace')} torch {torch.__version__}"
    told = f"{subject}|{names}|{here['processor']}|{instructions()}|{here['gpus']}|{torch.get_num_threads()}|{versions}"
    return hashlib.sha256(told.encode()).hexdigest()[:24]


@lru_cache
def instructions() -> str:
    """What the processor can do, and what of it torch and its libraries are allowed to use: a text to compare."""
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
