"""The benchmark runs, and its two sides do the same work: equal losses and equal weights after a step, in float32."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from model_zoo.forward import Way
from model_zoo.recipe import RunPlan
from model_zoo.trainer import Group
from netspace import archs
from netspace.models.encoders import EncoderConfig
from netspace.tasks import DataConfig, load
from netspace.training.optimizers import OptimizerConfig
from netspace.training.recipe import LossConfig

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


@pytest.fixture
def contestants(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("bench_cases")


@pytest.fixture
def reference(contestants: ModuleType) -> ModuleType:
    return importlib.import_module("reference")


def quick_run(folder: Path, *what: str) -> dict[str, Any]:
    """Return what a quick run of parts of the benchmark prints, of all by default."""
    command = [sys.executable, str(ROOT / "tools" / "bench.py"), *what, "--quick", "--json", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_a_quick_run_reports_what_is_asked_for(tmp_path: Path) -> None:
    actual = quick_run(tmp_path, "store")
    assert [row["name"].partition(":")[0] for row in actual["rows"]] == ["store", "store"]
    for row in actual["rows"]:
        assert row["ratio"] == pytest.approx(row["reference"]["seconds"] / row["netspace"]["seconds"])
    assert actual["orders"] == actual["permutation"] == actual["accuracy"] == []


@pytest.mark.slow
def test_a_quick_run_reports_every_row(tmp_path: Path) -> None:
    actual = quick_run(tmp_path)
    assert actual["device"] == "cpu" and actual["quick"] is True
    assert set(actual["matmul_flops_per_second"]) == {"float32", "bf16"}
    assert actual["provenance"]["torch"] and actual["provenance"]["machine"]["cores"]
    assert [row["name"].partition(":")[0] for row in actual["rows"]] == [
        "zoo",
        "shapes",
        "step",
        "multi",
        "decoders",
        "nern",
        *["morph"] * 5,
        "store",
        "store",
    ]
    for row in actual["rows"]:
        # which compute nothing, have no plain side, or are not counted
        counted = not row["name"].startswith(("store", "decoders", "morph: sampling"))
        assert (row["flops"] > 0) is counted and row["unit"] and row["how"]
        for side in ("reference", "netspace"):
            assert len(row[side]["all_seconds"]) == actual["repeats"]
            expected = ("seconds", "per_second", "peak_bytes", *(("flops_per_second", "share") if counted else ()))
            assert all(row[side][key] > 0 for key in expected)
        assert row["ratio"] == pytest.approx(row["reference"]["seconds"] / row["netspace"]["seconds"])
    assert actual["feeding"] > 0 and [row["axis"] for row in actual["scale"]] == ["members"]
    ways = [row["way"] for row in actual["orders"] if row["kind"] == "in-filter"]
    assert ways == ["greedy, numpy", "greedy, compiled", "ours, one core", "ours", "greedy, compiled", "ours"]
    assert all(row["seconds"] > 0 and row["length"] > 0 and row["under_greedy"] < 1 for row in actual["orders"])
    variation = {row["way"]: row["variation"] for row in actual["permutation"]}
    assert 0 < variation["lower bound"] <= variation["ours"] * (1 + 1e-6) <= variation["2.5-opt"] * (1 + 2e-6)
    assert variation["2.5-opt"] < variation["own order"] and variation["2.5-opt, in Python"] == variation["2.5-opt"]
    assert actual["accuracy"][0]["arch"] == "lenetlike" and len(actual["accuracy"][0]["difference"]) == 2
    assert actual["memory"]["members"] == 4_000 and actual["memory"]["peak_bytes"] < actual["memory"]["zoo_bytes"]


def test_an_unknown_benchmark_is_named() -> None:
    command = [sys.executable, str(ROOT / "tools" / "bench.py"), "zooo"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and "'zooo' is not a benchmark: choose among zoo, step" in done.stderr


@pytest.mark.parametrize("kind", ["conv", "probe"])
@pytest.mark.parametrize("moving", [False, True], ids=["still", "augmented"])
def test_both_sides_of_a_step_do_the_same_work(contestants: ModuleType, kind: str, moving: bool) -> None:
    (quick,) = contestants.step_cases(quick=True)
    settings = {
        "encoder": EncoderConfig(kind=kind, probes=3, hidden=8),
        "optimizer": OptimizerConfig(learning_rate=1e-3),
        "loss": LossConfig(
            temperature=0.05
        ),  # random networks are unsure: a low temperature keeps rounding small beside the loss
        "precision": "float32",
        "networks_precision": "float32",
    }
    padding, flip = (4, True) if moving else (0, False)
    data = DataConfig(name="generated", image_size=12, channels=1, limit=20, crop_padding=padding, flip=flip)
    case = replace(quick, recipe=quick.recipe.model_copy(update=settings), arch="lenetlike", data=data)
    ours, plain = contestants.OurStep(case, CPU), contestants.ReferenceStep(case, CPU)
    assert plain.number == 1 and plain.flops > 0  # its first step was taken to count operations
    ours.run()
    for number in (1, 2):
        expected = plain.loss()
        actual = torch.stack(list(ours.step(ours.model, number).values())).sum()
        assert float(expected.detach()) > 0
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-7)
        plain.once()
        ours.run()


def test_both_sides_of_a_fit_do_the_same_work(contestants: ModuleType) -> None:
    nern = importlib.import_module("bench_nern")
    (quick,) = nern.nern_cases(quick=True)
    (stage,) = quick.config.stages
    stage = stage.model_copy(update={"distillation": 0.3, "features": 0.1})  # each as large as the reconstruction
    exact = {"precision": "float32", "predictor_precision": "float32", "stages": (stage,)}
    case = replace(quick, config=quick.config.model_copy(update=exact))
    ours, plain = nern.OurFit(case, CPU), nern.ReferenceFit(case, CPU)
    assert plain.number == 1 and plain.flops > 0  # its first step was taken to count operations
    for _ in range(3):
        ours.number = plain.number
        ours.step.predictor.load_state_dict(plain.predictor.state_dict(), strict=False)
        expected, actual = plain.loss(), ours.loss()
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-7)
        gradients = [
            torch.autograd.grad(loss, list(side.parameters()))
            for loss, side in ((expected, plain.predictor), (actual, ours.step.predictor))
        ]
        for one, two in zip(*gradients, strict=True):
            torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-6)
        plain.once()


@pytest.mark.parametrize("index", [2, 3, 4])
def test_both_sides_of_a_morphs_step_do_the_same_work(contestants: ModuleType, index: int) -> None:
    weights = importlib.import_module("bench_weights")
    case = weights.weights_cases(quick=True)[index]
    ours, plain = weights.OurWeights(case, CPU), weights.PlainWeights(case, CPU)
    assert plain.number == 1 and plain.flops > 0  # its first step was taken to count operations
    ours.run()
    for _ in range(2):
        ours.learner.function.load_state_dict(plain.function.state_dict())
        expected, actual = plain.loss(), ours.loss()
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
        sides = ((expected, plain.function), (actual, ours.learner.function))
        gradients = [torch.autograd.grad(loss, list(side.parameters())) for loss, side in sides]
        for one, two in zip(*gradients, strict=True):
            torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-5)
        plain.once()
        ours.number += 1


@pytest.mark.parametrize("way", [Way(1), Way(3)], ids=str)
def test_both_sides_of_a_zoo_do_the_same_work(contestants: ModuleType, reference: ModuleType, way: Way) -> None:
    case = contestants.ZooCase("lenetlike", 12, 10, images=20)
    task = load(case.data())
    settings = archs.task_settings(case.arch, {}, task.input_shape, task.num_outputs)
    runs = [RunPlan("bench", number, number, (9,), contestants.RATE, "train") for number in range(way.fused)]
    group = Group(task, lambda: archs.build(case.arch, **settings), runs, case.recipe(), way)
    networks = []
    for run in runs:
        torch.manual_seed(run.seed)
        networks.append(archs.build(case.arch, **settings).train())
    optimizers = [torch.optim.Adam(network.parameters(), lr=contestants.RATE) for network in networks]
    rates = torch.full((way.fused, 1), contestants.RATE)
    for start in (0, 5, 10):
        images, labels = task.normalise(task.train.images[start : start + 10]), task.train.labels[start : start + 10]
        actual = group.step(images.expand(way.fused, *images.shape), labels.expand(way.fused, -1), rates)
        pairs = zip(networks, optimizers, strict=True)
        expected = [reference.train_step(network, optimizer, images, labels) for network, optimizer in pairs]
        torch.testing.assert_close(actual, torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_the_epochs_see_as_many_images(contestants: ModuleType) -> None:
    case = contestants.ZooCase("lenetlike", 8, 8, images=20)
    assert sum(len(labels) for _, labels in contestants.plain_loader(load(case.data()), case.batch)) == case.images
    ours = contestants.OurZoo(case, CPU, 2, Way(2))
    seen, _ = next(ours.epochs[0])
    assert seen == 2 * case.images
