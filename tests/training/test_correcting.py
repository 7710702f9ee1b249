"""Corrections of batch norms and biases: exact where outputs are turned by channel, whatever is shown; nothing where nothing is wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from netspace.compression.correct import corrected

LAYERS = ("0.weight", "3.weight", "6.weight")


@pytest.fixture
def module() -> nn.Module:
    """Batch norm behind a layer, and layers with biases, in float64; norms' statistics are far from those of any input here."""
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU()
    module = nn.Sequential(*parts, nn.Flatten(), nn.Linear(64, 3)).double().eval()
    nn.init.normal_(module[1].running_mean)  # type: ignore[arg-type]
    nn.init.uniform_(module[1].running_var, 0.1, 2.0)  # type: ignore[arg-type]
    return module


def shown(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.7


def run(module: nn.Module, state: dict[str, Tensor], inputs: Tensor) -> Tensor:
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    module.load_state_dict(state)
    with torch.no_grad():
        found: Tensor = module(inputs)
    module.load_state_dict(kept)
    return found


def test_filters_of_another_size_are_made_up_for_on_all_inputs(module: nn.Module) -> None:
    state = {name: value.clone() for name, value in module.state_dict().items()}
    changed = {**state, "0.weight": state["0.weight"] * torch.tensor([0.6, 1.0, 1.3, 1.9, 0.8]).view(-1, 1, 1, 1)}
    better = corrected(module, state, changed, LAYERS, shown(8, 1))
    others = shown(6, 2) * 3
    wanted = run(module, state, others)
    assert (run(module, changed, others) - wanted).abs().max() > 0.05
    assert (run(module, better, others) - wanted).abs().max() < 1e-4
    assert all(torch.equal(module.state_dict()[name], value) for name, value in state.items()), "the module stays"


def test_mean_outputs_are_those_of_the_original(module: nn.Module) -> None:
    state, inputs = {name: value.clone() for name, value in module.state_dict().items()}, shown(32, 1)
    changed = {name: value + 0.1 if name in LAYERS else value for name, value in state.items()}
    better = corrected(module, state, changed, LAYERS, inputs)
    assert {name for name in state if not torch.equal(better[name], changed[name])} == {
        "1.running_mean",
        "1.running_var",
        "3.bias",
        "6.bias",
    }
    wanted, found, before = (run(module, each, inputs).mean(dim=0) for each in (state, better, changed))
    torch.testing.assert_close(found, wanted)
    assert (before - wanted).abs().max() > 0.05
    alone = corrected(module, state, changed, LAYERS[:1], inputs)
    assert torch.equal(alone["6.bias"], state["6.bias"]), "biases of represented layers alone"


def test_nothing_wrong_nothing_changed(module: nn.Module) -> None:
    state = module.state_dict()
    better = corrected(module, state, state, LAYERS, shown(8, 1))
    for name, value in state.items():
        torch.testing.assert_close(better[name], value, rtol=1e-12, atol=1e-12)


def test_channels_that_do_not_vary_and_layers_called_twice_are_left(module: nn.Module) -> None:
    with torch.no_grad():
        module[0].weight[2] = 0  # type: ignore[index]
    state = {name: value.clone() for name, value in module.state_dict().items()}
    better = corrected(module, state, {**state, "3.bias": state["3.bias"] + 1}, LAYERS, shown(8, 1))
    assert all(value.isfinite().all() for value in better.values()) and better["1.running_var"][2] == pytest.approx(
        float(state["1.running_var"][2])
    )

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.as_tensor(self.norm(self.norm(x)))

    twice = Twice().eval()
    wrong = {**twice.state_dict(), "norm.weight": torch.full((3,), 2.0)}
    assert all(
        torch.equal(value, wrong[name])
        for name, value in corrected(twice, twice.state_dict(), wrong, (), torch.rand(9, 3)).items()
    )


class Transposed(nn.Module):
    """A linear layer of tokens (B, T, C) with its weight as (inputs, outputs), as GPT-2 has it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens @ self.weight + self.bias


@pytest.mark.parametrize(("length", "is_corrected"), [(5, True), (7, False)])
def test_the_axis_of_a_bias_is_that_of_its_length(length: int, is_corrected: bool) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(Transposed(6, 7)).double().eval()
    state = {name: value.detach() for name, value in module.state_dict().items()}
    changed = {**state, "0.weight": state["0.weight"] + 0.1}
    inputs = torch.rand(20, length, 6, dtype=torch.float64)
    better = corrected(module, state, changed, ["0.weight"], inputs)
    if is_corrected:
        expected, given = (run(module, each, inputs).mean((0, 1)) for each in (state, better))
        torch.testing.assert_close(given, expected)
    else:  # it could be either axis of 7
        assert torch.equal(better["0.bias"], state["0.bias"])


@pytest.mark.parametrize("shape", [(4, 6, 6), (4, 4, 4)])
def test_biases_of_several_axes_are_left(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.LayerNorm(shape)).double().eval()
    state = {name: value.detach() for name, value in module.state_dict().items()}
    changed = {**state, "0.weight": state["0.weight"] + 0.1}
    better = corrected(module, state, changed, ["0.weight"], torch.rand(20, *shape, dtype=torch.float64))
    assert torch.equal(better["0.bias"], state["0.bias"])
