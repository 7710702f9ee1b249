"""Rivals of the ways at the same bytes: plain rounding, torch's int8, a distilled student, and NNCodec by a stand-in."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from budgets import NET_ARCH, net_file, settings
from torch import nn

from netspace.compression.budget import fit_budget
from netspace.compression.judging import Inputs, Judge
from netspace.compression.originals import find_original
from netspace.compression.rivals import RIVALS
from netspace.compression.work import CannotFit, Work
from netspace.training.fit import Original


def searching(original: Original, folder: Path, **changes: Any) -> Work:
    inputs = Inputs.of(original, "net", None, None)
    return Work("net", original, None, Judge(original, inputs, "net"), settings(**changes), folder)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return searching(find_original(net_file(tmp_path), None, arch=NET_ARCH)[0], tmp_path)


def test_plain_rounding(work: Work, tmp_path: Path) -> None:
    made = RIVALS["rounding"](work, 9_000, tmp_path / "r.safetensors")
    assert made.setting == "8 bits" and made.size == (tmp_path / "r.safetensors").stat().st_size <= 9_000
    for name, value in work.matrices().items():
        step = value.flatten(1).abs().amax(1) / 127
        assert bool(((made.state[name] - value).flatten(1).abs().amax(1) <= 0.6 * 127 * step).all())
        assert float((made.state[name] - value).norm() / value.norm()) < 0.01
    assert RIVALS["rounding"](work, 5_000, tmp_path / "r.safetensors").setting == "4 bits"
    with pytest.raises(CannotFit, match=r"rounding to 4 bits takes [\d,]+ bytes"):
        RIVALS["rounding"](work, 1_000, tmp_path / "r.safetensors")


def test_torchs_int8_holds_linear_layers_alone(work: Work, tmp_path: Path) -> None:
    with pytest.raises(CannotFit, match="holds linear layers alone, convolutions stay in 32 bits: 13,124 bytes"):
        RIVALS["torch-int8"](work, 9_000, tmp_path / "q")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))
    original = Original(dict(module.state_dict()), module)
    made = RIVALS["torch-int8"](searching(original, tmp_path), 1_000, tmp_path / "q")
    assert made.size == 20 * 30 + 30 * 4 + 4 * (30 + 4)
    for name in ("0.weight", "2.weight"):
        error = (made.state[name] - original.state[name]).abs().max()
        assert 0 < float(error) <= float(original.state[name].abs().max()) / 100


def test_nncodec_is_searched_for_the_budget(work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CannotFit, match=r'NNCodec is not installed: pip install "netspace\[nncodec\]"'):
        monkeypatch.setitem(sys.modules, "nncodec", None)
        RIVALS["nncodec"](work, 3_000, tmp_path / "n")
    tried: list[int] = []

    def encode(arrays: dict[str, np.ndarray], settings: dict[str, Any]) -> bytearray:
        assert all(each.dtype in (np.float32, np.int32) for each in arrays.values())
        tried.append(settings["qp"])
        return bytearray(1000 - 10 * settings["qp"])

    def decode(data: bytearray) -> dict[str, np.ndarray]:
        assert isinstance(data, bytearray) and len(data) == 1_230
        return {name: np.float32(value.numpy()) for name, value in work.original.state.items()}

    package = ModuleType("nncodec")
    package.nn = SimpleNamespace(encode=encode, decode=decode)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nncodec", package)
    made = RIVALS["nncodec"](work, 1_234, tmp_path / "n")
    assert (made.setting, made.size) == ("qp -23", 1_230) and len(tried) < 10
    assert {name: value.dtype for name, value in made.state.items()} == {
        name: value.dtype for name, value in work.original.state.items()
    }
    with pytest.raises(CannotFit, match="NNCodec takes at least 800 bytes"):
        RIVALS["nncodec"](work, 700, tmp_path / "n")


def test_rivals_are_in_the_table_of_a_task(multi_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncodec", None)
    config = settings(2_600, rivals=True, way="coded", steps=4, short_steps=0)
    result = fit_budget("best:resnet", tmp_path / "c", config, multi_zoo)
    rivals = {row.way: row for row in result.table if row.rival}
    assert set(rivals) == set(RIVALS) and not any(row.chosen for row in rivals.values())
    student = rivals["student"]
    assert student.bytes is not None and 1_000 < student.bytes <= 2_600 and student.steps == 4
    assert student.accuracy is not None and student.relative_error is None and "of the width" in student.setting
    assert rivals["nncodec"].bytes is None and "pip install" in (rivals["nncodec"].note or "")
