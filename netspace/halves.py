"""Rows of bf16 values on processors, decoded in their cache: what torch does in several passes over memory, in one. Compiled.

Axes: B rows, D values of a row. bf16 is handed over as its bits: the upper half of a float32's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netspace.compiled import compiled_in_vectors


def fits(*tensors: Tensor) -> bool:
    """Whether these matrices are what the functions here take."""
    return all(each.dtype == torch.bfloat16 and each.device.type == "cpu" and each.is_contiguous() for each in tensors)


def unit_distances(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """|a|, |b| and |a / |a| - b / |b|| of rows of each pair (B, D): (B, 3) in float32. A row of zeros stays zeros."""
    found = [torch.empty(len(a), 3) for a, _ in pairs]
    _shared(_unit_distances, [(_bits(a), _bits(b), each.numpy()) for (a, b), each in zip(pairs, found, strict=True)])
    return found


def mixed(mixes: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]]) -> list[Tensor]:
    """Rows of_a * a + of_b * b (B, D) in bf16, for each a and b and their factors (B,) in float32."""
    found = [torch.empty_like(a) for a, *_ in mixes]
    jobs = [
        (_bits(a), _bits(b), of_a.numpy(), of_b.numpy(), _bits(each))
        for (a, b, of_a, of_b), each in zip(mixes, found, strict=True)
    ]
    _shared(_mixed, jobs)
    return found


def _bits(values: Tensor) -> np.ndarray:
    return np.asarray(values.detach().view(torch.uint16).numpy())


def _shared(function: Callable[..., None], jobs: Sequence[tuple[np.ndarray, ...]]) -> None:
    """The function on rows of each job, shared out between as many threads as torch has."""
    threads = torch.get_num_threads()

    def work(place: int) -> None:
        for arrays in jobs:
            first, last = (len(arrays[0]) * end // threads for end in (place, place + 1))
            function(*(array[first:last] for array in arrays))

    if threads == 1:
        work(0)
    else:
        list(_pool(os.getpid(), threads).map(work, range(threads)))


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process: a forked one has none of its parent's."""
    return ThreadPoolExecutor(threads, thread_name_prefix=f"netspace-{process}")


@compiled_in_vectors
def _decode(bits: np.ndarray, values: np.ndarray) -> None:
    for place in range(len(bits)):
        values[place] = np.uint32(bits[place]) << np.uint32(16)


@compiled_in_vectors
def _squares(x: np.ndarray) -> Any:
    total = np.float32(0)
    for place in range(len(x)):
        total += x[place] * x[place]
    return total


@compiled_in_vectors
def _squares_between(x: np.ndarray, y: np.ndarray, of_x: Any, of_y: Any) -> Any:
    total = np.float32(0)
    for place in range(len(x)):
        step = x[place] * of_x - y[place] * of_y
        total += step * step
    return total


@compiled_in_vectors
def _unit_distances(a: np.ndarray, b: np.ndarray, found: np.ndarray) -> None:
    decoded = np.empty((2, a.shape[1]), dtype=np.uint32)
    x, y = decoded[0].view(np.float32), decoded[1].view(np.float32)
    for row in range(len(a)):
        _decode(a[row], decoded[0])
        _decode(b[row], decoded[1])
        first, second = np.sqrt(_squares(x)), np.sqrt(_squares(y))
        smallest = np.float32(1e-12)
        scales = np.float32(1) / max(first, smallest), np.float32(1) / max(second, smallest)
        found[row, 0], found[row, 1] = first, second
        found[row, 2] = np.sqrt(_squares_between(x, y, scales[0], scales[1]))


@compiled_in_vectors
def _mixed(a: np.ndarray, b: np.ndarray, of_a: np.ndarray, of_b: np.ndarray, found: np.ndarray) -> None:
    decoded = np.empty((2, a.shape[1]), dtype=np.uint32)
    x, y = decoded[0].view(np.float32), decoded[1].view(np.float32)
    for row in range(len(a)):
        _decode(a[row], decoded[0])
        _decode(b[row], decoded[1])
        for place in range(len(x)):
            x[place] = x[place] * of_a[row] + y[place] * of_b[row]
        for place in range(len(x)):  # rounded to the nearest, and to an even one between two
            bits = decoded[0, place]
            odd = (bits >> np.uint32(16)) & np.uint32(1)
            found[row, place] = np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
