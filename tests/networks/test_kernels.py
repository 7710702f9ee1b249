"""Kernels of any state dict: cut and put back without loss, coordinates as the paper's, patterns and refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from netspace import archs
from netspace.errors import NetspaceError, UsageError
from netspace.networks.kernels import Kernels


class Mixed(nn.Module):
    """One of each kind of weight."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 8, 5)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.point = nn.Conv2d(8, 4, 1)
        self.oblong = nn.Conv2d(4, 4, (1, 3))
        self.along = nn.Conv1d(4, 6, 3)
        self.bn = nn.BatchNorm1d(6)
        self.attention = nn.MultiheadAttention(8, 2)
        self.fc = nn.Linear(7, 11)


def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(Mixed().state_dict())


@pytest.mark.parametrize("patterns", [(), ("*",), ("fc.*", "attention.*"), ("point.weight",)])
def test_what_is_cut_is_put_back(patterns: tuple[str, ...]) -> None:
    held = state()
    kernels = Kernels.of(held, patterns)
    back = kernels.scatter(kernels.gather(held))
    assert list(back) == [layer.name for layer in kernels.layers]
    assert all(torch.equal(back[name], held[name]) for name in back)
    assert len(kernels.gather(held)) == sum(kernels.counts) == len(kernels.coordinates()) == len(kernels.mask())
    assert int(kernels.mask().sum()) == kernels.parameters == sum(held[name].numel() for name in back)


@pytest.mark.parametrize("side", [None, 8])
@pytest.mark.parametrize("patterns", [(), ("*",), ("point.weight",)])
def test_pointwise_convolutions_are_cut_into_tiles(patterns: tuple[str, ...], side: int | None) -> None:
    held = state()
    kernels = Kernels.of(held, patterns, side, pointwise="tiles")
    back = kernels.scatter(kernels.gather(held))
    assert all(torch.equal(back[name], held[name]) for name in back)
    assert len(kernels.gather(held)) == sum(kernels.counts) == len(kernels.coordinates())
    assert int(kernels.mask().sum()) == kernels.parameters
    assert [layer.name for layer in kernels.layers if layer.tiled] == ["point.weight"]


def test_tiles_are_fewer_than_kernels() -> None:
    held = {"a": torch.randn(32, 16, 1, 1), "b": torch.randn(4, 2, 3, 3)}
    assert Kernels.of(held).counts == (32 * 16, 8)
    tiled = Kernels.of(held, pointwise="tiles")
    assert tiled.counts == (11 * 6, 8)
    assert torch.equal(tiled.gather(held)[1], held["a"][:3, 3:6, 0, 0])


def test_all_convolutions_are_taken_and_nothing_else() -> None:
    kernels = Kernels.of(state())
    assert [layer.name for layer in kernels.layers] == [
        f"{name}.weight" for name in ("wide", "depthwise", "point", "oblong", "along")
    ]
    assert kernels.side == 5 and kernels.counts == (24, 8, 32, 16, 24)


def test_smaller_kernels_are_the_centre_of_what_is_predicted() -> None:
    held = state()
    kernels = Kernels.of(held)
    cut = kernels.gather(held)
    assert torch.equal(cut[24, 1:4, 1:4], held["depthwise.weight"][0, 0]) and cut[24].count_nonzero() == 9
    assert torch.equal(cut[32, 2, 2], held["point.weight"][0, 0, 0, 0]) and cut[32].count_nonzero() == 1
    assert torch.equal(cut[64, 2, 1:4], held["oblong.weight"][0, 0, 0]) and cut[64].count_nonzero() == 3


def test_coordinates_are_the_indices_of_layer_filter_and_channel() -> None:
    kernels = Kernels.of({"a": torch.ones(2, 3, 3, 3), "b": torch.ones(4, 2, 1, 1)})
    raw, normalised = kernels.coordinates(), kernels.coordinates(normalised=True)
    expected = [(0, f, c) for f in range(2) for c in range(3)] + [(1, f, c) for f in range(4) for c in range(2)]
    assert raw.tolist() == [list(each) for each in expected] and raw.dtype == torch.float32
    assert normalised.shape == raw.shape
    torch.testing.assert_close(normalised[4], torch.tensor([0, 1 / 2, 1 / 3]))
    torch.testing.assert_close(normalised[-1], torch.tensor([1 / 2, 3 / 4, 1 / 2]))


def test_gradients_flow_through_the_weights() -> None:
    kernels = Kernels.of(state())
    values = torch.randn(sum(kernels.counts), 5, 5, requires_grad=True)
    sum(weight.sum() for weight in kernels.scatter(values).values()).backward()
    assert values.grad is not None and torch.equal(values.grad != 0, kernels.mask())


def test_resnet20_has_the_papers_counts() -> None:
    kernels = Kernels.of(archs.build("resnet20", channels=1, image_size=28).state_dict())
    assert sum(kernels.counts) == 32_272 and kernels.side == 3


def test_refusals() -> None:
    with pytest.raises(
        NetspaceError, match="nothing to represent: no convolution or matrix among 1 tensors \\(bias\\)"
    ):
        Kernels.of({"bias": torch.ones(3)})
    with pytest.raises(
        NetspaceError, match=r"no convolution; name matrices to represent by a pattern, such as fc\.weight"
    ):
        Kernels.of({"fc.weight": torch.ones(3, 4)})
    with pytest.raises(UsageError, match=r"no weight matches 'conv\?'; there are: a$"):
        Kernels.of({"a": torch.ones(2, 3, 3, 3)}, ("conv?",))
    with pytest.raises(NetspaceError, match="a holds values that are not finite"):
        Kernels.of({"a": torch.full((2, 3, 3, 3), float("nan"))})
