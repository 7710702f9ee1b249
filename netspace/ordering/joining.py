"""Paths built piece by piece: to the nearest point left, or by edges that join pieces. Compiled."""

from __future__ import annotations

import numpy as np

from netspace.ordering.compiled import compiled


@compiled
def greedy(points: np.ndarray) -> np.ndarray:
    count, width = points.shape
    left = np.arange(count)
    rest = points.copy()
    order = np.empty(count, dtype=np.int64)
    here = 0
    for place in range(count):
        order[place] = left[here]
        current = rest[here].copy()
        last = count - place - 1
        left[here] = left[last]
        rest[here] = rest[last]
        best, here = np.float32(np.inf), 0
        for other in range(last):
            distance = np.float32(0.0)
            for axis in range(width):
                step = rest[other, axis] - current[axis]
                distance += step * step
            if distance < best:
                best, here = distance, other
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
