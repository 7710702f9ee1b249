"""Orders in which neighbours are alike: short paths through points (NeRN, Sec. 3.2), made by 2-opt and Or-opt moves."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from netspace.errors import NetspaceError
from netspace.native import compiled, compiled_without_nan
from netspace.native.neighbours import greedy, joined, leaf_order, nearest

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


LANES = 16  # the dimensions of points are filled up with zeros to a multiple of it


WIDTHS = np.array([8, 8, 5])  # near points that are tried at each step of a row of moves


CARRIED = 3  # points that Or-opt moves together, at most


END, SIDE, WHERE, TRIED, MET, LOW, HIGH = range(7)  # columns of what is noted of each step of such a row


SMALL = 1e-7  # what is not worth a move, where no value is above 1


class Circle(NamedTuple):
    """A circle through all nodes, what is known of its points, and which of them may still have something to gain."""

    points: np.ndarray  # (M, a multiple of LANES) float32
    near: np.ndarray  # (N, K): the points near each, nearest first
    away: np.ndarray  # (N, K): how far they are
    order: np.ndarray  # (M,): the node at each place
    place: np.ndarray  # (M,): the place of each node
    longest: int  # nodes that one move may turn around
    waits: np.ndarray  # (M,): whether a node is in the queue
    queue: np.ndarray  # (M,): a ring
    queued: np.ndarray  # (2,): the queue's head and how many are in it


@compiled_without_nan
def distance(points: np.ndarray, a: int, b: int) -> np.float32:
    """Between two nodes. Everything that is compared comes from here, so that equal distances are equal to the last bit."""
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
    """Makes a path (N,) as short as moves between near points (N, K) can; they lie in points (M, D), a last row for the node between ends.

    A point's moves are looked for when it comes to the head of a queue; the points that a move touches go to its tail (Bentley
    1992). Every move shortens the path, so that there is an end.
    """
    count = len(near)
    away = np.empty(near.shape, dtype=np.float32)
    for a in range(count):
        for k in range(near.shape[1]):
            away[a, k] = distance(points, a, near[a, k])
    order, place = np.empty(count + 1, dtype=np.int32), np.empty(count + 1, dtype=np.int32)
    for where in range(count + 1):
        node = path[where] if where < count else count
        order[where], place[node] = node, where
    waits, queue = np.zeros(count + 1, dtype=np.bool_), np.empty(count + 1, dtype=np.int32)
    circle = Circle(points, near, away, order, place, longest, waits, queue, np.zeros(2, dtype=np.int64))
    for node in path:
        _wait(circle, node)
    steps, won = np.empty((len(WIDTHS) + 1, HIGH + 1), dtype=np.int64), np.empty(len(WIDTHS))
    while circle.queued[1] > 0:
        a = _next(circle)
        if _chain(circle, a, steps, won) or _carry(circle, a):
            _wait(circle, a)
    for where in range(count):
        path[where] = order[_round(place[count] + 1 + where, count + 1)]


@compiled
def _chain(circle: Circle, a: int, steps: np.ndarray, won: np.ndarray) -> bool:
    """Makes the first row of 2-opt moves from `a` that shortens the path as a whole (Lin and Kernighan 1973); False if none does.

    A loose end and its fixed partner give up the edge between them. The end is joined to a point near it, whose own edge on
    that side goes in turn: its other node is the next loose end, and next to the fixed one. Moves are only noted until a row is known to pay.
    """
    points, near, away, order, place = circle.points, circle.near, circle.away, circle.order, circle.place
    nodes = len(order)
    for first in (1, -1):
        fixed = order[_round(place[a] + first, nodes)]
        steps[0, END], steps[0, SIDE], steps[0, WHERE], steps[0, TRIED] = a, first, place[a], 0
        won[0], level = distance(points, a, fixed), 0
        while level >= 0:
            end, side, i, tried = steps[level, END], steps[level, SIDE], steps[level, WHERE], steps[level, TRIED]
            if end == nodes - 1 or tried >= min(WIDTHS[level], near.shape[1]):
                level -= 1
                continue
            left = won[level] - away[end, tried]
            if left <= SMALL:  # the points after it are further still
                level -= 1
                continue
            met = near[end, tried]
            steps[level, TRIED] = tried + 1
            j = _turned(steps, 0, level, place[met])
            beyond = _round(j + side, nodes)
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
                    _wait(circle, steps[step, END])
                    _wait(circle, steps[step, MET])
                _wait(circle, other)
                _wait(circle, fixed)
                return True
            if level + 1 < len(WIDTHS):
                level += 1
                steps[level, WHERE] = _turned(steps, level - 1, level, beyond)
                steps[level, SIDE], steps[level, TRIED] = -1 if i < j else 1, 0
                won[level] = left
    return False


@compiled
def _turned(steps: np.ndarray, start: int, stop: int, where: int) -> int:
    """Where the turns of steps start .. stop - 1 put what is at place `where`."""
    for step in range(start, stop):
        if steps[step, LOW] <= where <= steps[step, HIGH]:
            where = steps[step, LOW] + steps[step, HIGH] - where
    return where


@compiled
def _turned_back(steps: np.ndarray, stop: int, where: int) -> int:
    """From where the turns of the steps before `stop` bring what is then at place `where`."""
    for step in range(stop - 1, -1, -1):
        if steps[step, LOW] <= where <= steps[step, HIGH]:
            where = steps[step, LOW] + steps[step, HIGH] - where
    return where


@compiled
def _carry(circle: Circle, a: int) -> bool:
    """Puts a few points in a row, of which the first or last is near `a`, between `a` and its neighbour if that pays (Or 1976)."""
    points, order, place = circle.points, circle.order, circle.place
    nodes = len(order)
    for side in (1, -1):
        after = order[_round(place[a] + side, nodes)]
        gap = np.float64(distance(points, a, after))
        for k in range(circle.near.shape[1]):
            gain = gap - circle.away[a, k]
            if gain <= SMALL:
                break
            head = circle.near[a, k]
            apart = abs(place[a] - place[head])
            if min(apart, nodes - apart) + CARRIED > circle.longest:
                continue
            for way in (1, -1):
                before, tail = order[_round(place[head] - way, nodes)], head
                if before == a:
                    continue
                gain_there = gain + distance(points, before, head)
                for many in range(1, CARRIED + 1):
                    behind = order[_round(place[head] + way * many, nodes)]
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
                            _wait(circle, node)
                        return True
                    tail = behind
    return False


@compiled
def _exchange(circle: Circle, a: int, b: int, c: int, d: int) -> None:
    """2-opt: edges a - b and c - d, b on the side of a on which d is of c, become a - c and b - d."""
    order, place = circle.order, circle.place
    nodes = len(order)
    if order[_round(place[a] + 1, nodes)] == b:
        start, end = place[b], place[c]
    else:
        start, end = place[a], place[d]
    many = end - start + 1
    if many <= 0:
        many += nodes
    if 2 * many > nodes:  # turning the others makes the same circle
        start, end, many = _round(end + 1, nodes), _round(start - 1, nodes), nodes - many
    for _ in range(many // 2):
        one, two = order[start], order[end]
        order[start], order[end] = two, one
        place[two], place[one] = start, end
        start, end = _round(start + 1, nodes), _round(end - 1, nodes)


@compiled
def _round(where: int, nodes: int) -> int:
    """A place that may lie one circle before or after."""
    if where >= nodes:
        return where - nodes
    return where + nodes if where < 0 else where


@compiled
def _wait(circle: Circle, node: int) -> None:
    """To the queue's tail, if it is not in it."""
    if node < len(circle.near) and not circle.waits[node]:
        circle.waits[node] = True
        circle.queue[_round(circle.queued[0] + circle.queued[1], len(circle.queue))] = node
        circle.queued[1] += 1


@compiled
def _next(circle: Circle) -> int:
    node = circle.queue[circle.queued[0]]
    circle.queued[0] = _round(circle.queued[0] + 1, len(circle.queue))
    circle.queued[1] -= 1
    circle.waits[node] = False
    return node
