"""What our own loops over stacked networks share: arrays, threads, and what they refuse."""

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

from netspace.errors import NetspaceError

DTYPES = (torch.float32, torch.float64)  # what our own loops compute in


def to_numpy(tensors: Iterable[Tensor]) -> list[np.ndarray]:
    """Return tensors as arrays that are contiguous: the same memory where they are."""
    return [each.detach().contiguous().numpy() for each in tensors]


def new_batch_last(images: Tensor, batch: int, *sizes: int) -> Tensor:
    """Return new memory (*sizes of leading axes, B, C, H, W) of the images' type with the batch last in it.

    `sizes` are (C, H, W), or (M, C, H, W). It is no view, since layers may write over it.
    """
    *networks, channels, height, width = sizes
    pixels = height * width * batch
    strides = (*(channels * pixels for _ in networks), 1, pixels, width * batch, batch)
    return torch.empty_strided((*networks, batch, channels, height, width), strides, dtype=images.dtype)


def check_once_differentiable() -> None:
    """Call it in `backward`. Raises `NetspaceError` where gradients of the gradients were asked for, which loops do not have.

    torch's own check lets them pass, as zero, where they are asked for of some tensors alone.
    """
    if torch.is_grad_enabled():
        raise NetspaceError(
            "second derivatives were asked for (create_graph), but convolutions and batch norm of stacked networks on CPUs "
            "have first ones alone: take them network by network, by torch.func.functional_call on the module that Space.decode returns"
        )


def in_threads(loop: Callable[..., None], count: int, *arguments: Any) -> None:
    """Run a loop over `count` networks in torch's number of threads, each for some of them: the results do not depend on it."""
    parts = min(torch.get_num_threads(), count)
    ends = [count * part // parts for part in range(parts + 1)]
    own, *others = itertools.pairwise(ends)
    pending = [_pool(os.getpid(), parts - 1).submit(loop, *arguments, *each) for each in others]
    loop(*arguments, *own)
    for done in pending:
        done.result()


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return threads of this process; a forked one makes its own."""
    return ThreadPoolExecutor(threads, "networks")
