"""2-opt, Or-opt and kicks on a path, each a row of turns that can be undone. Compiled."""

from __future__ import annotations

import numpy as np

from netspace.ordering.compiled import compiled

SWEEPS = 30  # over all points, at most
STRETCH = 50  # points of the longest stretch that a kick moves
LOG = 4_096  # turns that a kick can be undone over


@compiled
def improved(points: np.ndarray, order: np.ndarray, near: np.ndarray, longest: int, tries: int) -> np.ndarray:
    """2-opt and Or-opt between near neighbours until nothing gets shorter; then `tries` kicks, each kept if it pays.

    A kick swaps two neighbouring stretches of up to `STRETCH` points (a double bridge) and lets 2-opt and Or-opt mend what it
    broke; every move is a row of turns, so that a kick that did not pay is undone (Johnson and McGeoch 1997).
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
    for _ in range(tries if count > 8 else 0):
        state ^= state << np.uint64(13)
        state ^= state >> np.uint64(7)
        state ^= state << np.uint64(17)
        stretch = min(STRETCH, (count - 2) // 2)
        first = 1 + int(state >> np.uint64(8)) % stretch
        second = 1 + int(state >> np.uint64(24)) % stretch
        start = int(state >> np.uint64(40)) % (count - first - second)
        middle, end = start + first, start + first + second  # the stretches start + 1 .. middle and middle + 1 .. end
        a, b, c, d, e, f = (
            order[start],
            order[start + 1],
            order[middle],
            order[middle + 1],
            order[end],
            _at(order, end + 1),
        )
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
        for place_ in range(waiting):
            open_[touched[place_]] = False
        if gain <= 1e-7:
            for turn in range(log[0, 0] - 1, 0, -1):
                start, end = log[turn, 0], log[turn, 1]
                while start < end:
                    order[start], order[end] = order[end], order[start]
                    place[order[start]], place[order[end]] = start, end
                    start += 1
                    end -= 1
    return order


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
    while start < end:
        order[start], order[end] = order[end], order[start]
        place[order[start]], place[order[end]] = start, end
        start += 1
        end -= 1
    if start == end:
        place[order[start]] = start


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
    return 0.0


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
