"""How this process uses threads and memory, settled before torch is loaded.

Threads: as many as there are processors for this process, and none that keeps one busy while it waits.

OpenMP's threads (libgomp, which torch brings) wait by spinning. On a machine that does other work too the one they wait for
may not be running, and each of a step's hundreds of parallel regions then costs a time slice: two threads on two busy
cores took over five seconds for a step that one thread does in a tenth of one. Threads that spin for some microseconds and
then sleep are as fast on an idle machine within 5 %, and on a busy one as fast as threads that never spin (docs/log.md).
"""

from __future__ import annotations

import ctypes
import importlib
import math
import os
import sys
from contextlib import suppress
from pathlib import Path

M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD = -4, -1, -2  # of malloc.h
PAD = 64 << 20  # bytes that the heap grows by
SPINS = 1000  # looks at what a thread waits for before it sleeps
CGROUPS = Path("/sys/fs/cgroup")


def settle_threads() -> None:
    """Sets how torch's threads wait and, where a container allows fewer processors than there are, how many they are.

    To be called before torch is loaded. What the environment says already stays: OMP_WAIT_POLICY, GOMP_SPINCOUNT and
    OMP_NUM_THREADS are the user's to set.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    if "OMP_NUM_THREADS" in os.environ:
        return
    if available_cores() < (os.cpu_count() or 1):
        os.environ["OMP_NUM_THREADS"] = str(available_cores())
        if "torch" in sys.modules:
            import torch

            torch.set_num_threads(available_cores())


def available_cores() -> int:
    """Processors that this process may use: those it is bound to, and no more than its control group's quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(bound, _quota(CGROUPS)))


def _quota(root: Path) -> int:
    """Whole processors of time that the control group may take (version 2, then 1); very many where it is not limited."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return sys.maxsize
    if not quota.isdecimal() or not period.isdecimal():  # 'max', or -1
        return sys.maxsize
    return math.ceil(int(quota) / max(int(period), 1))


def keep_freed_memory() -> None:
    """Asks this process's allocator to keep freed memory for reuse; nothing happens where it is not glibc's."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(None)
            library.mallopt(M_MMAP_MAX, 0)
            library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
            library.mallopt(M_TOP_PAD, PAD)


def import_model_zoo() -> None:
    """Import the `model_zoo` that was installed with netspace, even if the current folder has one of its own.

    `python -m netspace` puts the current folder first in `sys.path`, where a user may well keep a `model_zoo/`. Later
    imports of `model_zoo` and of its modules find ours in `sys.modules`; all other modules are found as before.
    """
    sys.path.insert(0, str(Path(__file__).parents[1]))
    try:
        importlib.import_module("model_zoo")
    finally:
        del sys.path[0]
