"""The ablations of morphing: every variant is a valid fit, and a run prints a row for each, and is not repeated."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from netspace.training.morph import MorphConfig


@pytest.fixture
def ablations(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "tools"))
    return importlib.import_module("ablations_morph")


def test_every_variant_differs_from_the_base(ablations: ModuleType) -> None:
    configs = {
        name: ablations.config_of("morph/digits", changes, 3, 2.0) for name, changes in ablations.VARIANTS.items()
    }
    assert all(isinstance(each, MorphConfig) and each.seed == 3 for each in configs.values())
    assert len({each.model_dump_json() for each in configs.values()}) == len(configs)
    for each in configs.values():
        *weights, last = each.stages
        assert last.epochs == 2.0 and last.learns == "widths"
        assert bool(weights) is (each.function.kind != "grid") and all(stage.learns == "weights" for stage in weights)


def test_a_run_has_a_row_for_each_variant_and_way(
    ablations: ModuleType, tiny_zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["best", "--zoo", str(tiny_zoo), "--out", str(tmp_path), "--set", "stages=[{steps: 2}]"]
    words += ["--set", "batch_size=20", "--only", "base", "no noise"]
    ablations.main(words)
    text = capsys.readouterr().out
    rows = [line.split(" | ") for line in text.splitlines()]
    assert [row[:2] for row in rows[2:]] == [
        ["| base", "expected"],
        *(["| base", f"K = {count}"] for count in (1, 5, 50)),
        ["| no noise", "expected"],
    ]
    assert rows[0][2:] == ["γ 0", "γ 0.25", "γ 0.5", "γ 0.75 (unseen) |"]
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("morph.safetensors")}
    ablations.main(words)
    assert capsys.readouterr().out == text and len(before) == 2
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("morph.safetensors")} == before
    with pytest.raises(SystemExit):
        ablations.main([*words, "--only", "no noise!"])
    assert "there is no variant 'no noise!': choose from base" in capsys.readouterr().err
