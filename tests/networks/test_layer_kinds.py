"""What each tensor of a network is: told by its module, or by its name and shape; and what is refused."""

from __future__ import annotations

import pytest
import torch
from foreign import LayerNorm3, weight_norm
from torch import Tensor, nn

from netspace.errors import NetspaceError, UsageError
from netspace.networks.kernels import Kernels, layer_kinds, layer_of


class Odd(nn.Module):
    """Tensors with a convolution's number of axes, of every kind that is met, beside kernels with unusual names."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 8, 16, stride=16)
        self.norm1 = nn.LayerNorm([8, 4, 4], bias=False)
        self.up = nn.ConvTranspose2d(8, 6, 2)
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Conv1d(6, 4, 3, bias=False))
        self.bilinear = nn.Bilinear(3, 4, 5)
        self.table = nn.LayerNorm([5, 7])
        self.class_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.pos_embedding = nn.Parameter(torch.zeros(1, 5, 8))
        self.layer_scale = nn.Parameter(torch.ones(8, 1, 1))
        self.odd = nn.Parameter(torch.zeros(1, 8, 6, 6))
        self.kernels = nn.Parameter(torch.zeros(4, 2, 3, 3))
        self.fc = nn.Linear(8, 3)


CONVOLUTIONS = {"patch_embed.weight", "up.weight", "spectral.parametrizations.weight.original", "kernels"}


@pytest.mark.parametrize("known", [True, False])
def test_only_kernels_are_convolutions(known: bool) -> None:
    module = Odd()
    state = dict(module.state_dict())
    found = layer_kinds(state, module if known else None)
    kernels = {name for name, kind in found.items() if kind == "convolution"}
    assert kernels == CONVOLUTIONS | (
        set() if known else {"bilinear.weight"}
    )  # which its shape alone does not give away
    assert {name for name, kind in found.items() if kind == "matrix"} == {"fc.weight"}


@pytest.mark.parametrize("known", [True, False])
def test_positions_and_normalisations_are_no_convolutions(known: bool) -> None:
    module = LayerNorm3()
    kernels = Kernels.of(module.state_dict(), module=module if known else None)
    assert [layer.name for layer in kernels.layers] == ["c.weight"] and kernels.side == 3
    with pytest.raises(UsageError, match=r"'position' names position, of shape \(1, 8, 8, 8\), which is neither a"):
        Kernels.of(module.state_dict(), ("position",), module=module if known else None)


@pytest.mark.parametrize("known", [True, False])
def test_a_parametrised_layer_has_its_direction_represented(known: bool) -> None:
    module = weight_norm()
    kernels = Kernels.of(module.state_dict(), module=module if known else None)
    names = [layer.name for layer in kernels.layers]
    assert names == [f"{layer}.parametrizations.weight.original1" for layer in (0, 2)]
    assert [layer_of(name) for name in names] == ["0", "2"] and layer_of("parametrizations.weight.original1") == ""


def test_a_side_that_no_kernel_has_is_refused_where_the_module_is_not_known() -> None:
    state = {"a.weight": torch.ones(4, 4, 3), "b.weight": torch.ones(4, 4, 64)}
    with pytest.raises(NetspaceError, match=r"b.weight of shape \(4, 4, 64\) would be a convolution with a side of 64"):
        Kernels.of(state)
    assert Kernels.of(state, side=3).counts == (16,) and Kernels.of(state, ("b*",)).side == 64
    module = nn.ModuleDict({"a": nn.Conv1d(4, 4, 3), "b": nn.Conv1d(4, 4, 64)})
    whole: dict[str, Tensor] = dict(module.state_dict())
    assert Kernels.of(whole, module=module).side == 64
