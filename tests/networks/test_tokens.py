"""Networks as tokens with coordinates: the cutting loses nothing, and the coordinates say where a token is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from netspace.networks.batch import NetBatch
from netspace.networks.family import net_batch
from netspace.networks.spec import NetSpec
from netspace.networks.tokens import COLUMNS, Gather, tokens_of, widest_kernel


def named(arch: str, **settings: object) -> NetBatch:
    from netspace import archs

    skeleton = archs.skeleton(arch, settings, (1, 8, 8))
    return net_batch(NetSpec.from_module(skeleton, arch, settings, (1, 8, 8)), "cpu")


def of(module: nn.Module) -> NetBatch:
    return NetBatch(module, NetSpec.from_module(module, "test", {}, (1, 8, 8)))


@pytest.mark.parametrize("arch", ["lenetlike", "vanillacnn", "resnet8"])
def test_every_parameter_is_in_one_token(arch: str) -> None:
    nets = named(arch, channels=1, image_size=8, width=0.25)
    tokens = tokens_of(nets)
    flat = torch.randn(3, nets.spec.num_parameters)
    assert torch.equal(tokens.flat(tokens.cut(flat)), flat)
    assert tokens.index.unique().numel() == nets.spec.num_parameters
    assert tokens.coordinates.shape == (len(tokens), len(COLUMNS)) and tokens.fan_in.shape == flat.shape[1:]


def test_a_token_is_the_kernel_of_a_filter_and_a_channel_or_a_tile() -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2), nn.Flatten(), nn.Linear(27, 5))
    nets = of(module)
    tokens = tokens_of(nets)
    values = tokens.cut(torch.cat([each.detach().flatten() for each in module.parameters()])[None])[0].T
    column = {name: index for index, name in enumerate(COLUMNS)}
    conv, linear = module[0], module[2]
    assert isinstance(conv, nn.Conv2d) and isinstance(linear, nn.Linear)
    seen = [0, 0, 0]
    for token, coordinate in zip(values, tokens.coordinates, strict=True):
        kind, layer, row, col = (int(coordinate[column[name]]) for name in ("kind", "layer", "filter", "channel"))
        seen[kind] += 1
        assert coordinate[column["log2 stride"]] == (1 if layer == 0 else 0)
        if kind == 0:
            assert torch.equal(token, conv.weight[row, col].flatten())
            assert coordinate[column["filter / count"]] == pytest.approx((row + 0.5) / 3)
            assert coordinate[column["log2 filters"]] == pytest.approx(math.log2(3))
        elif kind == 1:  # the coordinate is the tile's centre
            tile = (
                linear.weight[row - 1 : row + 2, col - 1 : col + 2]
                if row == 1
                else linear.weight[3:5, col - 1 : col + 2]
            )
            assert torch.equal(token.view(3, 3)[: len(tile)], tile) and layer == 1
    assert seen == [6, 2 * 9, 1 + 2]


def test_parameters_know_the_inputs_of_their_layer() -> None:
    tokens = tokens_of(of(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 5))))
    assert tokens.fan_in.tolist() == [18.0] * (54 + 3) + [27.0] * (135 + 5)


def test_a_side_too_small_for_a_kernel_is_refused() -> None:
    nets = of(nn.Sequential(nn.Conv2d(1, 2, 5), nn.Flatten(), nn.Linear(32, 4)))
    assert widest_kernel(nets) == 5
    with pytest.raises(ValueError, match="tokens of 3 x 3 cannot hold a kernel of 5 x 5"):
        tokens_of(nets, 3)


def test_tensors_that_are_neither_convolutions_nor_matrices_are_tokens_too() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))
            self.position = nn.Parameter(torch.zeros(1, 4, 6))
            self.volume = nn.Conv3d(1, 2, 3)
            self.norm = nn.LayerNorm(6)

    nets = of(Odd())
    tokens = tokens_of(nets)
    flat = torch.randn(2, nets.spec.num_parameters)
    assert torch.equal(tokens.flat(tokens.cut(flat)), flat)


def test_the_gradient_of_a_gather_is_that_of_an_index() -> None:
    values = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([4, 0, 6])
    assert torch.autograd.gradcheck(lambda x: Gather.apply(x, index), (values,))
