"""Surfaces of networks that are shapes: values on a grid, the surface where they are 0, how two of them differ, mesh files.

Axes: M networks, P parameters, B points at once, R grid points along each side, V vertices, F faces, N sampled points. A
shape is where values are negative, such as signed distances are inside; everything lies in the cube [-1, 1]^3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int32
from torch import Tensor

from netspace.errors import NetspaceError, UsageError
from netspace.files import write_bytes
from netspace.io import read_tensors, write_tensors
from netspace.streams import Stream, generator

CHUNK = 1 << 14  # grid points evaluated at once: their coordinates and activations are all that is kept besides values
MIN_SHARE = 0.01  # of a surface's area, from which on a piece of it counts as a body and not as a speck
MIN_SIZE = 0.25  # of the area that a shape is expected to have, from which on it counts as a shape at all
POINTS = 20_000  # sampled on each of two surfaces to measure their distance
FAR = 1e6  # times the largest value: what lies around the cube, so that surfaces end exactly on its sides
SUFFIXES = (".glb", ".ply")  # of mesh files that are written
STEPS = 32767  # of a coordinate from 0 to 1, in files of surfaces

Networks = Callable[[Tensor, Tensor], Tensor]  # parameters (M, P) and points (B, 3) to values (M, B, 1), as `NetBatch`


@dataclass(frozen=True, eq=False)
class Surface:
    """Triangles around a shape, corners counterclockwise seen from outside; no triangles if there is no shape."""

    vertices: Float32[np.ndarray, "V 3"]  # in [-1, 1]^3
    faces: Int32[np.ndarray, "F 3"]  # rows of vertices

    @classmethod
    def nothing(cls) -> Surface:
        """Return the surface of no shape."""
        return cls(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32))

    @property
    def empty(self) -> bool:
        """Whether there is no shape."""
        return len(self.faces) == 0

    @cached_property
    def _corners(self) -> Float64[np.ndarray, "F 3 3"]:
        return self.vertices[self.faces].astype(np.float64)

    @cached_property
    def _crossed(self) -> Float64[np.ndarray, "F 3"]:
        """The normals of faces, of twice their areas' length."""
        corners = self._corners
        crossed: np.ndarray = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        return crossed

    @cached_property
    def areas(self) -> Float64[np.ndarray, " F"]:
        """The faces' areas."""
        return np.linalg.norm(self._crossed, axis=1) / 2

    @cached_property
    def volumes(self) -> Float64[np.ndarray, " F"]:
        """The signed volumes between faces and the origin; over a closed surface they add up to the volume inside."""
        return np.einsum("fi,fi->f", self._corners[:, 0], self._crossed) / 6

    @cached_property
    def normals(self) -> Float64[np.ndarray, "V 3"]:
        """The vertices' unit normals: means over their faces by area; zero where no face has an area."""
        rows, crossed = self.faces.reshape(-1), self._crossed.repeat(3, axis=0)
        sums = [np.bincount(rows, crossed[:, axis], len(self.vertices)) for axis in range(3)]
        total = np.stack(sums, axis=1)
        return total / np.linalg.norm(total, axis=1, keepdims=True).clip(1e-300)

    def sample(self, count: int, random: torch.Generator) -> Float64[np.ndarray, "N 3"]:
        """Draw points uniformly by area. Raises `NetspaceError` if there is no area to draw from."""
        total = self.areas.cumsum()
        if self.empty or not total[-1] > 0:
            raise NetspaceError(f"{count:,} points were to be drawn on an empty surface: it has no area")
        draws = torch.rand(3, count, generator=random, dtype=torch.float64).numpy()
        chosen = np.searchsorted(total, draws[0] * total[-1], side="right").clip(max=len(total) - 1)
        root, other = np.sqrt(draws[1]), draws[2]
        weights = np.stack([1 - root, root * (1 - other), root * other], axis=1)  # uniform in a triangle
        points: np.ndarray = np.einsum("nk,nkx->nx", weights, self._corners[chosen])
        return points


@torch.no_grad()
def grid_values(
    networks: Networks, flat: Float[Tensor, "M P"], resolution: int = 64, chunk: int = CHUNK
) -> Float32[Tensor, "M R R R"]:
    """Return the values of networks on a regular grid over [-1, 1]^3, sides included, on the CPU.

    Entry [m, i, j, k] is that of network m at x = -1 + 2 i / (R - 1), and y and z likewise by j and k. Raises `UsageError`
    for fewer than 2 points along a side.
    """
    if resolution < 2:
        raise UsageError(f"a grid has at least 2 points along each side, not {resolution}")
    values = torch.empty(len(flat), resolution**3)
    side = torch.linspace(-1, 1, resolution, device=flat.device, dtype=flat.dtype)
    for rows in torch.arange(resolution**3, device=flat.device).split(chunk):
        points = side[torch.stack(torch.unravel_index(rows, (resolution,) * 3), dim=1)]
        values[:, rows.cpu()] = networks(flat, points)[:, :, 0].float().cpu()
    return values.view(-1, *(resolution,) * 3)


def surface(values: Float[np.ndarray, "R R R"] | Float[Tensor, "R R R"], level: float = 0.0) -> Surface:
    """Return the surface where values on a grid over [-1, 1]^3 are `level`, by marching cubes (Lewiner et al., 2003).

    Inside are values below `level`; values that are not finite are outside. The surface is closed: where a shape reaches a
    side of the cube, the side bounds it. If nothing is inside, the surface is empty.

    Raises:
        NetspaceError: scikit-image is not installed.
    """
    shifted = np.asarray(values, dtype=np.float32) - np.float32(level)
    finite = np.isfinite(shifted)
    if not (shifted[finite] < 0).any():
        return Surface.nothing()
    scale = np.abs(shifted[finite]).max()
    padded = np.pad(np.where(finite, shifted / scale, 1), 1, constant_values=FAR)
    cells = len(shifted) - 1
    vertices, faces, _, _ = shapes_extra("skimage.measure").marching_cubes(padded, 0.0)
    return Surface(
        ((vertices - 1) * (2 / cells) - 1).clip(-1, 1).astype(np.float32), np.ascontiguousarray(faces, dtype=np.int32)
    )


def iou(first: Float[Tensor, "M R R R"], second: Float[Tensor, "M R R R"]) -> Float64[Tensor, " M"]:
    """Return intersection over union of the insides (values below 0) on a grid; 1 for two shapes that are both empty."""
    one, other = (inside(each).flatten(1) for each in (first, second))
    union = (one | other).sum(1)
    return torch.where(union > 0, (one & other).sum(1).double() / union.clamp_min(1), 1.0)


def inside(values: Float[Tensor, "M R R R"]) -> Bool[Tensor, "M R R R"]:
    """Return where shapes are: values below 0; not where they are not finite."""
    return (values < 0) & values.isfinite()


def chamfer(first: Surface, second: Surface, count: int = POINTS) -> float:
    """Return the Chamfer distance of two surfaces, in units of the cube [-1, 1]^3: NaN if one of them is empty.

    It is the mean of two means: of the distances (not squared) from points of the first to the nearest points of the second,
    and back. `count` points are drawn on each uniformly by area, so two draws of one surface of area A are still about
    sqrt(A / count) / 2 apart.
    """
    if first.empty or second.empty:
        return float("nan")
    from scipy.spatial import cKDTree

    points = [
        each.sample(count, generator(0, Stream.SURFACE_POINTS, index)) for index, each in enumerate((first, second))
    ]
    ways = [cKDTree(points[1 - index]).query(points[index])[0].mean() for index in (0, 1)]
    return float(np.mean(ways))


class Bodies(NamedTuple):
    """How many separate bodies a surface bounds."""

    total: int  # all of them, the smallest speck included
    large: int  # of those with at least a given share of the area


def valid(shape: Surface, expected: float = 0.0) -> bool:
    """Return whether a surface bounds one body, apart from specks, of at least `MIN_SIZE` of the area that was `expected`."""
    return bodies(shape, expected).large == 1 and float(shape.areas.sum()) >= MIN_SIZE * expected


def bodies(shape: Surface, expected: float = 0.0, share: float = MIN_SHARE) -> Bodies:
    """Count the connected pieces of a surface, and those with at least `share` of its area, or of the area that was `expected`.

    Cavities inside a body do not count.
    """
    if shape.empty:
        return Bodies(0, 0)
    expected = max(expected, float(shape.areas.sum()))
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = shape.faces[:, [0, 1]], shape.faces[:, [1, 2]]  # two edges join the three corners
    edges = np.concatenate(ends).T
    graph = coo_array((np.ones(edges.shape[1], bool), tuple(edges)), shape=(len(shape.vertices),) * 2)
    number, piece_of_vertex = connected_components(graph, directed=False)
    piece = piece_of_vertex[shape.faces[:, 0]]
    area, volume = (np.bincount(piece, each, number) for each in (shape.areas, shape.volumes))
    solid = (volume > 0) & (area > 0)
    return Bodies(int(solid.sum()), int((solid & (area >= share * expected)).sum()))


def check_mesh_path(path: Path) -> None:
    """Raise `UsageError` unless the suffix of `path` is that of a mesh file that can be written."""
    if path.suffix.lower() not in SUFFIXES:
        kind = f"a {path.suffix!r} file" if path.suffix else "a file without a suffix"
        raise UsageError(f"{path} was to hold a mesh, but {kind} cannot: name it {' or '.join(SUFFIXES)}")


def write_mesh(path: Path, shape: Surface, upright: tuple[int, int] = (1, 2)) -> None:
    """Write a surface as a mesh file, atomically; the suffix of `path` decides the format.

    `upright` are the axes that point up and to the front of the shape. In a .glb file these are y and z, as glTF says, so
    the shape is turned; a .ply file has coordinates as they are.

    Raises:
        UsageError: another suffix than `SUFFIXES`.
        NetspaceError: the surface is empty, trimesh is not installed, or the file cannot be written.
    """
    check_mesh_path(path)
    if shape.empty:
        raise NetspaceError(f"{path} was to hold a mesh, but the network's shape is empty: it is negative nowhere")
    trimesh = shapes_extra("trimesh")
    suffix = path.suffix.lower()
    vertices = shape.vertices @ axes_of(*upright).T if suffix == ".glb" else shape.vertices
    mesh = trimesh.Trimesh(vertices, shape.faces, process=False)
    options = {".glb": {"include_normals": True}, ".ply": {"vertex_normal": True}}[suffix]
    write_bytes(path, mesh.export(file_type=suffix[1:], **options))


def axes_of(up: int, front: int) -> Float64[np.ndarray, "3 3"]:
    """Return the directions right, up and front, as a shape is seen from its front, in coordinates of the cube."""
    above, ahead = np.eye(3)[[up, front]]
    return np.stack([np.cross(above, ahead), above, ahead])


def shapes_extra(name: str) -> Any:
    """Return a module of the extra 'shapes'. Raises `NetspaceError`, which says how to install it, if it is not there."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise NetspaceError(
            f"shapes need {error.name}, which is not installed: pip install 'netspace[shapes]'"
        ) from None


def write_surfaces(path: Path, shapes: Mapping[str, Surface], **notes: str) -> None:
    """Write named surfaces as safetensors, atomically: vertices (V, 3) as int16, of which 32,767 is 1, faces (F, 3) as int32."""
    tensors = {}
    for name, each in shapes.items():
        tensors[f"{name}.vertices"] = torch.from_numpy(np.rint(each.vertices * STEPS).astype(np.int16))
        tensors[f"{name}.faces"] = torch.from_numpy(each.faces)
    write_tensors(path, tensors, **notes)


def read_surfaces(path: Path) -> tuple[dict[str, Surface], dict[str, str]]:
    """Return the surfaces that `write_surfaces` wrote, and its notes. Raises `NetspaceError` for any other file."""
    tensors, notes = read_tensors(path)
    shapes = {}
    for name in (key.removesuffix(".faces") for key in tensors if key.endswith(".faces")):
        vertices, faces = tensors.get(f"{name}.vertices", torch.empty(0)), tensors[f"{name}.faces"]
        fits = vertices.dtype == torch.int16 and faces.dtype == torch.int32
        fits = fits and vertices.shape[1:] == faces.shape[1:] == (3,)
        if not fits or bool(((faces < 0) | (faces >= len(vertices))).any()):
            raise NetspaceError(f"{path} was expected to hold surfaces, but {name!r} is none: make the file again")
        shapes[name] = Surface((vertices.numpy() / np.float32(STEPS)).astype(np.float32), faces.numpy())
    return shapes, notes
