"""Rows of bf16 values on processors, decoded in their cache: what torch does in several passes over memory, in one. Compiled.

Axes: B rows, D values of a row. bf16 is handed over as its bits: the upper half of a float32's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from netspace.runtime import cache_folder

numba.config.CACHE_DIR = str(cache_folder() / "numba")  # type: ignore[attr-defined]


def compiled_in_vectors(function: Any) -> Any:
    """The function as machine code, made when it is first called; sums may be taken in any order, NaN stays NaN."""
    return numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz", "arcp"})(function)


def fits(*tensors: Tensor) -> bool:
    """Whether these matrices are what the functions here take."""
    return all(each.dtype == torch.bfloat16 and each.device.type == "cpu" and each.is_contiguous() for each in tensors)


def unit_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a|, |b| and |a / |a| - b / |b|| of rows (B, D): (B, 3) in float32. A row of zeros stays zeros."""
    found = torch.empty(len(a), 3)
    _shared(_unit_distances, _bits(a), _bits(b), found.numpy())
    return found


def mixed(a: Tensor, b: Tensor, of_a: Tensor, of_b: Tensor) -> Tensor:
    """Rows of_a * a + of_b * b (B, D) in bf16, for factors (B,) in float32."""
    found = torch.empty_like(a)
    _shared(_mixed, _bits(a), _bits(b), of_a.numpy(), of_b.numpy(), _bits(found))
    return found


def _bits(values: Tensor) -> np.ndarray:
    return np.asarray(values.detach().view(torch.uint16).numpy())


def _shared(function: Callable[..., None], *arrays: np.ndarray) -> None:
    """The function on rows, shared out between as many threads as torch has."""
    threads, count = torch.get_num_threads(), len(arrays[0])
    step = max(1, -(-count // threads))
    parts = [tuple(array[start : start + step] for array in arrays) for start in range(0, count, step)]
    if len(parts) == 1:
        function(*arrays)
    else:
        list(_pool(os.getpid(), threads).map(lambda part: function(*part), parts))


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
