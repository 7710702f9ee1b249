"""The step of several architectures against a slow calculation, one network at a time; parts, shares and the teacher."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import no_waiting
from torch import Tensor

from netspace.networks.family import ArchClass
from netspace.networks.prep import unflatten
from netspace.training.recipe import SpaceRecipe
from netspace.training.setup import Setup, prepare
from netspace.training.step import Step
from netspace.zoo import Zoo

CPU = torch.device("cpu")
CLOSE = 2e-4  # relative: networks run stacked in float32, and alone
ALL = {"behaviour": 0.5, "temperature": 2.0, "weights": 0.3}  # the single setting's terms, beside the others


@pytest.fixture
def zoo(multi_zoo: Path) -> Iterator[Zoo]:
    with Zoo(multi_zoo) as opened:
        yield opened


def made(zoo: Zoo, settings: dict[str, Any], **changes: Any) -> Setup:
    multi = {**settings["multi"], **changes.pop("multi", {})}
    return prepare(SpaceRecipe.model_validate({**settings, "multi": multi, **changes}), zoo, CPU)


def step_of(setting: Setup, rank: int = 0, world_size: int = 1, **changes: Any) -> Step:
    return Step(replace(setting, recipe=setting.recipe.model_copy(update=changes)), rank, world_size)


def values(terms: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in terms.items()}


def shares_of(row: Tensor) -> Tensor:
    """Softmax in float64."""
    powers = (row.double() - row.double().max()).exp()
    return powers / powers.sum()


def entropy(row: Tensor, label: int) -> float:
    return -math.log(float(shares_of(row)[label]))


def divergence(answer: Tensor, target: Tensor, temperature: float) -> float:
    """KL(softmax(t / T) || softmax(p / T)) * T^2, averaged over images, one at a time."""
    found = []
    for p, t in zip(answer, target, strict=True):
        share, other = shares_of(t.double() / temperature), shares_of(p.double() / temperature)
        found.append(float((share * (share.log() - other.log())).sum()) * temperature**2)
    return sum(found) / len(found)


def by_hand(setting: Setup, number: int) -> dict[str, float]:
    """Eq. 3 to 12 on networks that are encoded, decoded and run one by one; sums divided by the number of networks."""
    recipe, family, model, task = setting.recipe, setting.family, setting.model, setting.task
    multi, loss, teacher = recipe.multi, recipe.loss, setting.teacher
    assert multi is not None and teacher is not None and model.head is not None
    step = step_of(setting)
    images, places = step.images.take(number, recipe.images)
    labels = task.train.labels[places].tolist()
    teacher.nets.skeleton.load_state_dict(unflatten(teacher.flat, teacher.nets.spec))
    told = teacher.nets.skeleton(images)

    def run(arch: ArchClass, prep: Tensor) -> Tensor:
        flat = prep.flatten()[: arch.parameters].detach()
        arch.nets.skeleton.load_state_dict(unflatten(flat, arch.spec))
        answers: Tensor = arch.nets.skeleton(images).detach()
        return answers

    def decode(latent: Tensor, class_id: int) -> Tensor:
        decoded: Tensor = model.decoder(latent[None], torch.tensor([class_id]))[0]
        return decoded

    def distilled(answer: Tensor) -> float:
        task_loss = sum(entropy(row, label) for row, label in zip(answer, labels, strict=True)) / len(labels)
        return multi.alpha * divergence(answer, told, multi.temperature) + (1 - multi.alpha) * task_loss

    terms = dict.fromkeys(("classid", "distillation", "interpolation", "behaviour", "weights"), 0.0)
    ends: dict[int, list[Tensor]] = {}
    chosen = step.batches.take(number)
    count = sum(len(members) for _, members in chosen)
    for class_id, members in chosen:
        arch, source = family[class_id], setting.train[class_id]
        assert source is not None
        for prep in source.take(members):
            latent = model.encoder(prep[None], class_id)[0].detach()
            ends.setdefault(class_id, []).append(latent)
            answer, decoded = run(arch, decode(latent, class_id)), decode(latent, class_id)
            terms["classid"] += multi.classid * entropy(model.head(latent[None])[0].detach(), class_id)
            terms["distillation"] += multi.distillation * distilled(answer)
            terms["behaviour"] += loss.behaviour * divergence(answer, run(arch, prep), loss.temperature)
            spread = model.spread[class_id].flatten()[: arch.parameters].double()
            gap = (decoded.flatten()[: arch.parameters] - prep.flatten()[: arch.parameters]).double() / spread
            terms["weights"] += loss.weights * float(gap.square().mean().detach())
    last = len(family) - 1
    pairs = [(a, b) for b in ends.get(last, []) for a in ends.get(0, [])]
    if multi.pairs is not None:  # the i-th with the i-th, where as many of both are asked for
        assert multi.pairs == len(ends[0]) == len(ends[last])
        pairs = list(zip(ends[0], ends[last], strict=True))
    for class_id in range(1, last):
        gamma = class_id / last
        for a, b in pairs:
            latent = (1 - gamma) * a + gamma * b
            term = entropy(model.head(latent[None])[0].detach(), class_id)
            term += distilled(run(family[class_id], decode(latent, class_id)))
            terms["interpolation"] += multi.interpolation * term
    return {name: value / count for name, value in terms.items() if value}


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": ALL},
        {
            "loss": {"behaviour": 0.0},
            "multi": {"pairs": None, "classid": 2.0, "interpolation": 3.0, "distillation": 0.5},
        },
        {"loss": ALL, "encoder": {"kind": "conv"}, "decoder": {"start": "small"}},
        {"loss": ALL, "remember_targets": False, "multi": {"alpha": 0.0, "batches": "members", "pairs": None}},
        {"multi": {"counts": {"vanilla": 0}, "pairs": None}, "networks": 4, "loss": ALL},
        {"multi": {"declared": {"d": {"arch": "vanillacnn", "width": 0.18}}, "pairs": None}},
        {"multi": {"rows": 40}, "loss": ALL},
    ],
    ids=["pairs", "all pairs", "conv", "drawn alike", "one unseen", "one declared", "more rows"],
)
def test_the_terms_are_those_of_networks_run_alone(
    zoo: Zoo, multi_settings: dict[str, Any], changes: dict[str, Any]
) -> None:
    setting = made(zoo, multi_settings, **changes)
    assert setting.recipe.multi is not None
    for number in (0, 5):
        wanted = by_hand(setting, number)
        found = values(step_of(setting)(setting.model, number))
        assert {name for name, value in found.items() if value} == wanted.keys()
        for name, value in wanted.items():
            assert found[name] == pytest.approx(value, rel=CLOSE), name


def test_terms_that_weigh_nothing_are_left_out(zoo: Zoo, multi_settings: dict[str, Any]) -> None:
    off = {"interpolation": 0.0, "distillation": 0.0}
    setting = made(zoo, multi_settings, multi=off, loss={"behaviour": 1.0})
    assert step_of(setting)(setting.model, 0).keys() == {"classid", "behaviour"}


def test_a_batch_without_an_end_has_nothing_between(zoo: Zoo, multi_settings: dict[str, Any]) -> None:
    setting = made(zoo, multi_settings, multi={"batches": "members"}, networks=1)
    terms = step_of(setting)(setting.model, 0)
    assert float(terms["interpolation"].detach()) == 0.0 and float(terms["classid"].detach()) > 0
    torch.stack(list(terms.values())).sum().backward()  # and does not hinder the others
    assert all(value.grad is None or value.grad.isfinite().all() for value in setting.model.parameters())


def test_the_gradient_reaches_all_and_no_network_of_others(zoo: Zoo, multi_settings: dict[str, Any]) -> None:
    setting = made(zoo, multi_settings)
    torch.stack(list(step_of(setting)(setting.model, 0).values())).sum().backward()
    for name, value in setting.model.named_parameters():
        assert value.grad is not None and value.grad.abs().sum() > 0, name
    assert setting.teacher is not None
    for nets in (setting.teacher.nets, *(each.nets for each in setting.family)):
        assert not any(value.requires_grad for value in nets.skeleton.parameters())


# ---- parts and shares


def together(setting: Setup, parts: int, shares: int, number: int = 3, **changes: Any) -> dict[str, float]:
    """The mean over parts and processes; gradients are left in the model."""
    setting.model.zero_grad()
    means: dict[str, float] = {}
    for place in range(shares):
        step = step_of(setting, place, shares, accumulate=parts, **changes)
        for part in range(parts):
            terms = step(setting.model, number, part)
            (torch.stack(list(terms.values())).sum() / (parts * shares)).backward()
            for name, value in values(terms).items():
                means[name] = means.get(name, 0.0) + value / (parts * shares)
    return means


def gradients(setting: Setup) -> dict[str, Tensor]:
    return {name: value.grad.clone() for name, value in setting.model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize(("parts", "shares"), [(2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("batches", ["classes", "members"])
def test_parts_and_shares_mean_what_the_batch_does(
    zoo: Zoo, multi_settings: dict[str, Any], parts: int, shares: int, batches: str
) -> None:
    """All that is said of single networks: values and gradients. Pairs are formed within a part, see below."""
    alone = {"batches": batches, "interpolation": 0.0}
    setting = made(zoo, multi_settings, multi=alone, loss=ALL, networks=12)
    whole = together(setting, 1, 1)
    wanted = gradients(setting)
    found = together(setting, parts, shares)
    assert found.keys() == whole.keys() == {"classid", "distillation", "behaviour", "weights"}
    for name, value in whole.items():
        assert found[name] == pytest.approx(value, rel=CLOSE), name
    for name, gradient in gradients(setting).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-5, msg=name)


def pair_of(setting: Setup, pairs: int | None) -> Any:
    assert setting.recipe.multi is not None
    return setting.recipe.multi.model_copy(update={"pairs": pairs})


def test_of_points_between_parts_make_those_of_their_own_networks(zoo: Zoo, multi_settings: dict[str, Any]) -> None:
    """A batch of 4 of each end in 2 parts: the i-th with the i-th is the whole's; all pairs are half as many."""
    setting = made(zoo, multi_settings, networks=12)
    whole = together(setting, 1, 1, multi=pair_of(setting, 4))["interpolation"]
    parts = together(setting, 2, 1, multi=pair_of(setting, 2))["interpolation"]
    shares = together(setting, 1, 2, multi=pair_of(setting, 2))["interpolation"]
    assert parts == pytest.approx(whole, rel=CLOSE) and shares == pytest.approx(whole, rel=CLOSE)
    every = together(setting, 1, 1, multi=pair_of(setting, None))["interpolation"]
    within = together(setting, 2, 1, multi=pair_of(setting, None))["interpolation"]
    assert within / every == pytest.approx(8 / 16, rel=0.1)  # 2 parts of 2 x 2 pairs, where the whole has 4 x 4


def test_a_step_depends_on_its_number_alone(zoo: Zoo, multi_settings: dict[str, Any]) -> None:
    for batches in ("classes", "members"):
        setting = made(zoo, multi_settings, multi={"batches": batches}, loss=ALL)
        used, fresh = step_of(setting), step_of(setting)
        for number in (0, 1, 2, 9):
            last = values(used(setting.model, number))
        assert last == values(fresh(setting.model, 9)) and last != values(fresh(setting.model, 8))


# ---- the teacher


def test_the_teachers_table_says_what_the_teacher_says(zoo: Zoo, multi_settings: dict[str, Any]) -> None:
    """Without augmentation its answers are computed once; asked for every batch, they are the same."""
    setting = made(zoo, multi_settings)
    step = step_of(setting)
    assert step.teacher_logits is not None and setting.teacher is not None
    assert step.teacher_logits.shape == (len(setting.task.train), 10) and not step.teacher_logits.requires_grad
    remembered = values(step(setting.model, 4))
    step.teacher_logits = None
    asked = values(step(setting.model, 4))
    assert asked == pytest.approx(remembered, rel=1e-5)


def test_augmented_images_are_shown_to_the_teacher_too(zoo: Zoo, multi_settings: dict[str, Any]) -> None:
    setting = made(zoo, multi_settings)
    moving = replace(setting, task=replace(setting.task, flip=True))
    step = step_of(moving)
    assert step.teacher_logits is None
    images, places = step.images.take(2, 64)
    assert not torch.equal(images, setting.task.normalise(setting.task.train.images[places]))
    wanted = by_hand(moving, 2)
    found = values(step(moving.model, 2))
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=CLOSE), name


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_step_does_not_wait_for_the_device(zoo: Zoo, multi_settings: dict[str, Any], device: str) -> None:
    multi = {**multi_settings["multi"], "batches": "classes"}
    recipe = SpaceRecipe.model_validate({**multi_settings, "multi": multi, "loss": ALL})
    setting = prepare(recipe, zoo, torch.device(device))
    step = step_of(setting)

    def once(number: int) -> None:
        torch.stack(list(step(setting.model, number).values())).sum().backward()

    once(0)  # calibrates, and sets up libraries
    with no_waiting(torch.device(device)):
        once(1)
