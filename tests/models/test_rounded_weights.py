"""Weights in training as integers times a step, and the bits that they are expected to take."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from netspace.models.rounded_weights import FLOOR, RoundedWeights, Steps, expected_bits
from netspace.native.coding import encode
from netspace.networks.rounding import Codes, round_step


def network(seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(6, 4, 3, 3, generator=random),
        "conv.bias": torch.randn(6, generator=random),
        "norm.running_mean": torch.randn(6, generator=random),
        "last.weight": 0.01 * torch.randn(3, 24, generator=random),
    }


def rounded(state: dict[str, Tensor], step: float = 0.3, **settings: object) -> RoundedWeights:
    names = [name for name, value in state.items() if value.dim() > 1]
    codes = {name: round_step(state[name], step * float(state[name].square().mean().sqrt())) for name in names}
    return RoundedWeights(state, codes, ["conv.bias"], **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", ["each", "shared"])
def test_the_network_in_training_is_that_of_its_codes(steps: Steps) -> None:
    state = network()
    model = rounded(state, steps=steps)
    weights, size, _ = model()
    codes = model.codes()
    assert list(codes) == ["conv.weight", "last.weight", "conv.bias"] and float(size) > 0
    for name, each in codes.items():
        restored = each.restore(state[name].shape)
        assert torch.allclose(weights[name], restored, rtol=1e-6, atol=0)
        assert (restored - state[name]).abs().max() <= 0.5001 * each.steps.max()
    assert weights["norm.running_mean"] is state["norm.running_mean"]
    assert codes["conv.bias"].values.abs().max() == 127


def test_gradients_pass_straight_through_and_steps_have_those_of_the_rounding_error() -> None:
    state = network()
    model = rounded(state)
    toward = torch.randn(6, 4, 3, 3)
    weights, _, _ = model()
    (weights["conv.weight"] * toward).sum().backward()
    unit = model.units["conv.weight"]
    assert torch.allclose(model.values[0].grad, unit * toward.flatten(1))
    step = model.step(0).detach().double()
    exact = model.values[0].detach().double() / step
    slope = ((exact.round() - exact) * toward.flatten(1).double()).sum() * unit * step  # of the logarithm of the step
    assert torch.allclose(model.log_steps[0].grad.double(), slope.reshape(1), rtol=1e-4)
    assert model.log_steps[1].grad is None and model.values[1].grad is None


def test_expected_bits_are_those_of_a_loop_in_float64_and_near_the_file() -> None:
    random = torch.Generator().manual_seed(0)
    scales = torch.rand(32, 1, generator=random) * torch.rand(16, generator=random).repeat_interleave(9)[None]
    integers = (4 * scales * torch.randn(32, 144, generator=random)).round()
    bits, slope = expected_bits(integers, 9)
    magnitude = integers.abs().double().tolist()
    mean_all = sum(map(sum, magnitude)) / (32 * 144)
    rows = [sum(row) / 144 + FLOOR for row in magnitude]
    channels = [sum(row[9 * c + k] for row in magnitude for k in range(9)) / (32 * 9) + FLOOR for c in range(16)]
    total = 0.0
    for r, row in enumerate(magnitude):
        for c, value in enumerate(row):
            mean = rows[r] * channels[c // 9] / (mean_all + FLOOR)
            total += math.log2(1 + mean) + value * math.log2((1 + mean) / mean) + (value > 0)
            assert abs(float(slope[r, c]) - math.log2((1 + mean) / mean)) < 1e-4
    assert abs(float(bits) - total) < 1e-3 * total
    size = 8 * len(encode(integers.int().numpy(), 9))
    assert 0.85 * size < float(bits) < 1.15 * size


def test_the_penalty_falls_with_magnitudes_and_grows_with_finer_steps() -> None:
    model = rounded(network())
    _, _, penalty = model()
    penalty.backward()
    values, grad = model.values[0], model.values[0].grad
    large = values.abs() > 0.5
    assert torch.equal(grad[large].sign(), values[large].sign())
    assert model.log_steps[0].grad < 0  # coarser steps, fewer bytes
    assert model.values[2].grad is None  # biases cost what they cost


def test_clamped_and_sparse_integers_stay_so() -> None:
    state = network()
    two = rounded(state, bits=2).codes()["conv.weight"].values
    assert two.abs().max() == 1
    sparse = rounded(state, step=2.0, sparse=True)
    before = sparse.codes()["conv.weight"].values != 0
    with torch.no_grad():
        sparse.values[0].mul_(10)
    after = sparse.codes()["conv.weight"].values != 0
    assert before.any() and not before.all() and torch.equal(after, before)


def test_a_step_for_each_row_and_tensors_of_zeros() -> None:
    state = network() | {"last.weight": torch.zeros(3, 24), "conv.bias": torch.zeros(6)}
    rows = Codes(torch.ones(6, 36, dtype=torch.int32), torch.rand(6) + 0.1)
    flat = Codes(torch.zeros(3, 24, dtype=torch.int32), torch.ones(1))
    model = RoundedWeights(state, {"conv.weight": rows, "last.weight": flat}, ["conv.bias"], "rows")
    assert torch.allclose(model.codes()["conv.weight"].steps, rows.steps, rtol=1e-5)
    weights, size, _ = model()
    assert not weights["last.weight"].any() and not weights["conv.bias"].any() and torch.isfinite(size)
