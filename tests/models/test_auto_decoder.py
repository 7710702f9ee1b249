"""The auto-decoder against layers that are given latent and point as they stand; its size."""

from __future__ import annotations

import pytest
import torch

from netspace.models.auto_decoder import AutoDecoder, count_parameters, hidden_size
from netspace.training.optimizers import Optimizer, OptimizerConfig


def plain(model: AutoDecoder, latents: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """One shape and one point after another, latent and point concatenated as the paper draws it."""
    rows = []
    for latent, of_shape in zip(latents, points, strict=True):
        for point in of_shape:
            seen = torch.cat([latent, point])
            values = seen
            for number, layer in enumerate(model.hidden):
                if number == model.skip:
                    values = torch.cat([values, seen])
                values = torch.relu(layer.weight @ values + layer.bias)
            rows.append(model.last.weight @ values + model.last.bias)
    return torch.stack(rows).view(*points.shape[:2], -1)


@pytest.mark.parametrize("layers", [2, 3, 5])
def test_layers_see_latent_and_point(layers: int) -> None:
    torch.manual_seed(0)
    model = AutoDecoder(3, 6, 8, layers, outputs=2).double()
    latents, points = torch.randn(3, 6).double(), torch.randn(3, 5, 3).double()
    assert torch.allclose(model(latents, points), plain(model, latents, points), atol=1e-12)


def test_points_may_be_those_of_all_shapes() -> None:
    model, points = AutoDecoder(3, 6, 8), torch.randn(5, 3)
    with torch.no_grad():
        both = model(model.latents, points), model(model.latents, points.expand(3, 5, 3))
    assert both[0].shape == (3, 5, 1)
    assert torch.allclose(*both, atol=1e-6)


@pytest.mark.parametrize(("latent", "layers"), [(16, 2), (64, 4), (64, 8)])
def test_the_size_is_the_nearest_to_what_was_asked_for(latent: int, layers: int) -> None:
    for parameters in (1, 5_000, 291_265, 2_000_000):
        size = hidden_size(parameters, latent, layers)
        off = [abs(count_parameters(latent, each, layers) - parameters) for each in (size - 1, size, size + 1) if each]
        assert min(off) == abs(count_parameters(latent, size, layers) - parameters)


def test_muon_leaves_latents_to_adam() -> None:
    model = AutoDecoder(3, 6, 8)
    before = [value.detach().clone() for value in model.parameters()]
    optimizer = Optimizer(model, OptimizerConfig(name="muon", elementwise_rate=0.5), steps=2)
    assert all(value is not model.latents for value, _ in optimizer.views)
    model(model.latents, torch.randn(4, 3)).square().sum().backward()
    optimizer.step(0)
    moved = (model.latents - before[0]).abs()
    assert torch.allclose(moved, torch.full_like(moved, 0.5), rtol=1e-3)  # Adam's first step is its rate
