"""The bundled recipes of several architectures take their first steps, on generated images of the right shape.

The zoos are random networks of the recipe's architectures at full size; nothing is learnt here but that all of it fits.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from model_zoo.recipe import ZooRecipe, planned_runs
from netspace.config import bundled_names, load
from netspace.models.coordinate_decoder import CoordinateConfig
from netspace.tasks import DataConfig
from netspace.training.optimizers import Optimizer
from netspace.training.recipe import FitConfig, LossConfig, SpaceRecipe
from netspace.training.step import Step

ROOT = Path(__file__).parent.parent
SHAPES = {
    "multi-digits": DataConfig(name="generated", image_size=8, channels=1, limit=100),
    "multi-digits-epochs": DataConfig(name="generated", image_size=8, channels=1, limit=100),
    "multi-fashion": DataConfig(name="generated", image_size=28, channels=1, limit=200),
    "paper-cifar10": DataConfig(name="generated", image_size=32, channels=3, crop_padding=4, flip=True, limit=200),
    "paper-tiny-imagenet": DataConfig(
        name="generated", image_size=64, channels=3, classes=200, crop_padding=8, flip=True, limit=400
    ),
}
RECIPES = [
    ("multi-digits", "multi-digits"),
    ("multi-digits-unseen", "multi-digits"),
    ("multi-digits-coordinate", "multi-digits-epochs"),
    ("multi-fashion", "multi-fashion"),
    ("paper-cifar10-multi", "paper-cifar10-multi"),
    ("paper-cifar10-unseen", "paper-cifar10-multi"),
    ("paper-tiny-imagenet-multi", "paper-tiny-imagenet-multi"),
    ("paper-tiny-imagenet-unseen", "paper-tiny-imagenet-multi"),
]
SLOW = {
    "paper-cifar10-multi",
    "paper-cifar10-unseen",
    "paper-tiny-imagenet-multi",
    "paper-tiny-imagenet-unseen",
}  # 4 GB and half a minute each


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("bench_multi")


@pytest.mark.parametrize(
    ("space", "zoo"), [pytest.param(*each, marks=[pytest.mark.slow] * (each[0] in SLOW)) for each in RECIPES]
)
def test_a_recipe_takes_its_first_step(several: ModuleType, space: str, zoo: str) -> None:
    recipe, zoo_recipe = load(SpaceRecipe, f"space/{space}"), load(ZooRecipe, f"zoo/{zoo}")
    data = SHAPES[zoo.removesuffix("-multi")]
    assert (
        data.image_size == {"digits": 8, "fashion-mnist": 28, "cifar10": 32, "tiny-imagenet": 64}[zoo_recipe.data.name]
    )
    recipe = recipe.model_copy(update={"images": 4})  # the networks' part of a step, made short
    if isinstance(recipe.decoder, CoordinateConfig):  # which is fitted to the references before the first step
        recipe = recipe.model_copy(update={"decoder": recipe.decoder.model_copy(update={"reference_steps": 40})})
    case = several.MultiCase(space, several.few_members(recipe), zoo_recipe, data, 1)
    setting = several.setup_of(case, torch.device("cpu"))
    assert [each.id for each in setting.family] == list(zoo_recipe.archs), "recipes list architectures by size"
    assert setting.family.size == ((88, 10_000) if "paper" in space else (28, zoo_recipe.prep_width))
    assert {each.id for each in setting.family if not each.trained} == (
        {"vanillacnn", "resnet8"} if "unseen" in space else set()
    )
    step = Step(setting)
    optimizer = Optimizer(setting.model, recipe.optimizer, recipe.steps)
    before = {name: value.detach().clone() for name, value in setting.model.named_parameters()}
    for number in range(1 if "paper" in space else 2):
        terms = step(setting.model, number)
        assert all(bool(torch.isfinite(value)) for value in terms.values())
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step(number)
    moved = {name for name, value in setting.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == set(before)


@pytest.mark.parametrize(("data", "images"), [("cifar10", 40_000), ("tiny-imagenet", 80_000)])
@pytest.mark.parametrize(("kind", "networks", "passes"), [("", 8, 20), ("-multi", 2, 25), ("-unseen", 2, 25)])
def test_the_papers_recipes_have_its_settings(data: str, images: int, kind: str, networks: int, passes: int) -> None:
    """NetSpace, Suppl. IV, and the authors' scripts; a pass of theirs is one over the images (313 or 625 batches)."""
    recipe = load(SpaceRecipe, f"space/paper-{data}{kind}")
    batches = -(-images // 128)
    assert (recipe.steps, recipe.validate_every) == (1000 * batches, passes * batches)
    assert (recipe.networks, recipe.images, recipe.latent, recipe.accumulate) == (networks, 128, 4096, 1)
    assert (recipe.encoder.kind, recipe.encoder.standardise, recipe.decoder.start) == ("conv", False, "small")
    assert (recipe.optimizer.name, recipe.optimizer.learning_rate, recipe.optimizer.schedule) == (
        "adam",
        1e-4,
        "constant",
    )
    assert (recipe.optimizer.betas, recipe.optimizer.clip, recipe.optimizer.ema) == ((0.9, 0.999), None, 0.0)
    if not kind:
        assert recipe.multi is None and recipe.loss == LossConfig(behaviour=1.0, temperature=4.0)
        return
    assert recipe.multi is not None and recipe.loss == LossConfig(behaviour=0.0)
    multi = recipe.multi
    assert (multi.rows, multi.alpha, multi.temperature, multi.pairs) == (88, 0.9, 4.0, None)
    assert recipe.encoder.pad
    assert (multi.distillation, multi.classid, multi.interpolation) == (1.0, 1.0, 1.0)
    assert multi.batches == ("pairs" if kind == "-unseen" else "members")
    shown = (40, 0, 0, 80) if kind == "-unseen" else (60, 50, 60, 100)
    assert multi.counts == dict(zip(("lenetlike", "vanillacnn", "resnet8", "resnet32"), shown, strict=True))


@pytest.mark.parametrize("zoo", sorted({zoo for _, zoo in RECIPES}))
def test_their_zoos_are_planned_with_a_teacher(zoo: str) -> None:
    recipe = load(ZooRecipe, f"zoo/{zoo}")
    teacher = recipe.teacher_recipe()
    assert teacher is not None
    assert len(planned_runs(recipe)) == len(recipe.archs) * recipe.members.total
    assert {run.split for run in planned_runs(teacher)} == {"train"}
    if "paper" in zoo:
        (run, *_) = planned_runs(recipe)
        assert (run.epochs, run.learning_rate, run.weight_decay, run.schedule) == ((300,), 0.05, 5e-4, "steps")
        assert [recipe.optimizer.factor("steps", epoch / 300) for epoch in (149, 151, 181, 211)] == pytest.approx(
            [1, 0.1, 0.01, 0.001]
        )
        assert list(teacher.archs) == ["resnet56"]


def test_the_plain_step_of_several_architectures_has_the_same_loss(several: ModuleType) -> None:
    (case,) = several.multi_cases(quick=True)
    plain = case.recipe.model_copy(update={"precision": "float32", "networks_precision": "float32"})
    multi = plain.multi.model_copy(update={"rows": 8})
    width = case.zoo.model_copy(update={"prep_width": 656})
    case = replace(case, recipe=plain.model_copy(update={"multi": multi}), zoo=width)
    kinds = (importlib.import_module("bench_cases").OurStep, several.ReferenceMultiStep)
    ours, theirs = (kind(case, torch.device("cpu")) for kind in kinds)
    theirs.encoder.load_state_dict(ours.model.encoder.state_dict() | {"spread": theirs.encoder.spread})
    theirs.decoder.load_state_dict(ours.model.decoder.state_dict())
    theirs.head.load_state_dict(ours.model.get_submodule("head").state_dict())
    assert {source.cache.shape[1] for source in ours.step.sources.values()} == {4, 8}  # the plain step pads them itself
    loss = torch.stack(list(ours.step(ours.model, 0).values())).sum()
    theirs.number = 0
    torch.testing.assert_close(theirs.loss().detach(), loss.detach(), rtol=1e-4, atol=1e-4)


def test_recipes_of_fits_say_which_coordinates_they_have_and_the_papers_are_the_integers() -> None:
    recipes = {name: load(FitConfig, name) for name in bundled_names() if name.startswith("compress/")}
    assert all("coordinates" in recipe.predictor.embedding.model_fields_set for recipe in recipes.values())
    paper = recipes["compress/paper"]
    embedding, (stage,) = paper.predictor.embedding, paper.stages
    assert (embedding.coordinates, embedding.base, embedding.count) == ("raw", "smooth", 40)
    assert (stage.sampling, stage.kernels, stage.uniform) == ("weighted", 4096, 0.8)
    assert (stage.reconstruction, stage.distillation, stage.features) == (1.0, 1e-4, 1e-4)
    assert (stage.optimizer.name, stage.optimizer.weight_decay) == ("ranger", 1e-3)
    assert not paper.norms and paper.predictor.kind == "plain"
