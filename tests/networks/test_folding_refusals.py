"""What folding refuses: one sentence each, naming the network and the part at fault."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from netspace.errors import NetspaceError, UsageError
from netspace.networks import folding as absorb
from netspace.networks.folding import Folder, fold
from netspace.networks.graph import Absorption


def refusal(net: nn.Module, x: Tensor, name: str = "") -> str:
    messages = []
    for attempt in (fold, Folder):
        with pytest.raises(NetspaceError) as caught:
            attempt(net, x, name=name)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "\n" not in messages[0]
    return messages[0]


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, self.get_buffer("mean"), self.get_buffer("var"))


def test_batch_norm_as_a_function_is_refused() -> None:
    x = torch.zeros(2, 3)
    assert "Functional: it keeps the floating-point buffers mean, var" in refusal(Functional(), x)
    mixed = nn.Sequential(nn.BatchNorm1d(3), Functional())
    assert refusal(mixed, x, "mine").startswith("cannot fold mine: its forward calls batch_norm as a function")


def test_floating_point_buffers_are_refused_and_constants_are_not() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.InstanceNorm1d(3, track_running_stats=True))
    assert "0.running" not in refusal(net, torch.zeros(3, 3))
    assert "buffers 1.running_mean, 1.running_var" in refusal(net, torch.zeros(3, 3))
    net = nn.Sequential(nn.Linear(3, 3))
    net.register_buffer("index", torch.arange(3))
    net.register_buffer("constant", torch.ones(3), persistent=False)
    assert [key for key, _ in fold(net, torch.zeros(1, 3)).named_parameters()] == ["0.weight", "0.bias"]
    assert list(Folder(net, torch.zeros(1, 3))(net.state_dict())) == ["0.weight", "0.bias"]


def test_batch_norm_without_running_statistics_is_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False))
    assert "the batch norm 1 keeps no running statistics" in refusal(net, torch.zeros(2, 3), "mine")


def test_a_batch_norm_alone_is_refused() -> None:
    assert "it is a batch norm itself" in refusal(nn.BatchNorm1d(3), torch.zeros(2, 3))


@pytest.mark.parametrize("key", ["0.weight", "1.running_var", "1.bias"])
def test_values_that_are_not_finite_are_refused_by_name(key: str) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    net.state_dict()[key].view(-1)[0] = float("inf")
    assert refusal(net, torch.zeros(2, 3), "mine").startswith(f"{key} of mine has values that are not finite")


def test_tied_parameters_are_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    net[1].weight = net[0].weight
    assert "0.weight and 1.weight are one tensor" in refusal(net, torch.zeros(2, 3))
    shared = nn.Linear(3, 3)
    assert "0.weight and 1.weight are one tensor" in refusal(nn.Sequential(shared, shared), torch.zeros(2, 3))


def test_a_lazy_layer_is_refused() -> None:
    net = nn.Sequential(nn.LazyLinear(3), nn.BatchNorm1d(3))
    assert "0.weight has no values yet" in refusal(net, torch.zeros(2, 3))


def test_an_example_that_does_not_fit_is_named() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    assert refusal(net, torch.zeros(2, 4)).startswith("Sequential does not run on an example of shape (2, 4)")
    assert "not finite; try another" in refusal(net, torch.full((2, 3), float("inf")))


# The check


class Logarithm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log()


def test_noise_outside_the_domain_of_a_network_is_passed_over() -> None:
    net, x = nn.Sequential(Logarithm(), nn.Linear(3, 3), nn.BatchNorm1d(3)), torch.rand(2, 3) + 1
    torch.testing.assert_close(fold(net, x)(x), net.eval()(x))


@pytest.mark.parametrize("share", [1e-9, 1.0])
def test_the_check_notices_a_wrong_fold_and_says_where(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    right = absorb._scaled

    def wrong(weight: Tensor, scale: Tensor, step: Absorption) -> Tensor:
        return right(weight, scale, step) * (1 + share * (step.target == "3"))

    layers = [nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.LeakyReLU()]
    net = nn.Sequential(*layers, nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 2))
    monkeypatch.setattr(absorb, "_scaled", wrong)
    message = refusal(net, torch.randn(2, 3, 8, 8))
    assert message.startswith("the folded copy of Sequential does not compute what Sequential does: 4 differs")


def test_folder_notices_what_fresh_statistics_would_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold that forgets the biases is right while means and biases are 0, as in a fresh network."""
    right = absorb.fold_state

    def forgetful(plan: tuple[Absorption, ...], state: dict[str, Tensor]) -> dict[str, Tensor]:
        kept = {key: torch.zeros_like(value) if "running_mean" in key else value for key, value in state.items()}
        return right(plan, kept)

    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))
    monkeypatch.setattr(absorb, "fold_state", forgetful)
    fold(net, torch.randn(2, 3, 8, 8))
    with pytest.raises(NetspaceError, match="1 differs first"):
        Folder(net, torch.randn(2, 3, 8, 8))


# What a Folder refuses of a state


def test_folder_names_what_does_not_fit() -> None:
    net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 5))
    folder, state = Folder(net, torch.zeros(2, 3), name="resnet9"), net.state_dict()
    with pytest.raises(UsageError, match=r"unknown parameter of resnet9 '1\.weigh': did you mean '1\.weight'"):
        folder({**state, "1.weigh": state["1.weight"]})
    with pytest.raises(UsageError, match=r"lacks 1\.running_mean of resnet9"):
        folder({key: value for key, value in state.items() if key != "1.running_mean"})
    with pytest.raises(UsageError, match=r"1\.bias of shape \(2, 6\) where resnet9 needs \(6,\)"):
        folder({**state, "1.bias": torch.zeros(2, 6)})
    many = {key: torch.stack([value] * 3) for key, value in state.items()}
    with pytest.raises(UsageError, match=r"2\.bias of shape \(5,\) where resnet9 needs \(3, 5\)"):
        folder({**many, "2.bias": torch.zeros(5)})


def test_folder_names_the_member_that_diverged() -> None:
    net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6))
    folder = Folder(net, torch.zeros(2, 3), name="resnet9")
    many = {key: torch.stack([value] * 3) for key, value in net.state_dict().items()}
    many["1.bias"][1, 2] = float("nan")
    with pytest.raises(NetspaceError, match=r"^1\.bias of member 1 of resnet9 has values that are not finite"):
        folder(many)
    wrong = {**net.state_dict(), "1.running_var": -torch.ones(6)}
    with pytest.raises(NetspaceError, match=r"0\.weight of resnet9 after folding has values that are not finite"):
        folder(wrong)
