"""Training a weight function: which networks a step has, the terms of Eq. 10, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from netspace.errors import UsageError
from netspace.models.weight_function import FunctionConfig
from netspace.networks.resizing import recalibrate
from netspace.networks.widths import Widths, find_widths, resized
from netspace.saved_morph import make_function
from netspace.tasks import DataConfig, Task, load
from netspace.training.morph import (
    MorphConfig,
    MorphLearner,
    MorphLossConfig,
    MorphStageConfig,
    WidthsConfig,
    fill,
    weight_error,
)
from netspace.training.network import calibration, network_score
from netspace.training.optimizers import OptimizerConfig


@pytest.fixture(scope="module")
def task() -> Task:
    return load(DataConfig(name="digits", image_size=8))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, stride=2), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def learner(task: Task | None, **settings: Any) -> MorphLearner:
    config = MorphConfig(**{"batch_size": 32, "validate_every": 100, **settings})
    module = net()
    info = find_widths(module, torch.zeros(2, 1, 8, 8), "net")
    function = make_function(module, info, config.function, 0)
    function.start({key: value.detach() for key, value in module.named_parameters()})
    made = MorphLearner(module, info, function, task, config)
    made.begin(0)
    return made


def terms(made: MorphLearner, number: int = 0) -> dict[str, float]:
    return {key: float(value.detach()) for key, value in made.terms(made.model, number, 0).items()}


def test_networks_run_in_the_precision_that_is_asked_for(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 the terms differ by rounding; 'auto' is whatever a trial of the step finds faster, and the trial changes nothing."""
    exact, rounded = terms(learner(task)), terms(learner(task, precision="bf16"))
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=0.05)
    made = learner(task)
    before = {name: value.clone() for name, value in made.model.state_dict().items() if name.startswith("function")}
    seen = []

    def choose(subject: str, asked: dict[str, str], trial: Any, device: torch.device) -> dict[str, str]:
        seen.append(asked)
        trial({"precision": "bf16"})
        return {"precision": "bf16"}

    monkeypatch.setattr("netspace.training.morph.choose", choose)
    assert made.timed_precision() == {"precision": "bf16"}
    assert seen == [{"precision": "auto"}] and made.config.precision == "auto"
    after = made.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(value.grad is None for value in made.model.parameters())
    assert learner(None, stages=(MorphStageConfig(learns="weights", steps=2),)).timed_precision() == {
        "precision": "float32"
    }


def test_a_step_has_the_full_and_the_narrowest_network_and_random_ones_between(task: Task) -> None:
    made = learner(task, widths=WidthsConfig(narrowest=0.5, random=3, smooth=0.5, band=0.25))
    full = made.info.full()
    bands = []
    for number in range(40):
        first, last, *random = made.choices(made._random(number, 0))
        assert first == (full, None) and last == (made.info.at(0.5), None)
        assert len(random) == 3
        for widths, band in random:
            fractions = [n / size for n, size in zip(widths, full, strict=True)]
            assert all(0.5 - 1e-9 <= each <= 1 for each in fractions)
            assert max(fractions) - min(fractions) < 0.1  # one gamma for all groups, but for rounding
            bands.append(band)
    smoothed = [band for band in bands if band is not None]
    assert 0.3 < len(smoothed) / len(bands) < 0.7
    assert all(0.25 <= band <= 1 for band in smoothed)


def test_groups_may_have_a_gamma_each(task: Task) -> None:
    made = learner(task, widths=WidthsConfig(narrowest=0.5, random=1, each_group=True, sandwich=False))
    drawn = [made.choices(made._random(number, 0)) for number in range(40)]
    assert all(len(each) == 1 for each in drawn)
    assert any(abs(widths[0] / 12 - widths[1] / 16) > 0.2 for [(widths, _)] in drawn)


def test_the_terms_of_a_step(task: Task) -> None:
    """By hand: the task's loss of the full network, the divergence of others from its outputs, the weights' terms."""
    widths = WidthsConfig(random=0)
    made = learner(task, widths=widths, loss=MorphLossConfig(reconstruction=2.0, regularisation=0.01))
    assert made.images is not None
    inputs, index = made.images.take(0, 32)
    full, narrow = (made.function(each) for each in (made.info.full(), made.info.at(0.5)))
    with torch.no_grad():
        one, two = (made.model(inputs, each) for each in (full, narrow))
        found = terms(made)
        assert found["task"] == pytest.approx(float(task.training_loss(one, task.targets("train", index))), rel=1e-5)
        assert found["distillation"] == pytest.approx(float(task.behaviour_loss(two, one)), rel=1e-4)
        assert found["reconstruction"] == pytest.approx(2 * float(weight_error(full, made.target)), rel=1e-5)
        squares = sum(float(value.square().sum()) for value in full.values())
        assert found["regularisation"] == pytest.approx(0.01 * squares, rel=1e-5)


def test_without_distillation_all_networks_learn_the_targets(task: Task) -> None:
    made = learner(task, widths=WidthsConfig(random=1), loss=MorphLossConfig(distillation=False))
    assert set(terms(made)) == {"task"}


def test_reconstruction_fades(task: Task) -> None:
    loss = MorphLossConfig(reconstruction=1.0, fade=0.5)
    made = learner(task, loss=loss, stages=(MorphStageConfig(steps=10),))
    values = [terms(made, number).get("reconstruction", 0.0) for number in (0, 2, 4, 5, 9)]
    assert values[0] > values[1] > values[2] > 0 == values[3] == values[4]
    assert values[1] == pytest.approx(0.6 * values[0], rel=1e-5)


def test_reconstruction_is_of_the_full_network_whichever_widths_are_drawn(task: Task) -> None:
    widths = WidthsConfig(random=1, sandwich=False)
    made = learner(task, widths=widths, loss=MorphLossConfig(distillation=False, reconstruction=1.0))
    with torch.no_grad():
        expected = float(weight_error(made.function(made.info.full()), made.target))
        assert [terms(made, number)["reconstruction"] for number in range(3)] == pytest.approx([expected] * 3)


def test_weight_error_is_a_mean_over_weights_in_units_of_their_tensor() -> None:
    target = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([[0.5]])}
    weights = {"a": torch.tensor([1.5, -2.0]), "b": torch.tensor([[0.0]])}
    first = (0.5 * 0.5**2) / (0.5 * 1 + 1 * 4) * 2
    assert float(weight_error(weights, target)) == pytest.approx((first + 1) / 3)
    assert float(weight_error(target, target)) == 0


def test_some_tensors_get_gradients_in_a_step(task: Task) -> None:
    made = learner(task, tensors=0.4)
    sum(made.terms(made.model, 0, 0).values()).backward()  # type: ignore[union-attr]
    trained = [each.grad is not None and bool(each.grad.any()) for each in made.function.parameters()]
    assert 0 < sum(trained) < len(trained)
    assert made._trained_tensors(0) == made._trained_tensors(0) != made._trained_tensors(3)


def scores(function: nn.Module, info: Widths, module: nn.Module, task: Task) -> list[float]:
    made = []
    for gamma in (0.0, 0.25, 0.5):
        network = resized(module, info, info.at(gamma), 0)
        fill(network, function, info.at(gamma))  # type: ignore[arg-type]
        recalibrate(network, calibration(task, 0, 32))
        made.append(network_score(network, task, "val"))
    return made


def test_all_widths_learn_the_task(task: Task, tmp_path: Path) -> None:
    stage = {"epochs": 2, "optimizer": {"learning_rate": 0.02, "schedule": "cosine"}}
    made = learner(task, stages=[stage])
    before = scores(made.function, made.info, made.module, task)
    after = scores(made.run(tmp_path), made.info, made.module, task)
    assert max(before) < 0.4
    assert min(after) > 0.7  # chance is 0.1


def test_weights_are_learnt_without_data(tmp_path: Path) -> None:
    muon = OptimizerConfig(name="muon", muon_rate=0.03, learning_rate=0.003, schedule="cosine")
    stage = MorphStageConfig(learns="weights", steps=40, optimizer=muon)
    made = learner(None, stages=(stage,), function=FunctionConfig(kind="mlps", hidden=32, frequencies=4))

    def error() -> float:
        with torch.no_grad():
            return float(weight_error(made.function(made.info.full()), made.target))

    before = error()
    made.run(tmp_path)
    assert error() < 0.7 * before


def test_a_resumed_training_ends_as_an_undisturbed_one(task: Task, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"stages": [{"steps": 6}], "validate_every": 3, "sampling": "noisy"}
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = learner(task, **settings).run(tmp_path / "whole").state_dict()
    cut = learner(task, **settings)

    class Killed(Exception):
        pass

    plain = cut.terms

    def dies(model: nn.Module, number: int, part: int) -> dict[str, Tensor]:
        if number == 4:
            raise Killed
        return plain(model, number, part)

    cut.terms = dies  # type: ignore[method-assign]
    with pytest.raises(Killed):
        cut.run(tmp_path / "cut")
    again = learner(task, **settings).run(tmp_path / "cut").state_dict()
    assert all(torch.equal(again[key], value) for key, value in whole.items())


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        ({}, "a stage has epochs or steps"),
        ({"epochs": 1, "steps": 2}, "a stage has epochs or steps"),
        ({"learns": "weights", "epochs": 1}, "it has steps and no epochs"),
    ],
)
def test_stages_that_cannot_be(stage: dict[str, Any], text: str) -> None:
    from netspace.config import validate

    with pytest.raises(UsageError, match=text):
        validate(MorphConfig, {"stages": [stage]}, "recipe")
