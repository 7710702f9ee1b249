"""Nearest neighbours of points, and paths through points: to the nearest one left, or by the shortest edges first."""

from __future__ import annotations

import numpy as np

from netspace.native import compiled, compiled_without_nan

BLOCK = 64  # points
LANES = 16  # points compared in one step; a BLOCK is 4 of these
VISITS = 32  # blocks searched for the neighbours of a point: all blocks, for up to 2,000 points
FAR = np.float32(1e18)  # coordinate of the unused entries of the last block


@compiled_without_nan
def _select(keys: np.ndarray, rows: np.ndarray, low: int, high: int, middle: int) -> None:
    """Partition keys low .. high - 1, and rows with them, so that no key before `middle` exceeds one at or after it."""
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


@compiled_without_nan
def _sort(keys: np.ndarray, rows: np.ndarray, count: int) -> None:
    """Sort the first `count` keys by insertion, and rows with them."""
    for last in range(1, count):
        key, row, index = keys[last], rows[last], last
        while index > 0 and keys[index - 1] > key:
            keys[index], rows[index] = keys[index - 1], rows[index - 1]
            index -= 1
        keys[index], rows[index] = key, row


@compiled_without_nan
def leaf_order(points: np.ndarray) -> np.ndarray:
    """Return an order (N,) of points (N, D) in compact blocks: split in halves along the widest axis, recursively."""
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


@compiled_without_nan
def nearest(points: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Return K = `neighbours` near points of each point (N, D), nearest first, and their distances: both (N, K).

    Points are in leaf order, or a subset in that order; K is below N. The result is exact for up to `VISITS` blocks of
    points; of more points, the `VISITS` nearest blocks of each are searched.
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
    near = np.empty((count, neighbours), dtype=np.int32)
    away = np.empty((count, neighbours), dtype=np.float32)  # squared
    away[:] = np.inf
    gaps, others = np.empty(blocks, dtype=np.float32), np.empty(blocks, dtype=np.int64)
    squares, bound = np.empty(BLOCK, dtype=np.float32), np.empty(BLOCK, dtype=np.float32)
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
                if bound[i - first] >= away[i, neighbours - 1]:
                    continue
                _squares(values[other], points[i], squares, least)
                for lane in range(LANES):
                    if least[lane] >= away[i, neighbours - 1]:
                        continue
                    for k in range(lane, BLOCK, LANES):
                        if squares[k] < away[i, neighbours - 1] and other * BLOCK + k != i:
                            _insert(near[i], away[i], other * BLOCK + k, squares[k])
    for i in range(count):
        for k in range(neighbours):
            away[i, k] = np.sqrt(away[i, k])
    return near, away


@compiled_without_nan
def _gaps(lower: np.ndarray, upper: np.ndarray, block: int, gaps: np.ndarray) -> None:
    """Write the squared distance of the middle of a block to the box of every block; -1 for the block itself."""
    gaps[:] = 0
    for axis in range(len(lower)):
        middle = (lower[axis, block] + upper[axis, block]) / 2
        for other in range(len(gaps)):
            step = max(np.float32(0), max(lower[axis, other] - middle, middle - upper[axis, other]))
            gaps[other] += step * step
    gaps[block] = -1


@compiled_without_nan
def _bounds(values: np.ndarray, lower: np.ndarray, upper: np.ndarray, bound: np.ndarray) -> None:
    """Write the squared distance of each point of a block (D, BLOCK) to a box."""
    bound[:] = 0
    for axis in range(len(lower)):
        low, high = lower[axis], upper[axis]
        for k in range(BLOCK):
            step = max(np.float32(0), max(low - values[axis, k], values[axis, k] - high))
            bound[k] += step * step


@compiled_without_nan
def _squares(values: np.ndarray, point: np.ndarray, squares: np.ndarray, least: np.ndarray) -> None:
    """Write the squared distances of a point (D,) to those of a block (D, BLOCK), and the least of every `LANES`-th."""
    squares[:] = 0
    for axis in range(len(point)):
        value = point[axis]
        for k in range(BLOCK):
            step = values[axis, k] - value
            squares[k] += step * step
    for lane in range(LANES):
        two = min(squares[lane], squares[lane + LANES])
        least[lane] = min(two, min(squares[lane + 2 * LANES], squares[lane + 3 * LANES]))


@compiled_without_nan
def _insert(near: np.ndarray, away: np.ndarray, other: int, distance: float) -> None:
    index = len(near) - 1
    while index > 0 and away[index - 1] > distance:
        away[index], near[index] = away[index - 1], near[index - 1]
        index -= 1
    away[index], near[index] = distance, other


PIECE = 1_024  # points whose distances are computed together
DIGIT = 2_048  # values of a digit of a distance's bits, by which edges are sorted


@compiled
def greedy(points: np.ndarray) -> np.ndarray:
    """Return the greedy path: from the first point (N, D) to the nearest one left, the first of equals; values lie by axis."""
    count, width = points.shape
    left = np.arange(count)
    rest = points.T.copy()
    order = np.empty(count, dtype=np.int64)
    current, squares = np.empty(width, dtype=np.float32), np.empty(PIECE, dtype=np.float32)
    bits = squares.view(np.int32)  # in the order of the squares, which are not negative
    here = 0
    for index in range(count):
        order[index] = left[here]
        last = count - index - 1
        left[here] = left[last]
        for axis in range(width):
            current[axis] = rest[axis, here]
            rest[axis, here] = rest[axis, last]
        best, here = np.int32(2**31 - 1), 0
        for start in range(0, last, PIECE):
            length = min(PIECE, last - start)
            squares[:length] = 0
            for axis in range(width):
                row, value = rest[axis, start : start + length], current[axis]
                for k in range(length):
                    step = row[k] - value
                    squares[k] += step * step
            least = bits[0]
            for k in range(length):
                least = min(least, bits[k])
            if least < best:
                best, here = least, start
                while bits[here - start] != least:
                    here += 1
    return order


@compiled
def joined(points: np.ndarray, near: np.ndarray, away: np.ndarray) -> np.ndarray:
    """Return a path (N,) through points (N, D) in leaf order, made of edges to near points (N, K), the shortest first.

    The pieces that edges make are joined by their ends in the same way, round by round.
    """
    count = len(points)
    links = np.empty((count, 2), dtype=np.int64)
    links[:] = -1
    piece, ends = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    for i in range(count):
        piece[i] = ends[i] = i
    pieces = count
    while True:
        first, second, lengths = _edges(ends, near, away)
        pieces -= _join(links, piece, first, second, _by_length(lengths))
        ends = _ends(links)
        if pieces == 1:
            return _walk(links, ends[0])
        positions = np.empty((len(ends), points.shape[1]), dtype=np.float32)
        for i in range(len(ends)):
            for axis in range(points.shape[1]):
                positions[i, axis] = points[ends[i], axis]
        near, away = nearest(positions, min(near.shape[1], len(ends) - 1))


@compiled
def _ends(links: np.ndarray) -> np.ndarray:
    """Return the points with fewer than two links."""
    ends, used = np.empty(len(links), dtype=np.int64), 0
    for i in range(len(links)):
        if links[i, 1] < 0:
            ends[used] = i
            used += 1
    return ends[:used]


@compiled
def _edges(ends: np.ndarray, near: np.ndarray, away: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return every edge between `ends` and their neighbours, once."""
    count, neighbours = near.shape
    first, second = np.empty(count * neighbours, dtype=np.int64), np.empty(count * neighbours, dtype=np.int64)
    lengths = np.empty(count * neighbours, dtype=np.float32)
    used = 0
    for i in range(count):
        for k in range(neighbours):
            j = near[i, k]
            known = False
            if j < i:
                for other in near[j]:
                    known |= other == i
            if not known:
                first[used], second[used], lengths[used] = ends[i], ends[j], away[i, k]
                used += 1
    return first[:used], second[:used], lengths[:used]


@compiled
def _by_length(lengths: np.ndarray) -> np.ndarray:
    """Return the order that sorts lengths, none negative, by radix; stable."""
    keys = lengths.view(np.uint32)
    order, other = np.empty(len(keys), dtype=np.int64), np.empty(len(keys), dtype=np.int64)
    for index in range(len(keys)):
        order[index] = index
    starts = np.empty(DIGIT + 1, dtype=np.int64)
    for shift in (0, 11, 22):
        starts[:] = 0
        for key in keys:
            starts[((key >> shift) & (DIGIT - 1)) + 1] += 1
        for digit in range(DIGIT):
            starts[digit + 1] += starts[digit]
        for edge in order:
            value = (keys[edge] >> shift) & (DIGIT - 1)
            other[starts[value]] = edge
            starts[value] += 1
        order, other = other, order
    return order


@compiled
def _find(piece: np.ndarray, point: int) -> int:
    while piece[point] != point:
        piece[point] = piece[piece[point]]
        point = piece[point]
    return point


@compiled
def _join(links: np.ndarray, piece: np.ndarray, first: np.ndarray, second: np.ndarray, order: np.ndarray) -> int:
    """Add edges in `order` that leave every point at most two links and close no circle; return how many were added."""
    taken = 0
    for edge in order:
        a, b = first[edge], second[edge]
        if links[a, 1] >= 0 or links[b, 1] >= 0:
            continue
        root_a, root_b = _find(piece, a), _find(piece, b)
        if root_a == root_b:
            continue
        piece[root_b] = root_a
        links[a, 1 if links[a, 0] >= 0 else 0] = b
        links[b, 1 if links[b, 0] >= 0 else 0] = a
        taken += 1
    return taken


@compiled
def _walk(links: np.ndarray, start: int) -> np.ndarray:
    order = np.empty(len(links), dtype=np.int64)
    before, here = -1, start
    for index in range(len(links)):
        order[index] = here
        onward = links[here, 1] if links[here, 0] == before else links[here, 0]
        before, here = here, onward
    return order
