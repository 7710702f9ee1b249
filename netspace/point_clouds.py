"""Points on a surface, read from a file: PLY, OBJ, XYZ or NPY. Nothing in a file is run, and no other file is read.

Axes: N points.
"""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from netspace.errors import NetspaceError, UsageError, first_line
from netspace.surfaces import shapes_extra

SUFFIXES = (".ply", ".obj", ".xyz", ".npy")
MIN_POINTS = 8  # fewer say next to nothing of a shape
MAX_BYTES = 1 << 28  # of a file

Cloud = Float64[np.ndarray, "N 3"]


def read_points(path: Path) -> Cloud:
    """Return the points of a file, of a mesh its vertices; columns after the third, such as normals, are left out.

    Raises:
        UsageError: there is no such file, or its suffix is none of `SUFFIXES`.
        NetspaceError: the file is not what its suffix says, or has too few points, values that are not finite, or no
            extent; or trimesh, which reads PLY, is not installed.
    """
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise UsageError(f"{path} was to hold points, but its name ends in none of {', '.join(SUFFIXES)}: convert it")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise NetspaceError(f"{path} has {size:,} bytes, but at most {MAX_BYTES:,} are read: take fewer points")
        content = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: give a file of points on a surface") from None
    except OSError as error:
        raise NetspaceError(f"{path} cannot be read: {error.strerror}") from None
    readers = {".ply": _ply, ".obj": _obj, ".xyz": _xyz, ".npy": _npy}
    if kind == ".ply":
        shapes_extra("trimesh")  # says what to install
    try:
        with warnings.catch_warnings(action="error", category=DeprecationWarning):
            points = np.asarray(readers[kind](content), dtype=np.float64)
        if points.ndim != 2 or points.shape[1] < 3:
            raise ValueError(f"an array of shape {points.shape} is no list of points")
    except Exception as error:  # of bad files, readers raise whatever numpy and struct raise
        raise NetspaceError(
            f"{path} was expected to hold points as {kind[1:].upper()}, but it cannot be read: {first_line(error)}"
        ) from None
    return _checked(points[:, :3], path)


def _ply(content: bytes) -> object:
    # a stream has no folder, so nothing that the file refers to can be found
    scene = shapes_extra("trimesh").load_scene(BytesIO(content), file_type="ply", process=False)
    return np.concatenate([each.vertices for each in scene.geometry.values()])


def _obj(content: bytes) -> object:
    lines = (line.split() for line in content.decode(errors="replace").splitlines())
    return [[float(value) for value in line[1:4]] for line in lines if line[:1] == ["v"]]


def _xyz(content: bytes) -> object:
    lines = content.decode().replace(",", " ").splitlines()
    return np.loadtxt(lines, ndmin=2, usecols=(0, 1, 2)) if any(line.strip() for line in lines) else []


def _npy(content: bytes) -> object:
    return np.load(BytesIO(content), allow_pickle=False)


def _checked(points: Cloud, path: Path) -> Cloud:
    if len(points) < MIN_POINTS:
        raise NetspaceError(f"{path} holds {len(points)} points, but at least {MIN_POINTS} are needed to tell a shape")
    if not np.isfinite(points).all():
        raise NetspaceError(f"{path} holds points that are not finite: leave them out")
    if not np.ptp(points, axis=0).max() > 0:
        raise NetspaceError(f"{path} holds one point {len(points)} times: points all over a surface were expected")
    return points


def normalised_points(points: Cloud, radius: float) -> tuple[Cloud, Float64[np.ndarray, " 3"], float]:
    """Return points moved and scaled into a sphere about the origin, their middle before, and the factor.

    The middle is that of the box around them, and the farthest point gets the distance `radius`: what is done to whole
    shapes, so that points all over a surface come out where its shape would.

    >>> moved, middle, factor = normalised_points(np.array([[1.0, 0, 0], [5.0, 0, 0]]), 1.0)
    >>> moved.tolist(), middle.tolist(), factor
    ([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], [3.0, 0.0, 0.0], 0.5)
    """
    middle = points.min(0) / 2 + points.max(0) / 2
    factor = float(radius / np.linalg.norm(points - middle, axis=1).max())
    return (points - middle) * factor, middle, factor
