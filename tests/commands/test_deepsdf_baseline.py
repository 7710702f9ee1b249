"""The baselines of spaces of shapes: `nearest_function`, `mean` and `deepsdf`, which is trained once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from netspace.commands import evaluate as evaluation
from netspace.commands.deepsdf import FittedFields, trained_seconds
from netspace.commands.evaluate import evaluate
from netspace.commands.evaluated import parts_of
from netspace.errors import UsageError
from netspace.io import read_json, write_json
from netspace.models.auto_decoder import count_parameters
from netspace.networks.prep import unpack
from netspace.run_folder import Metrics
from netspace.space import Space
from netspace.surfaces import grid_values, iou
from netspace.training.deepsdf import DeepSdfConfig, DeepSdfLearner
from netspace.training.setup import task_of
from netspace.zoo import Zoo

SMALL = DeepSdfConfig(hidden=16, layers=2, steps=20, shapes=8, points=32, fit_steps=10, fit_points=32)


def no_training(*_: object) -> dict[str, torch.Tensor]:
    raise AssertionError("a step was taken")


def test_nearest_and_mean_networks_have_the_names_of_shapes(chairs_copy: Path, chairs_zoo: Path) -> None:
    """Nearest is the least mean squared difference of outputs at shared validation points."""
    figures = evaluate(chairs_copy)
    with Zoo(chairs_zoo) as zoo:
        task, group = task_of(zoo, "cpu"), zoo.only()
        spec, rows = group.spec, {split: group.rows(split) for split in ("train", "test")}
        bank, target = (unpack(group.read(each), spec.num_parameters) for each in rows.values())
        seeds = group.seeds(rows["test"])
    nets = Space.load(chairs_copy).family[0].nets
    shared, points = task.inputs("val", slice(2000)), task.inputs("test", slice(None), seeds)
    expected: dict[str, list[float]] = {"nearest_function": [], "mean": []}
    with torch.no_grad():
        for flat, own in zip(target, points, strict=True):
            apart = [
                float((nets(each[None], shared) - nets(flat[None], shared)).double().square().mean()) for each in bank
            ]
            near = bank[apart.index(min(apart))]
            truth = nets(flat[None], own)
            for name, other in (("nearest_function", near), ("mean", bank.mean(0))):
                expected[name].append(float(((nets(other[None], own) - truth).abs() < 0.01).double().mean()))
    for name, values in expected.items():
        baseline = figures.baselines[name]
        assert baseline is not None
        assert baseline.within == pytest.approx(sum(values) / len(values), abs=1e-3)
        assert baseline.within == baseline.agreement
        assert baseline.score_predicted == baseline.accuracy_predicted
        assert baseline.iou is not None and 0 <= baseline.iou <= 1
    assert (figures.score_target, figures.score_predicted) == (figures.accuracy_target, figures.accuracy_predicted)
    assert figures.within == figures.agreement
    assert "deepsdf" not in figures.baselines
    assert set(figures.listed_baselines) == set(figures.baselines) - {"nearest_answers", "average"}


@pytest.fixture
def zoo(chairs_zoo: Path) -> Iterator[Zoo]:
    with Zoo(chairs_zoo) as opened:
        yield opened


def fields(run: Path, zoo: Zoo, config: DeepSdfConfig = SMALL) -> FittedFields:
    space = Space.load(run)
    return evaluation._deepsdf(space, zoo, parts_of(space, zoo, "test"), task_of(zoo, "cpu"), "test", config)


def same(one: FittedFields, other: FittedFields) -> bool:
    states = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return torch.equal(one.latents, other.latents) and all(torch.equal(*pair) for pair in states)


def test_deepsdf_is_compared_as_networks_are(chairs_copy: Path, zoo: Zoo) -> None:
    """Intersection over union by values on the grid, all other measures by outputs at test points."""
    figures = evaluate(chairs_copy, baselines=False, auto_decoder=SMALL).baselines["deepsdf"]
    assert figures is not None
    assert (figures.steps, figures.parameters) == (20, count_parameters(16, 16, 2))
    of, task, group = fields(chairs_copy, zoo), task_of(zoo, "cpu"), zoo.only()
    rows, nets = group.rows("test"), Space.load(chairs_copy).family[0].nets
    flat, seeds = unpack(group.read(rows), group.spec.num_parameters), group.seeds(rows)
    points = task.inputs("test", slice(None), seeds)
    with torch.no_grad():
        apart = of.model(of.latents, points) - nets(flat, points, shared=False)
        assert figures.kl == pytest.approx(float(apart.double().square().mean()), rel=1e-4)
        assert figures.within == pytest.approx(float((apart.abs() < 0.01).double().mean()), abs=1e-3)
        grids = of.grid(torch.arange(2), 64), grid_values(nets, flat, 64)
    assert figures.iou == pytest.approx(float(iou(*grids).mean()), abs=1e-6)
    place = torch.tensor([-1 + 2 * 7 / 63, -1 + 2 * 50 / 63, -1 + 2 * 31 / 63])
    with torch.no_grad():
        assert float(grids[0][1, 7, 50, 31]) == pytest.approx(float(of.model(of.latents[1:], place[None])), abs=1e-5)


def test_deepsdf_is_trained_once(chairs_copy: Path, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fields(chairs_copy, zoo)
    monkeypatch.setattr(DeepSdfLearner, "terms", no_training)
    assert same(fields(chairs_copy, zoo), first)
    free = SMALL.model_copy(update={"steps": None, "hidden": None})  # whatever was chosen before
    assert same(fields(chairs_copy, zoo, free), first)
    for settings in (SMALL.model_copy(update={"prior": 0.5}), SMALL.model_copy(update={"steps": 21})):
        with pytest.raises(AssertionError, match="a step was taken"):
            fields(chairs_copy, zoo, settings)


@pytest.mark.parametrize("name", ["run_hash", "zoo_hash"])
def test_deepsdf_of_another_space_or_zoo_is_replaced(
    chairs_copy: Path, zoo: Zoo, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields(chairs_copy, zoo)
    path = chairs_copy / "deepsdf" / "provenance.json"
    before = read_json(path, dict[str, Any])
    write_json(path, {**before, name: "another"})
    monkeypatch.setattr(DeepSdfLearner, "terms", no_training)
    with pytest.raises(AssertionError, match="a step was taken"):
        fields(chairs_copy, zoo)
    assert read_json(path, dict[str, Any])[name] == before[name]


def test_an_interrupted_training_goes_on(
    chairs_copy: Path, chairs_run: Path, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the same in the end as one that nobody interrupted."""
    whole = fields(Path(shutil.copytree(chairs_run, tmp_path / "other")), zoo)
    terms, taken = DeepSdfLearner.terms, []

    def counted(self: DeepSdfLearner, model: Any, number: int, part: int) -> dict[str, torch.Tensor]:
        taken.append(number)
        if len(taken) == 13:
            raise KeyboardInterrupt
        return terms(self, model, number, part)

    monkeypatch.setattr("netspace.training.loop.CHECKPOINT_EVERY", -1.0)
    monkeypatch.setattr(DeepSdfLearner, "terms", counted)
    with pytest.raises(KeyboardInterrupt):
        fields(chairs_copy, zoo)
    assert same(fields(chairs_copy, zoo), whole)
    assert taken == [*range(13), *range(12, 20)]


def test_size_and_time_are_those_of_the_space(chairs_copy: Path, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = trained_seconds(chairs_copy / "metrics.jsonl")
    assert 0 < seconds < 600
    monkeypatch.setattr(DeepSdfLearner, "seconds_a_step", lambda self: seconds / 7)
    of = fields(chairs_copy, zoo, DeepSdfConfig(shapes=2, points=4, fit_steps=1, fit_points=4))
    assert of.steps == 7
    decoder = sum(value.numel() for value in Space.load(chairs_copy).model.decoder.parameters())
    assert of.parameters == pytest.approx(decoder, rel=0.05)


def test_seconds_are_those_of_all_records(tmp_path: Path) -> None:
    """Steps over their speed: 50 at 10 a second, 30 at 2 a second; validations in between have no speed."""
    metrics = Metrics(tmp_path / "metrics.jsonl")
    for record in (
        {"step": 50, "steps_a_second": 10.0},
        {"step": 50, "val_mae": 1.0},
        {"step": 80, "steps_a_second": 2.0},
    ):
        metrics.write(**record)
    assert trained_seconds(tmp_path / "metrics.jsonl") == pytest.approx(5 + 15)
    assert trained_seconds(tmp_path / "none.jsonl") == 0


def test_spaces_of_images_have_no_such_baseline(run_copy: Path, cli: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="the baseline deepsdf was asked for, but networks of digits are no shapes"):
        evaluate(run_copy, auto_decoder=SMALL)
    done = cli("eval", run_copy, "--deepsdf-steps", 0)
    assert done.code == 2
    assert "--deepsdf-steps" in done.sentence
    assert not (run_copy / "deepsdf").exists()
