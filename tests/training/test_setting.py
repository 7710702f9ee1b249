"""What a training is made of: the architectures of a space, their networks, and how a model is validated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from netspace import archs
from netspace.errors import NetspaceError, UsageError
from netspace.models.autoencoder import AutoEncoder
from netspace.networks.family import Networks
from netspace.networks.prep import pack, unflatten, unpack
from netspace.training.optimizers import Average
from netspace.training.recipe import SpaceRecipe
from netspace.training.setup import FRESH, Setup, prepare, task_of, training_rows, validate_members
from netspace.training.validation import accuracies
from netspace.zoo import Population, Zoo, write_zoo

CPU = torch.device("cpu")
DECLARED = {"d": {"arch": "vanillacnn", "width": 0.18}}


@pytest.fixture
def zoo(multi_zoo: Path) -> Iterator[Zoo]:
    with Zoo(multi_zoo) as opened:
        yield opened


def made(zoo: Zoo, settings: dict[str, Any], **multi: Any) -> Setup:
    held = SpaceRecipe.model_validate({**settings, "multi": {**settings["multi"], **multi}})
    return prepare(held, zoo, CPU)


def told(zoo: Zoo, settings: dict[str, Any], **multi: Any) -> str:
    """The sentence that a user reads."""
    with pytest.raises(UsageError) as refused:
        made(zoo, settings, **multi)
    return str(refused.value)


# ---- the architectures


def test_the_family_of_a_zoo(zoo: Zoo, multi_settings: dict[str, Any]) -> None:
    setting = made(zoo, multi_settings)
    assert [each.id for each in setting.family] == ["lenet", "vanilla", "resnet"] and setting.num_trained == 3
    for class_id, each in enumerate(setting.family):
        group = zoo.group(each.id)
        assert (each.spec, each.size, each.trained, group.class_id) == (group.spec, group.size, True, class_id)
    assert [len(source or ()) for source in setting.train] == [6, 5, 6]
    assert [len(source or ()) for source in setting.val] == [2, 1, 2]
    assert setting.model.head is not None and setting.teacher is not None


def test_counts_show_the_first_members(zoo: Zoo, multi_settings: dict[str, Any]) -> None:
    setting = made(zoo, multi_settings, counts={"vanilla": 2, "resnet": 6})
    assert [len(source or ()) for source in setting.train] == [6, 2, 6] and setting.num_trained == 3
    group = zoo.group("vanilla")
    assert training_rows(setting.recipe, zoo, group).tolist() == group.rows("train")[:2].tolist()
    source = setting.train[1]
    assert source is not None and torch.equal(source.take(torch.arange(2)), group.read(group.rows("train")[:2]))


def test_what_is_not_shown_is_not_read(zoo: Zoo, multi_settings: dict[str, Any]) -> None:
    setting = made(zoo, multi_settings, counts={"vanilla": 0}, declared=DECLARED)
    assert [(each.id, each.trained) for each in setting.family] == [
        ("lenet", True),
        ("vanilla", False),
        ("d", False),
        ("resnet", True),
    ]
    assert setting.train[1] is setting.train[2] is setting.val[1] is setting.val[2] is None and setting.num_trained == 2


def test_a_recipe_for_one_and_a_zoo_of_several(zoo: Zoo, space_settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as refused:
        prepare(SpaceRecipe.model_validate(space_settings), zoo, CPU)
    assert str(refused.value) == (
        f"{zoo.path} holds 3 architectures (lenet, vanilla, resnet), and this recipe is for one: give it `multi`, or start "
        "from a recipe that has it (space/multi-digits)"
    )


def test_a_recipe_for_several_and_a_zoo_of_one(tiny_zoo: Path, multi_settings: dict[str, Any]) -> None:
    with Zoo(tiny_zoo) as zoo:
        assert told(zoo, multi_settings, teacher="best") == (
            f"this recipe is for several architectures, but {tiny_zoo} holds lenetlike alone: leave out `multi`"
        )


def test_one_architecture_and_a_larger_one_that_is_only_declared(
    tiny_zoo: Path, multi_settings: dict[str, Any]
) -> None:
    with Zoo(tiny_zoo) as zoo:
        sentence = told(zoo, multi_settings, declared={"d": {"arch": "vanillacnn", "width": 0.25}}, teacher="best")
    assert sentence.startswith("networks of d, the largest architecture, are needed: ")


def test_what_the_zoo_has_is_not_declared(zoo: Zoo, multi_settings: dict[str, Any]) -> None:
    assert told(zoo, multi_settings, declared={"vanilla": {"arch": "vanillacnn"}}) == (
        f"multi.declared names vanilla, of which {zoo.path} has networks: to train on none of them, set multi.counts.vanilla=0"
    )


def test_code_that_a_recipe_declares_is_not_run(zoo: Zoo, multi_settings: dict[str, Any]) -> None:
    sentence = told(zoo, multi_settings, declared={"d": {"arch": "os:system"}})
    assert sentence.startswith("architecture 'os:system' is code outside netspace")


@pytest.mark.parametrize(("name", "word"), [("lenet", "smallest"), ("resnet", "largest")])
def test_an_end_cannot_go_unshown(zoo: Zoo, multi_settings: dict[str, Any], name: str, word: str) -> None:
    assert told(zoo, multi_settings, counts={name: 0}) == (
        f"networks of {name}, the {word} architecture, are needed: architectures are ordered between the smallest and the "
        "largest (lenet, vanilla, resnet), and those between alone may go without"
    )


def test_counts_of_an_unknown_architecture(zoo: Zoo, multi_settings: dict[str, Any]) -> None:
    sentence = told(zoo, multi_settings, counts={"vanila": 3})
    assert "'vanila'" in sentence and "did you mean 'vanilla'" in sentence and "lenet, vanilla, resnet" in sentence


def test_counts_of_more_than_there_are(zoo: Zoo, multi_settings: dict[str, Any]) -> None:
    assert told(zoo, multi_settings, counts={"vanilla": 6}) == (
        f"multi.counts asks for 6 training members of vanilla, but {zoo.path} has 5"
    )


def test_counts_below_none(multi_settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"counts\.vanilla"):
        SpaceRecipe.model_validate({**multi_settings, "multi": {"counts": {"vanilla": -1}}})


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_zoo_without_members_to_learn_from(
    zoo: Zoo, multi_settings: dict[str, Any], tmp_path: Path, split: str
) -> None:
    populations = {}
    for name, group in zoo.archs.items():
        rows = np.flatnonzero(group.members["split"] != split.encode())
        kept = rows if split == "val" or name == "vanilla" else np.arange(len(group))
        populations[name] = Population(group.spec, group.read(kept).numpy(), group.members[kept])
    write_zoo(tmp_path / "few.h5", zoo.header, populations)
    with Zoo(tmp_path / "few.h5") as few, pytest.raises(NetspaceError) as refused:
        made(few, multi_settings, teacher="best")
    of = "of vanilla in its train split" if split == "train" else "in its val split"
    remedy = ": add networks to it, with `netspace zoo import --split val` or more members.val in its recipe"
    assert str(refused.value) == f"{few.path} has no members {of}, and training needs some" + (
        remedy if split == "val" else ""
    )


# ---- what is only declared


def test_untrained_examples_are_the_recipes_and_no_other(zoo: Zoo, multi_settings: dict[str, Any]) -> None:
    """Where decoded networks of an architecture never shown start: the same again, whatever was drawn before."""
    biases = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)
        setting = made(zoo, {**multi_settings, "seed": seed}, counts={"vanilla": 0}, declared=DECLARED)
        arch = setting.family[2]
        biases.append(unpack(setting.model.decoder.bias[2].detach(), arch.parameters))
    assert torch.equal(biases[0], biases[1]) and not torch.equal(biases[0], biases[2])
    # a network as the architecture initialises it: no bias is 0, layers have their usual spread
    held = unflatten(biases[0], arch.spec)
    fresh = archs.skeleton(arch.spec.arch, arch.spec.settings, arch.spec.input_shape)
    for name, value in fresh.named_parameters():
        if value.numel() > 50:
            assert float(held[name].std()) == pytest.approx(float(value.detach().std()), rel=0.3), name


def test_untrained_examples_set_the_spread_of_their_class(zoo: Zoo, multi_settings: dict[str, Any]) -> None:
    setting = made(zoo, multi_settings, counts={"vanilla": 0}, declared=DECLARED)
    for class_id in (1, 2):
        arch = setting.family[class_id]
        spread = unpack(setting.model.spread[class_id], arch.parameters)
        assert (spread > 0).all() and len(spread.unique()) > 3
        assert (setting.model.spread[class_id].flatten()[arch.parameters :] == 1).all()
    assert FRESH > 8  # enough to tell


def test_shown_networks_start_near_the_best_of_those_shown(zoo: Zoo, multi_settings: dict[str, Any]) -> None:
    setting = made(zoo, multi_settings, counts={"resnet": 3})
    for class_id, name in enumerate(("lenet", "vanilla", "resnet")):
        group = zoo.group(name)
        rows = training_rows(setting.recipe, zoo, group).numpy()
        best = rows[group.members["accuracy_val"][rows].argmax()]
        wanted = pack(unpack(group.read([best])[0], group.spec.num_parameters), setting.family.size)
        assert torch.equal(setting.model.decoder.bias[class_id], wanted)


# ---- validation


def one_by_one(setting: Setup, model: AutoEncoder) -> dict[str, float]:
    """The figures of `validate_members`, a network at a time."""
    family, task = setting.family, setting.task

    def accuracy(latent: torch.Tensor) -> tuple[int, float]:
        class_id = int(model.head(latent[None]).argmax())
        prep = model.decoder(latent[None], torch.tensor([class_id]))
        return class_id, float(accuracies(Networks(family, prep.float(), torch.tensor([class_id])), task, "val")[0])

    scores: list[float] = []
    right, latents = [], {}
    for class_id, source in enumerate(setting.val):
        if source is not None:
            codes = [model.encoder(source.take(torch.tensor([row])), class_id)[0] for row in range(len(source))]
            found = [accuracy(code) for code in codes]
            latents[class_id] = codes
            scores += [score for _, score in found]
            right += [id == class_id for id, _ in found]
    figures = {"classid": float(np.mean(right))}
    for class_id in range(1, len(family) - 1):
        gamma = class_id / (len(family) - 1)
        ends = zip(latents[0], latents[len(family) - 1], strict=True)
        found = [accuracy((1 - gamma) * a + gamma * b) for a, b in ends]
        name = f"between_{family[class_id].id}"
        figures[name] = float(np.mean([score for _, score in found]))
        figures[f"{name}_classid"] = float(np.mean([id == class_id for id, _ in found]))
        scores += [score for _, score in found]
    return {**figures, "error": 1 - float(np.mean(scores))}


@pytest.mark.parametrize("multi", [{}, {"counts": {"vanilla": 0}, "declared": DECLARED}], ids=["shown", "unseen"])
def test_the_error_is_1_minus_the_mean_accuracy_of_members_and_points_between(
    zoo: Zoo, multi_settings: dict[str, Any], multi: dict[str, Any]
) -> None:
    """Every predicted member and every point of Eq. 12 counts once (the authors' rule), shown architectures or not."""
    setting = made(zoo, multi_settings, **multi)
    assert setting.model.head is not None
    found = validate_members(setting)
    with torch.no_grad():
        wanted = one_by_one(setting, setting.model)
    image = 1.5 / len(task_of(zoo, CPU).val)  # a tie may be rounded the other way
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=image), name
    assert found.keys() - wanted.keys() == {
        "accuracy_target",
        "accuracy_predicted",
        "r2",
        "mae",
        "bias",
        "agreement",
        "kl",
    }


def test_averaged_weights_are_validated_and_the_model_stays_as_it_is(zoo: Zoo, multi_settings: dict[str, Any]) -> None:
    setting, other = made(zoo, multi_settings), made(zoo, {**multi_settings, "seed": 1})
    average = Average(other.model, 0.9)
    before = {name: value.clone() for name, value in setting.model.state_dict().items()}
    with average.applied_to(setting.model):
        found = validate_members(setting)
    assert found == validate_members(replace(setting, model=other.model)) != validate_members(setting)
    assert all(torch.equal(value, before[name]) for name, value in setting.model.state_dict().items())
