"""Points read from files of each kind, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from netspace.errors import NetspaceError, UsageError
from netspace.point_clouds import normalised_points, read_points

POINTS = np.random.RandomState(0).standard_normal((20, 3)).round(4)


def ply(path: Path, faces: bool) -> None:
    head = ["ply", "format ascii 1.0", f"element vertex {len(POINTS)}", *(f"property float {axis}" for axis in "xyz")]
    rows = [" ".join(map(str, point)) for point in POINTS]
    if faces:
        head += ["element face 1", "property list uchar int vertex_indices"]
        rows += ["3 0 1 2"]
    path.write_text("\n".join([*head, "end_header", *rows]) + "\n")


@pytest.mark.parametrize("faces", [False, True])
def test_ply_has_points_or_the_vertices_of_a_mesh(tmp_path: Path, faces: bool) -> None:
    pytest.importorskip("trimesh")
    ply(tmp_path / "cloud.ply", faces)
    np.testing.assert_allclose(read_points(tmp_path / "cloud.ply"), POINTS, atol=1e-6)


@pytest.mark.parametrize("separator", [" ", "\t", ", "])
def test_xyz_may_have_normals_and_comments(tmp_path: Path, separator: str) -> None:
    rows = [separator.join(map(str, [*point, 0.0, 0.0, 1.0])) for point in POINTS]
    (tmp_path / "cloud.xyz").write_text("# x y z nx ny nz\n" + "\n".join(rows))
    np.testing.assert_array_equal(read_points(tmp_path / "cloud.xyz"), POINTS)


def test_obj_and_npy(tmp_path: Path) -> None:
    rows = [f"v {x} {y} {z}" for x, y, z in POINTS]
    (tmp_path / "cloud.OBJ").write_text("\n".join(["mtllib other.mtl", "vn 0 0 1", *rows, "f 1 2 3"]))
    np.save(tmp_path / "cloud.npy", POINTS.astype(np.float32))
    np.testing.assert_array_equal(read_points(tmp_path / "cloud.OBJ"), POINTS)
    np.testing.assert_array_equal(read_points(tmp_path / "cloud.npy"), POINTS.astype(np.float32).astype(np.float64))


def test_what_is_no_cloud_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """No pickle in an NPY file is opened."""
    np.save(tmp_path / "pickled.npy", np.array([{"run": "me"}] * 9, dtype=object), allow_pickle=True)
    with pytest.raises(
        NetspaceError, match=r"pickled.npy was expected to hold points as NPY, but it cannot be read: .*pick"
    ):
        read_points(tmp_path / "pickled.npy")
    np.save(tmp_path / "flat.npy", np.zeros(30))
    with pytest.raises(NetspaceError, match=re.escape("an array of shape (30,) is no list of points")):
        read_points(tmp_path / "flat.npy")
    (tmp_path / "words.xyz").write_text("once upon a time\n" * 9)
    with pytest.raises(NetspaceError, match=r"words.xyz was expected to hold points as XYZ"):
        read_points(tmp_path / "words.xyz")
    (tmp_path / "empty.obj").write_text("# nothing\n")
    with pytest.raises(NetspaceError, match=r"empty.obj was expected to hold points as OBJ"):
        read_points(tmp_path / "empty.obj")
    with pytest.raises(UsageError, match=r"its name ends in none of .ply, .obj, .xyz, .npy: convert it"):
        read_points(tmp_path / "cloud.las")
    with pytest.raises(UsageError, match=r"gone.xyz does not exist: give a file of points on a surface"):
        read_points(tmp_path / "gone.xyz")


def test_points_must_tell_a_shape(tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", POINTS[:7])
    with pytest.raises(NetspaceError, match="holds 7 points, but at least 8 are needed"):
        read_points(tmp_path / "few.npy")
    np.save(tmp_path / "one.npy", np.ones((9, 3)))
    with pytest.raises(NetspaceError, match="holds one point 9 times"):
        read_points(tmp_path / "one.npy")
    np.save(tmp_path / "inf.npy", np.where(POINTS.max() == POINTS, np.inf, POINTS))
    with pytest.raises(NetspaceError, match="holds points that are not finite"):
        read_points(tmp_path / "inf.npy")


def test_a_ply_that_is_none_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    (tmp_path / "cloud.ply").write_bytes(b"ply\nformat binary_little_endian 1.0\nelement vertex 99\n" + bytes(30))
    with pytest.raises(NetspaceError, match=r"cloud.ply was expected to hold points as PLY"):
        read_points(tmp_path / "cloud.ply")


def test_normalised_points_fill_the_sphere() -> None:
    moved, middle, factor = normalised_points(7 + 3 * POINTS, 0.95)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1).max(), 0.95)
    np.testing.assert_allclose(moved.max(0), -moved.min(0))
    np.testing.assert_allclose(moved / factor + middle, 7 + 3 * POINTS)
