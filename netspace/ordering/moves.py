"""2-opt, Or-opt and kicks on a path, each a row of turns that can be undone. Compiled."""

from __future__ import annotations

import numpy as np

from netspace.ordering.compiled import compiled

SWEEPS = 30  # over all points, at most
STRETCH = 50  # points of the longest stretch that a kick moves
NEARBY = 1_000  # points that may be turned around to mend a kick: what it broke lies close together
LOG = 4_096  # turns that a kick can be undone over
BREADTH = np.array([5, 5, 3, 2, 1])  # neighbours that are tried at each step of a chain


@compiled
def improved(points: np.ndarray, order: np.ndarray, near: np.ndarray, longest: int, rounds: int) -> np.ndarray:
    """2-opt and Or-opt between near neighbours until nothing gets shorter; then kicks at every point, `rounds` times over.

    A kick swaps two neighbouring stretches of up to `STRETCH` points (a double bridge) and lets 2-opt and Or-opt mend what it
    broke; every move is a row of turns, so that a kick that did not pay is undone (Johnson and McGeoch 1997). No move turns
    more than `longest` points.
    """
    count = len(order)
    place = np.empty(count, dtype=np.int64)
    for where in range(count):
        place[order[where]] = where
    open_ = np.ones(count, dtype=np.bool_)  # whether a point may still have something to gain
    log = np.zeros((LOG, 2), dtype=np.int64)  # row 0: how many rows are used
    for _ in range(SWEEPS):
        moves = 0
        for where in range(count):
            a = order[where]
            while open_[a]:
                open_[a] = False
                log[0, 0] = 1
                if _improve(points, order, place, near, longest, a, open_, log) > 0:
                    moves += 1
                    open_[a] = True
        if moves == 0:
            break
    open_[:] = False
    state = np.uint64(88172645463325252)
    touched = np.empty(LOG, dtype=np.int64)
    stretch = min(STRETCH, (count - 2) // 2)
    for _ in range(rounds if count > 8 else 0):
        for start in range(count - 2 * stretch):  # along the path: what is near on it is near in memory
            state ^= state << np.uint64(13)
            state ^= state >> np.uint64(7)
            state ^= state << np.uint64(17)
            first = 1 + int(state >> np.uint64(8)) % stretch
            second = 1 + int(state >> np.uint64(40)) % stretch
            _kick(points, order, place, near, min(longest, NEARBY), start, first, second, open_, log, touched)
    return order


@compiled
def _kick(
    points: np.ndarray,
    order: np.ndarray,
    place: np.ndarray,
    near: np.ndarray,
    longest: int,
    start: int,
    first: int,
    second: int,
    open_: np.ndarray,
    log: np.ndarray,
    touched: np.ndarray,
) -> None:
    """Swaps the `first` points after place `start` with the `second` after them, mends, and undoes it all if nothing is won."""
    middle, end = start + first, start + first + second
    a, b, c = order[start], order[start + 1], order[middle]
    d, e, f = order[middle + 1], order[end], _at(order, end + 1)
    gain = _distance(points, a, b) + _distance(points, c, d) + _distance(points, e, f)
    gain -= _distance(points, a, d) + _distance(points, e, b) + _distance(points, c, f)
    log[0, 0] = 1
    _turn(order, place, start + 1, end, log)
    _turn(order, place, start + 1, start + second, log)
    _turn(order, place, start + second + 1, end, log)
    waiting = 0
    for point in (a, b, c, d, e, f):
        if point >= 0:
            touched[waiting] = point
            waiting += 1
            open_[point] = True
    done = 0
    while done < waiting:
        point = touched[done]
        done += 1
        while open_[point]:
            open_[point] = False
            if log[0, 0] > LOG - 8 or waiting > LOG - 64:
                break
            before = log[0, 0]
            better = _improve(points, order, place, near, longest, point, open_, log)
            if better <= 0:
                break
            gain += better
            open_[point] = True
            for turn in range(before, log[0, 0]):  # the points at the seams of what was turned
                for where in (log[turn, 0] - 1, log[turn, 0], log[turn, 1], log[turn, 1] + 1):
                    other = _at(order, where)
                    if other >= 0 and open_[other] and other != point and waiting < LOG:
                        touched[waiting] = other
                        waiting += 1
    for where in range(waiting):
        open_[touched[where]] = False
    if gain <= 1e-7:
        for turn in range(log[0, 0] - 1, 0, -1):
            _reverse(order, place, log[turn, 0], log[turn, 1])


@compiled
def _reverse(order: np.ndarray, place: np.ndarray, start: int, end: int) -> None:
    while start < end:
        order[start], order[end] = order[end], order[start]
        place[order[start]], place[order[end]] = start, end
        start += 1
        end -= 1


@compiled
def _distance(points: np.ndarray, a: int, b: int) -> float:
    """Between two points; 0 from the open end of the path (-1)."""
    if a < 0 or b < 0:
        return 0.0
    total = 0.0
    for axis in range(points.shape[1]):
        step = points[a, axis] - points[b, axis]
        total += step * step
    return np.sqrt(total)


@compiled
def _turn(order: np.ndarray, place: np.ndarray, start: int, end: int, log: np.ndarray) -> None:
    """Turns the stretch start .. end of the path around, and notes it, so that it can be undone."""
    used = log[0, 0]
    if used < len(log):
        log[used, 0], log[used, 1] = start, end
    log[0, 0] = used + 1
    _reverse(order, place, start, end)


@compiled
def _at(order: np.ndarray, where: int) -> int:
    return order[where] if 0 <= where < len(order) else -1


@compiled
def _improve(
    points: np.ndarray,
    order: np.ndarray,
    place: np.ndarray,
    near: np.ndarray,
    longest: int,
    a: int,
    open_: np.ndarray,
    log: np.ndarray,
) -> float:
    """By how much the first move that is found at point `a` shortens the path; the points it touches are opened."""
    small = 1e-7
    reach = max(
        _distance(points, a, _at(order, place[a] + 1)), _distance(points, a, _at(order, place[a] - 1))
    )  # neighbours further away than this have nothing to give
    for c in near[a]:
        away = _distance(points, a, c)
        if away + small >= reach:
            break
        for side in (1, -1):
            i, j = place[a], place[c]
            after_a, after_c = _at(order, i + side), _at(order, j + side)
            gain = _distance(points, a, after_a) - away
            if gain <= small:
                continue
            # 2-opt: a - after_a and c - after_c become a - c and after_a - after_c
            better = gain + _distance(points, c, after_c) - _distance(points, after_a, after_c)
            low, high = (min(i, j) + 1, max(i, j)) if side == 1 else (min(i, j), max(i, j) - 1)
            if better > small and high - low < longest:
                _turn(order, place, low, high, log)
                _reopen(open_, a, c, after_a, after_c)
                return better
            # Or-opt: one to three points that begin at c go between a and after_a
            for many in range(1, 4):
                for way in (1, -1):
                    end = j + way * (many - 1)
                    if end < 0 or end >= len(order):
                        continue
                    low, high = min(j, end), max(j, end)
                    if low <= i <= high or low <= i + side <= high:
                        continue
                    before, behind, last = _at(order, low - 1), _at(order, high + 1), order[end]
                    taken = _distance(points, before, order[low]) + _distance(points, order[high], behind)
                    better = gain + taken - _distance(points, before, behind) - _distance(points, last, after_a)
                    if better <= small:
                        continue
                    if _move(order, place, low, high, min(i, i + side), c == order[low], a, side, longest, log):
                        _reopen(open_, a, c, after_a, last)
                        _reopen(open_, before, behind, after_a, last)
                        return better
    return _chain(points, order, place, near, longest, a, open_, log)


@compiled
def _reopen(open_: np.ndarray, a: int, b: int, c: int, d: int) -> None:
    for point in (a, b, c, d):
        if point >= 0:
            open_[point] = True


@compiled
def _move(
    order: np.ndarray,
    place: np.ndarray,
    low: int,
    high: int,
    gap: int,
    head_first: bool,
    a: int,
    side: int,
    longest: int,
    log: np.ndarray,
) -> bool:
    """Puts the stretch low .. high between places `gap` and `gap` + 1, its point c beside `a`; False if that is too far."""
    many = high - low + 1
    head = order[low] if head_first else order[high]  # the one that comes beside a
    if gap > high:
        if gap - low >= longest:
            return False
        _turn(order, place, low, gap, log)
        _turn(order, place, low, gap - many, log)
        start = gap - many + 1
    else:
        if high - gap > longest:
            return False
        _turn(order, place, gap + 1, high, log)
        _turn(order, place, gap + 1 + many, high, log)
        start = gap + 1
    end = start + many - 1
    beside = start if place[a] < start else end
    if order[beside] != head:
        _turn(order, place, start, end, log)
    return True


@compiled
def _chain(
    points: np.ndarray,
    order: np.ndarray,
    place: np.ndarray,
    near: np.ndarray,
    longest: int,
    a: int,
    open_: np.ndarray,
    log: np.ndarray,
) -> float:
    """The first row of up to five 2-opt moves from point `a` that shortens the path together (Lin and Kernighan 1973).

    A step gives up the edge of the loose end and its fixed partner for one to a near neighbour, whose own edge on that side
    goes in turn: what is left of it is the next loose end. Turns are only noted until the row is known to pay.
    """
    small, depth = 1e-7, len(BREADTH)
    turns = np.empty((depth, 2), dtype=np.int64)
    loose = np.empty((depth + 1, 2), dtype=np.int64)  # the loose end and on which side of it the fixed one lies
    joined = np.empty(depth, dtype=np.int64)
    won, tried = np.empty(depth + 1), np.zeros(depth + 1, dtype=np.int64)
    for first_side in (1, -1):
        fixed = _at(order, place[a] + first_side)
        if fixed < 0:
            continue
        loose[0] = a, first_side
        won[0], tried[0], level = _distance(points, a, fixed), 0, 0
        while level >= 0:
            end, side = loose[level]
            if tried[level] >= min(BREADTH[level], near.shape[1]):
                level -= 1
                continue
            c = near[end, tried[level]]
            tried[level] += 1
            left = won[level] - _distance(points, end, c)
            if left <= small:  # the neighbours after it are further still
                level -= 1
                continue
            i, j = _moved(place[end], turns, level), _moved(place[c], turns, level)
            if c == fixed or j + side == i:
                continue
            low, high = (min(i, j) + 1, max(i, j)) if side == 1 else (min(i, j), max(i, j) - 1)
            if high - low >= longest:
                continue
            where = j + side
            other = -1
            if 0 <= where < len(order):
                for turn in range(level - 1, -1, -1):
                    if turns[turn, 0] <= where <= turns[turn, 1]:
                        where = turns[turn, 0] + turns[turn, 1] - where
                other = order[where]
            turns[level] = low, high
            joined[level] = c
            left += _distance(points, c, other)
            better = left - _distance(points, other, fixed)
            if better > small:
                for step in range(level + 1):
                    _turn(order, place, turns[step, 0], turns[step, 1], log)
                    _reopen(open_, loose[step, 0], joined[step], fixed, other)
                return better
            if other >= 0 and level + 1 < depth:
                level += 1
                loose[level] = other, -1 if i < j else 1
                won[level], tried[level] = left, 0
    return 0.0


@compiled
def _moved(where: int, turns: np.ndarray, count: int) -> int:
    """Where a place lies after the first `count` turns."""
    for turn in range(count):
        if turns[turn, 0] <= where <= turns[turn, 1]:
            where = turns[turn, 0] + turns[turn, 1] - where
    return where
