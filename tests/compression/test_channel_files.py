"""Files whose channels have an order of their own: every command compares them with the original in that order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from budgets import NET_ARCH, net, net_file, settings
from PIL import Image
from torch import Tensor

from netspace.compression.analyse import analyse, importance
from netspace.compression.budget import fit_budget
from netspace.compression.coordinate import way_of
from netspace.compression.correct import MAX_INPUTS, correct, corrected
from netspace.compression.fit import evaluate
from netspace.compression.judging import Inputs, Judge
from netspace.compression.originals import Pictures, channel_order, find_original
from netspace.compression.reference import Unlabelled
from netspace.compression.shrink import prune
from netspace.compression.work import Work
from netspace.errors import NetspaceError
from netspace.models.coded_predictor import load_any, load_predictor
from netspace.networks.kernels import filter_errors
from netspace.streams import Stream, generator

SHAPE = (3, 8, 8)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return net_file(tmp_path)


@pytest.fixture
def file(model: str, tmp_path: Path) -> Path:
    """Return the file of a coordinate network whose channels are in order."""
    original, spec = find_original(model, None, arch=NET_ARCH)
    original.input_shape = SHAPE
    judge = Judge(original, Inputs.of(original, "net", None, SHAPE), "net")
    path = tmp_path / "channel.safetensors"
    way_of("channel")(Work("net", original, spec, judge, settings(predictor_steps=100), tmp_path), 9_000, path)
    return path


def in_order(model: str) -> dict[str, Tensor]:
    """Return the original with its channels in order."""
    original, _ = find_original(model, None, arch=NET_ARCH)
    original.input_shape = SHAPE
    return channel_order(original, 0, "net")


def error_of(file: Path, model: str) -> float:
    """Return the relative error of a file's kernels, by hand."""
    loaded, expected = load_predictor(file), in_order(model)
    state = loaded.reconstruct()
    parts = [(state[layer.name] - expected[layer.name], expected[layer.name]) for layer in loaded.kernels.layers]
    apart, whole = (torch.cat([each[index].flatten() for each in parts]).norm() for index in (0, 1))
    return float(apart / whole)


def test_eval_compares_weights_in_the_order(file: Path, model: str, tmp_path: Path) -> None:
    expected = pytest.approx(error_of(file, model), rel=1e-4)
    assert 0.1 < error_of(file, model) < 0.95
    noise = Unlabelled(input_shape=SHAPE)
    assert evaluate(file, model, arch=NET_ARCH, unlabelled=noise).relative_error == expected
    assert evaluate(file, model, arch=NET_ARCH, input_shape=SHAPE).relative_error == expected
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (9, 9), (90, 0, 200)).save(tmp_path / "pictures" / "a.png")
    pictures = Pictures(tmp_path / "pictures", 8)
    assert evaluate(file, model, arch=NET_ARCH, unlabelled=Unlabelled(pictures)).relative_error == expected
    with pytest.raises(
        NetspaceError, match=r"the order of channels needs .*: give --arch, and --images, --input-shape or"
    ):
        evaluate(file, model, arch=NET_ARCH)
    pruned = prune(file, model, shares=[0.0], arch=NET_ARCH, pictures=pictures)
    assert pruned.predictor[0].relative_error == expected and pruned.original[0].relative_error == 0


def test_filters_and_kernels_are_those_of_the_order(file: Path, model: str) -> None:
    loaded, expected = load_predictor(file), in_order(model)
    state = loaded.reconstruct()
    result = importance(file, model, top=0, arch=NET_ARCH, input_shape=SHAPE)
    for layer in loaded.kernels.layers:
        errors = filter_errors(expected[layer.name], state[layer.name]).tolist()
        given = {each.filter: each.relative_error for each in result.filters if each.layer == layer.name}
        assert [given[index] for index in range(len(errors))] == errors
    analyse(file, model, arch=NET_ARCH, input_shape=SHAPE)
    kernels = json.loads((file.parent / "kernels.json").read_text())
    name = kernels["layer"]
    error = float((state[name] - expected[name]).norm() / expected[name].norm())
    assert kernels["relative_error"] == pytest.approx(error, rel=1e-4)


def test_corrections_are_by_the_order(file: Path, model: str, tmp_path: Path) -> None:
    correct(file, tmp_path / "better.safetensors", model, arch=NET_ARCH, input_shape=SHAPE)
    loaded = load_predictor(file)
    inputs = 2 * torch.rand((MAX_INPUTS, *SHAPE), generator=generator(0, Stream.CORRECTION_NOISE)) - 1
    names = [layer.name for layer in loaded.kernels.layers]
    expected = corrected(net(), in_order(model), loaded.reconstruct(), names, inputs)
    for name, value in load_any(tmp_path / "better.safetensors").reconstruct().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)  # some are in 16 bits


def test_a_finished_fit_that_is_resumed_has_the_same_kernels(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netspace.compression.trained.ORDERS", ("channel",))
    config, out = settings(4_500, input_shape=SHAPE, way="coordinate"), tmp_path / "fit"
    assert fit_budget(model, out, config, arch=NET_ARCH).table[0].setting.startswith("channel, ")
    before = (out / "kernels.json").read_text()
    fit_budget(model, out, config, arch=NET_ARCH, resume=True)
    assert (out / "kernels.json").read_text() == before
