"""Threads, memory and modules of this process, set up before torch is loaded.

As many threads are used as processors are available to this process, and waiting threads go to sleep. The threads of
OpenMP (libgomp, which comes with torch) wait by spinning. On a machine that also does other work, the thread they wait
for may not be running, and each of the hundreds of parallel regions of a step then costs a time slice: two threads on two
busy cores took over five seconds for a step that takes one thread a tenth of a second. Threads that spin for some
microseconds and then sleep are as fast on an idle machine within 5 %, and on a busy one as fast as threads that never
spin (docs/log.md).
"""

from __future__ import annotations

import ctypes
import importlib
import math
import os
import sys
from contextlib import suppress
from pathlib import Path

M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD = -4, -1, -2  # parameters of mallopt, from malloc.h
PAD = 64 << 20  # bytes by which the heap grows
SPINS = 1000  # polls before a waiting thread sleeps
CGROUPS = Path("/sys/fs/cgroup")


def settle_threads() -> None:
    """Set how torch's threads wait and, if fewer processors are available than the machine has, their number.

    Call it before torch is loaded. OMP_WAIT_POLICY, GOMP_SPINCOUNT and OMP_NUM_THREADS are left alone if the user set them.
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
    """Return the number of processors this process may use: its affinity, limited by the quota of its control group."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(bound, _quota(CGROUPS)))


def _quota(root: Path) -> int:
    """Return the processors that the control group (version 2, else 1) may use, rounded up; `sys.maxsize` if unlimited."""
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
    """Ask glibc's allocator to keep freed memory for reuse instead of returning it; does nothing with other allocators."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(None)
            library.mallopt(M_MMAP_MAX, 0)
            library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
            library.mallopt(M_TOP_PAD, PAD)


def import_model_zoo() -> None:
    """Import the `model_zoo` that was installed with netspace, even if the current folder has one of its own.

    `python -m netspace` puts the current folder first in `sys.path`, where a user may well keep a `model_zoo/`. Later
    imports of `model_zoo` and of its modules take ours from `sys.modules`; all other imports are as before.
    """
    sys.path.insert(0, str(Path(__file__).parents[1]))
    try:
        importlib.import_module("model_zoo")
    finally:
        del sys.path[0]
