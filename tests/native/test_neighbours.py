"""Nearest points by blocks: those that brute force finds where blocks are few, and only others where they are many."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from netspace.native.neighbours import BLOCK, VISITS, leaf_order, nearest


def leaves(count: int, width: int, seed: int = 0) -> np.ndarray:
    points = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return points[leaf_order(points)]


@pytest.mark.parametrize("width", [1, 9, 25])
@pytest.mark.parametrize(("count", "many"), [(3, 2), (9, 8), (64, 8), (65, 5), (1_000, 8), (VISITS * BLOCK, 8)])
def test_the_nearest_are_those_that_brute_force_finds(count: int, many: int, width: int) -> None:
    points = leaves(count, width)
    near, away = nearest(points, many)
    apart = cdist(points, points)  # in float64
    np.fill_diagonal(apart, np.inf)
    np.testing.assert_allclose(away, np.sort(apart, axis=1)[:, :many], rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(apart, near.astype(np.int64), axis=1), away, rtol=1e-5)


def test_among_many_points_most_of_the_nearest_are_found() -> None:
    points = leaves(2 * VISITS * BLOCK, 9)
    near, away = nearest(points, 8)
    assert (near != np.arange(len(points))[:, None]).all() and (np.diff(away, axis=1) >= 0).all()
    some = np.arange(0, len(points), 37)
    expected = np.argsort(cdist(points[some], points), axis=1)[:, 1:9]
    assert np.mean([len({*mine} & {*best}) for mine, best in zip(near[some], expected, strict=True)]) > 0.85 * 8


def test_equal_points_are_near_each_other_and_not_to_themselves() -> None:
    near, away = nearest(np.zeros((200, 3), dtype=np.float32), 8)
    assert (away == 0).all() and all(len({index, *row}) == 9 for index, row in enumerate(near.tolist()))


def test_blocks_of_leaf_order_lie_closer_together_than_any() -> None:
    points = leaves(1_024, 3)
    inside = points.reshape(-1, BLOCK, 3).std(axis=1).mean()
    assert inside < 0.6 * points.std()
    assert sorted(leaf_order(points).tolist()) == list(range(1_024))
