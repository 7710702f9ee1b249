"""Architectures and sizes that nobody declared, decoded by coordinates: in Python and by the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import refused

from netspace.commands.convert import decode
from netspace.commands.encode import encode
from netspace.commands.optimize import OptimizeConfig, optimize
from netspace.commands.sample import sample
from netspace.errors import NetspaceWarning, UsageError
from netspace.networks.state_dict import metadata_spec, read_state_dict
from netspace.space import Space
from netspace.training.latent_space import train
from netspace.training.recipe import SpaceRecipe


@pytest.fixture
def run(coordinate_run: Path) -> Path:
    """A space whose decoder has one set of weights for all architectures."""
    return coordinate_run


def test_a_latent_decodes_as_any_architecture(run: Path) -> None:
    space = Space.load(run)
    latent = torch.randn(space.latent)
    images = torch.zeros(2, *space.family[0].spec.input_shape)
    outputs = space.family[0].nets(torch.zeros(1, space.family[0].parameters), images).shape[-1]
    with pytest.warns(NetspaceWarning, match=r"^resnet14-width0.25 was decoded by a space that was trained at"):
        network = space.decode(latent, "resnet14", width=0.25)
    assert network(images).shape == (2, outputs)
    assert len([name for name, _ in network.named_parameters() if "conv" in name]) == 2 * 13


def test_an_architecture_of_the_space_at_its_own_size_is_the_declared_one(run: Path) -> None:
    space = Space.load(run)
    arch, latent = space.family[1], torch.randn(space.latent)
    width = float(arch.spec.settings["width"])  # type: ignore[arg-type]
    resized, declared = space.decode(latent, arch.id, width=width), space.decode(latent, arch.id)
    for (name, value), (_, other) in zip(resized.state_dict().items(), declared.state_dict().items(), strict=True):
        torch.testing.assert_close(value, other, msg=name)


def test_other_decoders_say_what_they_would_need(multi_run: Path) -> None:
    space = Space.load(multi_run)
    latent = torch.zeros(space.latent)
    with pytest.raises(UsageError, match=r"unknown architecture 'resnet14'"):
        space.decode(latent, "resnet14")
    with pytest.raises(
        UsageError,
        match=r"-width0.5 were asked for, but this space's decoder \(\w+\) gives those of .* as they are: other sizes",
    ):
        space.decode(latent, space.family[0].id, width=0.5)


def test_kernels_larger_than_those_trained_on_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from netspace import archs

    def large(*, classes: int = 10) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 7), torch.nn.Flatten(), torch.nn.Linear(8, classes))

    monkeypatch.setitem(archs.ARCHS, "large", large)
    space = Space.load(run)
    with pytest.raises(UsageError, match="large has kernels of 7 x 7, but this space decodes kernels of up to 3 x 3"):
        space.decode(torch.zeros(space.latent), "large")


def test_a_space_trained_at_more_sizes_knows_its_range(
    tiny_zoo: Path, space_settings: dict[str, Any], tmp_path: Path, cli: Any
) -> None:
    sizes = {"archs": {"wide": {"arch": "lenetlike", "width": 0.4}}}
    decoder = {"kind": "coordinate", "start": "emitted", "hidden": 16, "reference_steps": 5}
    settings = {**space_settings, "decoder": decoder, "sizes": sizes, "steps": 2, "validate_every": 2}
    run = train(SpaceRecipe.model_validate(settings), tiny_zoo, tmp_path / "run")
    space = Space.load(run)
    assert space.resized(space.family[0].id, width=0.3).family[0].spec.settings["width"] == 0.3  # without a warning
    with pytest.warns(
        NetspaceWarning, match=r"has sizes outside the trained range \(.* filters where .*: it may be at chance"
    ):
        space.resized(space.family[0].id, width=0.9)
    with pytest.warns(
        NetspaceWarning, match=r"is of an architecture \(vanillacnn\) that this space was not trained to decode"
    ):
        space.resized("vanillacnn", width=0.2)
    done = cli("sample", "--run", run, "--arch", space.family[0].id, "--width", 0.3, "--count", 2)
    assert done.code == 0 and "not seen in training, on the test images" in done.out and "learnt part off" in done.out


@pytest.mark.filterwarnings("ignore::netspace.errors.NetspaceWarning")
def test_a_space_places_it_between_its_neighbours(run: Path) -> None:
    space = Space.load(run)
    factors = [space.factor(arch) for arch in space.family]
    assert factors == pytest.approx([0.0, 0.5, 1.0])
    between = space.resized("resnet8", width=0.2).family[0]
    neighbours = sorted([between.parameters, *(arch.parameters for arch in space.family)])
    index = neighbours.index(between.parameters)
    assert [0.0, 0.0, 0.5, 1.0][index] <= space.factor(between) <= [0.0, 0.5, 1.0, 1.0][index]


@pytest.mark.filterwarnings("ignore::netspace.errors.NetspaceWarning")
def test_commands_take_them(run: Path, tmp_path: Path, cli: Any) -> None:
    drawn = sample(run, count=2, arch="resnet14", width=0.25, save=tmp_path / "drawn")
    assert drawn.arch == "resnet14-width0.25" and len(drawn.accuracy) == 2 and drawn.shown is False
    assert drawn.neighbour in [arch.id for arch in Space.load(run).family]
    assert drawn.neighbour_average is not None and drawn.accuracy_scale_zero is not None
    spec = metadata_spec(read_state_dict(tmp_path / "drawn" / "0000.safetensors").metadata)
    assert spec is not None and spec.arch == "resnet14" and spec.settings["width"] == 0.25
    config = OptimizeConfig(starts=("noise", "best:lenet"), arch="resnet14", width=0.25, steps=2, validate_every=1)
    better = optimize(run, config, tmp_path / "better")
    assert better.arch == ["resnet14-width0.25"] * 2
    encode(run, "best:lenet", tmp_path / "latent.safetensors")
    options = ["--run", run, "--arch", "resnet14", "--width", 0.25, "--json"]
    done = cli("decode", tmp_path / "latent.safetensors", "-o", tmp_path / "n.safetensors", *options)
    assert done.json["settings"]["width"] == 0.25 and done.json["arch"] == "resnet14-width0.25"
    result = decode(run, tmp_path / "latent.safetensors", tmp_path / "m.safetensors", "lenet", width=0.5)
    assert result.settings["width"] == 0.5
    refused(cli("sample", "--run", run, "--arch", "resnet14", "--depth", 14), 2, "unknown setting of resnet14 'depth'")
    refused(cli("sample", "--run", run, "--arch", "resnet14", "--width", 0), 2, "--width 0", "a number above 0")
