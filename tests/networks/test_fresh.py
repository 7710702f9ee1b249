"""Fresh weights: nothing of what was trained stays, in a network of the same or of other widths."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from netspace.networks.fresh import draw_fresh
from netspace.networks.widths import find_widths, resized


class Shifted(nn.Module):
    """A network with a parameter of its own, which is no layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.shift = nn.Linear(6, 40), nn.Linear(40, 50), nn.Parameter(2 + 0.2 * torch.randn(50))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.first(inputs).relu()) + self.shift
        return outputs


def test_all_parameters_are_drawn_anew() -> None:
    torch.manual_seed(0)
    trained = Shifted()
    module = copy.deepcopy(trained)
    torch.manual_seed(1)
    draw_fresh(module, module)
    assert not any(torch.equal(value, trained.get_parameter(name)) for name, value in module.named_parameters())
    torch.manual_seed(1)
    expected = nn.Linear(6, 40)  # children first, as in the constructor
    assert torch.equal(module.first.weight, expected.weight) and torch.equal(module.first.bias, expected.bias)


def test_parameters_of_no_layer_are_drawn_like_those_before() -> None:
    torch.manual_seed(0)
    module = Shifted()
    shift = resized(module, find_widths(module, torch.zeros(1, 6), "net"), [20], 0).shift.detach()
    assert not torch.equal(shift, module.shift)
    assert 1.8 < float(shift.mean()) < 2.2 and 0.1 < float(shift.std()) < 0.3
