"""Folders of meshes: what is used and what is refused, and samples that depend on one file alone and are cached."""

from __future__ import annotations

import hashlib
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from netspace.errors import NetspaceError, NetspaceWarning, UsageError
from netspace.tasks import DataConfig, computed, load, mesh_folder
from netspace.tasks.chairs import RADIUS
from netspace.tasks.mesh_folder import STRETCH, MeshFolder, open_meshes
from netspace.tasks.meshes import RefusedMesh, read_mesh
from netspace.tasks.shapes import Occupancies, SignedDistances

SHEET = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 1 1 0\nf 1 2 3\nf 2 4 3\n"
NAMES = ["chairs/ball", "chairs/box0", "tables/box0", "tables/box1"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for each test."""
    monkeypatch.setenv("NETSPACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three boxes and a ball, in two categories."""
    folder = tmp_path / "meshes"
    for category, index in (("tables", 0), ("tables", 1), ("chairs", 0)):
        (folder / category).mkdir(parents=True, exist_ok=True)
        box = trimesh.creation.box(extents=[1.0, 1 + index, 2.0 + (category == "chairs")])
        box.export(folder / category / f"box{index}.obj")
    trimesh.creation.icosphere(subdivisions=2).export(folder / "chairs" / "ball.ply")
    return folder


def quiet(folder: Path, variants: int = 1) -> MeshFolder:
    """The folder, its warnings ignored."""
    with warnings.catch_warnings(action="ignore", category=NetspaceWarning):
        return open_meshes(folder, variants=variants)


def samples(found: MeshFolder, split: str = "train", count: int = 64) -> dict[str, np.ndarray]:
    """Samples of all shapes, by name."""
    return dict(zip(found.names, found.samples(range(found.count), split, count), strict=True))


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_a_folder_of_good_meshes(folder: Path) -> None:
    found = open_meshes(folder)
    assert sorted(found.names) == NAMES and found.count == 4
    assert not found.refused and found.summary() == f"all 4 meshes in {folder} are usable"
    for number, path in enumerate(found.files):
        expected, actual = read_mesh(path, folder), found.shape(number)
        assert actual.name == expected.name == found.names[number]
        assert np.array_equal(actual.vertices, expected.vertices) and np.array_equal(actual.faces, expected.faces)
    with pytest.raises(
        UsageError, match=r"^shape 4 was asked for, but .* has 4 usable meshes: let a zoo have at most 4 members"
    ):
        found.shape(4)
    with pytest.raises(UsageError, match=r"^shape 9 was asked for"):
        found.prepare([0, 9], {"train": 64})


def test_a_folder_of_good_and_bad_ones(folder: Path) -> None:
    """The bad ones are named with their reasons, counted, and do not change what the good ones are."""
    good = open_meshes(folder)
    expected = samples(good)
    (folder / "chairs" / "sheet.obj").write_text(SHEET)
    (folder / "about.off").write_text("Furniture for a small flat.")
    (folder / "tables" / "empty.stl").write_bytes(b"")
    (folder / "tables" / "box0.ply").write_bytes(trimesh.creation.box().export(file_type="ply"))
    with pytest.warns(NetspaceWarning) as caught:
        found = open_meshes(folder)
    text = str(caught.pop(NetspaceWarning).message)
    assert text.startswith(
        f"4 of 8 meshes in {folder} cannot be used as shapes (about.off: it is not a readable OFF file"
    )
    assert "; chairs/sheet.obj: its surface is open" in text and text.endswith("; and 1 more); the other 4 are used")
    assert list(found.refused) == ["about.off", "chairs/sheet.obj", "tables/box0.ply", "tables/empty.stl"]
    assert found.refused["tables/box0.ply"] == "another file has its name with another suffix"
    assert found.names == good.names and found.content_hash == good.content_hash
    assert same(samples(found), expected)


def test_the_order_is_of_a_seed_and_others_come_and_go(tmp_path: Path) -> None:
    for number in range(12):
        trimesh.creation.box(extents=[1, 1, 1 + number / 10]).export(tmp_path / f"{number:02}.obj")
    before = open_meshes(tmp_path)
    assert before.names != tuple(sorted(before.names)) and sorted(before.names) == [f"{n:02}" for n in range(12)]
    other = open_meshes(tmp_path, seed=1)
    assert other.names != before.names and other.content_hash != before.content_hash
    (tmp_path / "05.obj").unlink()
    trimesh.creation.icosphere(subdivisions=1).export(tmp_path / "a.obj")
    after = open_meshes(tmp_path)
    assert [name for name in after.names if name != "a"] == [name for name in before.names if name != "05"]
    assert after.content_hash != before.content_hash


def test_equal_files_are_one_shape(folder: Path) -> None:
    """Otherwise a shape could be in training and in the test split."""
    (folder / "tables" / "copy.obj").write_bytes((folder / "chairs" / "box0.obj").read_bytes())
    found = quiet(folder)
    assert found.refused == {"tables/copy.obj": "it is the same file as chairs/box0.obj"}
    assert sorted(found.names) == NAMES


def test_a_folder_of_bad_ones_alone(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "sheet.obj").write_text(SHEET)
    with pytest.raises(
        NetspaceError, match=r"^1 of 1 meshes in .*bad cannot be used as shapes \(sheet.obj: its surface is open"
    ):
        open_meshes(tmp_path / "bad")
    (tmp_path / "bad" / "sheet.obj").unlink()
    with pytest.raises(UsageError, match="there are no meshes in"):
        open_meshes(tmp_path / "bad")


def test_a_file_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name == "box1.obj":
            raise PermissionError(13, "Permission denied")
        return plain(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        assert quiet(folder).refused == {"tables/box1.obj": "it cannot be read (Permission denied)"}
    assert not open_meshes(folder).refused  # the refusal was not cached for a file that can be read


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(5, "Input/output error"), "it cannot be read (Input/output error)"),
        (MemoryError("Unable to allocate 1.2 GiB"), "it cannot be read here (Unable to allocate 1.2 GiB)"),
        (ModuleNotFoundError("No module named 'lxml'"), "it cannot be read here (No module named 'lxml')"),
    ],
)
def test_what_failed_here_is_no_verdict_on_the_content(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    """A file whose bytes are known is read again the next time, and then used."""
    digest = hashlib.sha256((folder / "tables" / "box1.obj").read_bytes()).hexdigest()

    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(mesh_folder, "_hash", lambda path: digest if path.name == "box1.obj" else path.name)
        if isinstance(error, OSError):
            patch.setattr(Path, "read_bytes", fail)
        else:
            patch.setattr(trimesh, "load_scene", fail)
        with pytest.raises(NetspaceError, match=re.escape(reason)):
            open_meshes(folder)
    assert not open_meshes(folder).refused


def test_samples_differ_by_shape_and_split_and_are_true(folder: Path) -> None:
    found = open_meshes(folder)
    base = found.samples([0, 1], "train", 50)
    assert base.shape == (2, 50, 4) and base.dtype == np.float32
    assert not np.array_equal(base[0], base[1])
    assert not np.array_equal(found.samples([0, 1], "test", 50), base)
    assert np.array_equal(found.samples([1, 0], "train", 50)[::-1], base)
    for number in (0, 1):
        true = found.shape(number).distances(base[number, :, :3].astype(np.float64))
        np.testing.assert_allclose(base[number, :, 3], true, atol=1e-7)
        assert 0.4 < (np.abs(true) < 0.15).mean() < 0.9  # half near the surface, the rest anywhere


def test_variants_are_the_mesh_and_stretched_ones(folder: Path) -> None:
    """The first of each is the mesh as it is, with the samples it has without variants; they depend on its file alone."""
    plain, found = open_meshes(folder), open_meshes(folder, variants=3)
    assert found.count == 12 and found.content_hash != plain.content_hash
    assert found.names[:3] == (plain.names[0], f"{plain.names[0]}~1", f"{plain.names[0]}~2")
    assert np.array_equal(found.samples([0, 3], "val", 40), plain.samples([0, 1], "val", 40))
    first = samples(found)
    for number in range(12):
        shape, mesh = found.shape(number), plain.shape(number // 3)
        assert shape.name == found.names[number] and found.labels(number) == plain.labels(number // 3)
        points = first[shape.name][:, :3].astype(np.float64)
        np.testing.assert_allclose(first[shape.name][:, 3], shape.distances(points), atol=1e-7)
        assert np.isclose(np.linalg.norm(shape.vertices, axis=1).max(), RADIUS)
        np.testing.assert_allclose(shape.vertices.max(0), -shape.vertices.min(0), atol=1e-12)
        ratios = np.ptp(shape.vertices, axis=0) / np.ptp(mesh.vertices, axis=0)
        assert ratios.max() / ratios.min() <= STRETCH**2 + 1e-9
        assert np.ptp(ratios) > 0.01 if number % 3 else np.ptp(ratios) == 0
    (folder / "tables" / "box1.obj").rename(folder / "tables" / "box0~1.obj")
    assert quiet(folder).count == 4  # a good name where there are no variants
    later = samples(quiet(folder, variants=2))
    assert all(np.array_equal(first[name], later[name]) for name in later) and len(later) == 6
    with pytest.raises(
        UsageError, match=r"^shape 9 .* has 3 usable meshes, 3 shapes of each: let a zoo have at most 9 "
    ):
        quiet(folder, variants=3).shape(9)


def test_meshes_that_lie_in_one_folder_are_told_apart_by_nothing(folder: Path) -> None:
    assert open_meshes(folder / "tables").labels(0) == {}
    assert {open_meshes(folder).labels(number)["folder"] for number in range(4)} == {"chairs", "tables"}


def test_points_that_networks_share_are_near_different_meshes(folder: Path) -> None:
    """Otherwise the variants of a few meshes would be compared near these alone."""
    settings = {"name": "meshes", "root": folder, "points": 128}
    plain, varied = (load(DataConfig.model_validate({**settings, "variants": each})) for each in (1, 5))
    assert torch.equal(plain.inputs("val", slice(None)), varied.inputs("val", slice(None)))


def test_work_is_done_once(folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_meshes(folder).prepare(range(4), {"train": 64, "val": 32})
    assert len(list(own_cache.rglob("*.safetensors"))) == 4 + 8 and not list(own_cache.rglob("*.tmp"))

    def fail(*_: object) -> None:
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr(mesh_folder, "read_mesh", fail)
        patch.setattr(mesh_folder, "samples", fail)
        assert samples(open_meshes(folder)).keys() == samples(open_meshes(folder), "val", 32).keys()
        with pytest.raises(AssertionError, match="computed again"):
            open_meshes(folder).samples([0], "train", 65)
        patch.setattr(mesh_folder, "VERSION", 0)
        with pytest.raises(AssertionError, match="computed again"):
            open_meshes(folder)


def test_a_damaged_or_unwritable_cache_is_no_harm(
    folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = samples(open_meshes(folder))
    whole = {path: path.read_bytes() for path in own_cache.rglob("*.safetensors")}
    for number, (path, content) in enumerate(whole.items()):
        path.write_bytes(content[: len(content) // 2] if number % 2 else content[:-1] + bytes([content[-1] ^ 1]))
    assert same(samples(open_meshes(folder)), first)
    assert {path: path.read_bytes() for path in own_cache.rglob("*.safetensors")} == whole
    (folder / "file").write_text("")
    monkeypatch.setenv("NETSPACE_CACHE", str(folder / "file" / "cache"))
    assert same(samples(open_meshes(folder)), first)


def test_a_file_that_changed(folder: Path) -> None:
    before = samples(open_meshes(folder))
    path = folder / "tables" / "box1.obj"
    trimesh.creation.box(extents=[1, 2, 3.5]).export(path)
    after = samples(open_meshes(folder))
    assert sorted(name for name in NAMES if not np.array_equal(before[name], after[name])) == ["tables/box1"]
    path.write_text(SHEET)
    assert sorted(quiet(folder).names) == NAMES[:3]
    mesh = MeshFolder(folder, (path,), ("0" * 64,), {})
    with pytest.raises(RefusedMesh, match=r"box1.obj cannot be used as a shape: its surface is open"):
        mesh.shape(0)


@pytest.mark.slow
def test_several_processes_compute_the_same(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And refuse the same."""
    (folder / "chairs" / "sheet.obj").write_text(SHEET)
    found = quiet(folder)
    expected = samples(found, count=500)
    monkeypatch.setenv("NETSPACE_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(computed, "PARALLEL_SECONDS", 0.0)
    monkeypatch.setattr(computed, "available_cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    again = quiet(folder)
    assert again.refused == found.refused and again.names == found.names
    assert same(samples(again, count=500), expected)
    assert len(list((tmp_path / "other").rglob("*.safetensors"))) == 5 + 4


@pytest.mark.parametrize(("field", "kind"), [(None, SignedDistances), ("occupancy", Occupancies)])
def test_the_task(folder: Path, field: str | None, kind: type[SignedDistances]) -> None:
    config = DataConfig.model_validate({"name": "meshes", "root": folder, "points": 128, "field": field})
    task = load(config)
    assert isinstance(task, kind) and task.size("train") == 128
    found, seeds = open_meshes(folder), torch.tensor([2, 0])
    task.prepare(torch.tensor([-1, 0, 2]))
    assert [task.member_name(seed) for seed in seeds.tolist()] == [found.names[2], found.names[0]]
    assert [*task.labels(seeds)] == ["folder"]
    assert task.labels(seeds)["folder"].tolist() == [found.names[2].split("/")[0], found.names[0].split("/")[0]]
    points, targets = task.inputs("train", slice(None), seeds), task.targets("train", slice(None), seeds)
    true = np.stack([found.shape(number).distances(points[row].double().numpy()) for row, number in enumerate((2, 0))])
    outputs = torch.from_numpy(true).float()[..., None]
    np.testing.assert_allclose(targets, outputs if field is None else outputs > 0, atol=1e-6)
    assert task.score(outputs, targets).tolist() == [1.0, 1.0]
    assert load(config).split_hash == task.split_hash != load(config.model_copy(update={"split_seed": 1})).split_hash
    with pytest.raises(UsageError, match=r"^shape 4 was asked for, but .* has 4 usable meshes: "):
        task.prepare(torch.tensor([4]))


def test_settings_that_do_not_apply(folder: Path) -> None:
    with pytest.raises(
        UsageError, match=r"'meshes' reads the folder of meshes that the setting root names: set data.root"
    ):
        load("meshes")
    with pytest.raises(UsageError, match="data set 'meshes' has no setting image_size: leave it out"):
        load(DataConfig(name="meshes", root=folder, image_size=8))
    with pytest.raises(
        UsageError, match=r"^meshes are read from a folder, but .*nowhere is none: let data.root name one"
    ):
        load(DataConfig(name="meshes", root=folder / "nowhere"))
