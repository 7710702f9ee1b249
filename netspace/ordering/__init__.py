"""Orders in which neighbours are alike: short paths through points (NeRN, Sec. 3.3).

Axes: N points, D dimensions. A coordinate network fits a smooth signal best, so kernels are put in an order in which each is
close to the next. The paper walks to the nearest point not yet visited. `short_path` finds shorter paths, faster: edges
between near neighbours (from a k-d tree), shortest first, as long as they make paths; what pieces remain is joined in the
same way by their ends; then 2-opt and Or-opt along the same neighbours (Bentley 1992; Johnson and McGeoch 1997).
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from netspace.ordering.joining import greedy, join, walk
from netspace.ordering.moves import improved

NEIGHBOURS = 8  # of each point, between which edges are looked for
APPROXIMATE = 30_000  # points from which on neighbours may be up to twice as far as the nearest: ten times faster
LONGEST = 1_000  # points that one improvement may turn around, where there are many: longer ones rarely pay
KICKS = 1  # for each point, where there are not many


def path_length(points: np.ndarray, order: np.ndarray) -> float:
    """The sum of Euclidean distances from each point (N, D) to the next in `order` (N,)."""
    placed = points[order].astype(np.float64)
    return float(np.linalg.norm(np.diff(placed, axis=0), axis=1).sum())


def greedy_path(points: np.ndarray) -> np.ndarray:
    """The paper's order (N,): from the first point (N, D), always on to the nearest that is left (NeRN, Sec. 3.3)."""
    return np.asarray(greedy(np.ascontiguousarray(points, dtype=np.float32)))


def short_path(points: np.ndarray) -> np.ndarray:
    """An order (N,) of points (N, D) that is short to walk. The same points give the same order."""
    points = np.ascontiguousarray(points, dtype=np.float32)
    if len(points) < 3:
        return np.arange(len(points))
    near = _neighbours(points, min(NEIGHBOURS, len(points) - 1))
    order = _joined(points, near)
    longest = len(points) if len(points) <= APPROXIMATE else LONGEST
    kicks = KICKS * len(points) if len(points) <= APPROXIMATE else 0
    return np.asarray(improved(points, order, near, longest, kicks))


def _neighbours(points: np.ndarray, count: int) -> np.ndarray:
    """The nearest other points (N, count) of each, nearest first."""
    eps = 1.0 if len(points) > APPROXIMATE else 0.0
    _, found = cKDTree(points, balanced_tree=False).query(points, count + 1, eps=eps, workers=-1)
    found = found.astype(np.int64)
    others = found != np.arange(len(points))[:, None]
    others[others.all(axis=1), -1] = False  # equal points may hide a point from itself
    return found[others].reshape(len(points), count)


def _joined(points: np.ndarray, near: np.ndarray) -> np.ndarray:
    """One path of pieces, joined by shortest edges first; round by round between the ends that are left."""
    links = np.full((len(points), 2), -1)
    piece = np.arange(len(points))
    ends, neighbours = np.arange(len(points)), near
    count = near.shape[1]
    while True:
        first = np.repeat(ends, neighbours.shape[1])
        second = neighbours.ravel()
        lengths = np.linalg.norm(points[first] - points[second], axis=1)
        joined = join(links, piece, first, second, np.argsort(lengths, kind="stable"))
        ends = np.flatnonzero(links[:, 1] < 0)
        if len(ends) - (links[ends, 0] >= 0).sum() / 2 <= 1:  # one piece: two ends, or a lone point
            return walk(links, int(ends[0]))
        count = min(count if joined else 2 * count, len(ends) - 1)
        _, found = cKDTree(points[ends], balanced_tree=False).query(points[ends], count + 1, workers=-1)
        neighbours = ends[found[:, 1:] if found.ndim == 2 else found[:, None]]
