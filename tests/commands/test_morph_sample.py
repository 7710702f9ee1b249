"""`netspace morph sample`: networks of the sizes that were asked for, files that load again, and sentences for all others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import netspace
from netspace import archs
from netspace.archs import ArchConfig
from netspace.commands.morph import fit
from netspace.commands.morph_sample import Size, sample
from netspace.compression.originals import read_network
from netspace.errors import NetspaceError, NetspaceWarning, UsageError
from netspace.io import read_tensors, write_tensors
from netspace.networks.graph import batch_norms
from netspace.networks.widths import count_parameters, macs
from netspace.results.morphs import MorphSample
from netspace.saved_morph import MORPH, RESIZED, SavedMorph, open_morph
from netspace.training.morph import MorphConfig
from netspace.training.network import network_score

DATA = {"name": "digits", "limit": 300}
STAGES = [{"steps": 2, "optimizer": {"name": "adam", "learning_rate": 0.002}}]


def a_run(out: Path, arch: ArchConfig, **changes: Any) -> Path:
    settings = {"stages": STAGES, "batch_size": 16, "start": "nothing", "data": DATA, "order": False, **changes}
    fit(out, MorphConfig.model_validate(settings), arch=arch)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A morph of a ResNet with two blocks in each stage, and batch norm."""
    return a_run(tmp_path_factory.mktemp("deep") / "run", ArchConfig(arch="resnet14", width=0.25))


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A morph of a network without batch norm."""
    return a_run(tmp_path_factory.mktemp("folded") / "run", ArchConfig(arch="vanillacnn", width=0.5))


def same(one: nn.Module, other: nn.Module) -> bool:
    values = other.state_dict()
    return values.keys() == one.state_dict().keys() and all(
        torch.equal(value, values[name]) for name, value in one.state_dict().items()
    )


def widths_of(morph: SavedMorph, result: MorphSample) -> tuple[int, ...]:
    assert list(result.widths) == list(morph.info.names)
    return tuple(result.widths.values())


@pytest.mark.parametrize(
    "size", [Size(width=0.6), Size(gamma=0.4), Size(widths={"layer1.0.conv1": 3}), Size(params=9_000)]
)
def test_a_file_is_the_network_that_the_morph_gives(run: Path, size: Size) -> None:
    result, morph = sample(run, Path("net.safetensors"), size), open_morph(run)
    widths = widths_of(morph, result)
    network = morph.network(widths)
    assert same(netspace.load_morphed("net.safetensors"), network)
    assert result.parameters == count_parameters(morph.module, morph.info, widths)
    assert result.macs == macs(morph.module, morph.info, widths)
    assert result.accuracy == network_score(network, morph.task(), "test")
    assert result.trained == morph.is_trained(widths)


def test_sizes_are_those_that_were_asked_for(run: Path) -> None:
    morph = open_morph(run)

    def widths(size: Size, name: str) -> tuple[int, ...]:
        return widths_of(morph, sample(run, Path(name), size))

    assert widths(Size(width=0.6), "a.safetensors") == morph.info.at(0.4)
    assert widths(Size(gamma=0.4), "b.safetensors") == morph.info.at(0.4)
    named = {"layer1.0.conv1": 3, "conv1": 2}
    assert widths(Size(widths=named), "c.safetensors") == morph.info.named(named)
    limit = count_parameters(morph.module, morph.info, morph.info.at(0.25)) + 1
    assert widths(Size(params=limit), "d.safetensors") == morph.info.at(0.25)
    flops = 2 * macs(morph.module, morph.info, morph.info.at(0.25)) + 1
    assert widths(Size(flops=flops), "e.safetensors") == morph.info.at(0.25)


def test_draws_are_those_of_the_seed(run: Path) -> None:
    result = sample(run, Path("net.safetensors"), Size(width=0.75), draws=3, seed=2)
    assert result.draws == 3
    morph = open_morph(run)
    assert same(netspace.load_morphed("net.safetensors"), morph.network(morph.info.at(0.25), draws=3, seed=2))


@torch.no_grad()
def test_a_shallower_network_has_the_blocks_that_it_says(run: Path) -> None:
    result = sample(run, Path("net.safetensors"), Size(width=0.75), depth=8)
    assert (result.arch, result.depth, result.blocks, result.trained) == ("resnet", 8, [[0]] * 3, False)
    network, morph = netspace.load_morphed("net.safetensors"), open_morph(run)
    whole = morph.network(morph.info.at(0.25))
    inputs = morph.task().inputs("test", slice(8))
    for name, value in network.named_parameters():
        assert torch.equal(value, whole.get_parameter(name))  # the first block of a stage keeps its number
    for norms in zip(batch_norms(network).values(), batch_norms(whole).values(), strict=False):
        assert norms[0].running_mean is not None
    assert network(inputs).shape == (8, 10)
    assert result.accuracy == network_score(network, morph.task(), "test")
    assert sample(run, Path("all.safetensors"), Size(width=0.75), depth=14).trained


def test_a_file_whose_channels_a_width_factor_has_is_a_network_for_all_commands(folded: Path) -> None:
    sample(folded, Path("half.safetensors"), Size(width=0.5))
    state, module, spec = read_network(Path("half.safetensors"))
    assert spec is not None and spec.settings["width"] == 0.25 and module is not None
    module.load_state_dict(state)
    inputs = torch.randn(3, 1, 8, 8)
    assert torch.equal(module(inputs), netspace.load_morphed("half.safetensors")(inputs))
    sample(folded, Path("odd.safetensors"), Size(widths={"conv1": 3}))
    assert read_network(Path("odd.safetensors"))[2] is None


def test_a_size_outside_of_the_range_is_a_warning_with_the_range(run: Path) -> None:
    with pytest.warns(
        NetspaceWarning,
        match=r"outside of the range of training, gamma 0 to 0.5: of the channels, conv1 has 1, where 2 to 4 were",
    ):
        result = sample(run, Path("net.safetensors"), Size(gamma=0.8))
    assert not result.trained
    with pytest.warns(NetspaceWarning, match="conv1 has 6, where 2 to 4 were trained$"):
        sample(run, Path("wide.safetensors"), Size(widths={"conv1": 6}))


@pytest.mark.parametrize(
    ("size", "options", "why"),
    [
        (Size(), {}, "is one of --width, --gamma, --widths, --params and --flops: found none of them"),
        (Size(width=0.5, params=100), {}, "found --width and --params"),
        (Size(width=0.0), {}, "--width is the fraction of channels that is kept, a number above 0; found 0"),
        (Size(gamma=1.0), {}, "a compression rate gamma is a number below 1"),
        (Size(gamma=float("nan")), {}, "a compression rate gamma is a number below 1"),
        (Size(widths={"conv9": 3}), {}, "unknown group of channels of resnet14 'conv9': did you mean 'conv1'"),
        (Size(widths={"conv1": 0}), {}, "a whole number of at least 1, not 0"),
        (Size(params=3), {}, "3 cannot be had"),
        (Size(width=0.5), {"draws": 0}, "at least 1; found 0"),
        (Size(width=0.5), {"depth": 20}, "has 14 layers, and only fewer can be had, not 20"),
        (Size(width=0.5), {"depth": 9}, "needs depth to be 8, 14, 20, 26 and so on"),
    ],
)
def test_a_size_that_cannot_be_had_is_one_sentence(run: Path, size: Size, options: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        sample(run, Path("net.safetensors"), size, **options)
    assert "\n" not in str(caught.value) and not Path("net.safetensors").exists()


def test_files_are_not_overwritten_and_have_a_known_format(run: Path, folded: Path) -> None:
    Path("net.safetensors").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        sample(run, Path("net.safetensors"), Size(width=0.5))
    assert Path("net.safetensors").read_text() == "mine"
    with pytest.raises(UsageError, match=r"was expected to end with \.safetensors or \.onnx"):
        sample(run, Path("net.pt"), Size(width=0.5))
    with pytest.raises(UsageError, match="only networks of the resnet family have blocks"):
        sample(folded, Path("other.safetensors"), Size(width=0.5), depth=8)


def test_data_that_are_missing_matter_to_batch_norm_alone(run: Path, folded: Path, tmp_path: Path) -> None:
    for source, name in ((run, "keep"), (folded, "fold")):
        tensors, metadata = read_tensors(source / MORPH)
        note = json.loads(metadata["netspace_morph"])
        note["data"] = {"name": "cifar10", "root": str(tmp_path / "nowhere")}
        write_tensors(tmp_path / f"{name}.safetensors", tensors, netspace_morph=json.dumps(note))
    with pytest.raises(NetspaceError, match=r"'cifar10' is not on this machine.*batch norms"):
        sample(tmp_path / "keep.safetensors", Path("a.safetensors"), Size(width=0.5))
    with pytest.warns(NetspaceWarning, match="the network is not scored: data set 'cifar10' is not on this machine"):
        result = sample(tmp_path / "fold.safetensors", Path("b.safetensors"), Size(width=0.5))
    assert "accuracy" not in result.payload()


def test_a_network_of_another_file_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(NetspaceError, match="was expected to be a network that `netspace morph sample` wrote"):
        netspace.load_morphed(run / MORPH)
    sample(run, Path("net.safetensors"), Size(width=0.5))
    tensors, metadata = read_tensors(Path("net.safetensors"))
    note = json.loads(metadata[RESIZED])

    def changed(**entries: Any) -> Path:
        path = tmp_path / "changed.safetensors"
        write_tensors(path, tensors, **{RESIZED: json.dumps({**note, **entries})})
        return path

    assert same(netspace.load_morphed(changed()), netspace.load_morphed("net.safetensors"))
    with pytest.raises(NetspaceError, match="version 7; this netspace reads version 1"):
        netspace.load_morphed(changed(version="7"))
    for widths, why in (
        ({"conv1": 10**9}, "at most 16 times"),
        ({"conv1": 3}, "tensors do not have the widths that it names"),
    ):
        with pytest.raises(NetspaceError, match=why):
            netspace.load_morphed(changed(widths={**note["widths"], **widths}))
    with pytest.raises(UsageError, match="trust it with --trust-arch of_others:make"):
        netspace.load_morphed(changed(arch="of_others:make"))
    with pytest.raises(NetspaceError, match="claim tensors of more than"):
        netspace.load_morphed(changed(settings={**note["settings"], "width": 10_000}))


@torch.no_grad()
def test_onnx_computes_the_same_for_any_number_of_inputs(run: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    sample(run, Path("net.onnx"), Size(width=0.6))
    sample(run, Path("net.safetensors"), Size(width=0.6))
    session = runtime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"])
    network = netspace.load_morphed("net.safetensors")
    for count in (1, 5):
        inputs = torch.randn(count, 1, 8, 8)
        (outputs,) = session.run(None, {"inputs": inputs.numpy()})
        np.testing.assert_allclose(outputs, network(inputs).numpy(), rtol=1e-4, atol=1e-5)
    assert [path.name for path in Path().iterdir() if "onnx" in path.name] == ["net.onnx"]


def test_onnx_without_its_packages_is_one_sentence(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnx" else object())
    with pytest.raises(
        NetspaceError, match=r"needs onnx, which torch writes ONNX with .*`pip install 'netspace\[onnx\]'"
    ):
        sample(run, Path("net.onnx"), Size(width=0.6))


def test_blocks_are_chosen_by_their_relative_position() -> None:
    network = archs.build("resnet56", width=0.125)
    made, blocks = archs.convnets.shallower(network, 20)
    assert blocks == [[0, 3, 6]] * 3
    assert torch.equal(made.get_parameter("layer2.1.conv1.weight"), network.get_parameter("layer2.3.conv1.weight"))
    assert len(network.get_submodule("layer2")) == 9  # type: ignore[arg-type] - stays as it was
