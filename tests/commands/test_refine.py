"""`--refine`: latents go on by descent on what networks answer; of shapes by the descent that finds DeepSDF's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from torch.func import functional_call

from netspace.cli.shapes import evaluation
from netspace.commands import refine as descents
from netspace.commands.convert import read_latent, resolve, write_latent, zoo_of
from netspace.commands.encode import encode
from netspace.commands.evaluate import evaluate
from netspace.commands.interpolate import interpolate
from netspace.commands.optimize import OptimizeConfig, optimize
from netspace.commands.refine import Answers, refine, refine_weights
from netspace.commands.refine import refined as refined_networks
from netspace.errors import NetspaceError, UsageError
from netspace.networks.family import Networks
from netspace.networks.prep import unflatten, unpack
from netspace.results.spaces import Evaluation
from netspace.space import Space
from netspace.streams import Stream, generator
from netspace.training.descent import SPREAD, DescentConfig, SharedSamples
from netspace.training.latent_space import train
from netspace.training.optimizers import OptimizerConfig
from netspace.training.recipe import SpaceRecipe
from netspace.training.setup import task_of
from netspace.zoo import Zoo

STEPS = 6
CONFIG = DescentConfig(steps=STEPS, inputs=32, rate=0.05)


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
    assert "the same after 60 steps on the latents, by training inputs" in page
    assert "after 60 steps on the latents" in evaluation(Evaluation.read(chairs_copy / "eval-test.json"))


def digits_one_by_one(space: Space, zoo: Zoo) -> torch.Tensor:
    """Return the refined latents of test members, each by itself, in modules of float64: KL at a relative temperature."""
    task, group, arch, terms = task_of(zoo, "cpu"), zoo.only(), space.family[0], space.recipe.loss
    preps = group.read(group.rows("test"))
    spread = space.encode_preps(group.read(group.rows("train"))).std(0).double()
    encoded = space.encode_preps(preps).double()
    decoder, module = deepcopy(space.model.decoder).double(), deepcopy(arch.nets.skeleton).double()
    images, factors, found = task.inputs("train", slice(None)).double(), OptimizerConfig(schedule="cosine"), []
    for start, prep in zip(encoded, preps, strict=True):
        own = unflatten(unpack(prep[None], arch.parameters)[0].double(), arch.spec)
        with torch.no_grad():
            wanted = functional_call(module, own, (images,))
        moved = torch.zeros_like(start).requires_grad_()
        adam = torch.optim.Adam([moved])
        for step in range(STEPS):
            columns = torch.randint(len(images), (32,), generator=generator(0, Stream.AUTO_DECODED_FIT, step))
            decoded = decoder((start + moved * spread)[None], torch.zeros(1, dtype=torch.long))
            outputs = functional_call(
                module, unflatten(unpack(decoded, arch.parameters)[0], arch.spec), (images[columns],)
            )
            scale = terms.temperature * (wanted[columns].std() if terms.relative else 1.0)
            target = torch.softmax(wanted[columns] / scale, -1)
            apart = target * (target.log() - torch.log_softmax(outputs / scale, -1))
            adam.zero_grad()
            (apart.sum(-1).mean() * terms.temperature**2).backward(inputs=[moved])
            adam.param_groups[0]["lr"] = 0.05 * factors.factor(step, STEPS)
            adam.step()
        found.append((start + moved * spread).detach())
    return torch.stack(found)


def test_latents_of_classifiers_are_those_of_a_descent_of_each_by_itself(run_copy: Path) -> None:
    space = Space.load(run_copy)
    with zoo_of(run_copy) as zoo:
        task, group = task_of(zoo, "cpu"), zoo.only()
        rows = group.rows("test")
        target, preps = space.networks(group.read(rows), group.id), group.read(rows)
        encoded = space.encode_preps(preps)
        actual = refine(space, zoo, target, group.seeds(rows), encoded, task, CONFIG)
        expected = digits_one_by_one(space, zoo)
    assert float((actual - expected).norm() / (expected - encoded).norm()) < 0.01
    assert not actual.requires_grad


def test_how_many_are_refined_at_once_changes_nothing(run_copy: Path) -> None:
    """A step takes the memory of a training step, however many networks there are."""
    space, found = Space.load(run_copy), []
    with zoo_of(run_copy) as zoo:
        task, group = task_of(zoo, "cpu"), zoo.only()
        rows = group.rows("test")
        target, seeds = space.networks(group.read(rows), group.id), group.seeds(rows)
        encoded = space.encode_preps(group.read(rows))
        for networks in (1, 100):
            space.recipe = space.recipe.model_copy(update={"networks": networks, "images": 64})
            latents = refine(space, zoo, target, seeds, encoded, task, CONFIG)
            weights = refine_weights(space, target, seeds, space.decode_all(encoded), task, CONFIG)
            found.append((latents, weights.preps))
    for one, all_of_them in zip(*found, strict=True):
        torch.testing.assert_close(one, all_of_them, rtol=1e-3, atol=1e-4)


def test_both_descents_ask_the_networks_once(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, of_networks = [], SharedSamples.of_networks

    def counted(networks: Networks, *arguments: Any) -> SharedSamples:
        asked.append(len(networks))
        return of_networks(networks, *arguments)

    monkeypatch.setattr(SharedSamples, "of_networks", counted)
    result = evaluate(run_copy, refined=2)
    assert result.baselines["distilled"] is not None and sum(asked) == result.members


def test_answers_that_do_not_fit_are_asked_again(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = Space.load(run_copy)
    with zoo_of(run_copy) as zoo:
        task, group = task_of(zoo, "cpu"), zoo.only()
        rows = group.rows("test")[:3]
        target, seeds = space.networks(group.read(rows), group.id), group.seeds(rows)
    answers, part = Answers(target, seeds, task, CONFIG), slice(0, 2)
    assert answers.of(part) is answers.of(part) is not answers.of(slice(2, 3))
    monkeypatch.setattr(descents, "CACHE_BYTES", 1)
    answers = Answers(target, seeds, task, CONFIG)
    first, second = answers.of(part), answers.of(part)
    assert first is not second and torch.equal(first.values, second.values)


def test_eval_refines_classifiers_with_a_control(run_copy: Path, cli: Callable[..., Any]) -> None:
    """Refined networks answer more as their targets do; the control trains the weights of the nearest by answers."""
    told = json.loads(cli("eval", run_copy, "--refine", 40, "--json").out)
    refined, control, near = told["refined"], told["baselines"]["distilled"], told["baselines"]["nearest_answers"]
    assert refined["steps"] == control["steps"] == 40
    assert refined["kl"] < told["kl"] and control["kl"] < near["kl"]
    assert {"identity", "diversity_ratio", "interpolation", "agreement", "r2", "bias"} <= refined.keys()
    text = cli("eval", run_copy, "--refine", 40).out
    assert "after 40 steps on the latents: rank correlation" in text and "weights refined likewise" in text
    cli("interpolate", "--from", "worst", "--to", "best", "--run", run_copy, "--refine", 5)
    cli("report", run_copy)
    page = (run_copy / "report.html").read_text(encoding="utf-8")
    assert "the same after 40 steps on the latents" in page
    assert "The same lines between refined latents, test split" in page
    assert "latents refined by 5 steps" in page


def test_networks_of_several_architectures_stay_what_they_are(multi_run: Path, tmp_path: Path) -> None:
    result = evaluate(Path(copytree(multi_run, tmp_path / "multi")), refined=10)
    assert result.refined is not None and result.refined.kl is not None and result.kl is not None
    assert result.refined.kl < result.kl
    assert result.refined.interpolation is None and result.baselines["distilled"] is not None


def test_a_single_training_member_of_an_architecture_is_enough(
    multi_zoo: Path, multi_settings: dict[str, Any], tmp_path: Path
) -> None:
    """One latent has no deviation over networks: rates are in units of that of its numbers."""
    multi_settings["multi"]["counts"] = {"vanilla": 1}
    run, file = (
        train(SpaceRecipe.model_validate(multi_settings), multi_zoo, tmp_path / "run"),
        tmp_path / "z.safetensors",
    )
    space = Space.load(run)
    with zoo_of(run) as zoo:
        start = resolve("vanilla/0000", space, zoo).latent
    encode(run, "vanilla/0000", file, refine=3)
    refined = read_latent(file, space)
    assert 0 < float((refined - start).abs().max()) < 10 * float(start.std())
    starts = ("vanilla/0000", "noise:vanilla")
    found = optimize(run, OptimizeConfig(starts=starts, steps=4, validate_every=2), tmp_path / "better")
    assert all(record.loss is None or math.isfinite(record.loss) for record in found.curve)


def test_refined_diversity_is_that_of_the_architectures_with_two_members(multi_run: Path, tmp_path: Path) -> None:
    """As the space's own: the validation split has one network of an architecture."""
    result = evaluate(Path(copytree(multi_run, tmp_path / "multi")), "val", refined=1, baselines=False)
    assert math.isnan(result.per_class["vanilla"].diversity) and result.refined is not None
    for name in ("diversity", "zoo_diversity", "diversity_ratio"):
        assert math.isfinite(getattr(result.refined, name)) and math.isfinite(getattr(result, name)), name
    assert result.refined.zoo_diversity == pytest.approx(result.zoo_diversity)


def test_interpolate_and_encode_refine(run_copy: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    plain = json.loads(cli("interpolate", "--from", "worst", "--to", "best", "--run", run_copy, "--json").out)
    line = ("interpolate", "--from", "worst", "--to", "best", "--run", run_copy, "--refine", 20, "--json")
    refined = json.loads(cli(*line).out)
    assert refined["refined"] == 20 and "refined" not in plain
    assert refined["latent_accuracy"] != plain["latent_accuracy"]
    assert refined["weight_accuracy"] == plain["weight_accuracy"]
    files = [tmp_path / "plain.safetensors", tmp_path / "refined.safetensors"]
    cli("encode", "best", "-o", files[0], "--run", run_copy)
    told = json.loads(cli("encode", "best", "-o", files[1], "--run", run_copy, "--refine", 20, "--json").out)
    assert told["refined"] == 20
    space = Space.load(run_copy)
    first, second = (read_latent(file, space) for file in files)
    assert first.shape == second.shape and not torch.equal(first, second)
    with zoo_of(run_copy) as zoo:
        named = [resolve(text, space, zoo) for text in ("best", str(files[0]))]
        moved = refined_networks(space, zoo, named, task_of(zoo, "cpu"), 20)
    torch.testing.assert_close(moved[0].latent, second)
    assert torch.equal(moved[1].latent, first)  # a latent file says nothing of what its network answered


def test_what_cannot_be_refined_is_refused(run_copy: Path, tmp_path: Path) -> None:
    for work in (
        lambda: evaluate(run_copy, refined=0),
        lambda: encode(run_copy, "best", tmp_path / "z.safetensors", refine=0),
        lambda: interpolate(run_copy, "best", "worst", refine=0),
    ):
        with pytest.raises(UsageError, match="--refine 0 was asked for, but latents are refined by 1 step or more"):
            work()
    latent = tmp_path / "latent.safetensors"
    with pytest.raises(
        NetspaceError, match=r"the latent for .*latent.safetensors has values that are not finite: it is"
    ):
        write_latent(latent, torch.full((64,), math.nan))
    assert not latent.exists()
    encode(run_copy, "best", latent)
    with pytest.raises(UsageError, match=r"latents are refined by what networks answer, and .* holds a latent alone"):
        encode(run_copy, str(latent), tmp_path / "again.safetensors", refine=5)
