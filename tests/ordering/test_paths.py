"""Paths through points: whole, short, repeatable; against brute force where there are few points."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netspace.ordering import greedy_path, path_length, short_path


def cloud(count: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 60), width=st.integers(1, 9), seed=st.integers(0, 99), equal=st.booleans())
def test_a_path_visits_every_point_once(count: int, width: int, seed: int, equal: bool) -> None:
    points = cloud(count, width, seed)
    if equal:
        points[count // 3 :] = points[0]  # most are the same
    for order in (short_path(points), greedy_path(points)):
        assert sorted(order.tolist()) == list(range(count))


@pytest.mark.parametrize("seed", range(5))
def test_few_points_are_walked_nearly_as_short_as_can_be(seed: int) -> None:
    points = cloud(7, 2, seed)
    best = min(path_length(points, np.array(order)) for order in permutations(range(7)))
    found = path_length(points, short_path(points))
    assert best <= found * (1 + 1e-6) and found <= 1.1 * best


def test_greedy_walks_on_to_the_nearest_that_is_left() -> None:
    points = cloud(50, 3, 0)
    order, left = [0], set(range(1, 50))
    while left:
        nearest = min(left, key=lambda other: float(np.linalg.norm(points[other] - points[order[-1]])))
        order.append(nearest)
        left.remove(nearest)
    assert greedy_path(points).tolist() == order


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


def test_a_path_is_as_long_as_its_steps() -> None:
    points = np.array([[0, 0], [3, 4], [3, 0]], dtype=np.float32)
    assert path_length(points, np.array([0, 1, 2])) == pytest.approx(9)
    assert path_length(points, np.array([0, 2, 1])) == pytest.approx(7)
