"""`tools/bench_import.py`: the folder that it makes is a zoo that is imported, and a disk without room is left alone."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from model_zoo.foreign import open_foreign
from netspace.zoo.writer import worth_compressing

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import bench_import

    yield bench_import
    sys.modules.pop("bench_import")


def test_the_folder_is_of_the_format(bench: ModuleType, tmp_path: Path) -> None:
    assert bench.write_folder(tmp_path / "source", 20) == (tmp_path / "source" / "weights.npy").stat().st_size - 128
    zoo = open_foreign(tmp_path / "source")
    assert (zoo.format, len(zoo), bench.PARAMETERS) == ("small-cnn", 20, 4970)
    assert zoo.facts["run"][8:10] == ["/zoo/training/0", "/zoo/training/1"] and zoo.rows is not None
    rows = np.concatenate(list(zoo.rows(np.arange(20))))
    assert rows.std() == pytest.approx(0.1, abs=0.005)
    assert not worth_compressing(rows.reshape(20, 10, 497))
    assert worth_compressing(np.concatenate([rows, 0 * rows], axis=1).reshape(20, 20, 497))


def test_a_disk_without_room_is_left_alone(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    with pytest.raises(SystemExit, match="no room for twice"):
        bench.write_folder(tmp_path / "source", 20)
    assert not (tmp_path / "source" / "weights.npy").exists()
    with pytest.raises(SystemExit, match="exists already"):
        bench.main(["--folder", str(tmp_path)])


@pytest.mark.slow
def test_an_import_is_timed(bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(["--rows", "30", "--folder", str(tmp_path / "made")])
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == 30 and told["seconds"] > 0 and 1e8 < told["peak_bytes"] < 2e9
    assert not (tmp_path / "made").exists()
