"""Samples of a descent: inputs that are drawn, and what networks answer to them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from netspace.networks.family import Networks
from netspace.space import Space
from netspace.tasks import Task
from netspace.training import descent
from netspace.training.descent import DescentConfig, SharedSamples
from netspace.training.setup import task_of
from netspace.training.validation import network_outputs
from netspace.zoo import Zoo


@pytest.fixture
def networks(multi_run: Path) -> Networks:
    space = Space.load(multi_run)
    return space.decode_all(torch.randn(6, space.latent), torch.tensor([0, 2, 1, 1, 0, 2]))


@pytest.fixture
def task(multi_zoo: Path) -> Task:
    with Zoo(multi_zoo) as zoo:
        return task_of(zoo, "cpu")


def draws(samples: SharedSamples, config: DescentConfig) -> list[tuple[Tensor, Tensor]]:
    assert config.inputs is not None
    return [samples.draw(config.inputs, config.random(step)) for step in range(config.steps)]


def test_networks_are_asked_for_what_is_drawn_alone(
    networks: Networks, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inputs are those that would be drawn if all had been asked for, with the same answers."""
    few = DescentConfig(steps=4, inputs=16, seed=3)
    every = SharedSamples(task.inputs("train", slice(None)), network_outputs(networks, task, "train"))
    asked, outputs = [], network_outputs

    def counted(*arguments: object, **options: Tensor) -> Tensor:
        found = outputs(*arguments, **options)  # type: ignore[arg-type]
        asked.append(found.shape[1])
        return found

    monkeypatch.setattr(descent, "network_outputs", counted)
    samples = SharedSamples.of_networks(networks, task, "train", few)
    assert asked == [len(samples.inputs)] and 16 < len(samples.inputs) <= 64
    for (inputs, values), (same_inputs, same_values) in zip(draws(samples, few), draws(every, few), strict=True):
        assert torch.equal(inputs, same_inputs)
        torch.testing.assert_close(values, same_values, rtol=1e-4, atol=1e-5)


def test_networks_are_asked_for_all_inputs_where_as_many_are_drawn(networks: Networks, task: Task) -> None:
    samples = SharedSamples.of_networks(networks, task, "train", DescentConfig(steps=100, inputs=16))
    assert len(samples.inputs) == task.size("train") and samples.columns is None
    assert torch.equal(samples.values, network_outputs(networks, task, "train"))
