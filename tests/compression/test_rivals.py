"""Rivals of the ways at the same bytes: plain rounding, torch's int8, a distilled student; NNCodec and torchao by stand-ins."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from budgets import NET_ARCH, net_file, settings
from safetensors.torch import load_file
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


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a package with the parts of torchao that are used in its place."""

    def quantize(module: nn.Module, config: SimpleNamespace, filter_fn: Any) -> None:
        bits = {torch.int8: 8, torch.int4: 4}[config.weight_dtype]
        for name, part in module.named_modules():
            if filter_fn(part, name):
                weight = part.weight.detach()
                assert isinstance(weight, torch.Tensor)
                last = weight.movedim(1, -1)  # of a kernel each position has a scale of its own, as in torchao
                rows = last.reshape(-1, config.granularity or last.shape[-1])
                scale = rows.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
                made = nn.Parameter(weight, requires_grad=False)
                integers = (rows / scale).round()
                made.qdata = integers.to(torch.int8).view(last.shape).movedim(-1, 1)
                made.scale = scale.view(*last.shape[:-1], -1)
                whole = (integers * scale).view(last.shape).movedim(-1, 1)
                made.dequantize = lambda whole=whole: whole
                part.weight = made

    package, parts, granularity = (
        ModuleType(f"torchao{end}") for end in ("", ".quantization", ".quantization.granularity")
    )
    parts.IntxWeightOnlyConfig, parts.quantize_ = SimpleNamespace, quantize  # type: ignore[attr-defined]
    granularity.PerAxis, granularity.PerGroup = (lambda axis: axis), (lambda size: size)  # type: ignore[attr-defined]
    for each in (package, parts, granularity):
        monkeypatch.setitem(sys.modules, each.__name__, each)


TORCHAO = pytest.param(True, marks=pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed"))


@pytest.mark.parametrize("real", [False, TORCHAO])
def test_torchao_holds_linear_and_convolution_layers(
    real: bool, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not real:
        stand_in(monkeypatch)
    rival, path = RIVALS["torchao"], tmp_path / "a.safetensors"
    rest = 4 * sum(value.numel() for value in work.original.state.values() if value.dim() < 2)
    for limit, bits, worst in ((9_000, 8, 0.01), (5_000, 4, 0.2)):
        made = rival(work, limit, path)
        assert made.setting == f"int{bits}" and made.size == path.stat().st_size <= limit
        stored = load_file(path)
        for name, value in work.matrices().items():
            groups = value.shape[1] // 32 if bits == 4 and value.dim() == 2 else 1
            scales = len(value) * value[0, 0].numel() * groups
            assert (
                stored[f"{name}.scales"].numel() == scales
                and stored[f"{name}.values"].numel() == value.numel() * bits // 8
            )
            assert made.state[name].dtype == value.dtype and made.state[name].shape == value.shape
            assert 0 < float((made.state[name] - value).norm() / value.norm()) < worst
        values = sum(value.numel() * bits // 8 for value in work.matrices().values())
        scales = sum(value.numel() for name, value in stored.items() if name.endswith(".scales"))
        assert 0 < made.size - (values + 4 * scales + rest) < 1_200  # names and shapes
        assert not torch.equal(work.original.state["0.weight"], made.state["0.weight"])
        assert torch.equal(work.original.state["1.running_mean"], made.state["1.running_mean"])
    with pytest.raises(CannotFit, match=r"torchao's int4 takes [\d,]+ bytes"):
        rival(work, 2_000, path)


@pytest.mark.parametrize("name", ["nncodec", "rounding", "torch-int8", "torchao"])
def test_tied_weights_are_stored_once_and_stay_tied(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    package = ModuleType("nncodec")
    package.nn = SimpleNamespace(encode=encoded, decode=decoded)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nncodec", package)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(40, 40, bias=False), nn.ReLU(), nn.Linear(40, 40, bias=False))
    module[2].weight = module[0].weight
    weight = module[0].weight.detach()
    work = searching(Original({"0.weight": weight, "2.weight": weight}, module), tmp_path)
    made = RIVALS[name](work, 10_000, tmp_path / "a.safetensors")
    assert made.state["0.weight"] is made.state["2.weight"] is not weight
    assert made.size < 1.7 * 40 * 40 * (4 if name == "nncodec" else 1)
    torch.func.functional_call(module, made.state, (torch.zeros(2, 40),))


def encoded(arrays: dict[str, np.ndarray], settings: dict[str, Any]) -> bytearray:
    """Return float32 values under one name, the only one, as NNCodec's bytes."""
    ((name, values),) = arrays.items()
    assert name == "0.weight"
    return bytearray(values.tobytes())


def decoded(data: bytearray) -> dict[str, np.ndarray]:
    return {"0.weight": np.frombuffer(data, dtype=np.float32).copy()}


def test_torchao_that_is_not_installed(work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchao", "torchao.quantization"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(CannotFit, match=r'torchao is not installed: pip install "netspace\[torchao\]"'):
        RIVALS["torchao"](work, 9_000, tmp_path / "a")


def test_rivals_are_in_the_table_of_a_task(multi_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nncodec", "torchao", "torchao.quantization"):
        monkeypatch.setitem(sys.modules, name, None)
    config = settings(2_600, rivals=True, way="coded", steps=4, short_steps=0)
    result = fit_budget("best:resnet", tmp_path / "c", config, multi_zoo)
    rivals = {row.way: row for row in result.table if row.rival}
    assert set(rivals) == set(RIVALS) and not any(row.chosen for row in rivals.values())
    student = rivals["student"]
    assert student.bytes is not None and 1_000 < student.bytes <= 2_600 and student.steps == 4
    assert student.accuracy is not None and student.relative_error is None and "of the width" in student.setting
    assert rivals["nncodec"].bytes is None and "pip install" in (rivals["nncodec"].note or "")
    assert not [*(tmp_path / "c").rglob("last.pt")]  # checkpoints of trainings that are done


def test_a_package_that_is_installed_later_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nncodec", "torchao", "torchao.quantization"):
        monkeypatch.setitem(sys.modules, name, None)
    model, out = net_file(tmp_path), tmp_path / "c"
    config = settings(9_000, rivals=True, way="rounded")
    first = {row.way: row for row in fit_budget(model, out, config, arch=NET_ARCH).table}
    assert "is not installed" in (first["torchao"].note or "") and first["torchao"].bytes is None
    stand_in(monkeypatch)
    again = {row.way: row for row in fit_budget(model, out, config, arch=NET_ARCH, resume=True).table}
    assert again["torchao"].bytes and again["torchao"].note is None
    assert again["nncodec"] == first["nncodec"] and again["rounding"] == first["rounding"]
