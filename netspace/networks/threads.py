"""Loops over stacked networks in as many threads as torch has."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64)  # what our own loops compute in


def to_numpy(tensors: Iterable[Tensor]) -> list[np.ndarray]:
    """Return tensors as arrays that are contiguous: the same memory where they are."""
    return [each.detach().contiguous().numpy() for each in tensors]


def in_threads(loop: Callable[..., None], count: int, *arguments: Any) -> None:
    """Run a loop over `count` networks in torch's number of threads, each for some of them: the results do not depend on it."""
    parts = min(torch.get_num_threads(), count)
    ends = [count * part // parts for part in range(parts + 1)]
    own, *others = itertools.pairwise(ends)
    pending = [_pool(os.getpid(), parts - 1).submit(loop, *arguments, *each) for each in others]
    loop(*arguments, *own)  # in this thread: each that waits for others is woken later than one that works
    for done in pending:
        done.result()


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return threads of this process; a forked one makes its own."""
    return ThreadPoolExecutor(threads, "networks")
