"""Mesh files as shapes, against distances known in float64; what is no shape is refused, and no other file is read."""

from __future__ import annotations

import base64
import json
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from netspace.errors import NetspaceError, UsageError
from netspace.tasks import meshes
from netspace.tasks.meshes import RADIUS, SUFFIXES, MeshShape, RefusedMesh, _dividing, mesh_files, read_mesh

RANDOM = np.random.RandomState(0)
POINTS = RANDOM.uniform(-1, 1, (2000, 3))
SIDES = np.array([2.0, 1.0, 0.5])
WATCHED: list[list[str]] = []  # of files that are opened; empty: nobody watches


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if WATCHED and event == "open":
        WATCHED[0].append(str(arguments[0]))


sys.addaudithook(_watch)


@contextmanager
def opened() -> Iterator[list[str]]:
    """The files that the block opens."""
    WATCHED.append([])
    try:
        yield WATCHED[0]
    finally:
        WATCHED.clear()


def write(path: Path, mesh: trimesh.Trimesh) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    mesh.export(path)
    return path


def shape_of(mesh: trimesh.Trimesh) -> MeshShape:
    """A shape that is not scaled."""
    shape = MeshShape(
        "it", np.array(mesh.vertices, np.float64), np.array(mesh.faces, np.int64), np.ones(len(mesh.faces), bool)
    )
    return replace(shape, dividing=_dividing(shape))


def box_distances(points: np.ndarray, half: np.ndarray, centre: Any = 0.0) -> np.ndarray:
    """Signed distances from a box of half sides `half`."""
    beyond = np.abs(points - np.asarray(centre)) - half
    return np.linalg.norm(np.maximum(beyond, 0), axis=1) + np.minimum(beyond.max(1), 0)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_box_in_every_format(tmp_path: Path, suffix: str) -> None:
    """Wherever it lies, and whatever its size, it is the same shape, to the digits of its file."""
    box = trimesh.creation.box(extents=SIDES * 37)
    box.apply_translation([5.0, -3.0, 11.0])
    shape = read_mesh(write(tmp_path / "kinds" / f"box{suffix.upper()}", box), tmp_path)
    half = SIDES * (RADIUS / np.linalg.norm(SIDES))
    assert shape.name == "kinds/box"
    np.testing.assert_allclose(np.abs(shape.vertices).max(0), half, rtol=1e-6)
    np.testing.assert_allclose(shape.distances(POINTS), box_distances(POINTS, half), atol=2e-6)
    assert np.linalg.norm(shape.vertices, axis=1).max() == pytest.approx(RADIUS, abs=1e-12)


def test_distances_from_a_box_are_exact_also_where_its_faces_point_inwards() -> None:
    box = trimesh.creation.box(extents=[1.2, 0.8, 0.4])
    expected = box_distances(POINTS, np.array([0.6, 0.4, 0.2]))
    np.testing.assert_allclose(shape_of(box).distances(POINTS), expected, atol=1e-12)
    box.invert()
    np.testing.assert_allclose(shape_of(box).distances(POINTS), expected, atol=1e-12)


def test_distances_from_a_sphere() -> None:
    """A sphere's distances up to what its flat faces lie inside of it."""
    mesh = trimesh.creation.icosphere(subdivisions=4, radius=0.7)
    flat = 0.7 - np.linalg.norm(mesh.triangles.mean(1), axis=1).min()
    assert 1e-4 < flat < 2e-3
    expected = np.linalg.norm(POINTS, axis=1) - 0.7
    actual = shape_of(mesh).distances(POINTS)
    assert (actual - expected).min() > -1e-9 and (actual - expected).max() < flat + 1e-9


def test_overlapping_bodies_are_one_shape() -> None:
    """Outside, distances are the union's; inside they may be from walls that go on within another body."""
    first, second = (trimesh.creation.box(extents=[1.0, 0.4, 0.4]) for _ in range(2))
    second.apply_translation([0.5, 0.1, 0.0])
    shape = shape_of(trimesh.util.concatenate([first, second]))
    parts = [box_distances(POINTS, np.array([0.5, 0.2, 0.2]), centre) for centre in ([0, 0, 0], [0.5, 0.1, 0])]
    expected, actual = np.minimum(*parts), shape.distances(POINTS)
    assert ((actual < 0) == (expected < 0)).all() and (expected < 0).any()
    outside = expected >= 0
    np.testing.assert_allclose(actual[outside], expected[outside], atol=1e-12)
    assert (np.abs(actual[~outside]) >= np.min(np.abs(parts), axis=0)[~outside] - 1e-12).all()


@pytest.mark.parametrize("inwards", [False, True])
@pytest.mark.parametrize("apart", [0.0, 0.2], ids=["touching", "overlapping"])
def test_walls_within_a_body_do_not_count(tmp_path: Path, apart: float, inwards: bool) -> None:
    """Boxes that touch in a whole face, and one in the other, are as one box."""
    if apart:
        boxes = [trimesh.creation.box(extents=[1.2, 0.8, 0.4]), trimesh.creation.box(extents=[0.3, 0.2, 0.1])]
    else:
        boxes = [trimesh.creation.box(extents=[0.6, 0.8, 0.4]) for _ in range(2)]
        for sign, box in zip((-1, 1), boxes, strict=True):
            box.apply_translation([sign * 0.3, 0, 0])
    whole = trimesh.util.concatenate(boxes)
    if inwards:
        whole.invert()
    shape, half = shape_of(whole), np.array([0.6, 0.4, 0.2])
    np.testing.assert_allclose(shape.distances(POINTS), box_distances(POINTS, half), atol=1e-12)
    assert np.abs(box_distances(shape.surface(1000, RANDOM), half)).max() < 1e-12
    read = read_mesh(write(tmp_path / "two.obj", whole), tmp_path)
    assert len(read.faces) == 24 and read.dividing.sum() == (12 if apart else 20)


def test_a_face_counts_where_any_part_of_it_divides() -> None:
    """A large face of which a small part is outside."""
    plate, block = trimesh.creation.box(extents=[1.2, 1.2, 0.1]), trimesh.creation.box(extents=[1.15, 1.15, 0.4])
    shape = shape_of(trimesh.util.concatenate([plate, block]))
    parts = [box_distances(POINTS, np.array(half)) for half in ([0.6, 0.6, 0.05], [0.575, 0.575, 0.2])]
    outside = np.minimum(*parts) >= 0
    np.testing.assert_allclose(shape.distances(POINTS)[outside], np.minimum(*parts)[outside], atol=1e-12)
    assert shape.dividing.all()


def test_points_on_a_surface_are_uniform_by_area() -> None:
    half = np.array([0.6, 0.3, 0.1])
    shape = shape_of(trimesh.creation.box(extents=2 * half))
    points = shape.surface(20_000, np.random.RandomState(3))
    assert np.abs(box_distances(points, half)).max() < 1e-12
    areas = np.array([half[1] * half[2], half[0] * half[2], half[0] * half[1]])
    fractions = (np.abs(np.abs(points) - half) < 1e-12).mean(0)
    np.testing.assert_allclose(fractions, areas / areas.sum(), atol=0.01)
    assert np.abs(points.mean(0) / half).max() < 0.03  # both of two opposite faces, and all of each
    assert np.array_equal(points, shape.surface(20_000, np.random.RandomState(3)))


def test_faces_without_an_area_are_dropped(tmp_path: Path) -> None:
    """They do not count for the size either."""
    box = trimesh.creation.box(extents=SIDES)
    vertices = np.concatenate([box.vertices, [[50, 0, 0], [60, 0, 0], [70, 0, 0]]])
    faces = np.concatenate([box.faces, [[8, 9, 10], [0, 0, 1]]])
    whole = trimesh.Trimesh(vertices, faces, process=False)
    shape = read_mesh(write(tmp_path / "spike.ply", whole), tmp_path)
    assert len(shape.faces) == 12 and len(shape.vertices) == 8
    np.testing.assert_allclose(np.abs(shape.vertices).max(0), SIDES * (RADIUS / np.linalg.norm(SIDES)), rtol=1e-6)


def test_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.obj", "a/z.STL", "a/x.ply", ".hidden.obj", "notes.txt", "a.glb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "folder.obj").mkdir()
    assert [path.relative_to(tmp_path).as_posix() for path in mesh_files(tmp_path)] == [
        "a.glb",
        "a/x.ply",
        "a/z.STL",
        "b.obj",
    ]
    with pytest.raises(
        UsageError, match=r"^meshes are read from a folder, but .*notes.txt is none: let data.root name"
    ):
        mesh_files(tmp_path / "notes.txt")
    with pytest.raises(
        UsageError, match=r"^there are no meshes in .*folder.obj: .* a folder of GLB, OBJ, OFF, PLY, STL"
    ):
        mesh_files(tmp_path / "folder.obj")


def glb(header: dict[str, Any], binary: bytes = b"") -> bytes:
    """A GLB file."""
    text = json.dumps({"asset": {"version": "2.0"}, **header}).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
    if binary:
        chunks += struct.pack("<II", len(binary), 0x004E4942) + binary
    return struct.pack("<III", 0x46546C67, 2, 12 + len(chunks)) + chunks


def box_glb(**changes: Any) -> bytes:
    """A box as a GLB file whose header has `changes`."""
    box = trimesh.creation.box(extents=SIDES)
    positions, indices = box.vertices.astype("<f4").tobytes(), box.faces.astype("<u4").tobytes()
    header = {
        "buffers": [{"byteLength": len(positions) + len(indices)}],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": len(positions)},
            {"buffer": 0, "byteOffset": len(positions), "byteLength": len(indices)},
        ],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 8, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5125, "count": 36, "type": "SCALAR"},
        ],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
        "scene": 0,
    }
    return glb({**header, **changes}, positions + indices)


def ply(vertices: list[str], faces: list[str], comment: str = "none") -> bytes:
    """A PLY file in text."""
    head = ["ply", "format ascii 1.0", f"comment {comment}", f"element vertex {len(vertices)}"]
    head += [f"property float {axis}" for axis in "xyz"]
    head += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    return "\n".join([*head, *vertices, *faces, ""]).encode()


CORNERS = ["0 0 0", "1 0 0", "0 1 0", "0 0 1"]
CLOSED = [f"3 {a} {b} {c}" for a, b, c in ((0, 2, 1), (0, 1, 3), (1, 2, 3), (0, 3, 2))]
SHEET = b"v 0 0 0\nv 1 0 0\nv 0 1 0\nv 1 1 0\nf 1 2 3\nf 2 4 3\n"
EMPTY_ARRAY = {"componentType": 5126, "count": 8, "type": "VEC3"}
BOTH = [EMPTY_ARRAY, {"bufferView": 1, "componentType": 5125, "count": 36, "type": "SCALAR"}]
REFUSED: dict[str, tuple[str, bytes, str]] = {
    "an open sheet": (
        "x.obj",
        SHEET,
        r"its surface is open: winding numbers say neither inside nor outside at \d+% of points in and about it \(at most 3%",
    ),
    "a text": ("x.obj", b"Dear reader,\nthis is no mesh.\n", r"it is not a readable OBJ file|it has no faces"),
    "a text that looks like a mesh": ("x.obj", b"v 0 0 0\nv one 0 0\nf 1 1 1\n", r"it is not a readable OBJ file \("),
    "a needle": (
        "x.ply",
        ply([*CORNERS[:2], "0 1e-6 0", "0 0 1e-6"], CLOSED),
        r"it has hardly an inside: 0.0% of points in and about it",
    ),
    "nothing": ("x.stl", b"", r"it has no faces|it is not a readable STL file"),
    "no faces": ("x.ply", ply(CORNERS, []), r"it has no faces"),
    "only points": ("x.obj", b"v 0 0 0\nv 1 0 0\n", r"it has no faces"),
    "half a GLB": ("x.glb", box_glb()[:-40], r"it is not a readable GLB file \("),
    "a header of a GLB": ("x.glb", box_glb()[:60], r"it is not a readable GLB file \("),
    "vertices that are missing": (
        "x.ply",
        ply(CORNERS, ["3 0 1 99"]),
        r"its faces refer to vertices that are not among its 4",
    ),
    "a vertex before the first": (
        "x.ply",
        ply(CORNERS, ["3 0 1 -7"]),
        r"its faces refer to vertices that are not among its 4",
    ),
    "not a number": ("x.ply", ply(["0 0 nan", *CORNERS], ["3 0 1 2"]), r"it has vertices that are not finite"),
    "infinity": ("x.ply", ply(["0 0 inf", *CORNERS], ["3 0 1 2"]), r"it has vertices that are not finite"),
    "beyond float64": (
        "x.obj",
        SHEET.replace(b"v 1 0 0", b"v 1e308 0 0\nv -1e308 0 0"),
        r"its vertices are too far apart",
    ),
    "a point": ("x.obj", b"v 1 2 3\nv 1 2 3\nv 1 2 3\nf 1 2 3\n", r"it has no extent"),
    "a line": ("x.obj", b"v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", r"none of its faces has an area"),
    "compressed": ("x.glb", box_glb(accessors=BOTH), r"its geometry is compressed or sparse: export it without"),
    "billions of zeros": (
        "x.glb",
        box_glb(accessors=[*BOTH, {**EMPTY_ARRAY, "count": 2**40}]),
        r"it claims arrays of 1,099,\d+,\d+,\d+ rows, of which at most 64,000,000 are read",
    ),
    "a buffer elsewhere": (
        "x.glb",
        box_glb(buffers=[{"byteLength": 240, "uri": "secret.bin"}]),
        r"its content is in another file, 'secret.bin', which is not read",
    ),
    "vertices counted backwards": (
        "x.obj",
        b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf -3 -2 -1\nv 0 0 1\nf -4 -3 -1\n",
        r"its faces count vertices backwards: export it with absolute indices",
    ),
}


@pytest.mark.parametrize(("name", "content", "reason"), REFUSED.values(), ids=list(REFUSED))
def test_refused(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RefusedMesh, match=rf"^\S+{name} cannot be used as a shape: ({reason})") as caught:
        read_mesh(tmp_path / name, tmp_path)
    assert isinstance(caught.value, NetspaceError) and "\n" not in str(caught.value)


def test_the_files_that_are_changed_above_are_usable_as_they_are(tmp_path: Path) -> None:
    """So that they are refused for nothing but the change."""
    for name, content in (("x.glb", box_glb()), ("x.ply", ply(CORNERS, CLOSED))):
        (tmp_path / name).write_bytes(content)
        read_mesh(tmp_path / name, tmp_path)


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ("MAX_FACES", r"it has 12 faces, of which at most 11 are used: simplify it"),
        ("MAX_BYTES", r"it has \d+ bytes, of which"),
    ],
)
def test_gigantic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, reason: str) -> None:
    path = write(tmp_path / "box.obj", trimesh.creation.box())
    read_mesh(path, tmp_path)
    monkeypatch.setattr(meshes, limit, 11)
    with pytest.raises(RefusedMesh, match=reason):
        read_mesh(path, tmp_path)


def test_instances_count_as_often_as_they_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file can place one body a million times."""
    nodes = [{"mesh": 0, "translation": [3.0 * index, 0, 0]} for index in range(5)]
    (tmp_path / "x.glb").write_bytes(box_glb(nodes=nodes, scenes=[{"nodes": list(range(5))}]))
    assert len(read_mesh(tmp_path / "x.glb", tmp_path).faces) == 60
    monkeypatch.setattr(meshes, "MAX_FACES", 59)
    with pytest.raises(RefusedMesh, match="it has 60 faces, of which at most 59 are used"):
        read_mesh(tmp_path / "x.glb", tmp_path)


def evil_obj(folder: Path) -> bytes:
    """An OBJ file with materials and textures, here and elsewhere."""
    (folder / "secret.mtl").write_text("newmtl a\nmap_Kd secret.png\n")
    text = trimesh.exchange.obj.export_obj(trimesh.creation.box())
    return f"mtllib secret.mtl\nmtllib /etc/passwd\nusemtl a\n{text}".encode()


def evil_ply(folder: Path) -> bytes:
    """A PLY file with a texture."""
    return ply(CORNERS, CLOSED, "TextureFile secret.png")


def evil_glb(folder: Path) -> bytes:
    """A GLB file with a texture in another file."""
    material = [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}]
    part = {"attributes": {"POSITION": 0}, "indices": 1, "material": 0}
    return box_glb(
        images=[{"uri": "secret.png"}], textures=[{"source": 0}], materials=material, meshes=[{"primitives": [part]}]
    )


def embedded_glb(folder: Path) -> bytes:
    """A GLB file whose buffer is in its header."""
    whole = box_glb()
    start = 20 + int.from_bytes(whole[12:16], "little")
    uri = "data:application/octet-stream;base64," + base64.b64encode(whole[start + 8 :]).decode()
    header = json.loads(whole[20:start])
    return glb({**header, "buffers": [{"byteLength": len(whole) - start - 8, "uri": uri}]})


@pytest.mark.parametrize("make", [evil_obj, evil_ply, evil_glb, embedded_glb], ids=lambda make: str(make.__name__))
def test_no_other_file_is_read(tmp_path: Path, make: Callable[[Path], bytes]) -> None:
    from PIL import Image

    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    path = tmp_path / f"x.{make.__name__[-3:]}"
    path.write_bytes(make(tmp_path))
    if make is not embedded_glb:
        with opened() as files:
            trimesh.load_scene(path)
        assert [name for name in files if "secret" in name], "trimesh alone reads it"
    with opened() as files:
        read_mesh(path, tmp_path)
    assert str(path) in files
    assert not [
        name for name in files if ("secret" in name or "passwd" in name or str(tmp_path) in name) and name != str(path)
    ]


def test_what_is_not_installed_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "box.obj", trimesh.creation.box())
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(
        UsageError, match=r'need the package trimesh, which is not installed: `pip install "netspace\[shapes\]"`'
    ):
        read_mesh(path, tmp_path)
    monkeypatch.setitem(sys.modules, "igl", None)
    with pytest.raises(UsageError, match=r"need the package libigl, which is not installed"):
        meshes.libigl()
