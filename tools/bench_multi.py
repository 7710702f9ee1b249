"""What `tools/bench.py multi` lets step: spaces of several architectures, ours and the plain way's.

Axes: M members, S points between, B images, H W of a PRep.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import reference
import torch
from bench_cases import OurStep
from torch.utils.flop_counter import FlopCounterMode

from model_zoo.recipe import ZooRecipe
from netspace import archs
from netspace.config import load as load_recipe
from netspace.networks.family import declared
from netspace.networks.prep import pack
from netspace.streams import generator
from netspace.tasks import DataConfig, load
from netspace.training.batches import Points
from netspace.training.optimizers import OptimizerConfig
from netspace.training.recipe import LossConfig, SpaceRecipe
from netspace.training.setup import Setup, prepare
from netspace.training.step import Step
from netspace.zoo import MEMBER, Header, Population, Zoo, teacher_path, write_zoo


@dataclass(frozen=True)
class MultiCase:
    """A training step of a space of several architectures, on random PReps."""

    name: str
    recipe: SpaceRecipe
    zoo: ZooRecipe
    data: DataConfig
    steps: int  # timed together

    def __str__(self) -> str:
        return f"multi: {self.name}"


def multi_cases(quick: bool) -> list[MultiCase]:
    """The paper's setting with a smallest and a largest network in every batch, and the digits' by Adam."""
    adam, plain = OptimizerConfig(learning_rate=1e-4), LossConfig(behaviour=0.0)
    paper = load_recipe(SpaceRecipe, "space/paper-cifar10-unseen").model_copy(update={"optimizer": adam})
    zoo = load_recipe(ZooRecipe, "zoo/paper-cifar10-multi")
    cifar = DataConfig(name="generated", image_size=32, channels=3, crop_padding=4, flip=True)
    paper = few_shown(paper)
    digits = load_recipe(SpaceRecipe, "space/multi-digits")
    small = load_recipe(ZooRecipe, "zoo/multi-digits")
    assert paper.multi is not None and digits.multi is not None
    if quick:
        tiny = paper.model_copy(
            update={"latent": 64, "images": 4, "multi": paper.multi.model_copy(update={"counts": {}, "rows": None})}
        )
        two = small.model_copy(update={"archs": {name: small.archs[name] for name in ("lenetlike", "resnet8")}})
        return [MultiCase("paper, tiny", tiny, two, small.data, 1)]
    terms = digits.multi.model_copy(update={"distillation": 1.0, "interpolation": 1.0})
    digits = digits.model_copy(update={"optimizer": adam, "loss": plain, "multi": terms})
    return [
        MultiCase("paper, CIFAR-10, 88 x 10,000", paper, zoo, cifar, 1),
        MultiCase("digits, by Adam", digits, small, small.data, 10),
    ]


def few_shown(recipe: SpaceRecipe) -> SpaceRecipe:
    """A recipe that shows two networks where it shows some: for small files of networks that do not matter."""
    assert recipe.multi is not None
    counts = {name: min(count, 2) for name, count in recipe.multi.counts.items()}
    return recipe.model_copy(update={"multi": recipe.multi.model_copy(update={"counts": counts})})


def multi_setting(case: MultiCase, device: torch.device) -> Setup:
    """What `netspace train` would make of the case, a zoo of random networks and a random teacher."""
    task, width = load(case.data, device="cpu"), case.zoo.prep_width
    assert width is not None
    told = case.zoo.teacher
    assert told is not None

    def population(name: str, config: archs.ArchConfig, members: int) -> Population:
        arch = declared(name, config, task.input_shape, task.num_outputs, width, torch.device("cpu"))
        flat = 0.05 * torch.randn(members, arch.parameters, generator=generator(case.recipe.seed))
        table = np.zeros(members, dtype=MEMBER)
        table["split"] = [b"train"] * (members - 1) + [b"val"]
        return Population(arch.spec, pack(flat, arch.size).numpy(), table)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "zoo.h5"
        header = Header(case.data.model_dump(mode="json"), task.split_hash, {})
        counts = case.recipe.multi.counts if case.recipe.multi else {}
        members = 1 + max([case.recipe.networks, *counts.values()])
        write_zoo(path, header, {name: population(name, config, members) for name, config in case.zoo.archs.items()})
        write_zoo(teacher_path(path), header, {told.arch: population(told.arch, told, 2)})
        with Zoo(path) as zoo:
            return prepare(case.recipe, zoo, device)


class OurMultiStep(OurStep):
    """The training loop's own step."""

    def setting_of(self, case: MultiCase, device: torch.device) -> Setup:
        return multi_setting(case, device)


class ReferenceMultiStep:
    """The same step, plain: every network and every point by itself, the teacher asked again for each."""

    def __init__(self, case: MultiCase, device: torch.device) -> None:
        self.case, self.setting = case, multi_setting(case, device)
        setting, recipe = self.setting, case.recipe
        family, size = setting.family, setting.family.size
        self.networks = [each.nets.skeleton for each in family]
        self.ours = Step(setting)  # for its batches alone
        if recipe.encoder.kind == "probe":
            settings = recipe.encoder.hidden, recipe.encoder.probes, setting.task.num_outputs
            self.encoder: torch.nn.Module = reference.ProbeEncoder(
                recipe.latent, *settings, self.networks[0], family.input_shape
            ).to(device)
        else:
            self.encoder = reference.ConvEncoder(recipe.latent, size).to(device)
        self.decoder = reference.ConvDecoder(recipe.latent, size, recipe.decoder.slope).to(device)
        torch.nn.init.normal_(self.decoder.scale, std=1e-3)
        self.head = setting.model.get_submodule("head").requires_grad_()
        parameters = [each for part in (self.encoder, self.decoder, self.head) for each in part.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=recipe.optimizer.learning_rate)
        self.number = 0
        with FlopCounterMode(display=False) as counter:
            self.once()
        self.flops = counter.get_total_flops() * case.steps

    def loss(self) -> torch.Tensor:
        ours, case, multi = self.ours, self.case, self.case.recipe.multi
        assert multi is not None
        chosen = ours.batches.take(self.number)
        between = Points.between_ends(
            {class_id: len(places) for class_id, places in chosen}, self.setting.family, multi
        )
        preps = [
            (class_id, torch.nn.functional.pad(prep, (0, 0, 0, self.setting.family.size[0] - len(prep))))
            for class_id, places in chosen
            for prep in ours.sources[class_id].take(places)
        ]
        points = [
            (int(class_id), int(first), int(second), float(share))
            for class_id, (first, second), share in zip(between.class_ids, between.pairs.T, between.gamma, strict=True)
        ]
        images, places = ours.images.take(self.number, case.recipe.images)
        return reference.multi_loss(
            self.encoder,
            self.decoder,
            self.head,
            self.networks,
            ours.teacher,
            preps,
            points,
            images,
            ours.task.train.labels[places],
            multi.temperature,
            multi.alpha,
        )

    def once(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()
        self.number += 1

    def run(self) -> None:
        for _ in range(self.case.steps):
            self.once()
