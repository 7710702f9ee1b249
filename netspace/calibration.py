"""Which of several ways is the fastest here: timed once, remembered for this machine.

Ways differ in rounding, so a choice that changed from run to run would break 'same seed, same machine, same
result'. The answer is therefore kept in `calibration.json` in the user's cache folder (or the folder that the
environment variable NETSPACE_CACHE names), keyed by what was timed, the kind of device, the processor and its instructions, GPUs,
threads and the versions of netspace and torch; whoever deletes that file has everything timed anew.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import torch

from netspace.errors import NetspaceError
from netspace.records import read_json, write_json
from netspace.runtime import cache_folder, machine, package_version

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
