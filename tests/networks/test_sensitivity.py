"""Sensitivities against the squared derivatives themselves, taken one output and one input at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from netspace.errors import UsageError
from netspace.networks.sensitivity import relative_steps, sensitivities


def network(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).train()


def exact(module: nn.Module, inputs: Tensor, probabilities: bool = False) -> dict[str, Tensor]:
    """Return the mean over inputs of squared derivatives, weighted by the metric of probabilities or not."""
    named = dict(module.named_parameters())
    totals = {name: torch.zeros_like(value.detach()) for name, value in named.items()}
    for one in inputs:
        outputs = module(one[None])[0]
        rows = [torch.autograd.grad(each, list(named.values()), retain_graph=True) for each in outputs]
        chances = outputs.detach().softmax(0)
        metric = torch.diag(chances) - chances.outer(chances) if probabilities else torch.eye(len(chances))
        for name, derivatives in zip(named, zip(*rows, strict=True), strict=True):
            stacked = torch.stack(derivatives)
            totals[name] += torch.einsum("i...,ij,j...->...", stacked, metric, stacked) / len(inputs)
    return totals


def test_one_output_of_one_input_is_exact() -> None:
    module, inputs = network(1), torch.randn(1, 3, generator=torch.Generator().manual_seed(1))
    found = sensitivities(module, module.state_dict(), inputs, draws=1)
    for name, value in exact(module, inputs).items():
        torch.testing.assert_close(found[name], value)
    assert module.training and all(each.grad is None for each in module.parameters())


@pytest.mark.parametrize("of", ["outputs", "probabilities"])
def test_the_mean_over_signs_is_exact(of: str) -> None:
    module, inputs = network(3), torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    found = sensitivities(module, module.state_dict(), inputs, of, draws=800)  # type: ignore[arg-type]
    for name, value in exact(module, inputs, of == "probabilities").items():
        torch.testing.assert_close(found[name], value, rtol=0.2, atol=0.05 * float(value.max()))


def test_tied_weights_have_one_sensitivity_and_several_outputs_all_count() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> dict[str, object]:
            return {"twice": self.a(x) + self.b(x), "more": (x, [3 * self.a(x)])}

    module = Tied()
    found = sensitivities(module, module.state_dict(keep_vars=True), torch.ones(1, 1), draws=64)
    assert float(found["a.weight"]) == float(found["b.weight"])
    assert float(found["a.weight"]) == pytest.approx(13, abs=4)  # 2 ** 2 + 3 ** 2


def test_mistakes_are_told() -> None:
    module = network(2)
    with pytest.raises(UsageError, match="no output of Sequential moves with a weight"):
        sensitivities(module, {name: value * 0 for name, value in module.state_dict().items()}, torch.zeros(0, 3))

    class Integers(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).argmax(dim=1)

    with pytest.raises(UsageError, match="no output of the network can be differentiated"):
        sensitivities(Integers(2, 2), Integers(2, 2).state_dict(), torch.ones(1, 2))
    with pytest.raises(UsageError, match=r"the network gives no logits \(B, C\)"):
        sensitivities(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1).state_dict(), torch.ones(1, 1, 2, 2), "probabilities")


def test_steps_are_by_sensitivity_or_by_the_size_of_weights() -> None:
    torch.manual_seed(0)
    state = {
        "a": torch.randn(8, 4, 3, 3),
        "b": 0.3 * torch.randn(5, 6),
        "count": torch.tensor(7),
        "dead": torch.ones(2),
    }
    found = {name: torch.rand(value.shape) for name, value in state.items() if name != "count"} | {
        "dead": torch.zeros(2)
    }
    even, steps = relative_steps(state, found, power=0), relative_steps(state, found, power=1)
    sizes = [float(state[name].square().mean().sqrt()) for name in ("a", "b")]
    assert even["a"] / even["b"] == pytest.approx(sizes[0] / sizes[1], rel=1e-5)
    ratio = float(found["b"].mean() / found["a"].mean()) ** 0.5
    assert steps["a"] / steps["b"] == pytest.approx(ratio, rel=1e-5)
    half = relative_steps(state, found)
    assert half["a"] == pytest.approx((even["a"] * steps["a"]) ** 0.5, rel=1e-5)
    assert steps["dead"] < float("inf") and "count" not in steps
    with pytest.raises(UsageError, match="no tensor has a positive, finite sensitivity"):
        relative_steps(state, {name: each * 0 for name, each in found.items()})
