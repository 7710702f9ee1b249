"""`tools/furniture.py` on catalogues of its kind, written here: what is unpacked, where, how turned, and what is counted."""

from __future__ import annotations

import csv
import importlib.util
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import trimesh

from netspace.errors import UsageError

ROOT = Path(__file__).parents[1]
SHEET = b"v 0 0 0\nv 1 0 0\nv 0 1 0\nv 1 1 0\nf 1 2 3\nf 2 4 3\n"
BOX = trimesh.creation.box(extents=[1, 2, 3]).export(file_type="obj").encode()
ENTRIES = [  # name, category, file, matrix
    ("Oak chair", "Living room", BOX, "0 0 1 0 1 0 -1 0 0"),
    ("Armchair", "Living room", trimesh.creation.icosphere(subdivisions=1).export(file_type="obj").encode(), ""),
    ("Wheelchair", "Miscellaneous", SHEET, ""),
    ("Armchair ottoman", "Living room", SHEET, ""),
    ("Coffee table", "Living room", SHEET, ""),
    ("Table fan", "Lights", SHEET, ""),
    ("Tablet", "Office", SHEET, ""),
    ("Sofa 2 seats", "Living room", BOX.replace(b"0.5", b"0.7"), ""),
]


@pytest.fixture(scope="module")
def furniture() -> ModuleType:
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("furniture", ROOT / "tools" / "furniture.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["furniture"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with one catalogue, its text in Latin-1."""
    lines = ["# Catalogue", "license=CC-BY 3.0 © Somebody", ""]
    folder = tmp_path / "source"
    folder.mkdir()
    with zipfile.ZipFile(folder / "Some.sh3f", "w") as archive:
        for number, (name, category, content, matrix) in enumerate(ENTRIES, 1):
            model = f"/some/model{number}/model{number}.obj"
            lines += [
                f"id#{number}=Some maker#Model_{number}",
                f"name#{number}={name}",
                f"category#{number}={category}",
            ]
            lines += [f"model#{number}={model}", f"creator#{number}=José"]
            lines += [f"modelRotation#{number}={matrix}"] if matrix else []
            archive.writestr(model[1:], content)
        archive.writestr("PluginFurnitureCatalog.properties", "\n".join(lines).encode("latin-1"))
    return folder


def test_chairs_tables_and_sofas(furniture: ModuleType, source: Path, tmp_path: Path) -> None:
    """By the words of names; turned; with a table of authors and licences; counted by category, with reasons."""
    out = tmp_path / "out"
    furniture.unpack(source, out)
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.obj"))
    assert names == [
        "chairs/some-maker-model-1.obj",
        "chairs/some-maker-model-2.obj",
        "sofas/some-maker-model-8.obj",
        "tables/some-maker-model-5.obj",
    ]
    turned = trimesh.load_mesh(out / "chairs" / "some-maker-model-1.obj")
    np.testing.assert_allclose(turned.extents, [3, 2, 1])
    assert turned.volume == pytest.approx(6)  # a rotation, not a reflection
    with open(out / "SOURCES.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [f"{row['shape']}.obj" for row in rows] == names
    assert rows[0] == {
        "shape": "chairs/some-maker-model-1",
        "title": "Oak chair",
        "creator": "José",
        "licence": "CC-BY 3.0 © Somebody",
        "source": "Debian sweethome3d-furniture, Some.sh3f",
    }
    with pytest.warns(UserWarning, match="1 of 4 meshes"):
        text = furniture.report(furniture.open_meshes(out))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[:4] == ["3 of 4 are usable as shapes", "chairs 2 of 2", "sofas 1 of 1", "tables 0 of 1"]
    assert lines[4:] == ["1 refused: its surface is open"]


def test_everything(
    furniture: ModuleType,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["furniture.py", str(tmp_path / "all"), "--source", str(source), "--all"])
    assert furniture.main() == 0
    assert len(list((tmp_path / "all").rglob("*.obj"))) == len(ENTRIES)
    assert (tmp_path / "all" / "living-room" / "some-maker-model-4.obj").read_bytes() == SHEET
    printed = capsys.readouterr().out
    assert "8 models in" in printed and "CC-BY 3.0 or CC0" in printed and "lights" in printed


def test_no_catalogue(furniture: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"there are no .sh3f files in .*: install sweethome3d-furniture, or let --source"
    ):
        list(furniture.models(tmp_path))
