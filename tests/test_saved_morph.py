"""A morph on disk: the file is whole, networks come out as the function says, and wrong files are one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from netspace import archs
from netspace.errors import NetspaceError, UsageError
from netspace.io import read_tensors, write_tensors
from netspace.networks.graph import batch_norms
from netspace.networks.spec import NetSpec
from netspace.networks.widths import find_widths
from netspace.saved_morph import MORPH, NETWORK, NOTE, SavedMorph, make_function, open_morph, plain_network
from netspace.streams import Stream, generator
from netspace.tasks import DataConfig, load
from netspace.training.morph import MorphConfig

SHAPE = (1, 8, 8)


def a_morph(kind: str = "grid", batch_norm: str = "keep", arch: str = "resnet8", **more: Any) -> SavedMorph:
    """A function that was not trained: its weights are those of a fresh network, disturbed."""
    settings = {"channels": 1, "image_size": 8, "width": 0.25}
    config = MorphConfig.model_validate(
        {"batch_norm": batch_norm, "function": {"kind": kind, "hidden": 8, "layers": 3}}
    )
    torch.manual_seed(5)
    module = plain_network(arch, settings, SHAPE, batch_norm == "keep")
    info = find_widths(module, torch.zeros(1, *SHAPE), arch)
    function = make_function(module, info, config.function, 0)
    function.start(dict(module.named_parameters()))
    with torch.no_grad():
        for value in function.parameters():
            value.add_(0.01 * torch.randn_like(value))
    return SavedMorph(function, module, info, config, NetSpec.from_module(module, arch, settings, SHAPE), **more)


@pytest.mark.parametrize(
    ("kind", "batch_norm", "arch"),
    [
        ("grid", "keep", "resnet8"),
        ("mlps", "fold", "resnet8"),
        ("mlp", "fold", "vanillacnn"),
        ("grid", "keep", "lenetlike"),
    ],
)
def test_what_is_read_is_what_was_written(tmp_path: Path, kind: str, batch_norm: str, arch: str) -> None:
    data = DataConfig(name="digits", limit=200)
    before = a_morph(kind, batch_norm, arch, data=data, split_hash=load(data).split_hash)
    before.save(tmp_path)
    after = open_morph(tmp_path)
    for name, value in before.function.state_dict().items():
        assert torch.equal(value, after.function.state_dict()[name])
    for name, value in before.module.state_dict().items():
        assert torch.equal(value, after.module.state_dict()[name])
    assert (after.config, after.spec, after.info.names) == (before.config, before.spec, before.info.names)
    assert (after.data, after.has_original) == (data, True)
    assert after.task().name == "digits"
    widths = after.info.at(0.4)
    one, two = before.network(widths), after.network(widths)
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


@torch.no_grad()
def test_a_network_has_the_functions_weights_and_statistics_of_training_inputs(tmp_path: Path) -> None:
    a_morph(data=DataConfig(name="digits", limit=200)).save(tmp_path)
    morph = open_morph(tmp_path)
    widths = morph.info.at(0.5)
    network = morph.network(widths)
    assert not network.training
    for name, value in morph.function(widths).items():
        assert torch.equal(network.get_parameter(name), value)
    (first, *_), norms = morph.calibration, batch_norms(network)
    maps: list[torch.Tensor] = []
    handle = norms["bn1"].register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
    for batch in morph.calibration:
        network(batch)
    handle.remove()
    assert norms["bn1"].running_mean is not None
    means = torch.stack([each.mean((0, 2, 3)) for each in maps])
    assert torch.allclose(norms["bn1"].running_mean, means.mean(0), atol=1e-6)
    given = morph.network(widths, batches=[first])
    assert torch.allclose(batch_norms(given)["bn1"].running_mean, means[0], atol=1e-6)


@torch.no_grad()
def test_draws_are_averaged_and_repeatable(tmp_path: Path) -> None:
    a_morph("mlps", "fold").save(tmp_path)
    morph = open_morph(tmp_path)
    widths = morph.info.at(0.3)
    one, two = morph.network(widths, draws=3, seed=2), morph.network(widths, draws=3, seed=2)
    random = generator(2, Stream.MORPH_DRAWS)
    draws = [morph.function.noisy(widths, random) for _ in range(3)]
    for name, value in one.named_parameters():
        assert torch.equal(value, two.get_parameter(name))
        assert torch.allclose(value, torch.stack([each[name] for each in draws]).mean(0), atol=1e-6)
    other = morph.network(widths, draws=3, seed=3)
    assert not torch.equal(other.get_parameter("conv1.weight"), one.get_parameter("conv1.weight"))


@torch.no_grad()
def test_a_file_that_was_moved_by_itself_is_whole(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    before = a_morph("grid", "fold")
    moved = before.save(tmp_path / "run").rename(tmp_path / "moved.safetensors")
    after = open_morph(moved)
    assert not after.has_original
    expected = before.network(before.info.full())
    for name, value in after.module.named_parameters():
        assert torch.equal(value, expected.get_parameter(name))


def test_the_range_of_training_is_known(tmp_path: Path) -> None:
    morph = a_morph()
    narrowest = morph.info.at(0.5)
    assert morph.narrowest == narrowest
    assert morph.is_trained(narrowest) and morph.is_trained(morph.info.full())
    assert not morph.is_trained([*narrowest[:-1], narrowest[-1] - 1])
    assert not morph.is_trained([morph.info.full()[0] + 1, *morph.info.full()[1:]])


def _changed(path: Path, **entries: Any) -> None:
    tensors, metadata = read_tensors(path)
    note = {**json.loads(metadata[NOTE]), **entries}
    write_tensors(path, tensors, **{NOTE: json.dumps(note)})


def test_a_file_that_says_a_precision_is_read(tmp_path: Path) -> None:
    """Files had one, always empty, which nothing used."""
    path = a_morph().save(tmp_path)
    before = open_morph(tmp_path)
    _changed(path, precision={})
    after = open_morph(tmp_path)
    assert (after.config, after.spec, after.has_original) == (before.config, before.spec, True)


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({"version": "2"}, r"is a morph of version 2; this netspace reads version 1"),
        ({"version": None}, r"is a morph of version None"),
        ({"config": {"function": {"kind": "spline"}}}, r"was expected to be a morph.*function\.kind"),
        ({"config": {"surprise": 1}}, r"was expected to be a morph.*surprise"),
        (
            {"settings": {"channels": 1, "image_size": 8, "width": 0.5}},
            r"other groups of channels|does not fit|size mismatch",
        ),
        ({"settings": {"channels": 1, "image_size": 8, "width": 5000}}, r"claim tensors of more than"),
        ({"trained": {"conv1": [1, 4]}}, r"other groups of channels"),
        ({"trained": "all"}, r"'trained' in it"),
        ({"input_shape": [1, 0, 8]}, r"was expected to be a morph"),
        ({"network_hash": "0"}, r"is of another morph"),
    ],
)
def test_a_changed_file_is_one_sentence(tmp_path: Path, entries: dict[str, Any], why: str) -> None:
    path = a_morph().save(tmp_path)
    _changed(path, **entries)
    with pytest.raises(NetspaceError, match=why) as caught:
        open_morph(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layers", [10_000_000, 12])
def test_layers_that_a_file_does_not_have_are_not_made(tmp_path: Path, layers: int) -> None:
    path = a_morph("mlp", "fold").save(tmp_path)
    config = {"batch_norm": "fold", "function": {"kind": "mlp", "hidden": 8, "layers": layers}}
    _changed(path, config=config)
    with pytest.raises(NetspaceError, match="was expected to be a morph"):
        open_morph(path)


def test_damage_and_other_files_are_one_sentence(tmp_path: Path) -> None:
    path = a_morph().save(tmp_path)
    with pytest.raises(NetspaceError, match=r"network\.safetensors was expected to be a morph"):
        open_morph(tmp_path / NETWORK)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(NetspaceError, match=r"changed after|was damaged|does not fit"):
        open_morph(tmp_path)
    path.write_bytes(content[:100])
    with pytest.raises(NetspaceError, match="safetensors file"):
        open_morph(tmp_path)
    path.unlink()
    with pytest.raises(UsageError, match=f"folder without {MORPH}: give that of"):
        open_morph(tmp_path)
    (tmp_path / "config.yaml").write_text("name: x\n")
    with pytest.raises(UsageError, match="let it finish"):
        open_morph(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        open_morph(tmp_path / "nothing")


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = a_morph().save(tmp_path)
    tensors, metadata = read_tensors(path)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    write_tensors(path, tensors, **metadata)
    with pytest.raises(NetspaceError, match="values that are not finite"):
        open_morph(tmp_path)


def test_data_that_are_not_those_of_the_training_are_refused(tmp_path: Path) -> None:
    a_morph(data=DataConfig(name="digits", limit=200), split_hash="0" * 64).save(tmp_path)
    morph = open_morph(tmp_path)
    with pytest.raises(NetspaceError, match="was trained on digits with split 000000000000, but the data here"):
        morph.network(morph.info.full())
    a_morph(data=DataConfig(name="cifar10", root=tmp_path / "nowhere")).save(tmp_path)
    with pytest.raises(NetspaceError, match="'cifar10' is not on this machine"):
        open_morph(tmp_path).task()
    a_morph().save(tmp_path)
    with pytest.raises(NetspaceError, match="does not say what its networks are for"):
        open_morph(tmp_path).task()


def test_a_file_imports_no_architecture_that_nobody_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = a_morph().save(tmp_path)
    (tmp_path / "of_others.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    _changed(path, arch="of_others:make")
    with pytest.raises(UsageError, match="trust it with --trust-arch of_others:make"):
        open_morph(path)


class Table(nn.Module):
    """Adds a constant that its factory does not fix."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(64, 10)
        self.register_buffer("shift", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.conv2(self.conv1(x) + self.shift).flatten(1))
        return logits


def test_constants_of_a_network_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(archs.ARCHS, "table", Table)
    module = Table().eval()
    module.get_buffer("shift").fill_(3.0)
    info = find_widths(module, torch.zeros(1, *SHAPE), "table")
    function = make_function(module, info, MorphConfig().function, 0)
    spec = NetSpec.from_module(module, "table", {}, SHAPE)
    path = SavedMorph(function, module, info, MorphConfig(), spec).save(tmp_path)
    (tmp_path / NETWORK).unlink()
    morph = open_morph(path)
    assert float(morph.network(morph.info.at(0.5)).get_buffer("shift")) == 3.0
