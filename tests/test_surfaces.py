"""Values on grids, surfaces, measures and mesh files, against spheres and boxes in closed form."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from netspace.errors import NetspaceError, UsageError
from netspace.io import write_tensors
from netspace.streams import generator
from netspace.surfaces import (
    Surface,
    bodies,
    chamfer,
    grid_values,
    iou,
    read_surfaces,
    shapes_extra,
    surface,
    valid,
    write_mesh,
    write_surfaces,
)

SIDE = 49  # grid points


def grid(resolution: int = SIDE) -> Tensor:
    """Coordinates (R, R, R, 3) of grid points, in float64."""
    side = torch.linspace(-1, 1, resolution, dtype=torch.float64)
    return torch.stack(torch.meshgrid(side, side, side, indexing="ij"), dim=-1)


def ball(radius: float, centre: tuple[float, float, float] = (0, 0, 0), resolution: int = SIDE) -> Tensor:
    return (grid(resolution) - torch.tensor(centre, dtype=torch.float64)).norm(dim=-1) - radius


def box(low: tuple[float, float, float], high: tuple[float, float, float], resolution: int = SIDE) -> Tensor:
    corners = torch.tensor([low, high], dtype=torch.float64)
    away = torch.maximum(corners[0] - grid(resolution), grid(resolution) - corners[1])
    return away.clamp_min(0).norm(dim=-1) + away.amax(-1).clamp_max(0)


def boundary_edges(shape: Surface) -> int:
    """How many directed edges have no partner the other way round: none on a closed surface with an orientation."""
    pairs = np.concatenate([shape.faces[:, [0, 1]], shape.faces[:, [1, 2]], shape.faces[:, [2, 0]]])
    forward, backward = ({tuple(pair) for pair in each.tolist()} for each in (pairs, pairs[:, ::-1]))
    return len(forward ^ backward)


def test_values_are_those_at_the_grids_points() -> None:
    """Of networks written out, in float64, whatever the size of the chunks."""
    flat = torch.rand(3, 4, generator=generator(1), dtype=torch.float64)

    def networks(rows: Tensor, points: Tensor) -> Tensor:
        return (points @ rows[:, :3, None]) + rows[:, 3, None, None]

    expected = torch.einsum("ijkx,mx->mijk", grid(7), flat[:, :3]) + flat[:, 3, None, None, None]
    for chunk in (5, 343, 1 << 14):
        actual = grid_values(networks, flat, 7, chunk)
        assert actual.dtype == torch.float32 and torch.allclose(actual.double(), expected, atol=1e-6)


def test_a_grid_of_one_point_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^a grid has at least 2 points along each side, not 1$"):
        grid_values(lambda flat, points: points[None, :, :1], torch.zeros(1, 1), 1)


def test_a_spheres_surface() -> None:
    shape = surface(ball(0.7))
    radii = np.linalg.norm(shape.vertices, axis=1)
    assert np.abs(radii - 0.7).max() < 0.001
    assert shape.areas.sum() == pytest.approx(4 * math.pi * 0.49, rel=0.005)
    assert shape.volumes.sum() == pytest.approx(4 / 3 * math.pi * 0.343, rel=0.005)  # positive: normals point outwards
    assert boundary_edges(shape) == 0
    assert (np.einsum("vi,vi->v", shape.normals, shape.vertices) > 0.69).all()


def test_axes_and_level() -> None:
    """The first axis of the grid is x; a level of 0.1 makes a ball larger by so much."""
    shape = surface(ball(0.3, (0.5, 0, -0.25)), level=0.1)
    assert np.allclose(shape.vertices.min(0), [0.1, -0.4, -0.65], atol=0.01)
    assert np.allclose(shape.vertices.max(0), [0.9, 0.4, 0.15], atol=0.01)


def test_a_surface_is_closed_where_the_cube_ends() -> None:
    """A slab through the whole cube is bounded by the cube's sides, and a shape that is everywhere is the cube."""
    slab = surface(box((-2, -2, -0.5), (2, 2, 0.5)))
    assert boundary_edges(slab) == 0 and slab.volumes.sum() == pytest.approx(4, rel=1e-3)
    cube = surface(torch.full((9, 9, 9), -1.0))
    assert boundary_edges(cube) == 0 and cube.volumes.sum() == pytest.approx(8, rel=1e-3)
    assert np.abs(cube.vertices).max() == 1


@pytest.mark.parametrize("value", [1.0, 0.0, math.nan, math.inf])
def test_without_an_inside_there_is_no_surface(value: float) -> None:
    shape = surface(torch.full((5, 5, 5), value))
    assert shape.empty and shape.vertices.shape == shape.faces.shape == (0, 3)


def test_values_that_are_not_finite_are_outside() -> None:
    values = ball(0.5)
    values[values > 0.2] = math.nan
    assert surface(values).areas.sum() == pytest.approx(math.pi, rel=0.01)


def test_iou_of_boxes() -> None:
    """On a grid of an odd number of points a box of sides that are no grid planes is exact by counting."""
    one, other = box((-0.51, -0.51, -0.51), (0.51, 0.51, 0.51), 41), box((-0.01, -0.51, -0.51), (1.01, 0.51, 0.51), 41)
    shared, every = 11 * 21 * 21, (21 + 21 - 11) * 21 * 21
    values = torch.stack([one, one, one + 9]), torch.stack([other, one, one])
    assert iou(*values).tolist() == [shared / every, 1, 0]
    assert iou(one[None] + 9, one[None] + 9).item() == 1  # both are empty


def test_iou_of_spheres() -> None:
    """Two balls of radius r whose middles are d apart share a lens of volume pi (4 r + d) (2 r - d)^2 / 12."""
    radius, apart = 0.6, 0.4
    lens = math.pi * (4 * radius + apart) * (2 * radius - apart) ** 2 / 12
    expected = lens / (2 * 4 / 3 * math.pi * radius**3 - lens)
    actual = iou(ball(radius, (-0.2, 0, 0), 96)[None], ball(radius, (0.2, 0, 0), 96)[None])
    assert actual.item() == pytest.approx(expected, abs=0.005)


def test_chamfer_of_concentric_spheres() -> None:
    """The difference of radii: the mean of the two mean distances, not squared, whichever is first."""
    small, large = surface(ball(0.5)), surface(ball(0.7))
    assert chamfer(small, large) == pytest.approx(0.2, abs=0.003)
    assert chamfer(large, small) == pytest.approx(0.2, abs=0.003)


def test_chamfer_of_a_surface_with_itself_is_what_sampling_leaves() -> None:
    shape = surface(ball(0.5))
    expected = math.sqrt(math.pi / 20_000) / 2
    assert chamfer(shape, shape) == pytest.approx(expected, rel=0.1)


def test_chamfer_of_no_surface_is_unknown() -> None:
    shape = surface(ball(0.5))
    assert math.isnan(chamfer(shape, Surface.nothing())) and math.isnan(chamfer(Surface.nothing(), shape))


def test_points_are_drawn_uniformly_by_area() -> None:
    """Of a small and a large triangle, and within each."""
    corners = [[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1]]
    shape = Surface(np.array(corners, np.float32), np.array([[0, 1, 2], [3, 4, 5]], np.int32))
    points = shape.sample(100_000, generator(3))
    upper = points[:, 2] > 0.5
    assert upper.mean() == pytest.approx(0.8, abs=0.01)
    assert points[upper].mean(0) == pytest.approx([1 / 3, 1 / 3, 1], abs=0.01)
    assert (points[upper, 0] < 0.5).mean() == pytest.approx(0.75, abs=0.01)
    with pytest.raises(NetspaceError, match=r"^9 points were to be drawn on an empty surface: it has no area$"):
        Surface.nothing().sample(9, generator(3))


def test_bodies_are_counted_with_and_without_specks() -> None:
    two = torch.minimum(ball(0.3, (-0.5, 0, 0)), ball(0.3, (0.5, 0, 0)))
    assert bodies(surface(two)) == (2, 2) and not valid(surface(two))
    speck = torch.minimum(ball(0.7), ball(0.06, (0.9, 0.9, 0.9)))
    assert bodies(surface(speck)) == (2, 1) and valid(surface(speck))
    assert bodies(surface(speck), share=0.0001).large == 2
    assert bodies(Surface.nothing()) == (0, 0) and not valid(Surface.nothing())


def test_what_is_left_of_a_larger_shape_is_no_shape() -> None:
    """A ball of radius 0.3 in place of one of area A: too small from a quarter of A on, a speck from a hundredth."""
    shape = surface(ball(0.3))
    area = float(shape.areas.sum())
    assert valid(shape, 3.9 * area) and not valid(shape, 4.1 * area)
    assert bodies(shape, 99 * area) == (1, 1) and bodies(shape, 101 * area) == (1, 0)


def test_a_cavity_is_no_body() -> None:
    hollow = torch.maximum(ball(0.7), -ball(0.4))
    shape = surface(hollow)
    assert bodies(shape) == (1, 1)
    assert shape.volumes.sum() == pytest.approx(4 / 3 * math.pi * (0.343 - 0.064), rel=0.01)


@pytest.mark.parametrize("suffix", [".glb", ".ply", ".PLY"])
def test_mesh_files_are_read_back_by_trimesh(tmp_path: Path, suffix: str) -> None:
    import trimesh

    shape = surface(ball(0.6))
    file = tmp_path / f"ball{suffix}"
    write_mesh(file, shape)
    mesh = trimesh.load(file, force="mesh", process=False)
    assert np.allclose(mesh.vertices, shape.vertices, atol=1e-6) and np.array_equal(mesh.faces, shape.faces)
    assert (np.einsum("vi,vi->v", mesh.vertex_normals, shape.normals) > 0.98).all()
    assert [each.name for each in tmp_path.iterdir()] == [file.name]
    content = file.read_bytes()
    write_mesh(file, shape)
    assert file.read_bytes() == content


def test_glb_files_have_y_up_and_z_in_front(tmp_path: Path) -> None:
    """As glTF says; a chair that stands along z and looks along y has its right on the side of -x."""
    import trimesh

    for suffix, centre in ((".glb", [-0.1, 0.3, 0.2]), (".ply", [0.1, 0.2, 0.3])):
        write_mesh(tmp_path / f"ball{suffix}", surface(ball(0.4, (0.1, 0.2, 0.3))), upright=(2, 1))
        mesh = trimesh.load(tmp_path / f"ball{suffix}", force="mesh")
        assert mesh.bounds.mean(0) == pytest.approx(centre, abs=0.005) and mesh.volume > 0


def test_other_suffixes_and_empty_shapes_are_refused(tmp_path: Path) -> None:
    shape = surface(ball(0.6))
    for name, kind in (("chair.obj", "a '.obj' file"), ("chair", "a file without a suffix")):
        expected = f"{tmp_path / name} was to hold a mesh, but {kind} cannot: name it .glb or .ply"
        with pytest.raises(UsageError, match=f"^{re.escape(expected)}$"):
            write_mesh(tmp_path / name, shape)
    expected = f"{tmp_path / 'chair.ply'} was to hold a mesh, but the network's shape is empty: it is negative nowhere"
    with pytest.raises(NetspaceError, match=f"^{re.escape(expected)}$"):
        write_mesh(tmp_path / "chair.ply", Surface.nothing())
    assert not list(tmp_path.iterdir())


def test_without_the_extra_the_error_says_how_to_get_it() -> None:
    expected = "shapes need netspace_meshes, which is not installed: pip install 'netspace[shapes]'"
    with pytest.raises(NetspaceError, match=f"^{re.escape(expected)}$"):
        shapes_extra("netspace_meshes")


def test_surfaces_are_kept_to_a_step_of_their_coordinates(tmp_path: Path) -> None:
    shapes = {"latent.00": surface(ball(0.5)), "latent.01": Surface.nothing()}
    write_surfaces(tmp_path / "shapes.safetensors", shapes, up="1")
    actual, notes = read_surfaces(tmp_path / "shapes.safetensors")
    assert notes == {"up": "1"} and actual.keys() == shapes.keys() and actual["latent.01"].empty
    assert np.abs(actual["latent.00"].vertices - shapes["latent.00"].vertices).max() <= 0.5001 / 32767
    assert np.array_equal(actual["latent.00"].faces, shapes["latent.00"].faces)


@pytest.mark.parametrize(
    "tensors",
    [
        {"a.faces": torch.zeros(1, 3, dtype=torch.int32)},
        {"a.faces": torch.full((1, 3), 4, dtype=torch.int32), "a.vertices": torch.zeros(4, 3, dtype=torch.int16)},
        {"a.faces": torch.full((1, 3), -1, dtype=torch.int32), "a.vertices": torch.zeros(4, 3, dtype=torch.int16)},
        {"a.faces": torch.zeros(1, 3, dtype=torch.int32), "a.vertices": torch.zeros(4, 2, dtype=torch.int16)},
        {"a.faces": torch.zeros(1, 3), "a.vertices": torch.zeros(4, 3, dtype=torch.int16)},
    ],
)
def test_a_file_of_other_tensors_holds_no_surfaces(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    file = tmp_path / "shapes.safetensors"
    write_tensors(file, tensors)
    expected = f"{file} was expected to hold surfaces, but 'a' is none: make the file again"
    with pytest.raises(NetspaceError, match=f"^{re.escape(expected)}$"):
        read_surfaces(file)
