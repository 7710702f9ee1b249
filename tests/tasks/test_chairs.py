"""Parametric chairs: distances against a brute-force oracle, points on the surface, one body, the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netspace.errors import UsageError
from netspace.tasks.chairs import RADIUS, Chair, chair

NUMBERS = st.integers(0, 10_000)


def inside(shape: Chair, points: np.ndarray) -> np.ndarray:
    """Whether points (N, 3) lie in one of the boxes."""
    low, high = shape.centres - shape.halves, shape.centres + shape.halves
    return ((points[:, None] > low) & (points[:, None] < high)).all(-1).any(-1)


@settings(max_examples=20, deadline=None)
@given(number=NUMBERS)
def test_distances_are_those_to_a_dense_cloud_on_the_surface(number: int) -> None:
    """Signs are those of the boxes; outside, distances are those to the nearest of many surface points."""
    from scipy.spatial import cKDTree

    shape, random = chair(number), np.random.RandomState(number)
    cloud = shape.surface(20_000, random)
    points = 2 * random.random_sample((500, 3)) - 1
    distances = shape.distances(points)
    within = inside(shape, points)
    assert np.array_equal(distances < 0, within)
    nearest, _ = cKDTree(cloud).query(points)
    assert (distances[~within] <= nearest[~within] + 1e-9).all()
    assert (nearest[~within] - distances[~within]).max() < 0.05  # the cloud is dense to about 0.02
    assert (-distances[within] <= nearest[within] + 1e-9).all()  # inside: at most the distance


@settings(max_examples=20, deadline=None)
@given(number=NUMBERS)
def test_surface_points_are_on_the_surface_and_cover_it_by_area(number: int) -> None:
    shape = chair(number)
    cloud = shape.surface(2000, np.random.RandomState(number))
    assert cloud.shape == (2000, 3)
    assert np.abs(shape.distances(cloud)).max() < 1e-9
    radii = np.sqrt(np.square(np.abs(shape.centres) + shape.halves).sum(1))
    assert radii.max() == pytest.approx(RADIUS)


def test_no_surface_points_are_an_empty_array() -> None:
    """Of 64 points of each network, the fewest that may be set, shared ones are one for each chair and none on its surface."""
    assert chair(0).surface(0, np.random.RandomState(0)).shape == (0, 3)


def test_surface_points_are_uniform_on_a_box() -> None:
    """On the faces of one box: as many on each as its share of the area."""
    box = Chair("box", {}, np.zeros((1, 3)), np.array([[0.1, 0.2, 0.4]]))
    cloud = box.surface(40_000, np.random.RandomState(0))
    on_z = (np.abs(np.abs(cloud[:, 2]) - 0.4) < 1e-12).mean()
    assert on_z == pytest.approx(0.02 / (0.02 + 0.04 + 0.08), abs=0.01)


@settings(max_examples=30, deadline=None)
@given(number=NUMBERS)
def test_a_chair_is_one_body(number: int) -> None:
    """Every box overlaps, in volume, another of the same connected part: starting from the seat all are reached."""
    shape = chair(number)
    low, high = shape.centres - shape.halves, shape.centres + shape.halves
    overlap = (np.minimum(high[:, None], high[None]) - np.maximum(low[:, None], low[None]) > 1e-6).all(-1)
    reached = np.zeros(len(low), dtype=bool)
    reached[0] = True
    for _ in range(len(low)):
        reached |= overlap[reached].any(0)
    assert reached.all()


def test_chairs_are_numbered_and_differ() -> None:
    assert chair(3).name == "chair/0003"
    assert chair(3).labels == chair(3).labels != chair(4).labels
    assert chair(3, seed=1).labels != chair(3).labels
    kinds = {tuple(chair(number).labels[key] for key in ("arms", "slats", "pedestal")) for number in range(200)}
    assert len(kinds) == 8


def test_a_known_chair_stays_as_it_is() -> None:
    """The numbers of chair 0: zoos depend on them."""
    first = chair(0)
    assert len(first.centres) == 10  # seat, back, four legs, two arms and what holds them
    assert first.labels["seat_height"] == pytest.approx(0.5444115685959627, abs=1e-12)
    assert first.labels["leg"] == pytest.approx(0.04340027074067132, abs=1e-12)


@pytest.mark.parametrize("number", [-1, 2**32])
def test_what_is_no_chairs_number_is_one_sentence(number: int) -> None:
    assert chair(2**32 - 1).name == "chair/4294967295"
    with pytest.raises(
        UsageError, match=f"^chair number {number} was asked for, but chairs are numbered from 0 to 4294967295$"
    ):
        chair(number)
