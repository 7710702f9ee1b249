"""Orders in which neighbours are alike: short paths through points (NeRN, Sec. 3.3).

Axes: N points, D dimensions, G groups. A coordinate network fits a smooth signal best, so kernels are put in an order in which
each is close to the next. The paper walks to the nearest point not yet visited. `short_path` finds shorter paths: edges
between near neighbours, shortest first, as long as they make paths; what pieces remain is joined in the same way by their
ends; then rows of 2-opt moves and Or-opt along the same neighbours (Bentley 1992; Johnson and McGeoch 1997).
"""

from __future__ import annotations

import math

import numpy as np

from netspace.errors import NetspaceError
from netspace.ordering.compiled import compiled
from netspace.ordering.joining import greedy, joined
from netspace.ordering.moves import LANES, improve
from netspace.ordering.nearest import leaf_order, nearest

NEIGHBOURS = 8  # of each point, between which edges are looked for
MANY = 30_000  # points from which on no move turns more than LONGEST around: longer ones rarely pay
LONGEST = 1_000


def path_length(points: np.ndarray, order: np.ndarray) -> float:
    """The sum of Euclidean distances from each point (N, D) to the next in `order` (N,)."""
    placed = points[order].astype(np.float64)
    return float(np.linalg.norm(np.diff(placed, axis=0), axis=1).sum())


def greedy_path(points: np.ndarray) -> np.ndarray:
    """The paper's order (N,): from the first point (N, D), always on to the nearest that is left (NeRN, Sec. 3.3)."""
    return np.asarray(greedy(np.ascontiguousarray(points, dtype=np.float32)))


def short_path(points: np.ndarray) -> np.ndarray:
    """An order (N,) of points (N, D) that is short to walk. The same points give the same order."""
    return np.asarray(short_paths(points[None])[0])


def short_paths(points: np.ndarray) -> np.ndarray:
    """The same for each of several groups of points (G, N, D): orders (G, N)."""
    points = np.ascontiguousarray(points, dtype=np.float32)
    if not np.isfinite(points).all():
        raise NetspaceError(
            "a path was asked for through points that are not all finite: found NaN or infinity among them"
        )
    if points.shape[1] < 3:
        return np.tile(np.arange(points.shape[1]), (len(points), 1))
    return np.asarray(_short_paths(points))


@compiled
def _short_paths(groups: np.ndarray) -> np.ndarray:
    """Points are put in leaf order and scaled by a power of two, which changes no digit, to at most 1."""
    count, width = groups.shape[1:]
    orders = np.empty((len(groups), count), dtype=np.int64)
    placed = np.empty((count, width), dtype=np.float32)
    filled = np.zeros((count + 1, (width + LANES - 1) // LANES * LANES), dtype=np.float32)
    for group in range(len(groups)):
        points, leaves = groups[group], leaf_order(groups[group])
        largest = np.float32(0)
        for i in range(count):
            for axis in range(width):
                largest = max(largest, abs(points[i, axis]))
        scale = np.float32(2.0 ** -max(math.frexp(largest)[1], -100))  # finite
        for i in range(count):
            for axis in range(width):
                placed[i, axis] = filled[i, axis] = points[leaves[i], axis] * scale
        near, away = nearest(placed, min(NEIGHBOURS, count - 1))
        path = joined(placed, near, away)
        improve(filled, near, path, count if count <= MANY else LONGEST)
        for i in range(count):
            orders[group, i] = leaves[path[i]]
    return orders
