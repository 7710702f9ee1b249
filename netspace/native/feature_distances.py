"""Distances between rows of bf16 values on a CPU, in one compiled pass over memory where torch needs several.

Axes: B rows, D values of a row. bf16 values are passed as their bits, which are the upper half of a float32."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netspace.native import compiled_in_vectors

PIECE = 1024  # values decoded at once: two such pieces fit the first-level cache of a core
NEAR = 1e-3  # squared distances below this are summed from differences: 2 - 2 u . v would lose their digits
SMALLEST = 1e-12  # by which a shorter row is divided


def fits(*tensors: Tensor) -> bool:
    """Return whether the functions of this module accept these matrices: contiguous, bf16, on the CPU."""
    return all(each.dtype == torch.bfloat16 and each.device.type == "cpu" and each.is_contiguous() for each in tensors)


def unit_distances(
    pairs: Sequence[tuple[Tensor, Tensor]], scales: Sequence[float] | None = None, indices: Tensor | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Return |a / |a| - b / |b|| of the rows of each pair of matrices, and its gradients with respect to a.

    Args:
        pairs: matrices a and b, both (B, D) in bf16; B and D may differ between pairs. A row of zeros counts as zeros.
        scales: factors of the gradients, one for each pair; None: no gradients are computed.
        indices: (B,) row of b, then (N, D), for each row of a; None: the same row.

    Returns:
        For each pair the distances (B,) in float32; for each pair the gradients (B, D) in bf16, or an empty list.

    Raises:
        ValueError: the shapes of a pair do not match.
        IndexError: `indices` has a row that b does not have.
    """
    distances = [torch.empty(len(a)) for a, _ in pairs]
    gradients = [torch.empty_like(a) if scales is not None else a.new_empty(len(a), 0) for a, _ in pairs]
    factors = [0.0] * len(pairs) if scales is None else scales
    jobs = [
        ((_bits(a), _rows(a, b, indices), away.numpy(), _bits(gradient)), (_bits(b), np.float32(factor)))
        for (a, b), away, gradient, factor in zip(pairs, distances, gradients, factors, strict=True)
    ]
    _shared(_unit_distances, jobs)
    return distances, gradients if scales is not None else []


def _rows(a: Tensor, b: Tensor, indices: Tensor | None) -> np.ndarray:
    """Return the row of b for each row of a, checked, since compiled code checks no bounds."""
    rows = np.arange(len(b)) if indices is None else indices.numpy()
    if a.shape[1] != b.shape[1] or len(a) != len(rows):
        raise ValueError(f"{len(rows)} rows of {b.shape[1]} values are compared with {len(a)} of {a.shape[1]}")
    if len(rows) and not (rows.min() >= 0 and rows.max() < len(b)):
        raise IndexError(f"rows {rows.min()} to {rows.max()} are not all among {len(b)}")
    return rows


def _bits(values: Tensor) -> np.ndarray:
    return np.asarray(values.detach().view(torch.uint16).numpy())


def _shared(function: Callable[..., None], jobs: Sequence[tuple[tuple[np.ndarray, ...], tuple[Any, ...]]]) -> None:
    """Call `function` on slices of the rows of each job's first arrays and on its other arguments, in torch's number of threads."""
    threads = torch.get_num_threads()

    def work(thread: int) -> None:
        for arrays, whole in jobs:
            first, last = (len(arrays[0]) * end // threads for end in (thread, thread + 1))
            function(*(array[first:last] for array in arrays), *whole)

    if threads == 1:
        work(0)
    else:
        list(_pool(os.getpid(), threads).map(work, range(threads)))


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return the threads of this process; a forked process has none of its parent's."""
    return ThreadPoolExecutor(threads, thread_name_prefix=f"netspace-{process}")


@compiled_in_vectors
def _decode(bits: np.ndarray, values: np.ndarray) -> None:
    for index in range(len(bits)):
        values[index] = np.uint32(bits[index]) << np.uint32(16)


@compiled_in_vectors
def _products(x: np.ndarray, y: np.ndarray) -> Any:
    xx, yy, xy = np.float32(0), np.float32(0), np.float32(0)
    for index in range(len(x)):
        xx += x[index] * x[index]
        yy += y[index] * y[index]
        xy += x[index] * y[index]
    return xx, yy, xy


@compiled_in_vectors
def _squares_between(x: np.ndarray, y: np.ndarray, of_x: Any, of_y: Any) -> Any:
    total = np.float32(0)
    for index in range(len(x)):
        step = x[index] * of_x - y[index] * of_y
        total += step * step
    return total


@compiled_in_vectors
def _mix(x: np.ndarray, y: np.ndarray, of_x: Any, of_y: Any) -> None:
    for index in range(len(x)):
        x[index] = x[index] * of_x + y[index] * of_y


@compiled_in_vectors
def _round(values: np.ndarray, bits: np.ndarray) -> None:
    for index in range(len(bits)):  # to nearest, ties to even
        value = values[index]
        odd = (value >> np.uint32(16)) & np.uint32(1)
        bits[index] = np.uint16((value + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@compiled_in_vectors
def _unit_distances(
    a: np.ndarray, rows: np.ndarray, distances: np.ndarray, gradients: np.ndarray, bs: np.ndarray, scale: Any
) -> None:
    width = a.shape[1]
    decoded = np.empty((2, PIECE), dtype=np.uint32)
    first, second = decoded[0].view(np.float32), decoded[1].view(np.float32)
    for row in range(len(a)):
        b = bs[rows[row]]
        aa, bb, ab = 0.0, 0.0, 0.0
        for start in range(0, width, PIECE):
            count = min(PIECE, width - start)
            _decode(a[row, start : start + count], decoded[0, :count])
            _decode(b[start : start + count], decoded[1, :count])
            xx, yy, xy = _products(first[:count], second[:count])
            aa, bb, ab = aa + xx, bb + yy, ab + xy
        of_a, of_b = 1 / max(np.sqrt(aa), SMALLEST), 1 / max(np.sqrt(bb), SMALLEST)
        squares = aa * of_a**2 + bb * of_b**2 - 2 * ab * of_a * of_b
        if squares < NEAR:
            squares = 0.0
            for start in range(0, width, PIECE):
                count = min(PIECE, width - start)
                _decode(a[row, start : start + count], decoded[0, :count])
                _decode(b[start : start + count], decoded[1, :count])
                squares += _squares_between(first[:count], second[:count], np.float32(of_a), np.float32(of_b))
        away = np.sqrt(squares)
        distances[row] = away
        if not gradients.shape[1]:
            continue
        # of u = a / |a| and v = b / |b|: (u (u . v) - v) / (|a| |u - v|), where u . v = 1 - |u - v|^2 / 2
        grows, falls = np.float32(0), np.float32(0)
        if away > 0 and aa > SMALLEST**2 and bb > SMALLEST**2:
            grows = np.float32(scale * (1 - squares / 2) / (aa * away))
            falls = np.float32(-scale * of_a * of_b / away)
        for start in range(0, width, PIECE):
            count = min(PIECE, width - start)
            _decode(a[row, start : start + count], decoded[0, :count])
            _decode(b[start : start + count], decoded[1, :count])
            _mix(first[:count], second[:count], grows, falls)
            _round(decoded[0, :count], gradients[row, start : start + count])
