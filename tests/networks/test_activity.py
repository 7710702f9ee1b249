"""Dead units of networks against one network at a time, with hooks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netspace import archs
from netspace.errors import NetspaceError
from netspace.networks.activity import Activity
from netspace.networks.prep import flatten, unflatten
from netspace.networks.spec import NetSpec


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.act, self.last = nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        before = self.act(self.first(x))
        return self.last(F.relu(self.second(before) + before).mean((2, 3)))


class Loops(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.sum()) > 0 else x


def stacked(module: nn.Module, spec: NetSpec, members: int) -> Tensor:
    rows = []
    for seed in range(members):
        torch.manual_seed(seed)
        state = {name: torch.randn_like(value) for name, value in module.named_parameters()}
        for name in ("first", "second"):
            state[f"{name}.bias"] = state[f"{name}.bias"] - 40 * (torch.rand(6) < 0.5).float()
        rows.append(flatten(state, spec))
    return torch.stack(rows)


def test_dead_units_are_those_that_hooks_find() -> None:
    module = Residual().eval()
    spec = NetSpec.from_module(module, "residual", {}, (1, 8, 8))
    flat, inputs = stacked(module, spec, 5), torch.randn(20, 1, 8, 8)
    activity = Activity(module, spec)
    assert activity.names == ("first", "second")
    found = activity.dead(flat, inputs)
    for row, values in enumerate(flat):
        module.load_state_dict(unflatten(values, spec))
        with torch.no_grad():
            first = module.first(inputs).relu()
            second = (module.second(first) + first).relu()
        for units, slow in zip(found, (first, second), strict=True):
            assert units[row].tolist() == [len(slow[:, unit].unique()) == 1 for unit in range(6)]
    assert 0 < int(found[0].sum()) < found[0].numel()


@pytest.mark.parametrize("name", ["lenetlike", "resnet8", "vanillacnn"])
def test_activations_of_our_architectures_are_found(name: str) -> None:
    settings = {"channels": 1, "classes": 10, "width": 0.25, "image_size": 8}
    skeleton = archs.skeleton(name, settings, (1, 8, 8))
    spec = NetSpec.from_module(skeleton, name, settings, (1, 8, 8))
    activity = Activity(skeleton, spec)
    found = activity.dead(torch.zeros(2, spec.num_parameters), torch.randn(3, 1, 8, 8))
    assert len(activity.names) > 2 and len(found) == len(activity.names) and all(bool(each.all()) for each in found)


def test_a_forward_that_cannot_be_traced_is_refused() -> None:
    module = Loops().eval()
    spec = NetSpec.from_module(module, "loops", {}, (1, 8, 8))
    with pytest.raises(NetspaceError, match="cannot count the dead units of loops"):
        Activity(module, spec)
