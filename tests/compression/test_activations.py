"""Mean activations of the filters that are represented best and worst, against plain ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netspace.compression.activations import MAX_FILTERS, activation_maps
from netspace.networks.kernels import Kernels, filter_errors


def net() -> nn.Sequential:
    torch.manual_seed(0)
    parts = (
        nn.Conv2d(2, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 30, 3),
        nn.ReLU(),
        nn.Conv2d(30, 4, 4),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    return nn.Sequential(*parts).requires_grad_(False).eval()


def test_the_maps_are_those_of_a_plain_loop() -> None:
    module, inputs = net(), torch.randn(150, 2, 8, 8)
    state = dict(module.state_dict())
    amounts = torch.linspace(0.5, 0.0, 30)[torch.randperm(30)]
    other = {**state, "2.weight": state["2.weight"] * (1 + amounts[:, None, None, None])}
    layers = Kernels.of(state, ("*.weight",), module=module).layers
    maps = activation_maps(module, state, other, inputs, layers)
    assert maps is not None and (maps.layer, maps.count, maps.images) == ("2.weight", 30, 150)  # the next has one pixel
    order = amounts.argsort().tolist()
    assert maps.best.filters == order[:MAX_FILTERS] and maps.worst.filters == order[::-1][:MAX_FILTERS]
    assert maps.best.relative_errors == pytest.approx(sorted(amounts.tolist())[:MAX_FILTERS], abs=1e-5)
    outputs = module[:3](inputs).abs()
    for group in (maps.best, maps.worst):
        for row, each in zip(group.filters, group.maps, strict=True):
            torch.testing.assert_close(torch.tensor(each), sum(image[row] for image in outputs) / 150)


def test_without_maps_there_are_none() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2)).requires_grad_(False).eval()
    state = dict(module.state_dict())
    layers = Kernels.of(state, ("*.weight",), module=module).layers
    assert activation_maps(module, state, state, torch.randn(3, 1, 3, 3), layers) is None


def test_errors_of_filters() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    other = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 2.0]])
    assert filter_errors(weight, other).tolist() == [0.0, 0.0, 2.0]
