"""Networks in so many bytes: the budget is used, more bytes are less error, and bits are spent where they count."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from netspace.errors import UsageError
from netspace.models.budget import code_in, distortion, relative_steps, round_state, steps_for_budget
from netspace.models.coded import Coded
from netspace.networks.rounding import Codes, round_cheaply, round_step

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def network() -> tuple[State, State]:
    """Return a state dict and sensitivities that vary between layers and weights."""
    torch.manual_seed(0)
    state = {
        "a.weight": torch.randn(32, 16, 3, 3) * torch.rand(32, 16, 1, 1) * 0.1,
        "a.bias": torch.randn(32),
        "b.weight": torch.randn(10, 288) * 0.3,
        "count": torch.tensor(7),
        "dead.weight": torch.randn(4, 4),
    }
    sensitivities = {name: torch.rand(value.shape) ** 4 for name, value in state.items() if name != "count"}
    sensitivities["b.weight"] *= 100
    sensitivities["dead.weight"] *= 0
    return state, sensitivities


def codes_of(coded: Coded) -> dict[str, Codes]:
    return {name: entry.value for name, entry in coded.entries.items() if isinstance(entry.value, Codes)}


def test_a_budget_is_used_and_more_bytes_are_less_error(network: tuple[State, State]) -> None:
    errors = []
    for budget in (1500, 3000, 6000):
        coded = code_in(budget, *network)
        assert 0.99 * budget <= coded.file_bytes() <= budget
        errors.append(distortion(network[0], codes_of(coded), network[1]))
        assert int(coded.reconstruct()["count"]) == 7
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_a_budget_that_all_fits_in_is_not_used_up(network: tuple[State, State]) -> None:
    state = {"w": torch.zeros(30, 30), "v": torch.ones(30, 2)}
    assert code_in(10_000, state, {name: torch.ones_like(value) for name, value in state.items()}).file_bytes() < 10_000


def test_a_budget_below_the_smallest_file_is_told(network: tuple[State, State]) -> None:
    with pytest.raises(
        UsageError, match=r"at most 100 bytes was asked for, but the smallest of this network takes \d+: give more"
    ):
        code_in(100, *network)


def test_steps_are_by_sensitivity_and_vectors_are_fine(network: tuple[State, State]) -> None:
    state, sensitivities = network
    even = relative_steps(state, sensitivities, power=0)
    deviations = [float(state[name].square().mean().sqrt()) for name in ("a.weight", "b.weight")]
    assert even["a.weight"] / even["b.weight"] == pytest.approx(deviations[0] / deviations[1], rel=1e-5)
    steps = relative_steps(state, sensitivities, power=1)
    assert steps["a.weight"] / steps["b.weight"] == pytest.approx(
        math.sqrt(float(sensitivities["b.weight"].mean() / sensitivities["a.weight"].mean())), rel=1e-5
    )
    assert math.isfinite(steps["dead.weight"]) and "count" not in steps
    codes = round_state(state, sensitivities, {name: 10 * step for name, step in steps.items()})
    span = codes["a.bias"].values
    assert int(span.max() - span.min()) >= 255
    with pytest.raises(UsageError, match="no tensor has a positive, finite sensitivity"):
        relative_steps(state, {name: each * 0 for name, each in sensitivities.items()})


def test_equal_bytes_have_less_error_by_sensitivity(network: tuple[State, State]) -> None:
    """Against one step for all, and against rounding to the nearest."""
    state, sensitivities = network
    alike = {name: torch.ones_like(value) for name, value in sensitivities.items()}
    plain, nearest, chosen = (
        distortion(
            state, codes_of(code_in(3000, state, by, rate_weight=weight, unbiased=False, power=1)), sensitivities
        )
        for by, weight in ((alike, 0.0), (sensitivities, 0.0), (sensitivities, 0.1))
    )
    assert chosen < 0.95 * nearest < 0.8 * plain


def test_pruned_weights_are_those_that_count_least(network: tuple[State, State]) -> None:
    state, sensitivities = network
    steps = {"a.weight": 1e-5, "b.weight": 1e-5, "a.bias": 0.01}
    codes = round_state(state, sensitivities, steps, 0, pruned=0.5)
    kept = torch.cat([codes[name].values.flatten() != 0 for name in ("a.weight", "b.weight")])
    scores = torch.cat([(state[name].square() * sensitivities[name]).flatten() for name in ("a.weight", "b.weight")])
    assert float(kept.float().mean()) == pytest.approx(0.5, abs=0.01)
    assert float(scores[~kept].max()) <= float(scores[kept].min()) * 1.001
    assert bool((codes["a.bias"].values != 0).any())
    with pytest.raises(UsageError, match="at least 0 and below 1"):
        round_state(state, sensitivities, steps, 0, pruned=1.0)


def test_cheap_values_are_near_ones_nearer_to_zero() -> None:
    weight = torch.randn(20, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    nearest, even = round_step(weight, 0.7).values, torch.ones_like(weight)
    cheap = round_cheaply(weight, 0.7, even, 0.15).values
    assert torch.equal(round_cheaply(weight, 0.7, even, 1e-9).values, nearest)
    moved = cheap != nearest
    assert 0.02 < float(moved.float().mean()) < 0.3
    assert bool((cheap.abs() <= nearest.abs()).all()) and bool((cheap * nearest >= 0).all())
    ratio = (weight.flatten(1) / 0.7).abs()
    assert float((ratio - cheap.abs())[moved].min()) > 0.5  # none was cheap and near at once


def test_layers_do_not_shrink(network: tuple[State, State]) -> None:
    state, sensitivities = network
    steps = {"a.weight": 2.5 * float(state["a.weight"].std())}
    for unbiased in (False, True):
        codes = round_state(state, sensitivities, steps, 0, unbiased=unbiased)
        weight, rounded = state["a.weight"].double(), codes["a.weight"].restore(state["a.weight"].shape).double()
        ratio = float((weight * rounded).sum() / weight.square().sum())
        assert ratio == pytest.approx(1, abs=1e-6) if unbiased else ratio < 0.95


def test_corrected_vectors_are_stored_within_the_budget(network: tuple[State, State]) -> None:
    state, sensitivities = network
    calls = []

    def correct(rounded: State) -> State:
        calls.append(rounded)
        return {**rounded, "a.bias": rounded["a.bias"] * 2.5}

    coded = code_in(3000, state, sensitivities, correct=correct)
    assert 0.98 * 3000 <= coded.file_bytes() <= 3000
    stored = coded.reconstruct()
    torch.testing.assert_close(stored["a.bias"], calls[-1]["a.bias"] * 2.5, rtol=0, atol=0.02)
    assert torch.equal(stored["b.weight"], calls[-1]["b.weight"])


def test_steps_are_those_of_the_file(network: tuple[State, State]) -> None:
    steps = steps_for_budget(*network, 3000)
    assert steps == {name: float(each.steps) for name, each in codes_of(code_in(3000, *network)).items()}
