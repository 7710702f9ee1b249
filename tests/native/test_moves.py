"""Moves make paths shorter until none does: shown against every 2-opt and Or-opt move of a few points."""

from __future__ import annotations

import numpy as np
import pytest

from netspace.native.neighbours import nearest
from netspace.native.paths import LANES, improve, path_length


def cloud(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 3)).astype(np.float32)


def improved(points: np.ndarray, path: np.ndarray, longest: int | None = None) -> np.ndarray:
    filled = np.zeros((len(points) + 1, LANES), dtype=np.float32)
    filled[:-1, : points.shape[1]] = points
    near, _ = nearest(points, min(8, len(points) - 1))
    actual = path.copy()
    improve(filled, near, actual, longest or len(points))
    return actual


def neighbours(path: np.ndarray) -> list[np.ndarray]:
    """Every path that one 2-opt or Or-opt move makes of it."""
    count, actual = len(path), []
    for start in range(count):
        for stop in range(start + 2, count + 1):
            actual.append(np.concatenate([path[:start], path[start:stop][::-1], path[stop:]]))
        for stop in range(start + 1, min(start + 3, count) + 1):
            rest = np.delete(path, slice(start, stop))
            for gap in range(len(rest) + 1):
                for piece in (path[start:stop], path[start:stop][::-1]):
                    actual.append(np.insert(rest, gap, piece))
    return actual


@pytest.mark.parametrize("seed", range(12))
def test_no_single_move_makes_a_path_of_few_points_shorter(seed: int) -> None:
    points = cloud(9, seed)  # each is near all others
    path = improved(points, np.arange(9))
    best = min(path_length(points, other) for other in neighbours(path))
    assert sorted(path.tolist()) == list(range(9)) and path_length(points, path) <= best + 1e-5


@pytest.mark.parametrize("count", [10, 17, 100, 1_000])
@pytest.mark.parametrize("longest", [None, 5, 50])
def test_a_path_gets_shorter_and_stays_whole(count: int, longest: int | None) -> None:
    points, start = cloud(count, 0), np.arange(count)
    path = improved(points, start, longest)
    assert sorted(path.tolist()) == list(range(count))
    share = 0.98 if longest is not None and longest < count else 0.7  # of a random path's length
    assert path_length(points, path) < share * path_length(points, start)
    again = improved(points, path, longest)
    assert path_length(points, again) <= path_length(points, path) + 1e-5
