"""Short paths through things of which only the distances are known, such as the channels of a network (NeuMeta, Eq. 8)."""

from __future__ import annotations

import math

import numpy as np

from netspace.errors import NetspaceError
from netspace.native import compiled
from netspace.native.paths import Circle, around, closed, distance, opened, settle, wait

NEIGHBOURS = 10  # of each node: candidates for edges
WIDTHS = np.array([NEIGHBOURS])  # single 2-opt moves: kicks find what chains of moves would, in a fifth of the time
LONGEST = 50  # nodes in each of the two pieces that a kick exchanges
PATIENCE = 20  # kicks without a gain, for each node, after which the search ends
SMALL = 1e-6  # least gain that counts as one, where the largest distance is at most 1


def path_length(distances: np.ndarray, order: np.ndarray) -> float:
    """Return the sum of `distances` (N, N) between consecutive nodes in `order` (N,)."""
    return float(distances[order[:-1], order[1:]].sum(dtype=np.float64))


def greedy_path(distances: np.ndarray, start: int = 0) -> np.ndarray:
    """Return an order (N,) from `start`, always to the nearest node left, by distances (N, N)."""
    return np.asarray(_greedy(np.ascontiguousarray(distances, dtype=np.float64), start))


@compiled
def _greedy(distances: np.ndarray, start: int) -> np.ndarray:
    count = len(distances)
    order, left = np.arange(count), np.ones(count, dtype=np.bool_)
    order[0], left[start] = start, False
    for where in range(1, count):
        here, nearest = order[where - 1], -1
        for other in range(count):
            if left[other] and (nearest < 0 or distances[here, other] < distances[here, nearest]):
                nearest = other
        order[where], left[nearest] = nearest, False
    return order


def short_path(distances: np.ndarray, seed: int) -> np.ndarray:
    """Return an order (N,) of nodes with a short path, by their distances (N, N), which are symmetric.

    2-opt and Or-opt moves (`paths.py`) from the greedy path, then kicks, each of which exchanges two neighbouring pieces of
    the path and is followed by moves of the nodes around it (Martin, Otto and Felten 1991); what is longer is taken back. The search
    ends when none has paid for long. The same for the same seed.

    Raises:
        NetspaceError: a distance is not finite.
    """
    count = len(distances)
    if not np.isfinite(distances).all():
        raise NetspaceError(
            "a path was asked for by distances that are not all finite: found NaN or infinity among them"
        )
    if count < 3:
        return np.arange(count)
    padded = np.zeros((count + 1, count + 1, 1), dtype=np.float32)  # the last node joins the path's ends
    padded[:-1, :-1, 0] = np.ldexp(distances, -math.frexp(float(distances.max()))[1])
    others = padded[:-1, :-1, 0].copy()
    np.fill_diagonal(others, np.inf)
    near = np.argsort(others, axis=1, kind="stable")[:, : min(NEIGHBOURS, count - 1)].astype(np.int32)
    path = greedy_path(distances)
    _search(padded, near, path, np.uint64(seed), PATIENCE * count)
    return path


@compiled
def _search(distances: np.ndarray, near: np.ndarray, path: np.ndarray, state: np.uint64, patience: int) -> None:
    """Shorten a path (N,) in place until `patience` kicks in a row have not made it shorter."""
    circle = closed(distances, near, path, len(path), WIDTHS)
    for node in path:
        wait(circle, node)
    settle(circle)
    best, least = circle.order.copy(), _length(circle)
    since = 0
    while since < patience:
        state = _kick(circle, state)
        settle(circle)
        length = _length(circle)
        since += 1
        if length < least - SMALL:
            since = 0
        if length <= least:
            least = length
            best[:] = circle.order
        else:
            circle.order[:] = best
            for where in range(len(best)):
                circle.position[best[where]] = where
    opened(best, path)


@compiled
def _length(circle: Circle) -> float:
    total, order = 0.0, circle.order
    for where in range(len(order) - 1):
        total += distance(circle.points, order[where], order[where + 1])
    return total + distance(circle.points, order[-1], order[0])


@compiled
def _kick(circle: Circle, state: np.uint64) -> np.uint64:
    """Exchange two neighbouring pieces of the tour, and put the nodes at their ends into the queue; return the next state."""
    nodes = len(circle.order)
    most = max(1, min(LONGEST, (nodes - 1) // 2))
    state, start = _draw(state, nodes)
    state, one = _draw(state, most)
    state, two = _draw(state, most)
    one, two = one + 1, two + 1
    pieces = np.empty(one + two, dtype=np.int32)
    for index in range(one + two):
        pieces[index] = circle.order[around(start + index, nodes)]
    for index in range(one + two):
        node = pieces[index + one] if index < two else pieces[index - two]
        where = around(start + index, nodes)
        circle.order[where], circle.position[node] = node, where
    for offset in (-1, 0, two - 1, two, one + two - 1, one + two):
        wait(circle, circle.order[around(start + offset, nodes)])
    return state


@compiled
def _draw(state: np.uint64, below: int) -> tuple[np.uint64, int]:
    """Return the next state of a random generator (SplitMix64) and a number from 0 to `below` - 1."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    mixed = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return state, int((mixed >> np.uint64(33)) % np.uint64(below))
