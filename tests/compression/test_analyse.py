"""The analysis of a compressed network: what is known of its figures beforehand, and what only weights tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from netspace.compression.analyse import (
    FACTORS,
    SHARES,
    alignment,
    analyse,
    features,
    fresh,
    singular_ratio,
)
from netspace.compression.fit import begin, fit
from netspace.errors import NetspaceError
from netspace.metrics import linear_cka
from netspace.networks.kernels import Kernels, Layer
from netspace.results.compressed import ActivationMaps, Analysis
from netspace.training.recipe import FitConfig

MEMBER = "resnet/0000"
SHORT: dict[str, Any] = {"predictor": {"hidden": 16}, "stages": [{"steps": 5, "kernels": 64}]}


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    parts = (nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(144, 3))
    return nn.Sequential(*parts).requires_grad_(False).eval()


def test_a_member_is_analysed(multi_zoo: Path, tmp_path: Path) -> None:
    fitted = fit(MEMBER, tmp_path / "c", FitConfig.model_validate(SHORT), multi_zoo)
    file = tmp_path / "c" / "compressed.safetensors"
    result = analyse(file, MEMBER, multi_zoo)
    assert Analysis.read(tmp_path / "c" / "analysis.json") == result
    assert result == analyse(file, MEMBER, multi_zoo)  # what is drawn is drawn by the seed
    maps = ActivationMaps.read(tmp_path / "c" / "activations.json")
    assert maps.images == 500 and maps.layer in result.layers and not {*maps.best.filters} & {*maps.worst.filters}
    ratios = result.singular_ratio
    assert len(result.layers) == len(ratios.original) == len(ratios.reconstructed) == len(result.cka.random)
    assert all(0.5 <= value <= 1 for each in (ratios.original, ratios.reconstructed) for value in each)
    mean = sum(ratios.original) / len(result.layers)
    for key, amounts in (("low_pass", SHARES), ("scale_small", FACTORS)):
        assert [row.amount for row in getattr(result, key)] == list(amounts)
        assert getattr(result, key)[0].accuracy == pytest.approx(fitted.accuracy_original, abs=0.005)
        assert (
            getattr(result, key)[0].singular_ratio == pytest.approx(mean, rel=1e-4)
            and getattr(result, key)[-1].singular_ratio > mean
        )
    gaps = result.generalisation
    assert gaps.training_images == 300
    for key in ("original", "reconstructed"):
        assert getattr(gaps, key).accuracy_test == getattr(fitted, f"accuracy_{key}")
        assert getattr(gaps, key).gap_accuracy == getattr(gaps, key).accuracy_train - getattr(gaps, key).accuracy_test
        assert getattr(gaps, key).gap_loss == abs(getattr(gaps, key).loss_train - getattr(gaps, key).loss_test) > 0
    assert all(0 <= value <= 1 for key in ("reconstructed", "random") for value in getattr(result.cka, key))


def test_of_weights_alone_singular_values_are_told(tmp_path: Path) -> None:
    state = dict(net().state_dict())
    save_file(state, tmp_path / "any.safetensors")
    begin(state, FitConfig.model_validate(SHORT), None).save(tmp_path / "c.safetensors")
    result = analyse(tmp_path / "c.safetensors", str(tmp_path / "any.safetensors"))
    assert result.singular_ratio.original == [singular_ratio(state[name]) for name in ("0.weight", "2.weight")]
    assert result.low_pass is result.scale_small is result.generalisation is result.cka is None
    save_file({"0.weight": torch.zeros(4, 4, 3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(NetspaceError, match=r"holds another network than .*other.safetensors: 0.weight differs"):
        analyse(tmp_path / "c.safetensors", str(tmp_path / "other.safetensors"))


def test_alignment_is_one_for_the_same_network_and_less_for_random_weights() -> None:
    module = net()
    state = dict(module.state_dict())
    layers = Kernels.of(state, ("*.weight",)).layers
    inputs = torch.randn(200, 2, 8, 8)
    result = alignment(module, state, state, inputs, layers)
    assert result.reconstructed == pytest.approx([1.0] * 3) and result.images == 200
    assert all(value < 0.99 for value in result.random)
    turned = {**state, "2.weight": -3 * state["2.weight"], "2.bias": torch.zeros(4)}
    assert alignment(module, state, turned, inputs, layers).reconstructed[1] == pytest.approx(1.0)


def test_features_are_what_the_layers_give_pooled() -> None:
    module = net()
    state, inputs = dict(module.state_dict()), torch.randn(140, 2, 8, 8)
    layers = Kernels.of(state, ("*.weight",)).layers
    actual = features(module, state, inputs, layers)
    assert [tuple(actual[layer.name].shape) for layer in layers] == [(140, 96), (140, 64), (140, 3)]
    maps = module[0](inputs).unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean(dim=(3, 5))
    torch.testing.assert_close(actual["0.weight"], maps.flatten(1))
    assert linear_cka(actual["4.weight"], module(inputs)) == pytest.approx(1.0)


class Tokens(nn.Module):
    """Attention over 5 tokens, and a matrix that is never run."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.first, self.idle = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        stored = self.first(tokens)
        return torch.as_tensor(self.attention(stored, stored, stored)[0]).mean(dim=1)


def test_features_of_tokens_and_of_modules_that_are_not_called() -> None:
    module = Tokens().eval().requires_grad_(False)
    state, inputs = dict(module.state_dict()), torch.randn(20, 5, 6)
    layers = [Layer(name, tuple(value.shape)) for name, value in state.items() if value.dim() == 2]
    actual = features(module, state, inputs, layers)
    assert {name: tuple(value.shape) for name, value in actual.items()} == {
        "first.weight": (20, 30),
        "attention.in_proj_weight": (20, 30),
    }
    result = alignment(module, state, state, inputs, layers).reconstructed
    by_name = dict(zip([layer.name for layer in layers], result, strict=True))
    assert by_name["idle.weight"] is None and by_name["first.weight"] == pytest.approx(1.0)


def test_fresh_weights_are_other_weights_by_the_seed_and_leave_the_module_alone() -> None:
    module = net()
    before, stored = torch.random.get_rng_state(), {name: value.clone() for name, value in module.state_dict().items()}
    first, again, other = fresh(module), fresh(module), fresh(module, 1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(stored[name], value) for name, value in module.state_dict().items())
    assert all(torch.equal(first[name], again[name]) for name in stored)
    assert not any(torch.equal(first[name], each[name]) for each in (stored, other) for name in stored)


class Parts(nn.Module):
    """Parameters of the module itself, attention, and a layer whose class draws nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.scale = nn.Parameter(torch.randn(1, 1, 64)), nn.Parameter(1 + 0.1 * torch.randn(64))
        self.attention = nn.MultiheadAttention(64, 2)


def test_fresh_weights_of_attention_and_of_bare_parameters_are_other_ones() -> None:
    torch.manual_seed(0)
    module = Parts().requires_grad_(False)
    for value in module.attention.parameters():
        value.add_(0.3)
    first, again = fresh(module), fresh(module)
    for name, value in module.state_dict().items():
        assert torch.equal(first[name], again[name]) and not torch.equal(first[name], value), name
    assert not first["attention.out_proj.bias"].any() and not first["attention.in_proj_bias"].any()
    assert float(first["scale"].mean()) == pytest.approx(1, abs=0.1)
    assert float(first["scale"].std()) == pytest.approx(float(module.scale.std()), rel=0.4)
