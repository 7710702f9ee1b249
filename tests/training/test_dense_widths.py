"""Networks that segment and generate at other widths: found, built, trained and scored as those that classify are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from netspace import archs
from netspace.models.weight_function import FunctionConfig
from netspace.networks.resizing import with_first_channels
from netspace.networks.widths import Widths, find_widths, resized
from netspace.saved_morph import make_function
from netspace.tasks import DataConfig, Task, load
from netspace.training.network import NetworkConfig, network_score, train_network
from netspace.training.optimizers import OptimizerConfig

CASES: dict[str, dict[str, Any]] = {
    "unet": {"name": "segmentation", "image_size": 16, "limit": 40},
    "conv_vae": {"name": "generation", "latent": 3, "limit": 40},
}


@pytest.fixture(params=CASES, scope="module")
def arch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def task(arch: str) -> Task:
    return load(DataConfig.model_validate(CASES[arch]))


def built(arch: str, task: Task, width: float) -> nn.Module:
    given = {"width": width}
    return archs.build(arch, **archs.task_settings(arch, given, task.input_shape, task.num_outputs, task.arch_settings))


def widths_of(module: nn.Module, task: Task) -> Widths:
    return find_widths(module.eval(), task.inputs("train", slice(2)), "net")


def test_half_the_width_is_the_network_that_the_factory_builds(arch: str, task: Task) -> None:
    """The sizes of classes, images and latents stay."""
    whole = built(arch, task, 0.5)
    info = widths_of(whole, task)
    half, expected = resized(whole, info, info.at(0.5), seed=0), built(arch, task, 0.25)
    assert repr(half) == repr(expected)
    expected.load_state_dict(half.state_dict())
    x = task.inputs("val", slice(3))
    with torch.no_grad():
        assert torch.equal(half.eval()(x), expected.eval()(x)) and half(x).shape == (3, *task.output_shape)


def test_it_is_trained_and_scored_on_the_protocol(arch: str, task: Task, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = built(arch, task, 0.25)
    before = network_score(net, task, "val")
    config = NetworkConfig(epochs=8, batch_size=10, optimizer=OptimizerConfig(learning_rate=0.01))
    trained = train_network(net, task, config, tmp_path)
    after = network_score(trained, task, "val")
    assert after > before
    info = widths_of(trained, task)
    assert network_score(with_first_channels(trained, info, info.at(0.5)), task, "val") < after


def test_its_weights_are_a_function_of_widths(arch: str, task: Task) -> None:
    """Also those that read concatenated maps, and those of transposed convolutions."""
    net = built(arch, task, 0.25)
    info = widths_of(net, task)
    function = make_function(net, info, FunctionConfig(), seed=0)
    function.start({name: value.detach() for name, value in net.named_parameters()})
    narrow = info.at(0.5)
    parameters = {name: value.detach() for name, value in net.named_parameters()}
    weights = function(narrow)
    assert {name: tuple(value.shape) for name, value in weights.items()} == info.shapes(parameters, narrow)
