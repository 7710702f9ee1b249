"""Paths by distances alone: whole, repeatable, never longer than greedy's; the shortest of all where there are few nodes."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netspace.errors import NetspaceError
from netspace.native.matrix_paths import greedy_path, path_length, short_path


def distances_of(count: int, width: int, seed: int) -> np.ndarray:
    """L1 distances of random points (N, D), some of them coarse, so that many distances are equal."""
    points = np.random.default_rng(seed).standard_normal((count, width))
    if seed % 2:
        points = points.round()
    return np.abs(points[:, None] - points).sum(axis=2)


def length(distances: np.ndarray, order: Iterable[int]) -> float:
    return sum(float(distances[one, other]) for one, other in pairwise(order))


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 7), width=st.integers(1, 9), seed=st.integers(0, 10_000))
def test_few_nodes_are_walked_as_short_as_can_be(count: int, width: int, seed: int) -> None:
    distances = distances_of(count, width, seed)
    best = min(length(distances, order) for order in permutations(range(count)))
    assert length(distances, short_path(distances, seed).tolist()) == pytest.approx(best, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_eight_nodes_are_too(seed: int) -> None:
    distances = distances_of(8, 5, seed)
    orders = np.array(list(permutations(range(8))))
    best = distances[orders[:, :-1], orders[:, 1:]].sum(axis=1).min()
    assert path_length(distances, short_path(distances, seed)) == pytest.approx(best, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(0, 90),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1.0, 0.0, 1e-310, 1e300]),
)
def test_a_path_visits_every_node_once_and_is_not_longer_than_greedys(count: int, seed: int, scale: float) -> None:
    distances = distances_of(count, 3, seed) * scale
    order, greedy = short_path(distances, seed), greedy_path(distances) if count else np.arange(0)
    assert sorted(order.tolist()) == sorted(greedy.tolist()) == list(range(count))
    assert path_length(distances, order) <= path_length(distances, greedy) * (1 + 1e-6)


def test_nodes_on_a_line_are_walked_along_it() -> None:
    values = np.random.default_rng(1).permutation(120).astype(float)
    walked = values[short_path(np.abs(values[:, None] - values), 0)]
    assert np.array_equal(walked, np.sort(walked)) or np.array_equal(walked, np.sort(walked)[::-1])


def test_kicks_pay_and_the_same_seed_gives_the_same_path() -> None:
    distances = distances_of(64, 40, 2)
    order = short_path(distances, 5)
    assert np.array_equal(order, short_path(distances.copy(), 5))
    assert path_length(distances, order) < 0.99 * path_length(distances, greedy_path(distances))


def test_greedy_walks_on_to_the_nearest_that_is_left() -> None:
    distances, order, left = distances_of(40, 4, 0), [7], set(range(40)) - {7}
    while left:
        nearest = min(left, key=lambda other: distances[order[-1], other])
        order.append(nearest)
        left.remove(nearest)
    assert greedy_path(distances, 7).tolist() == order


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_distances_that_are_not_finite_have_no_path(bad: float) -> None:
    distances = distances_of(9, 3, 0)
    distances[2, 4] = distances[4, 2] = bad
    with pytest.raises(NetspaceError, match="not all finite: found NaN or infinity"):
        short_path(distances, 0)
