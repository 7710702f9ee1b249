"""Smooth orders of the kernels of layers, and their compact encoding (NeRN, Sec. 3.3 and App. D).

Axes: N kernels of all layers, D values of a kernel, F filters and C channels of a layer."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from netspace.errors import unknown
from netspace.native import compiled
from netspace.native.paths import short_path, short_paths

KINDS = ("none", "in-filter", "cross-filter")
Grid = tuple[int, int]


def arrange(kernels: np.ndarray, grids: Sequence[Grid], kind: str) -> list[np.ndarray]:
    """Return one order (F * C,) for the grid (F, C) of each layer: the kernel of the layer at each coordinate.

    Args:
        kernels: the kernels (N, D) of all layers, one layer after the other.
        grids: filters F and channels C of each layer.
        kind: 'cross-filter' makes one short path of all kernels of a layer; 'in-filter' orders the kernels of each filter and
            then the filters, so that kernels stay with their filter; 'none' keeps the order (NeRN, Sec. 3.3).

    Layers are ordered in parallel, one on each core, the largest first.

    Raises:
        UsageError: `kind` is not one of `KINDS`.
    """
    if kind not in KINDS:
        raise unknown("order", kind, KINDS)
    sizes = [filters * channels for filters, channels in grids]
    layers = np.split(kernels[: sum(sizes)], np.cumsum(sizes)[:-1])
    if kind == "none":
        return [np.arange(size) for size in sizes]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {}
        for index in sorted(range(len(grids)), key=lambda index: -sizes[index]):
            jobs[index] = pool.submit(
                _cross_filter if kind == "cross-filter" else _in_filter, layers[index], grids[index]
            )
        return [jobs[index].result() for index in range(len(grids))]


def _cross_filter(points: np.ndarray, grid: Grid) -> np.ndarray:
    return short_path(points)


def _in_filter(points: np.ndarray, grid: Grid) -> np.ndarray:
    filters, channels = grid
    inside = short_paths(points.reshape(filters, channels, -1))
    rows = np.arange(filters)[:, None] * channels + inside  # (F, C)
    outside = short_path(points[rows].reshape(filters, -1))
    return rows[outside].ravel()


def paper_bits(grid: Grid, kind: str) -> float:
    """Return the bits of a layer's order as the paper counts them: the logarithm of each entry's range (NeRN, App. D)."""
    filters, channels = grid
    if kind == "none":
        return 0.0
    if kind == "cross-filter":
        return filters * channels * (math.log2(filters) + math.log2(channels))
    return filters * channels * math.log2(channels) + filters * math.log2(filters)


def pack_order(order: np.ndarray, grid: Grid, kind: str) -> np.ndarray:
    """Encode a layer's order (F * C,) as bytes: its Lehmer code, each digit in as many bits as its range needs."""
    filters, channels = grid
    if kind == "none":
        return np.empty(0, dtype=np.uint8)
    if kind == "cross-filter":
        return np.packbits(_bits(order))
    table = order.reshape(filters, channels)
    return np.packbits(np.concatenate([_bits(table[:, 0] // channels), *(_bits(row % channels) for row in table)]))


def unpack_order(packed: np.ndarray, grid: Grid, kind: str) -> np.ndarray:
    """Decode the order (F * C,) that `pack_order` encoded."""
    filters, channels = grid
    if kind == "none":
        return np.arange(filters * channels)
    bits = np.unpackbits(packed)
    if kind == "cross-filter":
        return _order(bits, filters * channels)[0]
    outside, used = _order(bits, filters)
    rows = np.empty((filters, channels), dtype=np.int64)
    for index, row in enumerate(outside):
        inside, more = _order(bits[used:], channels)
        rows[index] = row * channels + inside
        used += more
    return rows.ravel()


def _widths(count: int) -> np.ndarray:
    """Return the bits of each digit of a Lehmer code: the i-th is below count - i."""
    return np.array([(count - 1 - index).bit_length() for index in range(count)], dtype=np.int64)


def _bits(order: np.ndarray) -> np.ndarray:
    digits, widths = _to_digits(np.ascontiguousarray(order, dtype=np.int64)), _widths(len(order))
    pieces = []
    for width in range(int(widths.max(initial=0)), 0, -1):  # digits of one width are stored together
        chosen = digits[widths == width]
        pieces.append((chosen[:, None] >> np.arange(width - 1, -1, -1)) & 1)
    return np.concatenate([piece.ravel() for piece in pieces] or [np.empty(0)]).astype(np.uint8)


def _order(bits: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """Decode an order of `count` entries from the beginning of `bits`; return it and the number of bits read."""
    widths = _widths(count)
    digits, used = np.zeros(count, dtype=np.int64), 0
    for width in range(int(widths.max(initial=0)), 0, -1):
        chosen = np.flatnonzero(widths == width)
        piece = bits[used : used + width * len(chosen)].reshape(len(chosen), width).astype(np.int64)
        digits[chosen] = (piece << np.arange(width - 1, -1, -1)).sum(axis=1)
        used += width * len(chosen)
    return _from_digits(digits), used


@compiled
def _tree(count: int) -> np.ndarray:
    """Return a Fenwick tree of ones, which counts the entries left up to each index."""
    tree = np.zeros(count + 1, dtype=np.int64)
    for index in range(1, count + 1):
        tree[index] = index & -index
    return tree


@compiled
def _to_digits(order: np.ndarray) -> np.ndarray:
    count = len(order)
    tree, digits = _tree(count), np.empty(count, dtype=np.int64)
    for index in range(count):
        below, where = 0, order[index]
        while where > 0:
            below += tree[where]
            where -= where & -where
        digits[index] = below
        where = order[index] + 1
        while where <= count:
            tree[where] -= 1
            where += where & -where
    return digits


@compiled
def _from_digits(digits: np.ndarray) -> np.ndarray:
    count = len(digits)
    tree, order = _tree(count), np.empty(count, dtype=np.int64)
    top = 1
    while top * 2 <= count:
        top *= 2
    for index in range(count):
        left, where, step = digits[index], 0, top
        while step > 0:
            if where + step <= count and tree[where + step] <= left:
                where += step
                left -= tree[where]
            step //= 2
        order[index] = where
        where += 1
        while where <= count:
            tree[where] -= 1
            where += where & -where
    return order
