"""Meshes as shapes: read by trimesh, scaled to one size, with signed distances by libigl.

Every mesh is centred in its bounding box and scaled until its farthest vertex has the distance `RADIUS` from the centre: that
of the unit sphere and a margin, in which a level set can be closed. All bodies of a file are one shape. Distances are exact;
a point is inside where the absolute winding number (Jacobson et al., 2013; Barill et al., 2018) is above 1/2, so that bodies
may overlap, touch, have small holes, or have all faces turned inwards. Distances are from the faces that divide inside from
outside: walls within a body do not count where no part of them is a surface. A mesh whose winding numbers are not near integers is
open and has no inside: it is refused, as everything is that is not a mesh of moderate size.

Only the file itself is read: materials, textures and buffers in other files are not looked for.

Axes: N points, V vertices, F faces.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64

from netspace.errors import NetspaceError, UsageError, first_line
from netspace.process import available_cores
from netspace.tasks.chairs import RADIUS
from netspace.tasks.shapes import near_and_far

SUFFIXES = (".glb", ".obj", ".off", ".ply", ".stl")
MAX_FACES = 2_000_000  # libigl's two trees take some 500 bytes for each
MAX_BYTES = 256 << 20  # of a file: text takes ten times its size while it is parsed
MAX_VALUES = 32 * MAX_FACES  # that a GLB file may claim to have, in all of its arrays
MIN_AREA = 1e-14  # of a face, where the longest side of the bounding box is 1
WINDING_POINTS = 5_000  # at which a mesh is judged
DIVIDING_POINTS = 40_000  # on all faces, by area, at which it is judged whether those divide whose centre does not
STEP = 1e-5  # to both sides of these
AMBIGUOUS = 0.2  # distance of a winding number from the nearest integer, from which it says neither inside nor outside
MAX_AMBIGUOUS = 0.03  # fraction of points
MIN_INSIDE = 0.01  # fraction of points

Array = np.ndarray


class RefusedMesh(NetspaceError):
    """A file cannot be used as a shape; `reason` is a clause that says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.args[0]} cannot be used as a shape: {self.reason}"


class UnreadMesh(RefusedMesh):
    """A file could not be read on this machine or at this time, which says nothing about its content."""


@dataclass(frozen=True)
class MeshShape:
    """A shape bounded by triangles, in the unit sphere."""

    name: str  # of its file in its folder, without suffix
    vertices: Float64[Array, "V 3"]
    faces: Int64[Array, "F 3"]  # rows of `vertices`
    dividing: Bool[Array, " F"]  # faces with inside on one side and outside on the other, somewhere

    def stretched(self, factors: Float64[Array, " 3"], name: str) -> MeshShape:
        """Return the shape, called `name`, with its axes multiplied by `factors` and scaled to `RADIUS` again."""
        return replace(self, name=name, vertices=_scaled(self.vertices * factors))

    def distances(self, points: Float64[Array, "N 3"]) -> Float64[Array, " N"]:
        """Return signed distances from the dividing faces, negative inside."""
        squared, _, _ = libigl().point_mesh_squared_distance(points, self.vertices, self.faces[self.dividing])
        return np.where(self.inside(points), -1.0, 1.0) * np.sqrt(squared)

    def inside(self, points: Float64[Array, "N 3"]) -> Bool[Array, " N"]:
        """Return whether points are inside of any body."""
        return np.abs(self.winding(points)) > 0.5

    def winding(self, points: Float64[Array, "N 3"]) -> Float64[Array, " N"]:
        """Return winding numbers: how often the surface goes around each point."""
        return np.asarray(libigl().fast_winding_number(self.vertices, self.faces, points))

    def surface(self, count: int, random: np.random.RandomState) -> Float64[Array, "{count} 3"]:
        """Return random points of the dividing faces, uniform by area."""
        return _on_faces(self.vertices[self.faces[self.dividing]], count, random)[0]


def mesh_files(folder: Path) -> list[Path]:
    """Return the mesh files in a folder and below it, sorted by relative name; files that begin with a dot are left out.

    Raises `UsageError` if there is no such folder or no mesh file in it.
    """
    kinds = ", ".join(suffix[1:].upper() for suffix in SUFFIXES)
    if not folder.is_dir():
        raise UsageError(
            f"meshes are read from a folder, but {folder} is none: let data.root name one of {kinds} files"
        )
    files = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    files = sorted((path for path in files if path.is_file()), key=lambda path: path.relative_to(folder).as_posix())
    if not files:
        raise UsageError(f"there are no meshes in {folder}: let data.root name a folder of {kinds} files")
    return files


def shape_name(path: Path, folder: Path) -> str:
    """Return the name of a mesh file's shape: its path in the folder, without suffix."""
    return path.relative_to(folder).with_suffix("").as_posix()


def read_mesh(path: Path, folder: Path) -> MeshShape:
    """Return the shape of a mesh file in `folder`.

    Raises `RefusedMesh`, a `NetspaceError`, if the file is not a mesh of its suffix, is empty, gigantic, not finite or has no
    inside; `UnreadMesh`, a `RefusedMesh`, if it cannot be read or memory runs out; `UsageError` if trimesh or libigl is not installed.
    """
    vertices, faces = normalised(path, *_read(path))
    shape = MeshShape(shape_name(path, folder), vertices, faces, np.ones(len(faces), dtype=bool))
    _check_winding(path, shape)
    return replace(shape, dividing=_dividing(shape))


def _read(path: Path) -> tuple[Array, Array]:
    """Return the vertices and the triangles of all bodies of a file, as they are in it."""
    trimesh = _imported("trimesh")
    kind = path.suffix[1:].lower()
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise RefusedMesh(path, f"it has {size:,} bytes, of which at most {MAX_BYTES:,} are read")
        content = path.read_bytes()
    except OSError as error:
        raise UnreadMesh(path, f"it cannot be read ({error.strerror})") from None
    try:
        if kind == "glb":
            _check_glb(path, content)
        if kind == "obj":
            _check_obj(path, content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", DeprecationWarning)  # numpy's, where text ends before its numbers do
            # a stream has no folder, so nothing that the file refers to can be found
            scene = trimesh.load_scene(BytesIO(content), file_type=kind, skip_materials=True, process=False)
            _check_instances(path, scene, trimesh.Trimesh)
            mesh = scene.to_mesh()
            return np.array(mesh.vertices, dtype=np.float64), np.array(mesh.faces, dtype=np.int64)
    except RefusedMesh:
        raise
    except (OSError, MemoryError, ImportError) as error:
        raise UnreadMesh(path, f"it cannot be read here ({first_line(error)})") from None
    except Exception as error:  # of bad files, trimesh raises whatever numpy, json and struct raise
        raise RefusedMesh(path, f"it is not a readable {kind.upper()} file ({first_line(error)})") from None


def _check_glb(path: Path, content: bytes) -> None:
    """Refuse a GLB file that refers to other files, or whose arrays are compressed or larger than its bytes."""
    header = json.loads(content[20 : 20 + int.from_bytes(content[12:16], "little")])
    for buffer in header.get("buffers", []):
        if not buffer.get("uri", "data:").startswith("data:"):
            raise RefusedMesh(path, f"its content is in another file, {buffer['uri']!r}, which is not read")
    arrays: list[dict[str, Any]] = header.get("accessors", [])
    claimed = sum(max(int(each["count"]), 0) for each in arrays)
    if claimed > MAX_VALUES:
        raise RefusedMesh(path, f"it claims arrays of {claimed:,} rows, of which at most {MAX_VALUES:,} are read")
    parts = [part for mesh in header.get("meshes", []) for part in mesh["primitives"]]
    used = {part["attributes"]["POSITION"] for part in parts} | {part["indices"] for part in parts if "indices" in part}
    if any("bufferView" not in arrays[index] or "sparse" in arrays[index] for index in used):
        raise RefusedMesh(path, "its geometry is compressed or sparse: export it without compression")


def _check_obj(path: Path, content: bytes) -> None:
    """Refuse an OBJ file with faces that count vertices backwards in between vertices, which trimesh reads wrongly."""
    lines = b"\n" + content
    first, last = lines.find(b"\nf "), lines.rfind(b"\nv ")
    if 0 <= first < last and any(b"-" in each.split(b"\n", 1)[0] for each in lines[first:].split(b"\nf ")[1:]):
        raise RefusedMesh(path, "its faces count vertices backwards: export it with absolute indices")


def _check_instances(path: Path, scene: Any, kind: type[Any]) -> None:
    """Refuse a file whose bodies have too many faces, each counted as often as the scene has it."""
    bodies: list[Any] = [scene.geometry[scene.graph[node][1]] for node in scene.graph.nodes_geometry]
    count = sum(len(body.faces) if isinstance(body, kind) else 0 for body in bodies)
    if count > MAX_FACES:
        raise RefusedMesh(path, f"it has {count:,} faces, of which at most {MAX_FACES:,} are used: simplify it")
    if not count:
        raise RefusedMesh(path, "it has no faces")


def normalised(path: Path, vertices: Array, faces: Array) -> tuple[Float64[Array, "V 3"], Int64[Array, "F 3"]]:
    """Return the used vertices, centred and scaled to `RADIUS`, and the faces that have an area.

    Raises `RefusedMesh` if vertices are missing or not finite, or no face has an area.
    """
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise RefusedMesh(path, f"its faces refer to vertices that are not among its {len(vertices):,}")
    vertices, faces = _used(vertices, faces)
    if not np.isfinite(vertices).all():
        raise RefusedMesh(path, "it has vertices that are not finite")
    low, high = vertices.min(0), vertices.max(0)
    with np.errstate(over="ignore"):
        extent = (high - low).max()
    if not np.isfinite(extent) or extent <= 0:
        raise RefusedMesh(path, "it has no extent" if extent <= 0 else "its vertices are too far apart for float64")
    vertices = (vertices - (low / 2 + high / 2)) / extent
    faces = faces[_areas(vertices[faces]) > MIN_AREA]
    if not len(faces):
        raise RefusedMesh(path, "none of its faces has an area")
    vertices, faces = _used(vertices, faces)
    return _scaled(vertices), faces


def _scaled(vertices: Float64[Array, "V 3"]) -> Float64[Array, "V 3"]:
    """Return vertices centred in their bounding box, the farthest of them at the distance `RADIUS`."""
    vertices = vertices - (vertices.min(0) + vertices.max(0)) / 2
    return vertices * (RADIUS / np.linalg.norm(vertices, axis=1).max())


def _used(vertices: Array, faces: Array) -> tuple[Array, Array]:
    """Return the vertices that faces refer to, and the faces with their new indices."""
    rows, indices = np.unique(faces, return_inverse=True)
    return vertices[rows], indices.reshape(-1, 3)


def _on_faces(
    corners: Float64[Array, "F 3 3"], count: int, random: np.random.RandomState
) -> tuple[Float64[Array, "{count} 3"], Int64[Array, " {count}"]]:
    """Return random points of triangles, uniform by area, and whose they are."""
    bounds = np.cumsum(_areas(corners))
    rows = np.searchsorted(bounds, random.random_sample(count) * bounds[-1], side="right")
    rows = np.minimum(rows, len(corners) - 1)
    root, along = np.sqrt(random.random_sample((count, 1))), random.random_sample((count, 1))
    first, second, third = corners[rows].swapaxes(0, 1)
    return (1 - root) * first + root * ((1 - along) * second + along * third), rows


def _dividing(shape: MeshShape) -> Bool[Array, " F"]:
    """Return which faces have inside on one side and outside on the other: at their centre, or anywhere else."""
    corners = shape.vertices[shape.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) / (2 * _areas(corners))[:, None]
    step = STEP * normals
    centres = corners.mean(1)
    dividing = shape.inside(centres + step) != shape.inside(centres - step)
    others = np.flatnonzero(~dividing)
    if len(others):
        areas = _areas(corners)
        count = math.ceil(DIVIDING_POINTS * areas[others].sum() / areas.sum())
        points, rows = _on_faces(corners[others], count, np.random.RandomState(0))
        rows = others[rows]
        divided = shape.inside(points + step[rows]) != shape.inside(points - step[rows])
        dividing[rows[divided]] = True
    return dividing


def _areas(corners: Float64[Array, "F 3 3"]) -> Float64[Array, " F"]:
    return np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2


def _check_winding(path: Path, shape: MeshShape) -> None:
    """Refuse a shape that, at points as networks are fitted to, winding numbers do not divide into inside and outside."""
    winding = shape.winding(near_and_far(shape, WINDING_POINTS, np.random.RandomState(0)))
    ambiguous = float((np.abs(winding - np.round(winding)) > AMBIGUOUS).mean())
    inside = float((np.abs(winding) > 0.5).mean())
    if ambiguous > MAX_AMBIGUOUS:
        raise RefusedMesh(
            path,
            f"its surface is open: winding numbers say neither inside nor outside at {ambiguous:.0%} of points in and about it "
            f"(at most {MAX_AMBIGUOUS:.0%} may)",
        )
    if inside < MIN_INSIDE:
        raise RefusedMesh(
            path, f"it has hardly an inside: {inside:.1%} of points in and about it (at least {MIN_INSIDE:.0%} must be)"
        )


def libigl() -> ModuleType:
    """Return libigl, which uses as many threads as torch does. Raises `UsageError` if it is not installed."""
    os.environ.setdefault("IGL_NUM_THREADS", str(min(available_cores(), torch.get_num_threads())))
    return _imported("igl", "libigl")


def _imported(module: str, package: str | None = None) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise UsageError(
            f'meshes need the package {package or module}, which is not installed: `pip install "netspace[shapes]"`'
        ) from None
