"""Paths through points: whole, short, repeatable; against brute force where there are few points."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netspace.errors import NetspaceError
from netspace.native.paths import greedy_path, path_length, short_path, short_paths


def cloud(count: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 300),
    width=st.sampled_from([1, 2, 9, 25]),
    seed=st.integers(0, 99),
    kind=st.sampled_from(["normal", "mostly equal", "zeros", "steps", "tiny", "huge"]),
)
def test_a_path_visits_every_point_once(count: int, width: int, seed: int, kind: str) -> None:
    points = cloud(count, width, seed)
    if kind == "mostly equal":
        points[count // 3 :] = points[:1]
    points *= {"zeros": 0.0, "tiny": 1e-42, "huge": 1e15}.get(kind, 1.0)
    if kind == "steps":
        points = points.round()
    for order in (short_path(points), greedy_path(points)):
        assert sorted(order.tolist()) == list(range(count))


@pytest.mark.parametrize("seed", range(5))
def test_few_points_are_walked_nearly_as_short_as_can_be(seed: int) -> None:
    points = cloud(7, 2, seed)
    best = min(path_length(points, np.array(order)) for order in permutations(range(7)))
    actual = path_length(points, short_path(points))
    assert best <= actual * (1 + 1e-6) and actual <= 1.1 * best


def test_greedy_walks_on_to_the_nearest_that_is_left() -> None:
    points = cloud(50, 3, 0)
    order, left = [0], set(range(1, 50))
    while left:
        nearest = min(left, key=lambda other: float(np.linalg.norm(points[other] - points[order[-1]])))
        order.append(nearest)
        left.remove(nearest)
    assert greedy_path(points).tolist() == order


def test_of_the_equally_near_greedy_takes_the_first() -> None:
    points = cloud(1_500, 2, 0).round(1)  # many are equal
    rest, left, expected, here = points.copy(), np.arange(1_500), [], 0
    for last in range(1_499, -1, -1):
        expected.append(int(left[here]))
        current = rest[here].copy()
        rest[here], left[here] = rest[last], left[last]
        here = int(((rest[:last] - current) ** 2).sum(axis=1).argmin()) if last else 0
    assert greedy_path(points).tolist() == expected


def test_points_on_a_line_are_walked_along_it() -> None:
    places = np.random.default_rng(1).permutation(200).astype(np.float32)
    points = np.stack([places, 2 * places], axis=1)
    walked = places[short_path(points)]
    assert np.array_equal(walked, np.sort(walked)) or np.array_equal(walked, np.sort(walked)[::-1])


def test_a_short_path_is_shorter_than_greedys_and_the_same_every_time() -> None:
    points = cloud(1_500, 9, 3)
    order = short_path(points)
    assert path_length(points, order) < 0.97 * path_length(points, greedy_path(points))
    assert np.array_equal(order, short_path(points.copy()))


@settings(max_examples=20, deadline=None)
@given(count=st.sampled_from([64, 65, 200, 700, 2_100]), width=st.sampled_from([2, 9]), seed=st.integers(0, 4))
def test_a_short_path_is_not_longer_than_greedys(count: int, width: int, seed: int) -> None:
    points = cloud(count, width, seed)
    assert path_length(points, short_path(points)) < path_length(points, greedy_path(points))


def test_a_power_of_two_changes_no_path() -> None:
    points = cloud(400, 9, 0)
    assert np.array_equal(short_path(points), short_path(points * np.float32(2**-20)))


def test_groups_are_put_in_order_each_by_itself() -> None:
    points = cloud(90, 9, 0).reshape(3, 30, 9)
    assert np.array_equal(short_paths(points), np.stack([short_path(group) for group in points]))
    assert short_paths(points[:, :2]).tolist() == [[0, 1]] * 3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_points_that_are_not_finite_have_no_path(bad: float) -> None:
    points = cloud(20, 3, 0)
    points[7, 1] = bad
    with pytest.raises(NetspaceError, match="not all finite"):
        short_path(points)


def test_a_path_is_as_long_as_its_steps() -> None:
    points = np.array([[0, 0], [3, 4], [3, 0]], dtype=np.float32)
    assert path_length(points, np.array([0, 1, 2])) == pytest.approx(9)
    assert path_length(points, np.array([0, 2, 1])) == pytest.approx(7)
