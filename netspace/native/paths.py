"""Short paths through points, so that kernels next to each other are similar (NeRN, Sec. 3.3), by 2-opt and Or-opt moves."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from netspace.errors import NetspaceError
from netspace.native import compiled, compiled_without_nan
from netspace.native.neighbours import greedy, joined, leaf_order, nearest

NEIGHBOURS = 8  # of each point: candidates for edges
LARGE = 30_000  # from this number of points on, no move reverses more than LONGEST: longer ones rarely pay
LONGEST = 1_000


def path_length(points: np.ndarray, order: np.ndarray) -> float:
    """Return the sum of Euclidean distances between consecutive points (N, D) in `order` (N,)."""
    arranged = points[order].astype(np.float64)
    return float(np.linalg.norm(np.diff(arranged, axis=0), axis=1).sum())


def greedy_path(points: np.ndarray) -> np.ndarray:
    """Return the paper's order (N,): from the first point (N, D), always to the nearest one left (NeRN, Sec. 3.3)."""
    return np.asarray(greedy(np.ascontiguousarray(points, dtype=np.float32)))


def short_path(points: np.ndarray) -> np.ndarray:
    """Return an order (N,) of points (N, D) with a short path. Deterministic. Raises `NetspaceError` if a value is not finite."""
    return np.asarray(short_paths(points[None])[0])


def short_paths(points: np.ndarray) -> np.ndarray:
    """Return such an order (G, N) of each group of points (G, N, D). Raises as `short_path`."""
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
    """Arrange points in leaf order and scale them by a power of two, which changes no digit, to at most 1."""
    count, width = groups.shape[1:]
    orders = np.empty((len(groups), count), dtype=np.int64)
    arranged = np.empty((count, width), dtype=np.float32)
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
                arranged[i, axis] = filled[i, axis] = points[leaves[i], axis] * scale
        near, away = nearest(arranged, min(NEIGHBOURS, count - 1))
        path = joined(arranged, near, away)
        improve(filled, near, path, count if count <= LARGE else LONGEST)
        for i in range(count):
            orders[group, i] = leaves[path[i]]
    return orders


LANES = 16  # the dimensions of points are padded with zeros to a multiple of this
WIDTHS = np.array([8, 8, 5])  # of points: neighbours tried at each step of a chain of moves
CARRIED = 3  # most points that one Or-opt move takes along
END, SIDE, WHERE, TRIED, MET, LOW, HIGH = range(7)  # columns of the table of a chain's steps
SMALL = 1e-7  # least gain of a move, of points whose values are at most 1


class Circle(NamedTuple):
    """A tour through all nodes, its points and their neighbours, and a queue of the nodes that may still gain by a move."""

    points: np.ndarray  # (M, a multiple of LANES) float32, or their distances (M, M, 1)
    near: np.ndarray  # (N, K): the points near each, nearest first
    away: np.ndarray  # (N, K): how far they are
    order: np.ndarray  # (M,): the node at each position
    position: np.ndarray  # (M,): the index of each node in `order`
    longest: int  # nodes that one move may turn around
    widths: np.ndarray  # neighbours tried at each step of a chain of moves
    waits: np.ndarray  # (M,): whether a node is in the queue
    queue: np.ndarray  # (M,): a ring
    queued: np.ndarray  # (2,): the queue's head and how many are in it


@compiled_without_nan
def distance(points: np.ndarray, a: int, b: int) -> np.float32:
    """Return the distance of two nodes. All compared distances come from here, so that equal ones are equal to the last bit.

    `points` are the nodes' coordinates (M, D), or their distances (M, M, 1): which of them is decided when this is compiled.
    """
    if points.ndim == 3:
        return points[a, b, 0]
    last = len(points) - 1
    if a == last or b == last:
        return np.float32(0)
    total = np.float32(0)
    for start in range(0, points.shape[1], LANES):
        for axis in range(start, start + LANES):
            step = points[a, axis] - points[b, axis]
            total += step * step
    return np.float32(np.sqrt(total))


@compiled
def improve(points: np.ndarray, near: np.ndarray, path: np.ndarray, longest: int) -> None:
    """Shorten a path (N,) in place by moves between near points (N, K) until none pays.

    `points` (M, D) has one row more, for the node that joins the ends.
    """
    circle = closed(points, near, path, longest, WIDTHS)
    for node in path:
        wait(circle, node)
    settle(circle)
    opened(circle.order, path)


@compiled
def closed(points: np.ndarray, near: np.ndarray, path: np.ndarray, longest: int, widths: np.ndarray) -> Circle:
    """Return the tour along a path (N,), whose ends are joined by one more node. Nothing is in its queue."""
    count = len(near)
    away = np.empty(near.shape, dtype=np.float32)
    for a in range(count):
        for k in range(near.shape[1]):
            away[a, k] = distance(points, a, near[a, k])
    order, position = np.empty(count + 1, dtype=np.int32), np.empty(count + 1, dtype=np.int32)
    for where in range(count + 1):
        node = path[where] if where < count else count
        order[where], position[node] = node, where
    waits, queue = np.zeros(count + 1, dtype=np.bool_), np.empty(count + 1, dtype=np.int32)
    return Circle(points, near, away, order, position, longest, widths, waits, queue, np.zeros(2, dtype=np.int64))


@compiled
def opened(order: np.ndarray, path: np.ndarray) -> None:
    """Write the path (N,) from one end of a tour (M,) to the other, in the tour's direction."""
    count, end = len(path), 0
    while order[end] != count:
        end += 1
    for where in range(count):
        path[where] = order[around(end + 1 + where, count + 1)]


@compiled
def settle(circle: Circle) -> None:
    """Make moves from the nodes in the queue until none pays.

    The moves of a point are tried when it reaches the head of the queue; the points that a move touches are appended to it
    (Bentley 1992). Every move shortens the tour, so this ends.
    """
    steps, won = np.empty((len(circle.widths) + 1, HIGH + 1), dtype=np.int64), np.empty(len(circle.widths))
    while circle.queued[1] > 0:
        a = _next(circle)
        if _chain(circle, a, steps, won) or _carry(circle, a):
            wait(circle, a)


@compiled
def _chain(circle: Circle, a: int, steps: np.ndarray, won: np.ndarray) -> bool:
    """Make the first chain of 2-opt moves from `a` that shortens the path (Lin and Kernighan 1973); return False if none does.

    The edge between a loose end and its fixed partner is removed. The loose end is joined to a point near it, whose edge on
    that side is removed in turn: its other node, now next to the fixed one, is the next loose end. Moves are only recorded
    until the chain is known to pay.
    """
    points, near, away, order, position = circle.points, circle.near, circle.away, circle.order, circle.position
    nodes = len(order)
    for first in (1, -1):
        fixed = order[around(position[a] + first, nodes)]
        steps[0, END], steps[0, SIDE], steps[0, WHERE], steps[0, TRIED] = a, first, position[a], 0
        won[0], level = distance(points, a, fixed), 0
        while level >= 0:
            end, side, i, tried = steps[level, END], steps[level, SIDE], steps[level, WHERE], steps[level, TRIED]
            if end == nodes - 1 or tried >= min(circle.widths[level], near.shape[1]):
                level -= 1
                continue
            left = won[level] - away[end, tried]
            if left <= SMALL:  # the points after it are further still
                level -= 1
                continue
            met = near[end, tried]
            steps[level, TRIED] = tried + 1
            j = _turned(steps, 0, level, position[met])
            beyond = around(j + side, nodes)
            if met == fixed or beyond == i:
                continue
            low, high = min(i, j), max(i, j)
            if side == 1:
                low += 1
            else:
                high -= 1
            if min(high - low + 1, nodes - (high - low + 1)) > circle.longest:
                continue
            other = order[_turned_back(steps, level, beyond)]
            left += distance(points, met, other)
            steps[level, MET], steps[level, LOW], steps[level, HIGH] = met, low, high
            steps[level + 1, END] = other
            if left - distance(points, other, fixed) > SMALL:
                for step in range(level + 1):
                    _exchange(circle, steps[step, END], fixed, steps[step, MET], steps[step + 1, END])
                    wait(circle, steps[step, END])
                    wait(circle, steps[step, MET])
                wait(circle, other)
                wait(circle, fixed)
                return True
            if level + 1 < len(circle.widths):
                level += 1
                steps[level, WHERE] = _turned(steps, level - 1, level, beyond)
                steps[level, SIDE], steps[level, TRIED] = -1 if i < j else 1, 0
                won[level] = left
    return False


@compiled
def _turned(steps: np.ndarray, start: int, stop: int, where: int) -> int:
    """Return where the reversals of steps start .. stop - 1 put the node at position `where`."""
    for step in range(start, stop):
        if steps[step, LOW] <= where <= steps[step, HIGH]:
            where = steps[step, LOW] + steps[step, HIGH] - where
    return where


@compiled
def _turned_back(steps: np.ndarray, stop: int, where: int) -> int:
    """Return the position from which the reversals of the steps before `stop` bring a node to `where`."""
    for step in range(stop - 1, -1, -1):
        if steps[step, LOW] <= where <= steps[step, HIGH]:
            where = steps[step, LOW] + steps[step, HIGH] - where
    return where


@compiled
def _carry(circle: Circle, a: int) -> bool:
    """Move a few consecutive points, the first or last of them near `a`, between `a` and its neighbour if that pays (Or 1976)."""
    points, order, position = circle.points, circle.order, circle.position
    nodes = len(order)
    for side in (1, -1):
        after = order[around(position[a] + side, nodes)]
        gap = np.float64(distance(points, a, after))
        for k in range(circle.near.shape[1]):
            gain = gap - circle.away[a, k]
            if gain <= SMALL:
                break
            head = circle.near[a, k]
            apart = abs(position[a] - position[head])
            if min(apart, nodes - apart) + CARRIED > circle.longest:
                continue
            for way in (1, -1):
                before, tail = order[around(position[head] - way, nodes)], head
                if before == a:
                    continue
                gain_there = gain + distance(points, before, head)
                for count in range(1, CARRIED + 1):
                    behind = order[around(position[head] + way * count, nodes)]
                    if behind == a or tail == after or tail == nodes - 1:
                        break
                    given = np.float64(distance(points, before, behind)) + distance(points, tail, after)
                    if gain_there + distance(points, tail, behind) - given > SMALL:
                        if way != side:
                            _exchange(circle, a, after, head, before)
                            _exchange(circle, tail, behind, after, before)
                        else:
                            _exchange(circle, a, after, tail, behind)
                            _exchange(circle, head, before, after, behind)
                            _exchange(circle, a, tail, head, after)
                        for node in (a, after, head, tail, before, behind):
                            wait(circle, node)
                        return True
                    tail = behind
    return False


@compiled
def _exchange(circle: Circle, a: int, b: int, c: int, d: int) -> None:
    """Make a 2-opt move: edges a - b and c - d, with b on the same side of a as d of c, become a - c and b - d."""
    order, position = circle.order, circle.position
    nodes = len(order)
    if order[around(position[a] + 1, nodes)] == b:
        start, end = position[b], position[c]
    else:
        start, end = position[a], position[d]
    count = end - start + 1
    if count <= 0:
        count += nodes
    if 2 * count > nodes:  # turning the others makes the same circle
        start, end, count = around(end + 1, nodes), around(start - 1, nodes), nodes - count
    for _ in range(count // 2):
        one, two = order[start], order[end]
        order[start], order[end] = two, one
        position[two], position[one] = start, end
        start, end = around(start + 1, nodes), around(end - 1, nodes)


@compiled
def around(where: int, nodes: int) -> int:
    """Return a position, given modulo one tour."""
    if where >= nodes:
        return where - nodes
    return where + nodes if where < 0 else where


@compiled
def wait(circle: Circle, node: int) -> None:
    """Append a node to the queue if it is not in it."""
    if node < len(circle.near) and not circle.waits[node]:
        circle.waits[node] = True
        circle.queue[around(circle.queued[0] + circle.queued[1], len(circle.queue))] = node
        circle.queued[1] += 1


@compiled
def _next(circle: Circle) -> int:
    node = circle.queue[circle.queued[0]]
    circle.queued[0] = around(circle.queued[0] + 1, len(circle.queue))
    circle.queued[1] -= 1
    circle.waits[node] = False
    return node
