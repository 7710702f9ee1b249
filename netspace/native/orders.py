"""Kernels of layers put in smooth order, and orders as few bits (NeRN, Sec. 3.3 and App. D).

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
    """Which kernel of its layer lies at each coordinate: one order (F * C,) for each layer's grid (F, C).

    'cross-filter' puts all kernels of a layer in one short path; 'in-filter' those of every filter, and then the filters,
    so that kernels stay with their filter. Layers are put in order at once, one on each core, the largest first.
    """
    if kind not in KINDS:
        raise unknown("order", kind, KINDS)
    sizes = [filters * channels for filters, channels in grids]
    layers = np.split(kernels[: sum(sizes)], np.cumsum(sizes)[:-1])
    if kind == "none":
        return [np.arange(size) for size in sizes]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {}
        for place in sorted(range(len(grids)), key=lambda place: -sizes[place]):
            jobs[place] = pool.submit(
                _cross_filter if kind == "cross-filter" else _in_filter, layers[place], grids[place]
            )
        return [jobs[place].result() for place in range(len(grids))]


def _cross_filter(points: np.ndarray, grid: Grid) -> np.ndarray:
    return short_path(points)


def _in_filter(points: np.ndarray, grid: Grid) -> np.ndarray:
    filters, channels = grid
    inside = short_paths(points.reshape(filters, channels, -1))
    rows = np.arange(filters)[:, None] * channels + inside  # (F, C)
    outside = short_path(points[rows].reshape(filters, -1))
    return rows[outside].ravel()


def paper_bits(grid: Grid, kind: str) -> float:
    """What a layer's order takes by the paper's count: each entry as the logarithm of its range (NeRN, App. D)."""
    filters, channels = grid
    if kind == "none":
        return 0.0
    if kind == "cross-filter":
        return filters * channels * (math.log2(filters) + math.log2(channels))
    return filters * channels * math.log2(channels) + filters * math.log2(filters)


def pack_order(order: np.ndarray, grid: Grid, kind: str) -> np.ndarray:
    """A layer's order as bytes. Every entry counts among those that are left (Lehmer code), in as many bits as that takes."""
    filters, channels = grid
    if kind == "none":
        return np.empty(0, dtype=np.uint8)
    if kind == "cross-filter":
        return np.packbits(_bits(order))
    table = order.reshape(filters, channels)
    return np.packbits(np.concatenate([_bits(table[:, 0] // channels), *(_bits(row % channels) for row in table)]))


def unpack_order(packed: np.ndarray, grid: Grid, kind: str) -> np.ndarray:
    """The order (F * C,) that `pack_order` packed."""
    filters, channels = grid
    if kind == "none":
        return np.arange(filters * channels)
    bits = np.unpackbits(packed)
    if kind == "cross-filter":
        return _order(bits, filters * channels)[0]
    outside, used = _order(bits, filters)
    rows = np.empty((filters, channels), dtype=np.int64)
    for place, row in enumerate(outside):
        inside, more = _order(bits[used:], channels)
        rows[place] = row * channels + inside
        used += more
    return rows.ravel()


def _widths(count: int) -> np.ndarray:
    """Bits of each digit: the i-th is below count - i."""
    return np.array([(count - 1 - place).bit_length() for place in range(count)], dtype=np.int64)


def _bits(order: np.ndarray) -> np.ndarray:
    digits, widths = _to_digits(np.ascontiguousarray(order, dtype=np.int64)), _widths(len(order))
    pieces = []
    for width in range(int(widths.max(initial=0)), 0, -1):  # digits of one width lie together
        chosen = digits[widths == width]
        pieces.append((chosen[:, None] >> np.arange(width - 1, -1, -1)) & 1)
    return np.concatenate([piece.ravel() for piece in pieces] or [np.empty(0)]).astype(np.uint8)


def _order(bits: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """The order of `count` entries at the beginning of bits, and how many bits it took."""
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
    """A Fenwick tree of ones: how many entries are left up to each place."""
    tree = np.zeros(count + 1, dtype=np.int64)
    for place in range(1, count + 1):
        tree[place] = place & -place
    return tree


@compiled
def _to_digits(order: np.ndarray) -> np.ndarray:
    count = len(order)
    tree, digits = _tree(count), np.empty(count, dtype=np.int64)
    for place in range(count):
        below, where = 0, order[place]
        while where > 0:
            below += tree[where]
            where -= where & -where
        digits[place] = below
        where = order[place] + 1
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
    for place in range(count):
        left, where, step = digits[place], 0, top
        while step > 0:
            if where + step <= count and tree[where + step] <= left:
                where += step
                left -= tree[where]
            step //= 2
        order[place] = where
        where += 1
        while where <= count:
            tree[where] -= 1
            where += where & -where
    return order
