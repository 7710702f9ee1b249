"""A task whose scores are errors: the best is the lowest, everywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_new_task import ARCH, SPACE, ZOO, Curves
from torch import Tensor

from model_zoo.align import align_zoo
from model_zoo.builder import build
from model_zoo.recipe import ZooRecipe
from netspace import archs
from netspace.commands.baselines import Baselines
from netspace.commands.evaluate import evaluate
from netspace.commands.interpolate import interpolate, lines
from netspace.commands.optimize import OptimizeConfig, optimize
from netspace.commands.quickstart import held_out_ends
from netspace.io import hash_tensors, read_json
from netspace.networks.prep import unpack
from netspace.report import report
from netspace.results import Score
from netspace.results.spaces import SavedEvaluation
from netspace.run_folder import Provenance, read_metrics
from netspace.space import Space
from netspace.tasks import TASKS, load
from netspace.training.latent_space import train
from netspace.training.recipe import SpaceRecipe
from netspace.training.setup import teacher
from netspace.training.validation import accuracies
from netspace.zoo import ArchGroup, Zoo

SCORE = {"name": "error", "higher_is_better": False}
TOLD = {**SCORE, "loss": "mean squared difference", "inputs": "inputs", "own_targets": False}  # in results


class Sine(Curves):
    """One curve for all networks, and how far they are from it."""

    own_targets, higher_is_better, score_name = False, False, "error"
    name, split_hash = "sine", "e" * 64

    def targets(self, split: str, index: Tensor | slice, seeds: Tensor | None = None) -> Tensor:
        return torch.sin(3 * self.inputs(split, index))

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 1 - super().score(outputs, targets)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "sine", Sine)
        patch.setattr(archs, "_TRUSTED", {ARCH})
        yield


@pytest.fixture(scope="module")
def zoo(_registered: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks trained for one epoch to 60, good and bad ones in every split."""
    recipe = {**ZOO, "name": "sine", "data": {"name": "sine"}, "epochs": {"first": 1, "last": 60}}
    recipe["optimizer"] = {"name": "adam", "learning_rate": 0.01}
    recipe["archs"] = {
        "mlp": {"arch": ARCH},
        "middle": {"arch": ARCH, "kwargs": {"hidden": 20}},
        "wide": {"arch": ARCH, "kwargs": {"hidden": 24}},
    }
    return build(ZooRecipe.model_validate(recipe), tmp_path_factory.mktemp("sine") / "sine.h5", workers=1)


@pytest.fixture(scope="module")
def one(_registered: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of one architecture."""
    recipe = {**ZOO, "name": "sine", "data": {"name": "sine"}, "epochs": {"first": 1, "last": 60}}
    recipe["optimizer"] = {"name": "adam", "learning_rate": 0.01}
    return build(ZooRecipe.model_validate(recipe), tmp_path_factory.mktemp("sine") / "one.h5", workers=1)


@pytest.fixture(scope="module")
def run(one: Path) -> Path:
    return train(SpaceRecipe.model_validate({**SPACE, "name": "sine"}), one, one.parent / "run")


@pytest.fixture(scope="module")
def multi(zoo: Path) -> Path:
    settings = {
        **SPACE,
        "name": "sine-multi",
        "loss": {"behaviour": 0.0},
        "steps": 30,
        "validate_every": 10,
        "networks": 6,
    }
    settings["multi"] = {"teacher": "best", "alpha": 0.5, "pairs": 2, "interpolation": 0.0}
    return train(SpaceRecipe.model_validate(settings), zoo, zoo.parent / "multi")


@pytest.fixture
def group(one: Path) -> Iterator[ArchGroup]:
    with Zoo(one) as opened:
        yield opened.only()


def errors(group: ArchGroup, split: str, column: str = "val") -> np.ndarray:
    found: np.ndarray = group.members[f"accuracy_{column}"][group.rows(split)]
    return found


def test_best_and_worst_by_name(zoo: Path, one: Path) -> None:
    for path in (zoo, one):
        with Zoo(path) as opened:
            assert opened.header.score == SCORE
            every = np.concatenate([errors(each, "all") for each in opened.archs.values()])
            best, worst = (opened.find(name) for name in ("best", "worst"))
            found = [opened.group(each.arch).members["accuracy_val"][each.index] for each in (best, worst)]
            assert found == [every.min(), every.max()] and every.max() > 4 * every.min()
            taught = unpack(opened.group(best.arch).read([best.index]), opened.group(best.arch).spec.num_parameters)
            assert torch.equal(teacher("best", opened, load("sine")).flat, taught[0])


def test_zoo_info_has_the_worst_first(one: Path, group: ArchGroup, cli: Callable[..., Any]) -> None:
    told = cli("zoo", "info", one, "--json").json
    values = errors(group, "all", "test")
    assert told["score"] == SCORE and told["archs"]["mlp"]["accuracy"]["min"] == pytest.approx(values.min())
    worst, median, best = re.findall(r"([\d.]+) %", cli("zoo", "info", one).out)
    assert float(worst) > float(median) > float(best)
    assert (float(worst), float(best)) == (round(100 * values.max(), 1), round(100 * values.min(), 1))


def test_references_and_ends_of_lines_are_the_best(one: Path, run: Path, group: ArchGroup, tmp_path: Path) -> None:
    val, train_errors = errors(group, "test"), errors(group, "train")
    reference = align_zoo(one, tmp_path / "aligned.h5").archs["mlp"].reference
    assert reference == f"mlp/{group.rows('train')[train_errors.argmin()]:04d}"
    start, end = (int(name.split("/")[1]) for name in held_out_ends(one))
    assert group.members["accuracy_val"][end] == val.min() < group.members["accuracy_val"][start]
    space, rows, task = Space.load(run), group.rows("test"), load("sine")
    target = space.networks(group.read(rows))
    figures = lines(space, group, rows, target, space.encode_preps(group.read(rows)), task, steps=3)
    assert figures.weight_accuracy[-1] == pytest.approx(errors(group, "test", "test")[val.argmin()], abs=1e-6)
    assert figures.weight_accuracy[0] > figures.weight_accuracy[-1]
    with Zoo(one) as opened:
        merits = Baselines(space, opened, 0).merits
    assert merits.argmax() == train_errors.argmin() and torch.equal(merits, torch.from_numpy(1 - train_errors))


def test_an_optimisation_goes_down(run: Path, group: ArchGroup, tmp_path: Path) -> None:
    settings = {"steps": 60, "validate_every": 10, "learning_rate": 0.05, "alpha": 0.5}
    config = OptimizeConfig.model_validate({"starts": ("worst", "best"), **settings})
    figures = optimize(run, config, tmp_path / "out")
    assert figures.score == Score(**TOLD)  # type: ignore[arg-type]
    assert figures.accuracy_after[0] < figures.accuracy_before[0]
    curve = np.array([record.accuracy_val for record in figures.curve])
    assert figures.best == curve.min(0).argmin()
    for place, values in enumerate(curve.T):
        better = [record.better[place] for record in figures.curve]
        assert better == [bool((value < values[:step]).all()) for step, value in enumerate(values)]
    space, kept = Space.load(run), load_file(figures.latent)["latent"]
    chosen = accuracies(space.decode_all(kept[None]), load("sine"), "val")[0]
    assert chosen == pytest.approx(curve.min(), abs=1e-6)


def test_several_architectures_are_chosen_by_the_lowest(zoo: Path, multi: Path) -> None:
    """The checkpoint that is kept, the teacher, the ends of the line and the worst of what lies between."""
    records = [each for each in read_metrics(multi / "metrics.jsonl") if "val_error" in each]
    for record in records:
        both = 18 * record["val_accuracy_predicted"] + 6 * record["val_between_middle"]  # members, and points between
        assert record["val_error"] == pytest.approx(both / 24, abs=1e-6)
    figures = evaluate(multi)
    assert figures.line is not None and figures.score == Score(**TOLD)  # type: ignore[arg-type]
    between = figures.between["middle"]
    assert between.accuracy_least is not None and between.accuracy_least > (between.accuracy or 1)
    with Zoo(zoo) as opened:
        best = opened.find("best")
        taught = unpack(opened.group(best.arch).read([best.index]), opened.group(best.arch).spec.num_parameters)
        assert read_json(multi / "provenance.json", Provenance).teacher_hash == hash_tensors(taught[0])
        for name, end in zip(("mlp", "wide"), (figures.line.start, figures.line.end), strict=True):
            each = opened.group(name)
            assert end == f"{name}/{each.rows('test')[errors(each, 'test').argmin()]:04d}"


def test_commands_and_report_speak_of_errors(one: Path, run: Path, cli: Callable[..., Any]) -> None:
    interpolate(run, "worst", "best", steps=3)
    optimize(run, OptimizeConfig(starts=("worst", "best"), steps=2), run / "optimized" / "ends")
    told = read_json(run / "optimized" / "ends" / "optimize.json", dict[str, Any])
    best = told["from"][int(np.argmin(np.min([each["accuracy_val"] for each in told["curve"]], 0)))]
    evaluate(run)
    saved = SavedEvaluation.read(run / "eval-test.json")
    assert saved.score == Score(**TOLD)  # type: ignore[arg-type]
    assert json.loads((run / "eval-test.json").read_text())["score"] == TOLD
    page = Path(report(run).report).read_text()
    words = re.sub(r"<(svg|script|style|pre)\b.*?</\1>|<[^>]*>", "", page, flags=re.DOTALL)
    assert "in an organised space they fall evenly" in words and "they rise evenly" not in words
    assert f"the best by validation is {best}" in words and "mean accuracy" not in words
    for words in (["optimize", "--from", "worst", "--steps", "2", "-o", "out"], ["sample", "--count", "2"]):
        text = cli(*words, "--run", run, "--zoo", one)
        assert text.code == 0 and "error" in text.out and "accura" not in text.out and "image" not in text.out
