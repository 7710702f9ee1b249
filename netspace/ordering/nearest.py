"""The nearest other points of each, by blocks of points that lie close together. Compiled.

Axes: N points, D dimensions, K neighbours. Points are put in the order of a k-d tree's leaves (Friedman, Bentley and Finkel
1977). A block of `BLOCK` of them, laid out by axis, is compared with a point in vectors; which blocks are worth it, their
boxes tell.
"""

from __future__ import annotations

import numpy as np

from netspace.ordering.compiled import compiled_in_vectors

BLOCK = 64  # points
LANES = 16  # of them are looked at in one go; divides BLOCK by 4
VISITS = 32  # blocks in which a point's neighbours are looked for: all of them among 2,000 points
FAR = np.float32(1e18)  # where the places of a last block lie that no point fills


@compiled_in_vectors
def _select(keys: np.ndarray, rows: np.ndarray, low: int, high: int, middle: int) -> None:
    """Sorts keys low .. high - 1, and rows with them, so far that none before `middle` is above one from there on."""
    high -= 1
    while low < high and middle <= high:
        a, b, c = keys[low], keys[(low + high) // 2], keys[high]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = low, high
        while i <= j:
            while keys[i] < pivot:
                i += 1
            while keys[j] > pivot:
                j -= 1
            if i <= j:
                keys[i], keys[j] = keys[j], keys[i]
                rows[i], rows[j] = rows[j], rows[i]
                i += 1
                j -= 1
        if middle <= j:
            high = j
        elif middle >= i:
            low = i
        else:
            return


@compiled_in_vectors
def _sort(keys: np.ndarray, rows: np.ndarray, count: int) -> None:
    """The first `count` keys by insertion, and rows with them."""
    for last in range(1, count):
        key, row, place = keys[last], rows[last], last
        while place > 0 and keys[place - 1] > key:
            keys[place], rows[place] = keys[place - 1], rows[place - 1]
            place -= 1
        keys[place], rows[place] = key, row


@compiled_in_vectors
def leaf_order(points: np.ndarray) -> np.ndarray:
    """An order (N,) of points (N, D) in which each block lies close together: halves by the widest axis, and halves of these."""
    count, width = points.shape
    order = np.arange(count)
    keys = np.empty(count, dtype=np.float32)
    total, squares = np.empty(width, dtype=np.float32), np.empty(width, dtype=np.float32)
    waiting = np.empty((64, 2), dtype=np.int64)
    waiting[0, 0], waiting[0, 1] = 0, count
    depth = 1
    while depth:
        depth -= 1
        low, high = waiting[depth, 0], waiting[depth, 1]
        blocks = (high - low + BLOCK - 1) // BLOCK
        if blocks < 2:
            continue
        total[:] = 0
        squares[:] = 0
        for i in range(low, high):
            for axis in range(width):
                value = points[order[i], axis]
                total[axis] += value
                squares[axis] += value * value
        widest = 0
        for axis in range(width):
            squares[axis] -= total[axis] * total[axis] / (high - low)
            if squares[axis] > squares[widest]:
                widest = axis
        for i in range(low, high):
            keys[i] = points[order[i], widest]
        middle = low + blocks // 2 * BLOCK
        _select(keys, order, low, high, middle)
        waiting[depth, 0], waiting[depth, 1] = low, middle
        waiting[depth + 1, 0], waiting[depth + 1, 1] = middle, high
        depth += 2
    return order


@compiled_in_vectors
def nearest(points: np.ndarray, many: int) -> tuple[np.ndarray, np.ndarray]:
    """For each point (N, D) `many` others near it, K of them, nearest first, and how far away: both (N, K).

    Points come in the order of their leaves, or some of them do; `many` is below N. What is found is exact where points are
    few; among many it is what the nearest `VISITS` blocks hold.
    """
    count, width = points.shape
    blocks = (count + BLOCK - 1) // BLOCK
    values = np.empty((blocks, width, BLOCK), dtype=np.float32)
    lower, upper = np.empty((width, blocks), dtype=np.float32), np.empty((width, blocks), dtype=np.float32)
    values[:], lower[:], upper[:] = FAR, FAR, -FAR
    for i in range(count):
        block = i // BLOCK
        for axis in range(width):
            value = points[i, axis]
            values[block, axis, i - block * BLOCK] = value
            lower[axis, block] = min(lower[axis, block], value)
            upper[axis, block] = max(upper[axis, block], value)
    near = np.empty((count, many), dtype=np.int32)
    away = np.empty((count, many), dtype=np.float32)  # squared
    away[:] = np.inf
    gaps, others = np.empty(blocks, dtype=np.float32), np.empty(blocks, dtype=np.int64)
    found, bound = np.empty(BLOCK, dtype=np.float32), np.empty(BLOCK, dtype=np.float32)
    least = np.empty(LANES, dtype=np.float32)
    visits = min(VISITS, blocks)
    for block in range(blocks):
        first = block * BLOCK
        _gaps(lower, upper, block, gaps)
        for other in range(blocks):
            others[other] = other
        _select(gaps, others, 0, blocks, visits)
        _sort(gaps, others, visits)
        for other in others[:visits]:
            _bounds(values[block], lower[:, other], upper[:, other], bound)
            for i in range(first, min(first + BLOCK, count)):
                if bound[i - first] >= away[i, many - 1]:
                    continue
                _squares(values[other], points[i], found, least)
                for lane in range(LANES):
                    if least[lane] >= away[i, many - 1]:
                        continue
                    for k in range(lane, BLOCK, LANES):
                        if found[k] < away[i, many - 1] and other * BLOCK + k != i:
                            _insert(near[i], away[i], other * BLOCK + k, found[k])
    for i in range(count):
        for k in range(many):
            away[i, k] = np.sqrt(away[i, k])
    return near, away


@compiled_in_vectors
def _gaps(lower: np.ndarray, upper: np.ndarray, block: int, gaps: np.ndarray) -> None:
    """How far the middle of a block is from the box of each; from its own, less than nothing."""
    gaps[:] = 0
    for axis in range(len(lower)):
        middle = (lower[axis, block] + upper[axis, block]) / 2
        for other in range(len(gaps)):
            step = max(np.float32(0), max(lower[axis, other] - middle, middle - upper[axis, other]))
            gaps[other] += step * step
    gaps[block] = -1


@compiled_in_vectors
def _bounds(values: np.ndarray, lower: np.ndarray, upper: np.ndarray, bound: np.ndarray) -> None:
    """The squared distance of each point of a block (D, BLOCK) to a box."""
    bound[:] = 0
    for axis in range(len(lower)):
        low, high = lower[axis], upper[axis]
        for k in range(BLOCK):
            step = max(np.float32(0), max(low - values[axis, k], values[axis, k] - high))
            bound[k] += step * step


@compiled_in_vectors
def _squares(values: np.ndarray, point: np.ndarray, found: np.ndarray, least: np.ndarray) -> None:
    """The squared distances of a point (D,) to a block's (D, BLOCK), and the least of every `LANES`-th."""
    found[:] = 0
    for axis in range(len(point)):
        value = point[axis]
        for k in range(BLOCK):
            step = values[axis, k] - value
            found[k] += step * step
    for lane in range(LANES):
        two = min(found[lane], found[lane + LANES])
        least[lane] = min(two, min(found[lane + 2 * LANES], found[lane + 3 * LANES]))


@compiled_in_vectors
def _insert(near: np.ndarray, away: np.ndarray, other: int, distance: float) -> None:
    place = len(near) - 1
    while place > 0 and away[place - 1] > distance:
        away[place], near[place] = away[place - 1], near[place - 1]
        place -= 1
    away[place], near[place] = distance, other
