"""Pictures of surfaces: what covers what, against rays and a slow loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from netspace.rendering import EXTENT, View, _visible, render
from netspace.streams import generator
from netspace.surfaces import Surface, surface


def ball(radius: float, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Surface:
    side = torch.linspace(-1, 1, 40)
    points = torch.stack(torch.meshgrid(side, side, side, indexing="ij"), dim=-1)
    return surface((points - torch.tensor(centre)).norm(dim=-1) - radius)


def facing(corners: np.ndarray) -> np.ndarray:
    """Triangles (F, 3, 3) in pixels, turned towards the viewer: rows go down."""
    one, other = corners[:, 1, :2] - corners[:, 0, :2], corners[:, 2, :2] - corners[:, 0, :2]
    away = one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0] > 0
    return np.where(away[:, None, None], corners[:, ::-1], corners)


@pytest.mark.parametrize(("up", "front"), [(0, 1), (1, 2), (2, 1), (2, 0)])
def test_a_view_turns_and_does_not_mirror(up: int, front: int) -> None:
    rotation = View(up, front, azimuth=30, elevation=20).rotation
    assert np.allclose(rotation @ rotation.T, np.eye(3)) and np.linalg.det(rotation) == pytest.approx(1)
    assert rotation[:, up] == pytest.approx([0, math.cos(math.radians(20)), math.sin(math.radians(20))])
    assert np.array_equal(View(up, front, azimuth=0, elevation=0).rotation @ np.eye(3)[front], [0, 0, 1])


def test_a_ball_covers_a_circle() -> None:
    picture = render(ball(0.5), size=128)
    solid = (picture[..., 3] > 250).mean()
    assert solid == pytest.approx(math.pi * 0.25 / (2 * EXTENT) ** 2, rel=0.03)
    assert picture[64, 64, :3].astype(int).sum() > picture[88, 74, :3].astype(int).sum()  # lit from above


def test_an_empty_surface_shows_nothing() -> None:
    assert not render(Surface.nothing(), size=16).any()


def test_the_same_surface_gives_the_same_picture() -> None:
    assert np.array_equal(render(ball(0.5), 64), render(ball(0.5), 64))


@pytest.mark.parametrize("spread", [0.1, 1.5])
def test_the_nearest_face_is_seen(spread: float) -> None:
    """Depths of random triangles, small and large and partly outside, as a loop over pixels and faces finds them."""
    side, count = 24, 12
    draws = torch.rand(count, 3, 3, generator=generator(4), dtype=torch.float64).numpy()
    corners = facing((draws[:, :1] * 1.4 - 0.2 + spread * (draws - 0.5)) * side)
    pixels, faces = corners.reshape(-1, 3), np.arange(3 * count, dtype=np.int32).reshape(-1, 3)
    expected = np.full((side, side), -np.inf)
    for a, b, c in corners:
        matrix = np.array([[a[0], b[0], c[0]], [a[1], b[1], c[1]], [1, 1, 1]])
        for row in range(side):
            for column in range(side):
                weights = np.linalg.solve(matrix, [column + 0.5, row + 0.5, 1])
                if (weights >= 0).all():
                    expected[row, column] = max(expected[row, column], weights @ [a[2], b[2], c[2]])
    depth, _ = _visible(pixels, faces, np.tile([0.0, 0.0, 1.0], (3 * count, 1)), side)
    assert np.isfinite(expected).any() and np.allclose(depth, expected)


def test_neighbours_leave_no_gap() -> None:
    """Of two faces that share an edge each pixel along it is covered."""
    square = np.array([[1.2, 1.7, 0.0], [1.2, 20.3, 0], [17.9, 18.8, 0], [18.3, 2.1, 0]])
    depth, _ = _visible(square, np.array([[0, 1, 2], [0, 2, 3]], dtype=np.int32), np.tile([0.0, 0.0, 1.0], (4, 1)), 24)
    inside = np.isfinite(depth)
    assert inside.sum() == pytest.approx(0.5 * abs(_area(square)), rel=0.05) and inside[3:17, 3:16].all()


def _area(corners: np.ndarray) -> float:
    after = np.roll(corners, -1, axis=0)
    return float((corners[:, 0] * after[:, 1] - after[:, 0] * corners[:, 1]).sum())


@pytest.mark.parametrize("far", [1e3, 1e9, np.inf, np.nan])
def test_faces_that_reach_far_beyond_the_picture(far: float) -> None:
    corners = np.array([[-far, -far, 1.0], [-far, far, 1], [far, 0, 1]])
    depth, _ = _visible(corners, np.array([[0, 1, 2]], dtype=np.int32), np.tile([0.0, 0.0, 1.0], (3, 1)), 16)
    assert np.isfinite(depth).all() == np.isfinite(far)


def test_faces_without_an_area_and_those_seen_from_behind_are_left_out() -> None:
    line, behind = [[1.0, 1, 0], [5, 5, 0], [9, 9, 0]], [[1.0, 1, 0], [9, 1, 0], [1, 9, 0]]
    faces, up = np.arange(6, dtype=np.int32).reshape(-1, 3), np.tile([0.0, 0.0, 1.0], (6, 1))
    assert not np.isfinite(_visible(np.array(line + behind), faces, up, 16)[0]).any()
    assert np.isfinite(_visible(np.array(line + behind), faces[:, ::-1], up, 16)[0]).sum() == 36
