"""Stacked optimisers equal torch's own, a member at a time, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model_zoo.forward import OptimizerConfig, StackedOptimizer
from netspace.errors import UsageError
from netspace.networks.spec import NetSpec

MEMBERS, PARAMETERS, STEPS = 3, 7, 10
RATES = torch.tensor([[1e-1], [1e-2], [3e-3]], dtype=torch.float64)
EXACT = {"rtol": 1e-12, "atol": 1e-12}

CONFIGS = {
    "adam": OptimizerConfig(),
    "adam, L2": OptimizerConfig(weight_decay=0.1, betas=(0.8, 0.95)),
    "adamw": OptimizerConfig(name="adamw", weight_decay=0.1),
    "adamw without decay": OptimizerConfig(name="adamw"),
    "sgd": OptimizerConfig(name="sgd"),
    "sgd, L2": OptimizerConfig(name="sgd", weight_decay=0.1, momentum=0.5),
    "sgd without momentum": OptimizerConfig(name="sgd", momentum=0.0),
}


def of_torch(config: OptimizerConfig, value: Tensor, rate: float) -> torch.optim.Optimizer:
    if config.name == "sgd":
        return torch.optim.SGD([value], lr=rate, momentum=config.momentum, weight_decay=config.weight_decay)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    return kind([value], lr=rate, betas=config.betas, weight_decay=config.weight_decay)


def gradient(flat: Tensor, step: int) -> Tensor:
    """Of a rough function; small enough now and then for the epsilon to matter."""
    noise = torch.randn(flat.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    return (flat.detach() + noise) * 10.0 ** -(step % 4)


@pytest.mark.parametrize("name", CONFIGS)
def test_each_member_is_stepped_as_torch_steps_it_alone(name: str) -> None:
    """With rates that differ between members and change from step to step."""
    config = CONFIGS[name]
    torch.manual_seed(0)
    flat = torch.randn(MEMBERS, PARAMETERS, dtype=torch.float64)
    alone = [row.clone().requires_grad_() for row in flat]
    others = [of_torch(config, row, 1.0) for row in alone]
    optimizer = StackedOptimizer(config, flat)
    for step in range(STEPS):
        rates = RATES * 0.9**step
        gradients = gradient(flat, step)
        for row, other, rate, held in zip(alone, others, rates, gradients, strict=True):
            row.grad = held.clone()
            other.param_groups[0]["lr"] = float(rate)
            other.step()
        before = gradients.clone()
        decays = torch.full_like(rates, config.weight_decay) if config.weight_decay else None  # type: ignore[arg-type]
        optimizer.step(flat, gradients, rates, decays)
        assert torch.equal(gradients, before)  # not changed in place
        torch.testing.assert_close(flat, torch.stack(alone).detach(), **EXACT)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_members_that_stay_go_on_as_before(name: str) -> None:
    config = OptimizerConfig(name=name)  # type: ignore[arg-type]
    torch.manual_seed(0)
    flat = torch.randn(MEMBERS, PARAMETERS, dtype=torch.float64)
    whole, some = flat.clone(), flat.clone()
    first, second = StackedOptimizer(config, whole), StackedOptimizer(config, some)
    keep = torch.tensor([0, 2])
    for step in range(STEPS):
        if step == 4:
            some = some[keep]
            second.keep(keep)
        gradients = torch.randn(MEMBERS, PARAMETERS, dtype=torch.float64)
        first.step(whole, gradients, RATES)
        left = keep if step >= 4 else torch.arange(MEMBERS)
        second.step(some, gradients[left], RATES[left])
    torch.testing.assert_close(some, whole[keep], **EXACT)


def test_a_member_that_joins_is_stepped_as_one_that_begins() -> None:
    torch.manual_seed(0)
    flat = torch.randn(MEMBERS, PARAMETERS, dtype=torch.float64)
    newcomer = torch.randn(1, PARAMETERS, dtype=torch.float64)
    alone, optimizer = newcomer.clone(), StackedOptimizer(OptimizerConfig(), flat)
    reference = StackedOptimizer(OptimizerConfig(), alone)
    optimizer.step(flat, torch.randn_like(flat), RATES)
    flat = torch.cat([flat, newcomer])
    optimizer.join(1)
    rates = torch.cat([RATES, RATES[:1]])
    for step in range(STEPS):
        gradients = gradient(flat, step)
        optimizer.step(flat, gradients, rates)
        reference.step(alone, gradients[-1:], RATES[:1])
    torch.testing.assert_close(flat[-1:], alone, **EXACT)


def test_a_state_goes_on_exactly_and_shares_no_memory() -> None:
    torch.manual_seed(0)
    flat = torch.randn(MEMBERS, PARAMETERS, dtype=torch.float64)
    optimizer = StackedOptimizer(OptimizerConfig(), flat)
    gradients = torch.randn(STEPS, MEMBERS, PARAMETERS, dtype=torch.float64)
    for step in range(4):
        optimizer.step(flat, gradients[step], RATES)
    other = StackedOptimizer(OptimizerConfig(), flat)
    other.load(optimizer.state())
    copied = flat.clone()
    for step in range(4, STEPS):
        optimizer.step(flat, gradients[step], RATES)
    for step in range(4, STEPS):
        other.step(copied, gradients[step], RATES)
    assert torch.equal(copied, flat)


def test_schedules() -> None:
    assert OptimizerConfig().factor("constant", 0.7) == 1.0
    cosine = OptimizerConfig(schedule="cosine")
    assert [cosine.factor("cosine", share) for share in (0.0, 0.5, 1.0, 1.1)] == pytest.approx([1, 0.5, 0, 0])
    assert cosine.factor("cosine", 0.25) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    steps = OptimizerConfig(schedule="steps", milestones=(0.5, 0.75), decay=0.1)
    assert [steps.factor("steps", share) for share in (0.0, 0.49, 0.5, 0.75, 1.0)] == pytest.approx(
        [1, 1, 0.1, 0.01, 0.01]
    )


def test_muon_steps_inner_matrices_as_the_optimiser_of_spaces_does_and_the_rest_as_adam() -> None:
    """A matrix inside takes Muon's step at a rate in proportion to the member's; biases and ends take Adam's."""
    from netspace.training.optimizers import Muon

    spec = NetSpec("net", (), (3,), ("a", "b", "c"), ((20, 16), (20,), (1, 20)))
    config = OptimizerConfig(name="muon", learning_rate=(0.01, 0.02), muon_rate=0.005)
    torch.manual_seed(0)
    flat = torch.randn(2, spec.num_parameters, dtype=torch.float64)
    inside = [row[:320].reshape(20, 16).clone().requires_grad_() for row in flat]
    rest = [row[320:].clone().requires_grad_() for row in flat]
    rates = torch.tensor([[0.02], [0.01]], dtype=torch.float64)
    muons = [
        Muon([each], lr=0.005 * share, momentum=0.9, precision=torch.float64)
        for each, share in zip(inside, (1, 0.5), strict=True)
    ]
    adams = [torch.optim.Adam([each], lr=float(rate)) for each, rate in zip(rest, rates, strict=True)]
    optimizer = StackedOptimizer(config, flat, spec)
    for step in range(3):
        gradients = gradient(flat, step)
        for each, other, held in zip(inside, rest, gradients, strict=True):
            each.grad, other.grad = held[:320].reshape(20, 16).clone(), held[320:].clone()
        for each in (*muons, *adams):
            each.step()
        optimizer.step(flat, gradients, rates)
    expected = torch.stack([torch.cat([a.detach().flatten(), b.detach()]) for a, b in zip(inside, rest, strict=True)])
    torch.testing.assert_close(flat, expected, rtol=1e-9, atol=1e-9)


def test_muon_without_inner_matrices_is_refused() -> None:
    spec = NetSpec("net", (), (3,), ("a",), ((4, 3),))
    with pytest.raises(UsageError, match="muon is for networks with inner matrices of 16 rows and columns or more"):
        StackedOptimizer(OptimizerConfig(name="muon"), torch.zeros(1, 12), spec)
