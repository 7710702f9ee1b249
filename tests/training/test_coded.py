"""Networks trained so that their integers fit a number of bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from netspace.models.coded import Coded
from netspace.models.rounded_weights import RoundedWeights
from netspace.networks.rounding import Codes, round_rows, round_step
from netspace.run_folder import read_metrics
from netspace.tasks import Classification, DataConfig, load
from netspace.training.coded import CodedConfig, CodedLearner, Start, train_coded, trimmed
from netspace.training.fit import Original
from netspace.training.network import NetworkConfig, train_network
from netspace.training.optimizers import OptimizerConfig


@pytest.fixture(scope="module")
def task() -> Classification:
    loaded = load(DataConfig(name="digits", limit=600))
    assert isinstance(loaded, Classification)
    return loaded


@pytest.fixture(scope="module")
def original(task: Classification, tmp_path_factory: pytest.TempPathFactory) -> Original:
    torch.manual_seed(0)
    module = nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, 2), nn.ReLU()), *(nn.Flatten(), nn.Linear(64, 10))
    )
    config = NetworkConfig(epochs=12, batch_size=50, optimizer=OptimizerConfig(learning_rate=0.01, schedule="cosine"))
    train_network(module, task, config, tmp_path_factory.mktemp("network"))
    state = {name: value.detach().clone() for name, value in module.state_dict().items()}
    return Original(state, module.requires_grad_(False), task, (1, 8, 8))


def container(codes: Mapping[str, Codes], state: Mapping[str, Tensor]) -> Coded:
    return Coded.of(state, codes, {name: "coded" if name in codes else "half" for name in state})


def begun(original: Original, limit: int, step: float = 0.1, **changes: Any) -> Start:
    names = [name for name, value in original.state.items() if value.dim() > 1]
    steps = {name: step * float(original.state[name].square().mean().sqrt()) for name in names}
    codes = {name: round_step(original.state[name], steps[name]) for name in names}
    return Start(original, codes, limit, container, lambda state: (accuracy(original, state),), **changes)


def accuracy(original: Original, state: Mapping[str, Tensor]) -> float:
    assert original.module is not None and original.task is not None
    logits = functional_call(original.module, dict(state), (original.task.inputs("val", slice(None)),))
    return float((logits.argmax(1) == original.task.targets("val", slice(None))).float().mean())


CONFIG = CodedConfig(steps=150, images=64, precision="float32")


def test_a_trained_file_fits_and_answers_as_untrained_ones_of_that_size_do_not(
    original: Original, tmp_path: Path
) -> None:
    start = begun(original, 1200)
    made = train_coded(start, CONFIG, tmp_path)
    assert 1100 < made.file_bytes() <= 1200
    untrained = trimmed(CodedLearner(start, CONFIG).model, CodedLearner(start, CONFIG).made, 1200)
    trained, other = (accuracy(original, each.reconstruct()) for each in (made, untrained))
    whole = accuracy(original, original.state)
    assert whole > 0.85 and trained > whole - 0.1 and trained > other + 0.1
    sizes = [record["bytes"] for record in read_metrics(tmp_path / "metrics.jsonl") if "steps_a_second" not in record]
    assert len(sizes) == 5 and sizes == sorted(sizes, reverse=True) and sizes[0] > 1300


def test_a_training_goes_on_where_it_stopped(
    original: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG.model_copy(update={"steps": 20})
    monkeypatch.setattr("netspace.training.loop.CHECKPOINT_EVERY", 0.0)
    whole = train_coded(begun(original, 1500), config, tmp_path / "whole").payload()
    price = CodedLearner.price

    def dying(self: CodedLearner, size: float, number: int) -> float:
        if number == 13:
            raise KeyboardInterrupt
        return price(self, size, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CodedLearner, "price", dying)
        train_coded(begun(original, 1500), config, tmp_path / "stopped")
    assert train_coded(begun(original, 1500), config, tmp_path / "stopped").payload() == whole


def test_inputs_without_labels_serve_too_and_so_do_feature_maps(original: Original, tmp_path: Path) -> None:
    assert original.task is not None
    alone = Original(original.state, original.module, None, original.input_shape)
    start = begun(original, 1500)
    start = Start(alone, start.codes, 1500, container, start.score, original.task.inputs("train", slice(200)))
    config = CONFIG.model_copy(update={"steps": 40, "features": 0.01})
    learner = CodedLearner(start, config)
    terms = learner.terms(learner.model, 0, 0)
    assert set(terms) == {"distillation", "features", "bytes"}
    assert train_coded(start, config, tmp_path).file_bytes() <= 1500


def test_without_a_price_bits_are_kept(original: Original) -> None:
    start = begun(original, 10**6)
    names = list(start.codes)
    codes = {name: round_rows(original.state[name], 3) for name in names}
    start = Start(original, codes, 10**6, container, start.score)
    learner = CodedLearner(start, CONFIG.model_copy(update={"bits": 3, "learnt_steps": "rows"}))
    assert "bytes" not in learner.terms(learner.model, 0, 0)
    made = learner.result()
    for name in names:
        value = made.entries[name].value
        assert isinstance(value, Codes) and torch.equal(value.values, codes[name].values)


def test_the_price_rises_while_the_file_is_too_large_and_falls_while_it_is_small(original: Original) -> None:
    learner = CodedLearner(begun(original, 1000), CONFIG)
    goals = [learner.goal(number) for number in range(150)]
    assert goals[0] == pytest.approx(learner.made().file_bytes()) and goals[-1] == goals[90] == pytest.approx(985)
    assert goals == sorted(goals, reverse=True)
    prices = [learner.price(2000.0, 100) for _ in range(5)]
    assert prices == sorted(prices)
    prices = [learner.price(100.0, 100) for _ in range(5)]
    assert prices == sorted(prices, reverse=True)


def test_training_begins_with_other_tensors_where_they_are_given(original: Original) -> None:
    codes = begun(original, 10**6).codes
    other = {name: value + 0.25 for name, value in original.state.items()}
    start = begun(original, 10**6, tensors={name: other[name] for name in ("0.weight", "0.bias")})
    learner = CodedLearner(start, CONFIG)
    weights = learner.made().reconstruct()
    step = codes["0.weight"].steps.max()
    assert (weights["0.weight"] - other["0.weight"]).abs().max() <= 0.51 * step
    torch.testing.assert_close(weights["0.bias"], other["0.bias"], atol=0.02, rtol=0)
    torch.testing.assert_close(weights["2.bias"], original.state["2.bias"], atol=0.02, rtol=0)
    assert torch.equal(learner.state_dict["0.weight"], original.state["0.weight"])  # the teacher is the original


def test_tied_weights_are_trained_once() -> None:
    module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    module[2].weight = module[0].weight
    shared = module[0].weight.detach().clone()
    state = {"0.weight": shared, "0.bias": torch.randn(6), "2.weight": shared, "2.bias": torch.randn(6)}
    codes = {name: round_step(shared, 0.1) for name in ("0.weight", "2.weight")}
    start = Start(Original(state, module), codes, 10**6, container, lambda state: (0.0,), torch.randn(30, 6))
    learner = CodedLearner(start, CONFIG)
    assert list(learner.model.codes()) == ["0.weight", "0.bias", "2.bias"]
    learner.terms(learner.model, 0, 0)["distillation"].backward()
    assert learner.model.values[0].grad.abs().sum() > 0
    back = learner.result().reconstruct()
    assert list(back) == list(state) and back["0.weight"] is back["2.weight"]


def test_the_smallest_weights_go_first_and_all_of_them_if_need_be(original: Original) -> None:
    start = begun(original, 1000)
    model = CodedLearner(start, CONFIG).model
    assert isinstance(model, RoundedWeights)

    def make(codes: Mapping[str, Codes]) -> Coded:
        return container(codes, original.state)

    before = model.codes()
    made = trimmed(model, make, 1800)
    assert 1700 < made.file_bytes() <= 1800
    for index, name in enumerate(model.names):
        after = made.entries[name].value
        assert isinstance(after, Codes)
        magnitude, kept = model.integers(index)[1].abs(), after.values != 0
        gone = (before[name].values != 0) & ~kept
        assert gone.any() and magnitude[gone].max() <= magnitude[kept].min()
    least = trimmed(model, make, 1)
    assert not any(value.any() for name, value in least.reconstruct().items() if name in start.codes)
