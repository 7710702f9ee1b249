"""Rounding that makes up for its errors: against slow sums and outputs, for every kind of layer that does, and those that do not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from budgets import NET_ARCH, net_file, settings
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import weight_norm

from netspace.compression import compensate
from netspace.compression.compensate import Compensation, _patches, _Sums
from netspace.compression.judging import Inputs, Judge
from netspace.compression.originals import find_original
from netspace.compression.trained import whole_fits
from netspace.compression.ways import UNTRAINED, compensated
from netspace.compression.work import Work
from netspace.models.coded_predictor import load_any
from netspace.networks.rounding import as_rows, round_step
from netspace.results.budget import Tried

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (6,)),
    "linear of tokens": (lambda: nn.Linear(6, 4, bias=False), (5, 6)),
    "convolution": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 7, 6)),
    "stride, dilation": (lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(0, 1)), (3, 8, 9)),
    "groups": (lambda: nn.Conv2d(6, 9, 3, groups=3), (6, 5, 5)),
    "one axis": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), (4, 11)),
}


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 5),
    ).eval()


def smooth(count: int, seed: int = 1) -> Tensor:
    """Return inputs (B, 3, 6, 6) whose neighbouring pixels are alike, as those of pictures are."""
    noise = torch.randn((count, 3, 8, 8), generator=torch.Generator().manual_seed(seed))
    return nn.functional.avg_pool2d(noise, 3, 1) * 3


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if value.dim() > 1}


def steps_of(weights: dict[str, Tensor], factor: float = 1.0) -> dict[str, float]:
    return {name: factor * float(value.square().mean().sqrt()) for name, value in weights.items()}


@pytest.mark.parametrize("kind", LAYERS)
def test_patches_times_weights_are_the_outputs_of_a_layer(kind: str) -> None:
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    part, inputs = make(), torch.randn(5, *shape)
    groups = getattr(part, "groups", 1)
    patches = _patches(part, inputs)
    rows = as_rows(part.weight).view(groups, -1, patches.shape[2])
    outputs = (
        part(inputs)
        if part.bias is None
        else part(inputs) - functional_call(part, {"weight": torch.zeros_like(part.weight)}, (inputs,))
    )
    axis = -1 if isinstance(part, nn.Linear) else 1
    expected = outputs.movedim(axis, 0).flatten(1)  # (R of all groups, N)
    torch.testing.assert_close((rows @ patches.mT).flatten(0, 1), expected, rtol=1e-4, atol=1e-5)


def test_sums_are_those_of_all_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(compensate, "CHUNK_VALUES", 10_000)
    part = nn.Conv2d(4, 6, 3, groups=2)
    one, two = torch.randn(150, 4, 5, 5), torch.randn(150, 4, 5, 5)  # more than are taken at once
    sums = _Sums.of(part, one, two)
    x, y = _patches(part, one).double(), _patches(part, two).double()
    for group in range(2):
        count = x.shape[1]
        torch.testing.assert_close(sums.squares[group], x[group].T @ x[group] / count, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sums.products[group], y[group].T @ x[group] / count, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sums.mean[group], x[group].mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sums.original_mean[group], y[group].mean(0), rtol=1e-4, atol=1e-5)


def test_of_many_patches_some_are_taken_of_some_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    part, inputs = nn.Conv2d(2, 3, 3), torch.randn(80, 2, 8, 8)  # 36 patches of each
    monkeypatch.setattr(compensate, "MAX_PATCHES", 100)
    x = _patches(part, inputs[::5])[0, ::5].double()  # of 16 inputs, 116 in all
    torch.testing.assert_close(_Sums.of(part, inputs, inputs).squares[0], x.T @ x / len(x), rtol=1e-5, atol=1e-5)


def test_outputs_are_nearer_than_those_of_nearest_integers() -> None:
    module, inputs, others = small(), smooth(256), smooth(64, seed=2)
    before, weights = copy.deepcopy(module.state_dict()), weights_of(module)
    compensation = Compensation.of(module, module.state_dict(), inputs)
    assert list(compensation.seen) == list(weights)
    for factor in (0.3, 1.0):
        steps = steps_of(weights, factor)
        codes, biases = compensation.rounded(weights, steps)
        assert list(codes) == list(weights) and set(biases) == {"3.bias", "6.bias"}
        nearest = {name: round_step(value, steps[name]).restore(value.shape) for name, value in weights.items()}
        restored = {name: each.restore(weights[name].shape) for name, each in codes.items()}
        assert all(
            each.steps.tolist() == round_step(weights[name], steps[name]).steps.tolist() for name, each in codes.items()
        )
        expected = module(others)
        errors = [
            float(((functional_call(module, state, (others,)) - expected).norm() / expected.norm()).detach())
            for state in (nearest, {**restored, **biases})
        ]
        assert errors[1] < 0.7 * errors[0], (factor, errors)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not any(part._forward_pre_hooks for part in module.modules())


def test_biases_keep_the_means_of_outputs() -> None:
    module, inputs = small(), smooth(128)
    weights = weights_of(module)
    codes, biases = Compensation.of(module, module.state_dict(), inputs).rounded(weights, steps_of(weights))
    state = {name: each.restore(weights[name].shape) for name, each in codes.items()} | biases
    torch.testing.assert_close(
        functional_call(module, state, (inputs,)).mean(0), module(inputs).mean(0), rtol=1e-3, atol=1e-4
    )


def test_small_steps_give_the_weights_back() -> None:
    module = small()
    weights = weights_of(module)
    codes, biases = Compensation.of(module, module.state_dict(), smooth(64)).rounded(weights, steps_of(weights, 1e-4))
    for name, each in codes.items():
        torch.testing.assert_close(each.restore(weights[name].shape), weights[name], rtol=0, atol=2e-4)
    for name, value in biases.items():
        torch.testing.assert_close(value, module.state_dict()[name], rtol=0, atol=1e-4)


class Odd(nn.Module):
    """Layers that cannot make up for errors, and one that can."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(6, 6)
        self.twice = nn.Linear(6, 6)
        self.one, self.other = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.other.weight = self.one.weight
        self.normed = weight_norm(nn.Linear(6, 6))
        self.never = nn.Linear(6, 6)
        self.circular = nn.Conv1d(1, 2, 3, padding=1, padding_mode="circular")
        self.same = nn.Conv1d(2, 1, 3, padding="same")
        self.named, self.single = nn.Linear(6, 6), nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.other(self.one(self.twice(self.twice(self.plain(inputs)))))
        outputs = self.same(self.circular(self.normed(hidden)[:, None]))[:, 0]
        return self.named(input=outputs) + self.single(outputs[:1])  # no batch: one row of a map


def test_layers_that_cannot_make_up_for_errors_are_rounded_to_the_nearest() -> None:
    torch.manual_seed(0)
    module = Odd().eval()
    state = dict(module.state_dict(keep_vars=True))
    state = {name: value.detach() if name != "other.weight" else None for name, value in state.items()}
    state["other.weight"] = state["one.weight"]
    weights = {name: value for name, value in state.items() if value.dim() > 1 and name != "other.weight"}
    steps = steps_of(weights)
    compensation = Compensation.of(module, state, torch.randn(64, 6))
    assert list(compensation.seen) == ["plain.weight"]
    codes, biases = compensation.rounded(weights, steps)
    assert list(codes) == list(weights) and list(biases) == ["plain.bias"]
    for name, each in codes.items():
        same = torch.equal(each.values, round_step(weights[name], steps[name]).values)
        assert same is (name != "plain.weight"), name


def test_layers_that_get_nothing_or_are_too_large_are_rounded_to_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        module[0].bias.fill_(-100.0)  # nothing passes
    weights, inputs = weights_of(module), torch.randn(32, 4)
    codes, _ = Compensation.of(module, module.state_dict(), inputs).rounded(weights, steps_of(weights))
    assert torch.equal(codes["2.weight"].values, round_step(weights["2.weight"], steps_of(weights)["2.weight"]).values)
    monkeypatch.setattr(compensate, "MAX_COLUMNS", 3)
    assert list(Compensation.of(module, module.state_dict(), inputs).seen) == ["2.weight"]


class Query(nn.Module):
    """Attention of one learnt query: its linear layer gets the same for all inputs (B, T, 24)."""

    def __init__(self) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.randn(1, 1, 24))
        self.query, self.head = nn.Linear(24, 24), nn.Linear(24, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        query = self.query(self.latent.expand(len(inputs), -1, -1))
        return self.head((query @ inputs.mT).softmax(2) @ inputs)[:, 0]


@pytest.mark.parametrize("seed", range(3))
def test_a_layer_whose_inputs_do_not_vary_is_rounded_to_the_nearest(seed: int) -> None:
    torch.manual_seed(seed)
    module = Query().eval()
    state = {name: value.detach() for name, value in module.state_dict().items()}
    weights = {name: value for name, value in state.items() if name.endswith("weight")}
    steps = steps_of(weights, 0.3)
    codes, biases = Compensation.of(module, state, torch.randn(256, 7, 24)).rounded(weights, steps)
    same = {name: torch.equal(codes[name].values, round_step(weights[name], steps[name]).values) for name in weights}
    assert same == {"query.weight": True, "head.weight": False} and set(biases) == {"query.bias", "head.bias"}


class Experts(nn.Module):
    """A mixture of experts: which rows a layer gets depends on the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts, self.head = (
            nn.Linear(8, 3),
            nn.ModuleList(nn.Linear(8, 8) for _ in "abc"),
            nn.Linear(8, 2),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        outputs, chosen = torch.zeros_like(inputs), self.gate(inputs).argmax(1)
        for index, expert in enumerate(self.experts):
            if (rows := chosen == index).any():
                outputs[rows] = expert(inputs[rows])
        return torch.as_tensor(self.head(outputs))


def test_experts_that_get_other_rows_or_none_are_rounded_to_the_nearest() -> None:
    torch.manual_seed(0)
    module = Experts().eval()
    state, weights, inputs = module.state_dict(), weights_of(module), torch.randn(64, 8)
    compensation = Compensation.of(module, state, inputs)
    experts = {f"experts.{index}.weight" for index in range(3)}
    assert experts <= compensation.seen.keys()
    for factor in (1.0, 50.0):  # with the latter the gate is zero, so that the first expert gets all rows
        steps = steps_of(weights, 0.5) | {"gate.weight": factor * float(weights["gate.weight"].std())}
        codes, biases = compensation.rounded(weights, steps)
        assert list(codes) == list(weights)
        for name in experts - {f"{each.removesuffix('bias')}weight" for each in biases}:
            assert torch.equal(codes[name].values, round_step(weights[name], steps[name]).values)
    assert not any(name.startswith("experts") for name in biases)


def test_as_many_inputs_as_memory_is_taken_for(monkeypatch: pytest.MonkeyPatch) -> None:
    module, inputs = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.randn(50, 4)
    assert len(Compensation.of(module, module.state_dict(), inputs).inputs) == 50
    monkeypatch.setattr(compensate, "MAX_BYTES", 20 * 4 * (4 + 8))
    made = Compensation.of(module, module.state_dict(), inputs)
    assert len(made.inputs) == 20 and [len(each) for each in made.seen.values()] == [20, 20]


def make_work(folder: Path, **changes: Any) -> Work:
    original, spec = find_original(net_file(folder), None, arch=NET_ARCH)
    original.input_shape = (3, 8, 8)
    judge = Judge(original, Inputs.of(original, "net", None, (3, 8, 8)), "net")
    return Work("net", original, spec, judge, settings(**changes), folder)


@pytest.mark.parametrize("limit", [1_500, 2_500])
def test_mixed_takes_what_is_better_in_as_many_bytes(tmp_path: Path, limit: int) -> None:
    scores, words = [], []
    for wanted in (False, True):
        work, path = make_work(tmp_path, compensate=wanted), tmp_path / f"{wanted}.safetensors"
        words.append(UNTRAINED["mixed"](work, limit, path))
        assert path.stat().st_size <= limit
        scores.append(work.likeness(load_any(path).reconstruct()))
    assert scores[1] >= scores[0] and "compensated" not in words[0]
    assert (scores[1] > scores[0]) is words[1].endswith(", errors compensated")


def test_some_file_is_compensated(tmp_path: Path) -> None:
    work = make_work(tmp_path)
    assert UNTRAINED["mixed"](work, 2_500, tmp_path / "m.safetensors").endswith(", errors compensated")
    assert work.compensation() is work.compensation()
    work.judge.inputs, work._compensation = Inputs("weights"), None
    assert work.compensation() is None


def test_the_training_of_mixed_begins_where_errors_are_made_up_for(tmp_path: Path) -> None:
    work = make_work(tmp_path, steps=2)
    made = compensated(work, 2_500)
    assert made is not None and compensated(work, 2_500) is made  # which is kept
    (candidate,) = whole_fits(work, Tried(way="mixed", budget=2_500)).values()
    path = tmp_path / "trained.safetensors"
    assert candidate.make(work, 2_500, path) == "learnt steps, errors compensated at first"
    assert path.stat().st_size <= 2_500
    begun, trained = made[0].reconstruct(), load_any(path).reconstruct()
    far = torch.cat([(trained[name].float() - begun[name].float()).flatten() for name in work.judge.represented])
    nearest = UNTRAINED["mixed"](make_work(tmp_path, compensate=False), 2_500, tmp_path / "nearest.safetensors")
    other = load_any(tmp_path / "nearest.safetensors").reconstruct()
    off = torch.cat([(other[name].float() - begun[name].float()).flatten() for name in work.judge.represented])
    assert far.norm() < off.norm() and "compensated" not in nearest  # two steps do not go far
    plain = make_work(tmp_path, compensate=False, steps=2)
    (candidate,) = whole_fits(plain, Tried(way="mixed", budget=2_500)).values()
    assert candidate.make(plain, 2_500, tmp_path / "plain.safetensors") == "learnt steps"
    assert compensated(make_work(tmp_path), 100) is None  # fits nowhere
