"""Rows of bf16 values on processors, decoded in their cache: what torch does in several passes over memory, in one. Compiled.

Axes: B rows, D values of a row. bf16 is handed over as its bits: the upper half of a float32's."""

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

PIECE = 1024  # values decoded at once: two such pieces stay in a core's first cache


NEAR = 1e-3  # squared distances below this are summed from differences, as 2 - 2 u . v would lose their digits


SMALLEST = 1e-12  # length that a row is divided by


def fits(*tensors: Tensor) -> bool:
    """Whether these matrices are what the functions here take."""
    return all(each.dtype == torch.bfloat16 and each.device.type == "cpu" and each.is_contiguous() for each in tensors)


def unit_distances(
    pairs: Sequence[tuple[Tensor, Tensor]], scales: Sequence[float] | None = None, places: Tensor | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """|a / |a| - b / |b|| of rows of each pair (B, D), each its own B and D: (B,) in float32. A row of zeros stays zeros.

    With `places` (B,) the rows b are those of (N, D). With `scales`, one for each pair, also the gradients of that with
    respect to a, times the scale, (B, D) in bf16, made while the row is in the cache; else none. Raises `ValueError` or
    `IndexError` where rows do not match.
    """
    found = [torch.empty(len(a)) for a, _ in pairs]
    gradients = [torch.empty_like(a) if scales is not None else a.new_empty(len(a), 0) for a, _ in pairs]
    factors = [0.0] * len(pairs) if scales is None else scales
    jobs = [
        ((_bits(a), _rows(a, b, places), away.numpy(), _bits(gradient)), (_bits(b), np.float32(factor)))
        for (a, b), away, gradient, factor in zip(pairs, found, gradients, factors, strict=True)
    ]
    _shared(_unit_distances, jobs)
    return found, gradients if scales is not None else []


def _rows(a: Tensor, b: Tensor, places: Tensor | None) -> np.ndarray:
    """Which rows of b belong to those of a; compiled code looks at no bounds."""
    rows = np.arange(len(b)) if places is None else places.numpy()
    if a.shape[1] != b.shape[1] or len(a) != len(rows):
        raise ValueError(f"{len(rows)} rows of {b.shape[1]} values are compared with {len(a)} of {a.shape[1]}")
    if len(rows) and not (rows.min() >= 0 and rows.max() < len(b)):
        raise IndexError(f"rows {rows.min()} to {rows.max()} are not all among {len(b)}")
    return rows


def _bits(values: Tensor) -> np.ndarray:
    return np.asarray(values.detach().view(torch.uint16).numpy())


def _shared(function: Callable[..., None], jobs: Sequence[tuple[tuple[np.ndarray, ...], tuple[Any, ...]]]) -> None:
    """The function on rows of each job's first arrays, and on the others whole, by as many threads as torch has."""
    threads = torch.get_num_threads()

    def work(place: int) -> None:
        for arrays, whole in jobs:
            first, last = (len(arrays[0]) * end // threads for end in (place, place + 1))
            function(*(array[first:last] for array in arrays), *whole)

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
def _products(x: np.ndarray, y: np.ndarray) -> Any:
    xx, yy, xy = np.float32(0), np.float32(0), np.float32(0)
    for place in range(len(x)):
        xx += x[place] * x[place]
        yy += y[place] * y[place]
        xy += x[place] * y[place]
    return xx, yy, xy


@compiled_in_vectors
def _squares_between(x: np.ndarray, y: np.ndarray, of_x: Any, of_y: Any) -> Any:
    total = np.float32(0)
    for place in range(len(x)):
        step = x[place] * of_x - y[place] * of_y
        total += step * step
    return total


@compiled_in_vectors
def _mix(x: np.ndarray, y: np.ndarray, of_x: Any, of_y: Any) -> None:
    for place in range(len(x)):
        x[place] = x[place] * of_x + y[place] * of_y


@compiled_in_vectors
def _round(values: np.ndarray, bits: np.ndarray) -> None:
    for place in range(len(bits)):  # to the nearest, and to an even one between two
        value = values[place]
        odd = (value >> np.uint32(16)) & np.uint32(1)
        bits[place] = np.uint16((value + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@compiled_in_vectors
def _unit_distances(
    a: np.ndarray, rows: np.ndarray, found: np.ndarray, gradients: np.ndarray, bs: np.ndarray, scale: Any
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
        found[row] = away
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
