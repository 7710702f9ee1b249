"""`netspace eval --refine`: latents go on by the descent that finds DeepSDF's, on the same samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.func import functional_call

from netspace.commands.evaluate import evaluate
from netspace.commands.refine import refine
from netspace.errors import UsageError
from netspace.networks.prep import unflatten, unpack
from netspace.space import Space
from netspace.streams import Stream, generator
from netspace.training.deepsdf import SPREAD, DeepSdfConfig
from netspace.training.optimizers import OptimizerConfig
from netspace.training.setup import task_of
from netspace.zoo import Zoo

STEPS = 6
CONFIG = DeepSdfConfig(fit_steps=STEPS, fit_points=32, fit_rate=0.05)


def one_by_one(run: Path, zoo: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the latents of test members as they are encoded, and refined: each by itself, in modules of float64."""
    space = Space.load(run)
    with Zoo(zoo) as opened:
        task, group, arch = task_of(opened, "cpu"), opened.only(), space.family[0]
        rows = group.rows("test")
        preps, seeds = group.read(rows), group.seeds(rows)
        spread = space.encode_preps(group.read(group.rows("train"))).std(0).clamp_min(SPREAD).double()
    encoded = space.encode_preps(preps)
    decoder, module = space.model.decoder.double(), arch.nets.skeleton.double()
    factors, found = OptimizerConfig(schedule="cosine"), []
    for member, (start, prep, seed) in enumerate(zip(encoded.double(), preps, seeds, strict=True)):
        points = task.inputs("train", slice(None), seed[None])[0].double()
        own = unflatten(unpack(prep[None], arch.parameters)[0].double(), arch.spec)
        with torch.no_grad():
            wanted = functional_call(module, own, (points,))
        moved = torch.zeros_like(start).requires_grad_()
        adam = torch.optim.Adam([moved])
        for step in range(STEPS):
            columns = torch.randint(len(points), (len(rows), 32), generator=generator(0, Stream.AUTO_DECODED_FIT, step))
            decoded = decoder((start + moved * spread)[None], torch.zeros(1, dtype=torch.long))
            parameters = unflatten(unpack(decoded, arch.parameters)[0], arch.spec)
            outputs = functional_call(module, parameters, (points[columns[member]],))
            adam.zero_grad()
            (outputs - wanted[columns[member]]).abs().mean().backward(inputs=[moved])
            adam.param_groups[0]["lr"] = 0.05 * factors.factor(step, STEPS)
            adam.step()
        found.append((start + moved * spread).detach())
    return encoded, torch.stack(found)


def test_latents_are_those_of_a_descent_of_each_by_itself(chairs_run: Path, chairs_zoo: Path) -> None:
    encoded, expected = one_by_one(chairs_run, chairs_zoo)
    space = Space.load(chairs_run)
    with Zoo(chairs_zoo) as zoo:
        task, group = task_of(zoo, "cpu"), zoo.only()
        rows = group.rows("test")
        target = space.networks(group.read(rows), group.id)
        actual = refine(space, zoo, target, group.seeds(rows), encoded, task, CONFIG)
    moved = (expected - encoded).norm()
    assert float((actual - expected).norm() / moved) < 0.01
    assert not actual.requires_grad
    assert all(value.grad is None for value in space.model.parameters())


def test_the_figures_stand_beside_the_spaces_own(chairs_copy: Path, cli: Callable[..., Any]) -> None:
    """Refined predictions are closer to their targets; the space's own figures stay as they are."""
    before = evaluate(chairs_copy, baselines=False)
    told = json.loads(cli("eval", chairs_copy, "--refine", 60, "--json").out)
    refined = told["refined"]
    assert refined["steps"] == 60
    assert refined["kl"] < told["kl"] == pytest.approx(before.kl)
    assert {"within", "score_predicted", "iou", "chamfer", "valid"} <= refined.keys()
    assert "refined" not in told["baselines"]
    assert before.refined is None and "refined" not in before.payload()
    cli("report", chairs_copy)
    page = (chairs_copy / "report.html").read_text(encoding="utf-8")
    assert "the same after 60 steps of descent on the latents" in page
    assert "after 60 steps on the latents" in cli("eval", chairs_copy, "--refine", 60).out


def test_what_is_no_shape_is_not_refined(run_copy: Path, chairs_copy: Path) -> None:
    with pytest.raises(
        UsageError, match="--refine 5 was asked for, but networks of digits are no shapes: leave it out"
    ):
        evaluate(run_copy, refined=5)
    with pytest.raises(UsageError, match="--refine 0 was asked for, but latents are refined by 1 step or more"):
        evaluate(chairs_copy, refined=0)
