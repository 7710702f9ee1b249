"""Memory: how much is free, and that what a process freed stays with it.

glibc would give it back and fetch it again on every step: tensors of some megabytes are born and die thousands of times a
minute. By default each may cost a system call and a page fault for every 4 KiB, a quarter of a training step on a CPU
(docs/log.md).
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD = -4, -1, -2  # of malloc.h
PAD = 64 << 20  # bytes that the heap grows by


def keep_freed_memory() -> None:
    """Asks this process's allocator to keep freed memory for reuse; nothing happens where it is not glibc's."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(None)
            library.mallopt(M_MMAP_MAX, 0)
            library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
            library.mallopt(M_TOP_PAD, PAD)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; for processors the machine's: what a container is limited to is not seen."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)
