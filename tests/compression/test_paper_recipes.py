"""The recipes of NeRN's tables: sizes as the paper prints them, and a first step of each stage on generated data."""

from __future__ import annotations

from fnmatch import fnmatch
from math import prod
from typing import Any

import pytest
import torch
from fits import loss_of, stepping
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet, resnet18

from model_zoo.recipe import ZooRecipe
from netspace import archs
from netspace.compression.fit import begin
from netspace.config import load
from netspace.models.coordinate_network import parameter_count
from netspace.networks.kernels import Kernels
from netspace.tasks import DataConfig, load_images
from netspace.training.fit import Original
from netspace.training.recipe import FitConfig

MIB = 2**20
# hidden size, steps of all stages, images and kernels of a step, order (Tables 1, 2, 3 and Sec. 4)
RECIPES: dict[str, tuple[int, int, int, int, str]] = {
    "paper": (160, 70_000, 256, 4096, "cross-filter"),
    "paper-cifar10-resnet56": (360, 70_000, 256, 4096, "cross-filter"),
    "paper-cifar100-resnet56": (400, 90_000, 256, 4096, "in-filter"),
    "paper-imagenet-resnet18": (1372, 160_000, 32, 65_536, "cross-filter"),
}
# Model Size [MB] of predictors by hidden size, as Tables 1, 2, 3 and 12 print it
SIZES = {
    140: 0.36, 160: 0.45, 180: 0.54, 200: 0.65, 240: 0.89, 280: 1.17, 320: 1.48, 360: 1.83, 400: 2.22, 1024: 12.99, 1140: 15.97,
    1256: 19.27, 1372: 22.87,
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_settings_are_those_of_the_tables(name: str) -> None:
    recipe = load(FitConfig, f"compress/{name}")
    hidden, steps, images, kernels, order = RECIPES[name]
    assert (recipe.predictor.hidden, recipe.predictor.layers, recipe.order) == (hidden, 5, order)
    assert sum(stage.steps for stage in recipe.stages) == steps
    assert (recipe.stages[-1].images, {stage.kernels for stage in recipe.stages}) == (images, {kernels})
    assert not recipe.norms and recipe.stages[0].optimizer.name == "ranger"


def test_predictors_have_the_papers_sizes() -> None:
    config = load(FitConfig, "compress/paper").predictor
    counts = {hidden: parameter_count(config.model_copy(update={"hidden": hidden}), 9) for hidden in SIZES}
    assert {hidden: round(4 * count / MIB, 2) for hidden, count in counts.items()} == pytest.approx(SIZES, abs=0.0101)


def test_represented_weights_have_the_papers_sizes() -> None:
    for name, size in (("resnet20", 1.03), ("resnet56", 3.25)):
        state = dict(archs.build(name, channels=3, image_size=32).state_dict())
        assert round(4 * Kernels.of(state).parameters / MIB, 2) == size
    (pattern,) = load(FitConfig, "compress/paper-imagenet-resnet18").layers
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in resnet18().state_dict().items() if fnmatch(name, pattern)}
    assert len(shapes) == 16 and all(shape[2:] == (3, 3) for shape in shapes.values())
    assert round(4 * sum(map(prod, shapes.values())) / MIB, 2) == 41.91


def test_later_stages_begin_at_the_rate_of_one_schedule() -> None:
    first, second = load(FitConfig, "compress/paper-imagenet-resnet18").stages
    whole = second.optimizer.model_copy(update={"learning_rate": first.optimizer.learning_rate})
    rate = whole.factor(first.steps, first.steps + second.steps) * whole.learning_rate
    assert second.optimizer.learning_rate == pytest.approx(rate, rel=1e-3)


def small(name: str) -> nn.Module:
    torch.manual_seed(0)
    if "imagenet" in name:
        return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5).eval()  # the names of torchvision's ResNet18
    arch = "resnet56" if "resnet56" in name else "resnet20"
    return archs.build(arch, channels=3, image_size=8, classes=5, width=0.25).eval()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_of_a_table_takes_its_first_steps(name: str) -> None:
    recipe, module = load(FitConfig, f"compress/{name}"), small(name)
    data = DataConfig(name="generated", image_size=32 if "imagenet" in name else 8, channels=3, classes=5, limit=20)
    short: dict[str, Any] = {"images": 2, "kernels": 64}
    stages = tuple(stage.model_copy(update=short) for stage in recipe.stages)
    predictor = recipe.predictor.model_copy(update={"hidden": 8})
    order = "none" if "imagenet" in name else recipe.order
    update = {"stages": stages, "predictor": predictor, "order": order, "precision": "float32"}
    recipe = recipe.model_copy(update={**update, "predictor_precision": "float32"})
    state = {key: value.detach() for key, value in module.state_dict().items()}
    original = Original(state, module.requires_grad_(False), load_images(data), (3, 8, 8))
    compressed = begin(state, recipe, None, kernels=Kernels.of(state, recipe.layers, recipe.side, module=module))
    step = stepping(recipe, compressed, original)
    for number, stage in enumerate(stages):
        step.begin(stage, number)
        loss = loss_of(step, 0)
        loss.backward()
        gradients = [value.grad for value in step.predictor.parameters() if value.grad is not None]
        assert bool(torch.isfinite(loss)) and any(bool(gradient.any()) for gradient in gradients)
        step.predictor.zero_grad()


@pytest.mark.parametrize("name", ["paper-nern-cifar10", "paper-nern-cifar100"])
def test_zoos_of_the_networks_to_fit_load(name: str) -> None:
    recipe = load(ZooRecipe, f"zoo/{name}")
    classes = {"cifar10": 10, "cifar100": 100}[recipe.data.name]
    for each in recipe.archs.values():
        module = archs.build(each.arch, **each.settings((3, 32, 32), classes))
        assert module.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, classes)
