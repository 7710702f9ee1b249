"""Folded parameters load into the class that was trained, with batch norm."""

from __future__ import annotations

import networks_that_go_wrong as networks
import pytest
import torch
from torch import Tensor, nn

from netspace.archs import build
from netspace.errors import NetspaceError
from netspace.networks.folding import fold, unfold


class Mixed(nn.Module):
    """Layers with and without biases and weights, one that absorbs two batch norms, and some that follow nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.a1, self.a2 = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.b, self.b1 = nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6, affine=False)
        self.c, self.c1 = nn.Conv2d(6, 5, 3, bias=False), nn.BatchNorm2d(5, affine=False)
        self.alone, self.bare = nn.BatchNorm2d(5), nn.BatchNorm2d(5, affine=False)
        self.fc, self.last = nn.Linear(5 * 36, 3, bias=False), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b1(self.b(self.a2(self.a1(self.a(x))).relu())).relu()
        x = self.bare(self.alone(self.c1(self.c(x)).relu()).relu())
        return self.last(self.fc(x.flatten(1)))


def trained(module: nn.Module) -> nn.Module:
    for _ in range(5):
        module.train()(torch.randn(16, 1, 8, 8) * 2 + 1)
    return module.eval()


@pytest.mark.parametrize(
    "make",
    [
        Mixed,
        networks.PostAct,
        networks.Timmlike,
        networks.WithPosition,
        networks.IndexTable,
        lambda: build("resnet8", channels=1, image_size=8, width=0.25),
    ],
)
def test_the_network_computes_what_the_folded_one_does(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    example = torch.zeros(2, 1, 8, 8)
    folded = fold(trained(make()), example, constants=True)
    parameters = {name: value.detach() for name, value in folded.named_parameters()}
    unfolded = unfold(make(), parameters, example)
    assert unfolded.state_dict().keys() == make().state_dict().keys() and not unfolded.training
    make().load_state_dict(unfolded.state_dict())
    images = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(unfolded(images), folded(images), rtol=1e-4, atol=1e-5)
    again = fold(unfolded, example, constants=True)
    for name, value in again.named_parameters():
        torch.testing.assert_close(value, parameters[name], rtol=1e-5, atol=1e-6)


def test_a_factor_that_no_variance_gives_is_refused() -> None:
    torch.manual_seed(0)
    example = torch.zeros(2, 1, 8, 8)
    folded = fold(trained(Mixed()), example)
    parameters = {name: value.detach().clone() for name, value in folded.named_parameters()}
    parameters["bare.weight"][0] *= -1
    with pytest.raises(
        NetspaceError, match=r"^the batch norm bare of Mixed has no weights \(affine=False\) and cannot"
    ):
        unfold(Mixed(), parameters, example)
