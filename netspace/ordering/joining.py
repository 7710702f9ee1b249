"""Paths built piece by piece: to the nearest point left, or by edges that join pieces. Compiled."""

from __future__ import annotations

import numpy as np

from netspace.ordering.compiled import compiled

BLOCK = 1_024  # points whose distances are found together


@compiled
def greedy(points: np.ndarray) -> np.ndarray:
    """Values of points (N, D) are laid out by axis and taken a block at a time, so that they are read in vectors."""
    count, width = points.shape
    left = np.arange(count)
    rest = points.T.copy()
    order = np.empty(count, dtype=np.int64)
    current, block = np.empty(width, dtype=np.float32), np.empty(BLOCK, dtype=np.float32)
    here = 0
    for place in range(count):
        order[place] = left[here]
        last = count - place - 1
        left[here] = left[last]
        for axis in range(width):
            current[axis] = rest[axis, here]
            rest[axis, here] = rest[axis, last]
        best, here = np.float32(np.inf), 0
        for start in range(0, last, BLOCK):
            many = min(BLOCK, last - start)
            block[:many] = 0
            for axis in range(width):
                row, value = rest[axis, start : start + many], current[axis]
                for other in range(many):
                    step = row[other] - value
                    block[other] += step * step
            nearest = block[:many].min()
            if nearest < best:
                best = nearest
                for other in range(many):
                    if block[other] == nearest:
                        here = start + other
                        break
    return order


@compiled
def _find(piece: np.ndarray, point: int) -> int:
    while piece[point] != point:
        piece[point] = piece[piece[point]]
        point = piece[point]
    return point


@compiled
def join(links: np.ndarray, piece: np.ndarray, first: np.ndarray, second: np.ndarray, order: np.ndarray) -> int:
    """Takes edges in `order` that keep every point at two links and close no circle; how many were taken."""
    taken = 0
    for edge in order:
        a, b = first[edge], second[edge]
        if a == b or links[a, 1] >= 0 or links[b, 1] >= 0:
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
def walk(links: np.ndarray, start: int) -> np.ndarray:
    order = np.empty(len(links), dtype=np.int64)
    before, here = -1, start
    for place in range(len(links)):
        order[place] = here
        onward = links[here, 0] if links[here, 0] != before or links[here, 0] < 0 else links[here, 1]
        if links[here, 0] == before:
            onward = links[here, 1]
        before, here = here, onward
    return order
