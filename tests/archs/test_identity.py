"""An architecture is its parameters: what is drawn or learnt beside them is found, and nothing else is refused."""

from __future__ import annotations

from functools import partial

import networks_that_go_wrong as networks
import pytest
import torch
from torch import nn

from netspace import archs
from netspace.archs.identity import check_identity, check_outputs, drawn_constants
from netspace.errors import NetspaceError

SHAPE = (1, 8, 8)
SOUND = [
    networks.PostAct,
    networks.WithPosition,
    networks.IndexTable,
    networks.Recurrent,
    networks.Timmlike,
    networks.NoMomentum,
    networks.FunctionalDropout,
    *(partial(networks.Constant, kind=kind, drawn=False) for kind in ("attribute", "buffer", "non-persistent")),
    *(partial(archs.ARCHS[name], channels=1, image_size=8) for name in ("lenetlike", "vanillacnn", "resnet8")),
]


@pytest.mark.parametrize("make", SOUND)
def test_networks_that_are_their_parameters(make: partial[nn.Module]) -> None:
    before = torch.random.get_rng_state()
    check_identity("net", make, SHAPE)
    check_outputs("net", make, torch.ones(2, *SHAPE), (10,), trained=True)
    assert torch.equal(torch.random.get_rng_state(), before)


class ZeroHead(nn.Module):
    """A last layer of zeros hides, in a fresh network, that its input is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(64))
        self.fc = nn.Linear(64, 10)
        nn.init.zeros_(self.fc.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1) * self.get_buffer("table"))


class Counting(nn.Module):
    """A whole number that training counts and evaluation uses."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = self.get_buffer("steps")
        if self.training:
            steps += 1
        return self.fc(x.flatten(1)) / (1 + steps)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        *((partial(networks.Constant, kind=kind), " (table)") for kind in ("attribute", "buffer", "non-persistent")),
        (networks.Noisy, ""),
        (networks.OwnStatistics, " (n.running_mean, n.running_var)"),
        (ZeroHead, " (table)"),
        (Counting, " (steps)"),
    ],
)
def test_networks_that_are_more_than_their_parameters(make: partial[nn.Module], named: str) -> None:
    with pytest.raises(NetspaceError) as caught:
        check_identity("net", make, SHAPE)
    assert str(caught.value) == (
        "two networks of net with the same parameters give different outputs, so its parameters are not all that "
        f"decides{named}: make a parameter of what else is drawn or learnt, or fix it; a network draws nothing in "
        "evaluation"
    )


def test_outputs_are_the_logits_of_the_task() -> None:
    images = torch.randn(2, *SHAPE)
    check_outputs("net", networks.TwoHeads, images, (10,), trained=False)
    with pytest.raises(
        NetspaceError, match=r"net gives a tuple of 2 in training, where one tensor of logits \(B, 10\)"
    ):
        check_outputs("net", networks.TwoHeads, images, (10,), trained=True)
    with pytest.raises(NetspaceError, match=r"net gives outputs of \(10,\) in evaluation, but the task has 4 classes"):
        check_outputs("net", networks.PostAct, images, (4,), trained=False)
    with pytest.raises(NetspaceError, match=r"net does not run in evaluation on images of \(3, 8, 8\): RuntimeError"):
        check_outputs("net", networks.PostAct, torch.randn(2, 3, 8, 8), (10,), trained=False)


def test_constants_that_differ_are_named_and_computed_ones_are_not() -> None:
    assert drawn_constants(networks.Constant(), networks.Constant()) == ["table"]
    assert drawn_constants(networks.Constant(kind="buffer"), networks.Constant(kind="buffer"), {"table"}) == []
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    for each in (first, second):
        each.twice = 2 * each.weight
    assert drawn_constants(first, second) == []
