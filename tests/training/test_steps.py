"""A training step against a slow calculation by hand; a step's batch is a function of its number alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import no_waiting

from netspace.networks.prep import unflatten, unpack
from netspace.training import batches
from netspace.training.batches import unwrapped
from netspace.training.optimizers import Average, Optimizer
from netspace.training.recipe import SpaceRecipe
from netspace.training.setup import prepare
from netspace.training.step import Step
from netspace.zoo import Zoo


def made(zoo: Zoo, settings: dict[str, Any], **changes: Any) -> Any:
    return prepare(SpaceRecipe.model_validate({**settings, **changes}), zoo, torch.device("cpu"))


def step_of(setting: Any, rank: int = 0, world_size: int = 1, **changes: Any) -> Step:
    return Step(replace(setting, recipe=setting.recipe.model_copy(update=changes)), rank, world_size)


def by_hand(setting: Any, number: int) -> float:
    """Eq. 1 on networks that are run one by one."""
    recipe, nets = setting.recipe, setting.family[0].nets
    step = step_of(setting)
    ((_, members),) = step.batches.take(number)
    images, places = step.images.take(number, recipe.images)
    assert torch.equal(images, setting.task.normalise(setting.task.train.images)[places])
    preps = setting.train[0].take(members)
    decoded = setting.model.decoder(setting.model.encoder(preps))
    terms = []
    for one, other in zip(unpack(preps, 1477), unpack(decoded, 1477), strict=True):
        logits = []
        for flat in (one, other):
            nets.skeleton.load_state_dict({k: v.detach() for k, v in unflatten(flat, nets.spec).items()})
            logits.append(nets.skeleton(images))
        log_target, log_answer = (F.log_softmax(each / recipe.loss.temperature, -1) for each in logits)
        terms.append((log_target.exp() * (log_target - log_answer)).sum(-1).mean() * recipe.loss.temperature**2)
    return float(torch.stack(terms).mean())


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("remember", [True, False])
def test_the_behaviour_term_is_that_of_networks_run_alone(
    tiny_zoo: Path, space_settings: dict[str, Any], temperature: float, remember: bool
) -> None:
    loss = {"behaviour": 1.0, "temperature": temperature}
    with Zoo(tiny_zoo) as zoo:
        setting = made(zoo, space_settings, loss=loss, remember_targets=remember)
        for number in (0, 5):
            terms = step_of(setting)(setting.model, number)
            assert terms.keys() == {"behaviour"}
            assert float(terms["behaviour"].detach()) == pytest.approx(by_hand(setting, number), rel=1e-4)


def test_the_weights_of_terms_are_factors(tiny_zoo: Path, space_settings: dict[str, Any]) -> None:
    with Zoo(tiny_zoo) as zoo:
        found = []
        for factor in (1.0, 3.0):
            setting = made(zoo, space_settings, loss={"behaviour": factor, "weights": 2 * factor, "temperature": 1.0})
            found.append(step_of(setting)(setting.model, 0))
    for name in ("behaviour", "weights"):
        assert float(found[1][name].detach()) == pytest.approx(3 * float(found[0][name].detach()), rel=1e-5)


def test_shares_together_are_the_whole(tiny_zoo: Path, space_settings: dict[str, Any]) -> None:
    with Zoo(tiny_zoo) as zoo:
        setting = made(zoo, space_settings)
        whole = step_of(setting)(setting.model, 3)["behaviour"]
        shares = [step_of(setting, place, 2)(setting.model, 3)["behaviour"] for place in range(2)]
        assert float(torch.stack(shares).mean().detach()) == pytest.approx(float(whole.detach()), rel=1e-5)
        assert float((shares[0] - shares[1]).detach()) != 0


def test_a_step_depends_on_its_number_alone(tiny_zoo: Path, space_settings: dict[str, Any]) -> None:
    with Zoo(tiny_zoo) as zoo:
        setting = made(zoo, space_settings)
        used, fresh = step_of(setting), step_of(setting)
        for number in (0, 1, 2, 9):
            last = used(setting.model, number)["behaviour"]
        assert torch.equal(last, fresh(setting.model, 9)["behaviour"])
        assert not torch.equal(last, fresh(setting.model, 8)["behaviour"])


def test_the_gradient_reaches_encoder_and_decoder(tiny_zoo: Path, space_settings: dict[str, Any]) -> None:
    with Zoo(tiny_zoo) as zoo:
        setting = made(zoo, space_settings)
        step_of(setting)(setting.model, 0)["behaviour"].backward()
        for name, value in setting.model.named_parameters():
            assert value.grad is not None and value.grad.abs().sum() > 0, name
        assert not any(value.requires_grad for value in setting.family[0].nets.skeleton.parameters())
        assert unwrapped(setting.model) is setting.model


def test_the_same_recipe_prepares_the_same_model(tiny_zoo: Path, space_settings: dict[str, Any]) -> None:
    with Zoo(tiny_zoo) as zoo:
        torch.manual_seed(1)
        first = made(zoo, space_settings).model.state_dict()
        torch.manual_seed(2)
        second = made(zoo, space_settings).model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_mean_what_one_says_of_lines_too(tiny_zoo: Path, space_settings: dict[str, Any]) -> None:
    loss = {"behaviour": 1.0, "temperature": 0.5, "relative": True, "lines": 0.5}
    with Zoo(tiny_zoo) as zoo:
        setting = made(zoo, space_settings, loss=loss, networks=8)
        whole = step_of(setting)(setting.model, 3)
        halves = [step_of(setting, place, 2)(setting.model, 3) for place in range(2)]
    assert whole.keys() == {"behaviour", "lines"}
    for name, value in whole.items():
        mean = sum(float(half[name].detach()) for half in halves) / 2
        assert float(value.detach()) == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize("parts", [2, 4])
def test_the_parts_of_a_batch_mean_what_it_says(tiny_zoo: Path, space_settings: dict[str, Any], parts: int) -> None:
    """Values and gradients, of one process and of two."""
    loss = {"behaviour": 1.0, "temperature": 0.5, "relative": True, "lines": 0.5, "weights": 0.1}
    with Zoo(tiny_zoo) as zoo:
        setting = made(zoo, space_settings, loss=loss, networks=8 * parts)
        model = setting.model
        sum(step_of(setting)(model, 3).values()).backward()
        whole = {name: value.grad.clone() for name, value in model.named_parameters()}
        for shares in (1, 2):
            model.zero_grad()
            for place in range(shares):
                step = step_of(setting, place, shares, accumulate=parts)
                for part in range(parts):
                    (sum(step(model, 3, part).values()) / (parts * shares)).backward()
            for name, value in model.named_parameters():
                torch.testing.assert_close(value.grad, whole[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("kept", [True, False], ids=["in memory", "in the file"])
@pytest.mark.parametrize("encoder", [{"kind": "conv"}, {"kind": "probe", "probes": 4}])
def test_a_step_does_not_wait_for_the_device(
    tiny_zoo: Path,
    space_settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    encoder: dict[str, Any],
    kept: bool,
    device: str,
) -> None:
    if not kept:
        monkeypatch.setattr(batches, "CACHE_BYTES", 0)
    loss = {"behaviour": 1.0, "lines": 0.5, "weights": 0.1}
    recipe = SpaceRecipe.model_validate({**space_settings, "loss": loss, "encoder": encoder})
    with Zoo(tiny_zoo) as zoo:
        setting = prepare(recipe, zoo, torch.device(device))
        step, optimizer = step_of(setting), Optimizer(setting.model, recipe.optimizer, recipe.steps)
        average = Average(setting.model, 0.9)

        def once(number: int) -> None:
            torch.stack(list(step(setting.model, number).values())).sum().backward()
            optimizer.step(number)
            average.update(setting.model, number)

        once(0)  # calibrates, and sets up libraries
        with no_waiting(torch.device(device)):
            once(1)


def test_noise_makes_networks_near_those_of_the_zoo(tiny_zoo: Path, space_settings: dict[str, Any]) -> None:
    """Every second network is disturbed by its own size; the target is what the disturbed one answers."""
    with Zoo(tiny_zoo) as zoo:
        setting = made(zoo, space_settings, noise=0.5)
        step, odd = step_of(setting), step_of(setting, 1, 2)
        preps = setting.train[0].take(torch.arange(8))
        disturbed = step._with_noise(preps, setting.model.spread, 3, 0)
        assert torch.equal(disturbed, step._with_noise(preps, setting.model.spread, 3, 0))
        away = unpack((disturbed - preps) / setting.model.spread, 1477).std(1)
        assert (away[::2] == 0).all() and (away[1::2] > 0).all() and away.max() < 0.55
        assert len(set(away.tolist())) == 5
        never = torch.arange(12 * 128).view(12, 128) < 100
        still = step._with_noise(preps, setting.model.spread.masked_fill(never, 1), 3, 0)  # as of a constant layer
        assert torch.equal(still[:, never], preps[:, never]) and torch.equal(still[:, ~never], disturbed[:, ~never])
        assert torch.equal(odd._with_noise(preps[1::2], setting.model.spread, 3, 0), disturbed[1::2])
        assert step.targets[0].table is None
        setting.model.zero_grad()
        images, places = step.images.take(0, 16)
        logits = step.targets[0].take(None, places, disturbed, images)
        assert torch.equal(logits, setting.family[0].nets(unpack(disturbed, 1477), images))
        assert not torch.equal(
            step_of(made(zoo, space_settings))(setting.model, 0)["behaviour"], step(setting.model, 0)["behaviour"]
        )
