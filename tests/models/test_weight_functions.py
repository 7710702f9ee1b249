"""The weights of a network as a function of coordinates: shapes, means over neighbourhoods, Eq. 3 and 4 by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from netspace import archs
from netspace.models.weight_function import FunctionConfig, WeightFunction
from netspace.models.weight_grid import hats
from netspace.models.weight_mlps import QUADRATURE
from netspace.networks.widths import Widths, find_widths
from netspace.saved_morph import make_function


class Joined(nn.Module):
    """Concatenation, a transposed and a depthwise convolution, and a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 6, 3, stride=2, padding=1)
        self.each = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.skip = nn.Conv2d(1, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(9)
        self.head = nn.Linear(9 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.up(torch.relu(self.each(self.down(x)))), self.skip(x)], dim=1)
        out: Tensor = self.head(torch.relu(self.norm(y)).flatten(1))
        return out


def network(name: str) -> tuple[nn.Module, Widths]:
    torch.manual_seed(0)
    if name == "joined":
        module: nn.Module = Joined()
        example = torch.zeros(2, 1, 4, 4)
    else:
        module, example = archs.build(name, channels=1, image_size=16, width=0.5), torch.zeros(2, 1, 16, 16)
    return module, find_widths(module, example, name)


def function(name: str, kind: str = "grid", noise: float = 0.5) -> tuple[nn.Module, Widths, WeightFunction]:
    module, info = network(name)
    made = make_function(module, info, FunctionConfig(kind=kind, hidden=16, noise=noise, frequencies=4), 0)
    made.start({key: value.detach() for key, value in module.named_parameters()})
    return module, info, made


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.0, 0.3, 0.5, 2.0]))
def test_hats_average_the_linear_interpolation(count: int, cells: int, radius: float) -> None:
    values = np.sin(1.7 * np.arange(cells)) + np.arange(cells) % 3
    centres = (np.arange(cells) + 0.5) / cells
    for i, row in enumerate(hats(count, cells, radius).double().numpy()):
        window = (i + 0.5 + np.linspace(-radius, radius, 20_001)) / count  # the trapezoid rule
        along = np.interp(window, centres, values)
        expected = (along[1:] + along[:-1]).mean() / 2
        assert row @ values == pytest.approx(expected, abs=2e-4)
        assert row.sum() == pytest.approx(1, abs=1e-6)


def test_hats_with_a_band_average_equal_parts() -> None:
    values = torch.tensor([1.0, 3.0, 10.0, 20.0])
    centres = hats(2, 4, 0.5) @ values
    assert torch.allclose(hats(4, 4, 0.5, band=2) @ values, hats(4, 2, 0.0) @ centres)
    assert torch.equal(hats(4, 4, 0.5, band=4), hats(4, 4, 0.5))  # no fewer parts than channels: nothing is smoothed


@pytest.mark.parametrize("kind", ["grid", "mlps", "mlp"])
@pytest.mark.parametrize("name", ["joined", "resnet8", "lenetlike"])
def test_weights_have_the_shapes_of_resized_networks(name: str, kind: str) -> None:
    module, info, made = function(name, kind)
    for gamma in (0.0, 0.3, 0.75, -0.4):
        widths = info.at(gamma)
        shapes = info.shapes(dict(module.named_parameters()), widths)
        noisy = made.noisy(widths, torch.Generator().manual_seed(0))
        assert {key: tuple(value.shape) for key, value in made(widths).items()} == shapes
        assert {key: tuple(value.shape) for key, value in noisy.items()} == shapes


@pytest.mark.parametrize("name", ["joined", "resnet8", "lenetlike"])
def test_a_grid_begins_at_the_network(name: str) -> None:
    module, info, made = function(name, noise=0.0)
    weights = made(info.full())
    for key, value in module.named_parameters():
        assert torch.equal(weights[key], value)


@torch.no_grad()
def test_a_grid_at_half_width_is_the_mean_of_pairs_and_keeps_sums() -> None:
    module, info, made = function("joined", noise=0.0)
    weights = made(info.named({"down": 3}))
    before = module.get_submodule("each").weight  # depthwise: nothing is summed over its channels
    assert torch.allclose(weights["each.weight"], before.unflatten(0, (3, 2)).mean(1), atol=1e-6)
    up = module.get_submodule("up").weight  # its inputs are the first axis: half of them, twice as large
    assert torch.allclose(weights["up.weight"], up.unflatten(0, (3, 2)).mean(1) * 2, atol=1e-6)


@torch.no_grad()
def test_concatenated_channels_are_functions_of_their_own() -> None:
    module, info, made = function("joined", noise=0.0)
    weights = made(info.named({"up": 2}))
    norm, head = module.get_submodule("norm").weight, module.get_submodule("head").weight
    assert norm is not None and head is not None
    assert torch.allclose(weights["norm.weight"][2:], norm[4:])
    scale = 9 * 16 / (7 * 16)
    halves = head[:, : 4 * 16].unflatten(1, (2, 2, 16)).mean(2).flatten(1)
    assert torch.allclose(weights["head.weight"], torch.cat([halves, head[:, 4 * 16 :]], 1) * scale, atol=1e-6)


@torch.no_grad()
def test_the_mean_of_many_draws_of_a_grid_is_its_expectation() -> None:
    _, info, made = function("joined")
    widths = info.at(0.4)
    expected, drawn = made(widths), made.mean_of_draws(widths, 1500, torch.Generator().manual_seed(0))
    for key, value in expected.items():  # the error of a mean of so many draws is 1 / 39 of their spread
        assert float((drawn[key] - value).norm()) <= 0.05 * float(value.norm()), key


@pytest.mark.parametrize("kind", ["mlps", "mlp"])
def test_without_noise_a_draw_is_the_expectation(kind: str) -> None:
    _, info, made = function("joined", kind, noise=0.0)
    widths = info.at(0.4)
    drawn = made.noisy(widths, torch.Generator())
    for key, value in made(widths).items():
        assert torch.allclose(drawn[key], value, atol=1e-5), key


@torch.no_grad()
def test_an_mlp_computes_equations_3_and_4() -> None:
    module, info, made = function("resnet8", "mlps", noise=0.0)
    widths = info.at(0.5)
    names = [key for key, _ in module.named_parameters()]
    layers = list(dict.fromkeys(key.rpartition(".")[0] for key in names))
    key = "layer2.0.conv1.weight"
    index, value = names.index(key), made(widths)[key]
    fan_out, fan_in = value.shape[:2]
    i, j = 2, 1
    depth = len(layers)
    v = [
        layers.index("layer2.0.conv1") / depth,
        (j + 0.5) / fan_in,
        (i + 0.5) / fan_out,
        depth / 64,
        fan_in / 64,
        fan_out / 64,
    ]
    embedded = [f(2**m * math.pi * each) for each in v for m in range(4) for f in (math.sin, math.cos)]
    mlp = made.mlps[index].double()  # type: ignore[union-attr, index]
    x = torch.relu(mlp.first(torch.tensor(embedded, dtype=torch.float64)))
    for block, scale in zip(mlp.blocks, mlp.scales, strict=True):
        x = x + scale * torch.relu(block(x))
    full_in = module.get_parameter(key).shape[1]
    by_hand = (mlp.last(x) * float(made.spread[index]) + float(made.mean[index])) * full_in / fan_in  # type: ignore[index, arg-type]
    assert torch.allclose(by_hand.view(3, 3).float(), value[i, j], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_one_mlp_gives_kernels_their_centre_and_linear_layers_their_mean() -> None:
    _, info, made = function("resnet8", "mlp", noise=0.0)
    full = info.full()
    assert made(full)["layer2.0.downsample.0.weight"].shape[2:] == (1, 1)
    seen: dict[str, Tensor] = {}

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], values: Tensor) -> None:
        seen["values"] = values

    handle = made.mlps[0].register_forward_hook(keep)  # type: ignore[union-attr, index]
    for key in ("layer2.0.downsample.0.weight", "fc.weight"):
        layout = next(each for each in made.layouts if each.name == key)
        weight = made.expected(layout, full)
        index = made.index[key]  # type: ignore[index]
        own = seen["values"] * made.spread[index] + made.mean[index]  # type: ignore[index]
        expected = own.mean(-1) if key == "fc.weight" else own[:, 4]
        assert torch.allclose(weight.flatten(), expected.flatten(), atol=1e-6)
    handle.remove()


@torch.no_grad()
def test_mlps_begin_with_the_mean_and_spread_of_each_tensor() -> None:
    module, info, made = function("resnet8", "mlps")
    weights = made(info.full())
    for key, value in module.named_parameters():
        if value.dim() == 4 and len(value) > 4:
            assert float(weights[key].std()) == pytest.approx(float(value.std()), rel=1e-3)
            assert float(weights[key].mean()) == pytest.approx(float(value.mean()), abs=1e-5)


def test_the_quadrature_has_the_moments_of_the_unit_square() -> None:
    points = np.array(QUADRATURE)
    assert points.mean(0) == pytest.approx([0, 0], abs=1e-12)
    assert (points.T @ points / len(points)).flatten() == pytest.approx([1 / 12, 0, 0, 1 / 12], abs=1e-12)
    for powers in ((3, 0), (0, 3), (2, 1), (1, 2)):
        assert (points ** np.array(powers)).prod(1).mean() == pytest.approx(0, abs=1e-12)


def test_names_choose_what_gets_gradients() -> None:
    _, info, made = function("resnet8")
    weights = made(info.at(0.5), names={"conv1.weight"})
    assert [key for key, value in weights.items() if value.requires_grad] == ["conv1.weight"]


def test_the_same_seed_gives_the_same_function() -> None:
    module, info = network("resnet8")
    config = FunctionConfig(kind="mlps", hidden=8)
    one, two, other = (make_function(module, info, config, seed)(info.full())["fc.weight"] for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
