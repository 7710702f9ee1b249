"""Paths built piece by piece: to the nearest point left, or by edges that join pieces, shortest first. Compiled."""

from __future__ import annotations

import numpy as np

from netspace.compiled import compiled
from netspace.ordering.nearest import nearest

PIECE = 1_024  # points whose distances are found together
DIGIT = 2_048  # values of a digit of a distance's bits, by which edges are sorted


@compiled
def greedy(points: np.ndarray) -> np.ndarray:
    """From the first point (N, D) always on to the nearest left, the first of the equally near; values lie by axis."""
    count, width = points.shape
    left = np.arange(count)
    rest = points.T.copy()
    order = np.empty(count, dtype=np.int64)
    current, squares = np.empty(width, dtype=np.float32), np.empty(PIECE, dtype=np.float32)
    bits = squares.view(np.int32)  # in the order of what they stand for, which is not negative
    here = 0
    for place in range(count):
        order[place] = left[here]
        last = count - place - 1
        left[here] = left[last]
        for axis in range(width):
            current[axis] = rest[axis, here]
            rest[axis, here] = rest[axis, last]
        best, here = np.int32(2**31 - 1), 0
        for start in range(0, last, PIECE):
            many = min(PIECE, last - start)
            squares[:many] = 0
            for axis in range(width):
                row, value = rest[axis, start : start + many], current[axis]
                for k in range(many):
                    step = row[k] - value
                    squares[k] += step * step
            least = bits[0]
            for k in range(many):
                least = min(least, bits[k])
            if least < best:
                best, here = least, start
                while bits[here - start] != least:
                    here += 1
    return order


@compiled
def joined(points: np.ndarray, near: np.ndarray, away: np.ndarray) -> np.ndarray:
    """A path (N,) through points (N, D) in leaf order: edges to those near them (N, K), shortest first, as long as they make paths.

    The pieces that remain are joined by their ends in the same way, round by round.
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
        placed = np.empty((len(ends), points.shape[1]), dtype=np.float32)
        for i in range(len(ends)):
            for axis in range(points.shape[1]):
                placed[i, axis] = points[ends[i], axis]
        near, away = nearest(placed, min(near.shape[1], len(ends) - 1))


@compiled
def _ends(links: np.ndarray) -> np.ndarray:
    """The points with fewer than two links."""
    ends, used = np.empty(len(links), dtype=np.int64), 0
    for i in range(len(links)):
        if links[i, 1] < 0:
            ends[used] = i
            used += 1
    return ends[:used]


@compiled
def _edges(ends: np.ndarray, near: np.ndarray, away: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every edge between `ends` and those near them, once."""
    count, many = near.shape
    first, second = np.empty(count * many, dtype=np.int64), np.empty(count * many, dtype=np.int64)
    lengths = np.empty(count * many, dtype=np.float32)
    used = 0
    for i in range(count):
        for k in range(many):
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
    """The order of lengths, none negative, by the digits of their bits; equal ones stay as they are."""
    keys = lengths.view(np.uint32)
    order, other = np.empty(len(keys), dtype=np.int64), np.empty(len(keys), dtype=np.int64)
    for place in range(len(keys)):
        order[place] = place
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
    """Takes edges in `order` that keep every point at two links and close no circle; how many were taken."""
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
    for place in range(len(links)):
        order[place] = here
        onward = links[here, 1] if links[here, 0] == before else links[here, 0]
        before, here = here, onward
    return order
