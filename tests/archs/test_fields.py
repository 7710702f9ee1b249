"""SIREN and the Fourier MLP: sizes, initial values, features, refusals."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn

from netspace import archs
from netspace.archs.fields import Fourier, Sine, fourier_mlp, siren
from netspace.archs.identity import check_identity
from netspace.errors import UsageError


def test_the_siren_of_the_paper_has_its_parameters_and_computes_sines() -> None:
    """3-256-256-1 (NetSpace, Suppl. V) has 67,073 parameters; the function is that of a few independent lines."""
    torch.manual_seed(0)
    net = siren().double()
    assert sum(value.numel() for value in net.parameters()) == 3 * 256 + 256 + 256 * 256 + 256 + 256 + 1 == 67_073
    x = torch.rand(7, 3, dtype=torch.float64) * 2 - 1
    (w1, b1, w2, b2, w3, b3) = net.parameters()
    hidden = torch.sin(30 * (x @ w1.T + b1))
    hidden = torch.sin(30 * (hidden @ w2.T + b2))
    assert torch.allclose(net(x), hidden @ w3.T + b3, atol=1e-12)


def test_initial_values_are_uniform_within_the_bounds_of_sirens() -> None:
    """U(-1/n, 1/n) in the first layer, U(-sqrt(6/n)/w, sqrt(6/n)/w) in the others (Sitzmann et al. 2020, Sec. 3.2)."""
    torch.manual_seed(0)
    net = siren(width=1.0, depth=3, frequency=20.0)
    first, second, _, last = (layer.weight.detach() for layer in net if isinstance(layer, nn.Linear))
    for weight, bound in ((first, 1 / 3), (second, math.sqrt(6 / 256) / 20), (last, math.sqrt(6 / 256) / 20)):
        assert 0.9 * bound < float(weight.abs().max()) <= bound
    assert float(second.std()) == pytest.approx(math.sqrt(6 / 256) / 20 / math.sqrt(3), rel=0.02)


def test_fourier_features_are_sines_and_cosines_of_octaves() -> None:
    x = torch.tensor([[0.25, -0.5]], dtype=torch.float64)
    features = Fourier(2)(x)
    angles = [math.pi * 0.25, -math.pi * 0.5, 2 * math.pi * 0.25, -2 * math.pi * 0.5]
    expected = [0.25, -0.5, *map(math.sin, angles), *map(math.cos, angles)]
    assert torch.allclose(features, torch.tensor([expected], dtype=torch.float64), atol=1e-12)
    net = fourier_mlp(inputs=2, outputs=3, width=0.125, depth=1, frequencies=2)
    assert [tuple(value.shape) for value in net.parameters()] == [(32, 10), (32,), (3, 32), (3,)]


@pytest.mark.parametrize("name", ["siren", "fourier_mlp"])
def test_a_network_is_its_parameters_alone_and_takes_its_sizes_from_the_task(name: str) -> None:
    settings = archs.task_settings(name, {"width": 0.125}, (2,), 3)
    assert settings == {"width": 0.125, "inputs": 2, "outputs": 3}
    check_identity(name, lambda: archs.build(name, **settings), (2,))
    assert archs.skeleton(name, settings, (2,))(torch.zeros(4, 2)).shape == (4, 3)


def test_settings_out_of_range_are_refused_in_a_sentence() -> None:
    for settings, said in (
        ({"depth": 0}, "siren needs depth to be a whole number from 1 to 32, not 0."),
        ({"inputs": True}, "siren needs inputs to be a whole number from 1 to 4096, not True."),
        ({"width": 0}, "siren needs a width above 0 and at most 64, not 0."),
        ({"frequency": -1.0}, "siren needs a frequency above 0, not -1.0."),
    ):
        with pytest.raises(UsageError, match=re.escape(said)):
            archs.build("siren", **settings)
    with pytest.raises(UsageError, match="needs frequencies from 1 to 16, not 17"):
        fourier_mlp(frequencies=17)
    with pytest.raises(UsageError, match="siren is built with inputs=2 but meets 3 inputs: set inputs to fit"):
        archs.task_settings("siren", {"inputs": 2}, (3,), 1)


def test_a_sine_has_its_frequency() -> None:
    assert float(Sine(3.0)(torch.tensor(0.5, dtype=torch.float64))) == pytest.approx(math.sin(1.5), abs=1e-12)
