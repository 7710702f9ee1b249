"""A task whose networks have inputs of their own: a zoo of them, a space, and what networks are compared on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_new_task import ARCH, SPACE, ZOO, Curves
from torch import Tensor

from model_zoo.builder import build
from model_zoo.recipe import ZooRecipe
from model_zoo.verify import verify
from netspace import archs
from netspace.commands.baselines import Baselines
from netspace.commands.evaluate import evaluate
from netspace.commands.interpolate import interpolate
from netspace.commands.sample import sample
from netspace.metrics import nearest
from netspace.networks.prep import unpack
from netspace.progress import Progress
from netspace.space import Space
from netspace.streams import generator
from netspace.tasks import TASKS, load
from netspace.training.latent_space import train
from netspace.training.recipe import SpaceRecipe
from netspace.training.validation import accuracies_between
from netspace.zoo import ArchGroup, Zoo


class Windows(Curves):
    """A curve of its own for each network, in a window of its own; networks are compared with each other on [-1, 1]."""

    own_inputs = True
    name, split_hash = "windows", "d" * 64

    def inputs(self, split: str, index: Tensor | slice, seeds: Tensor | None = None) -> Tensor:
        common = super().inputs(split, index)  # (B, 1) or (M, B, 1)
        if seeds is None:
            return common
        centres = torch.stack([2 * torch.rand(1, generator=generator(seed + 1)) - 1 for seed in seeds.tolist()])
        own = seeds.view(-1, 1, 1) >= 0
        return torch.where(own, 0.5 * common + centres.view(-1, 1, 1), common)

    def targets(self, split: str, index: Tensor | slice, seeds: Tensor | None = None) -> Tensor:
        assert seeds is not None
        draws = torch.stack([torch.rand(2, generator=generator(seed)) for seed in seeds.tolist()])
        phase, height = (each.view(-1, 1, 1) for each in draws.T)
        curve = (0.5 + height) * torch.sin(3 * self.inputs(split, index, seeds) + 6 * phase)
        return torch.where(seeds.view(-1, 1, 1) < 0, torch.nan, curve)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "windows", Windows)
        patch.setattr(archs, "_TRUSTED", {ARCH})
        yield


@pytest.fixture(scope="module")
def zoo(_registered: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = ZooRecipe.model_validate({**ZOO, "name": "windows", "data": {"name": "windows"}})
    return build(recipe, tmp_path_factory.mktemp("windows") / "windows.h5", workers=1)


@pytest.fixture(scope="module")
def run(zoo: Path) -> Path:
    return train(SpaceRecipe.model_validate({**SPACE, "name": "windows"}), zoo, zoo.parent / "run")


@pytest.fixture
def group(zoo: Path) -> Iterator[ArchGroup]:
    with Zoo(zoo) as opened:
        yield opened.only()


def output(flat: Tensor, x: Tensor) -> Tensor:
    """Outputs (B, 1) of a network with parameters (P,), written out."""
    width = (len(flat) - 1) // 3
    weight, bias, out, last = flat.split([width, width, width, 1])
    return torch.tanh(x * weight + bias) @ out[:, None] + last


def test_each_network_is_trained_and_scored_on_its_own_inputs(zoo: Path, group: ArchGroup) -> None:
    task = load("windows")
    rows = group.rows("all")
    seeds, flat = group.seeds(rows), unpack(group.read(rows), group.spec.num_parameters)
    inputs, targets = (each("test", slice(None), seeds) for each in (task.inputs, task.targets))
    outputs = torch.stack([output(*each) for each in zip(flat, inputs, strict=True)])
    scores = task.score(outputs, targets)
    assert np.allclose(scores, group.members["accuracy_test"][rows], atol=1e-6) and scores.min() > 0.9
    elsewhere = torch.stack([output(*each) for each in zip(flat, inputs.roll(1, 0), strict=True)])
    assert float(task.score(elsewhere, targets).mean()) < 0.8
    assert verify(zoo).ok


def test_the_space_is_compared_on_the_members_inputs(run: Path, group: ArchGroup) -> None:
    figures = evaluate(run)
    rows = group.rows("test")
    assert figures.accuracy_target == pytest.approx(float(group.members["accuracy_test"][rows].mean()), abs=1e-6)
    assert 0 < figures.accuracy_predicted < figures.accuracy_target
    identity = figures.identity
    assert identity.members + identity.without_peers == len(rows)


def test_baselines_answer_on_the_members_inputs(run: Path, zoo: Path, group: ArchGroup) -> None:
    """Training networks as they are, their mean and the ensemble: each runs on the inputs of the member that it stands for."""
    figures, task = evaluate(run), load("windows")
    rows, known = group.rows("test"), group.rows("train")
    seeds, parameters = group.seeds(rows), group.spec.num_parameters
    flat, bank = (unpack(group.read(each), parameters) for each in (rows, known))
    inputs, targets = (each("test", slice(None), seeds) for each in (task.inputs, task.targets))

    def check(name: str, answers: list[Tensor]) -> None:
        outputs, own = torch.stack(answers), torch.stack([output(*each) for each in zip(flat, inputs, strict=True)])
        baseline = figures.baselines[name]
        assert baseline is not None
        assert baseline.accuracy_predicted == pytest.approx(float(task.score(outputs, targets).mean()), abs=1e-5), name
        assert baseline.agreement == pytest.approx(float(task.agreement(own, outputs).mean()), abs=1e-4), name
        assert baseline.kl == pytest.approx(float(task.divergence(outputs, own).mean()), rel=1e-3), name

    check("nearest", [output(bank[row], x) for row, x in zip(nearest(flat, bank), inputs, strict=True)])
    check("average", [output(bank.mean(0), x) for x in inputs])
    check("ensemble", [torch.stack([output(each, x) for each in bank]).mean(0) for x in inputs])
    common = task.inputs("val", slice(None))
    apart = torch.stack(
        [torch.stack([(output(own, common) - output(each, common)).square().mean() for each in bank]) for own in flat]
    )
    check("nearest_answers", [output(bank[row], x) for row, x in zip(apart.argmin(1), inputs, strict=True)])
    few = apart.topk(5, largest=False).indices
    check(
        "five_nearest",
        [torch.stack([output(bank[i], x) for i in own]).mean(0) for own, x in zip(few, inputs, strict=True)],
    )
    with Zoo(zoo) as opened:
        choice = Baselines(Space.load(run), opened, 0)._choose(
            flat, Space.load(run).encode_preps(group.read(rows)), task, seeds, Progress("baselines", 1, "networks")
        )
    val = torch.from_numpy(group.members["accuracy_val"].astype(np.float64))
    differences = (val[rows][:, None] - val[known]).abs()
    picked = differences.gather(1, choice.single["same_accuracy"][:, None])[:, 0]
    assert (picked <= differences.amin(1) + 0.0011).all()


def test_lines_begin_and_end_with_the_networks_own_inputs(run: Path, group: ArchGroup) -> None:
    task = load("windows")
    rows = group.rows("test")[:2]
    figures = interpolate(run, f"mlp/{rows[0]:04d}", f"mlp/{rows[1]:04d}", steps=3)
    assert figures.weight_accuracy is not None and np.isfinite(figures.latent_accuracy).all()
    assert np.allclose(
        [figures.weight_accuracy[0], figures.weight_accuracy[-1]], group.members["accuracy_test"][rows], atol=1e-6
    )
    flat, seeds = unpack(group.read(rows), group.spec.num_parameters).mean(0), group.seeds(rows)
    inputs, targets = (each("test", slice(None), seeds).mean(0) for each in (task.inputs, task.targets))
    assert figures.weight_accuracy[1] == pytest.approx(float(task.score(output(flat, inputs), targets)), abs=1e-6)
    space = Space.load(run)
    networks, gamma = space.networks(group.read(rows)), torch.tensor([0.0, 1.0])
    scores = accuracies_between(networks, task, "test", seeds[[0, 0]], seeds[[1, 1]], gamma)
    assert np.allclose(scores, group.members["accuracy_test"][rows], atol=1e-6)


def test_networks_without_a_seed_are_run_on_common_inputs(run: Path, cli: Callable[..., Any], zoo: Path) -> None:
    """No one knows what they should answer; how they differ is known."""
    figures = sample(run, count=3)
    assert figures.sampled.diversity and figures.nearest is not None and 0 <= (figures.sampled.novelty or 0) <= 1
    for words in (["sample", "--count", "2"], ["interpolate", "--from", "worst", "--to", "best"]):
        told = cli(*words, "--run", run, "--zoo", zoo)
        assert told.code == 0 and "closeness" in told.out and "accura" not in told.out
