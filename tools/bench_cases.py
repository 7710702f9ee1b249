"""The cases of `tools/bench.py`, and the contestants of each: netspace's side and the plain side.

A contestant is made in a process of its own and does one turn of the work whenever `run()` is called; `flops` are
the operations of a turn, counted on the plain side. Parts that `bench_multi` and `bench_nern` share are here, too.
"""

from __future__ import annotations

import tempfile
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import reference
import torch
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from model_zoo.builder import choose_way
from model_zoo.forward import Way
from model_zoo.recipe import ArchConfig, RunPlan, SplitConfig, ZooRecipe
from model_zoo.trainer import Group
from model_zoo.work import candidate
from netspace import archs
from netspace.config import load as load_recipe
from netspace.networks.family import declared
from netspace.networks.prep import pack
from netspace.process import keep_freed_memory
from netspace.streams import generator
from netspace.tasks import Classification, DataConfig, load
from netspace.training.optimizers import Average, Optimizer, OptimizerConfig
from netspace.training.recipe import LossConfig, SpaceRecipe
from netspace.training.setup import Setup, prepare
from netspace.training.step import Step
from netspace.zoo import MEMBER, Header, Population, Zoo, teacher_path, write_zoo

RATE = 1e-3
SMALL_SIDE, LONGEST_PRODUCT = 512, 10.0  # seconds of one product, over which its rate is not measured
MIN_MEMBERS = 16  # of a zoo; as many as fill every worker's groups
CHOICE = 128  # runs that calibration may stack
ADAM = OptimizerConfig(learning_rate=1e-4)
CIFAR = DataConfig(name="generated", image_size=32, channels=3, crop_padding=4, flip=True)


@dataclass(frozen=True)
class ZooCase:
    """Networks of one architecture on generated grey images."""

    arch: str
    side: int  # pixels
    batch: int
    images: int = 1024  # to train on
    members: int = MIN_MEMBERS

    def __str__(self) -> str:
        return f"zoo: {self.arch}, {self.side}x{self.side}x1, batch {self.batch}"

    def data(self) -> DataConfig:
        return DataConfig(name="generated", image_size=self.side, channels=1, limit=self.images)

    def recipe(self) -> ZooRecipe:
        return ZooRecipe(
            data=self.data(),
            archs={"bench": ArchConfig(arch=self.arch)},
            members=SplitConfig(train=CHOICE, val=0, test=0),
            batch_size=self.batch,
        )


@dataclass(frozen=True)
class Case:
    """A case of which each turn takes a number of steps."""

    kind: ClassVar[str]
    name: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


@dataclass(frozen=True)
class StepCase(Case):
    """A training step of a space, on random PReps."""

    kind = "step"
    recipe: SpaceRecipe
    arch: str
    width: float
    data: DataConfig
    prep_width: int
    steps: int  # timed together

    @property
    def zoo(self) -> ZooRecipe:
        """The recipe by which the zoo of the case would be built."""
        archs = {self.arch: ArchConfig(arch=self.arch, width=self.width)}
        return ZooRecipe(data=self.data, archs=archs, prep_width=self.prep_width)

    @property
    def members(self) -> int:
        return max(32, 2 * self.recipe.networks) + 1


def zoo_cases(quick: bool) -> list[ZooCase]:
    if quick:
        return [ZooCase("lenetlike", 8, 10, images=20, members=2)]
    large = [ZooCase(arch, 28, 128) for arch in ("lenetlike", "vanillacnn", "resnet8")]
    return [ZooCase("lenetlike", 8, 50), *large]


def step_cases(quick: bool) -> list[StepCase]:
    plain = LossConfig(behaviour=1.0, temperature=4.0)
    paper = load_recipe(SpaceRecipe, "space/paper-cifar10").model_copy(update={"loss": plain, "optimizer": ADAM})
    if quick:
        tiny = paper.model_copy(update={"latent": 64, "networks": 2, "images": 4})
        return [StepCase("paper, tiny", tiny, "resnet8", 0.15, CIFAR, 160, 1)]
    zoo = load_recipe(ZooRecipe, "zoo/quickstart")
    quickstart = load_recipe(SpaceRecipe, "space/quickstart").model_copy(update={"loss": plain})
    assert zoo.prep_width is not None
    small = ("lenetlike", zoo.archs["lenetlike"].width or 1.0, zoo.data, zoo.prep_width, 10)
    return [
        StepCase("paper, CIFAR-10", paper, "resnet8", 1.0, CIFAR, 10_000, 1),
        StepCase("quickstart, by Adam", quickstart.model_copy(update={"optimizer": ADAM}), *small),
        StepCase(f"quickstart, by {quickstart.optimizer.name}", quickstart, *small),
    ]


def plain_loader(task: Classification, batch: int) -> DataLoader[tuple[torch.Tensor, ...]]:
    """Return a loader of the task's normalised training images and labels, shuffled."""
    data = TensorDataset(task.normalise(task.train.images).cpu(), task.train.labels.cpu())
    return DataLoader(data, batch, shuffle=True, pin_memory=task.device.type == "cuda")


class ReferenceZoo:
    """One epoch of every member, one network after another."""

    def __init__(self, case: ZooCase, device: torch.device, members: int) -> None:
        task = load(case.data(), device=device)
        settings = archs.task_settings(case.arch, {}, task.input_shape, task.num_outputs)
        self.device, self.loader = device, plain_loader(task, case.batch)
        self.networks = [archs.build(case.arch, **settings).to(device) for _ in range(members)]
        self.optimizers = [torch.optim.Adam(network.parameters(), lr=RATE) for network in self.networks]
        images, labels = next(iter(self.loader))
        with FlopCounterMode(display=False) as counter:
            reference.train_step(self.networks[0], self.optimizers[0], images.to(device), labels.to(device))
        self.flops = counter.get_total_flops() / len(images) * case.images * members

    def run(self) -> None:
        for network, optimizer in zip(self.networks, self.optimizers, strict=True):
            reference.train_epoch(network, optimizer, self.loader, self.device)


class OurZoo:
    """One epoch of one worker's groups, as the builder trains them."""

    def __init__(
        self, case: ZooCase, device: torch.device, members: int, way: Way, arch: ArchConfig | None = None
    ) -> None:
        keep_freed_memory()  # as the command line and its workers do
        task, recipe = load(case.data(), device=device), case.recipe()
        chosen = candidate("bench", arch or recipe.archs["bench"], task, recipe.prep_width)
        runs = [RunPlan("bench", number, number, (1 << 40,), RATE, "train") for number in range(members)]
        groups = [runs[start : start + way.fused] for start in range(0, members, way.fused)]
        self.epochs = [iter(Group(task, chosen.make, group, recipe, way).epochs()) for group in groups]

    def run(self) -> None:
        for epochs in self.epochs:
            next(epochs)


def setup_of(case: Any, device: torch.device) -> Setup:
    """Return the set-up of `netspace train` for the case, a zoo of random networks and, if it has one, a random teacher."""
    task, zoo, teacher = load(case.data, device="cpu"), case.zoo, case.zoo.teacher

    def population(name: str, config: ArchConfig, members: int) -> Population:
        width = zoo.prep_width or 1
        arch = declared(name, config, task.input_shape, task.num_outputs, width, torch.device("cpu"))
        flat = 0.05 * torch.randn(members, arch.parameters, generator=generator(case.recipe.seed))
        table = np.zeros(members, dtype=MEMBER)
        table["split"] = [b"train"] * (members - 1) + [b"val"]
        table["status"] = b"ok"
        return Population(arch.spec, pack(flat, arch.size).numpy(), table)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "zoo.h5"
        header = Header(case.data.model_dump(mode="json"), task.split_hash, {})
        write_zoo(path, header, {name: population(name, each, case.members) for name, each in zoo.archs.items()})
        if teacher is not None:
            write_zoo(teacher_path(path), header, {teacher.arch: population(teacher.arch, teacher, 2)})
        with Zoo(path) as opened:
            return prepare(case.recipe, opened, device)


class Steps(ABC):
    """A contestant that takes steps, a case's number of them in a turn."""

    case: Any
    optimizer: Any
    number = 0

    @abstractmethod
    def loss(self) -> torch.Tensor:
        """Return the loss of the next step."""

    def once(self) -> None:
        self.loss().backward()
        self.optimizer.step(self.number)
        self.number += 1

    def run(self) -> None:
        for _ in range(self.case.steps):
            self.once()


class PlainSteps(Steps):
    """Steps by one of torch's optimizers."""

    def once(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()
        self.number += 1

    def count(self) -> None:
        """Take the first step, and count its operations."""
        with FlopCounterMode(display=False) as counter:
            self.once()
        self.flops = counter.get_total_flops() * self.case.steps


class OurStep(Steps):
    """The training loop's own step, of one architecture or several."""

    def __init__(self, case: Any, device: torch.device) -> None:
        keep_freed_memory()
        self.case, setup = case, setup_of(case, device)
        self.model, self.step = setup.model, Step(setup)
        self.optimizer = Optimizer(self.model, case.recipe.optimizer, case.recipe.steps)
        self.average = Average(self.model, case.recipe.optimizer.ema)

    def loss(self) -> torch.Tensor:
        return torch.stack(list(self.step(self.model, self.number).values())).sum()

    def once(self) -> None:
        super().once()
        if self.case.recipe.optimizer.ema:
            self.average.update(self.model, self.number - 1)


def plain_coders(setup: Setup, device: torch.device) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return the plain encoder and decoder of a space."""
    recipe, family = setup.recipe, setup.family
    decoder = reference.ConvDecoder(recipe.latent, family.size, recipe.decoder.slope)
    if recipe.encoder.kind != "probe":
        spread = tuple(setup.model.encoder.spread.shape)
        return reference.ConvEncoder(recipe.latent, spread).to(device), decoder.to(device)
    settings = recipe.encoder.hidden, recipe.encoder.probes, setup.task.num_outputs
    encoder = reference.ProbeEncoder(recipe.latent, *settings, family[0].nets.skeleton, family.input_shape)
    return encoder.to(device), decoder.to(device)


class ReferenceStep(PlainSteps):
    """The same step, plain: on the same members and images, from the same weights."""

    def __init__(self, case: StepCase, device: torch.device) -> None:
        self.case, setup = case, setup_of(case, device)
        recipe, model = case.recipe, setup.model
        self.network = setup.family[0].nets.skeleton
        small = replace(setup, recipe=recipe.model_copy(update={"remember_targets": False}))
        self.step = Step(small)  # for its stream of members and images alone
        self.encoder, self.decoder = plain_coders(setup, device)
        self.encoder.load_state_dict(model.encoder.state_dict())
        self.decoder.load_state_dict(model.decoder.state_dict())
        parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=recipe.optimizer.learning_rate)
        self.count()

    def loss(self) -> torch.Tensor:
        recipe, step = self.case.recipe, self.step
        ((_, members),) = step.batches.take(self.number)
        preps = step.sources[0].take(members)
        images, _ = step.images.take(self.number, recipe.images)
        return reference.space_loss(self.encoder, self.decoder, self.network, preps, images, recipe.loss.temperature)


class Facts:
    """Not a contestant: the device's matmul rates, and the way in which calibration trains each zoo."""

    def __init__(self, cases: list[ZooCase], device: torch.device, side: int) -> None:
        self.rates = {"float32": _matmul(device, torch.float32, side), "bf16": _matmul(device, torch.bfloat16, side)}
        if device.type == "cpu":
            torch.set_num_threads(1)  # as the builder calibrates
        self.ways = []
        keep_freed_memory()
        for case in cases:
            recipe, task = case.recipe(), load(case.data(), device=device)
            chosen = candidate("bench", recipe.archs["bench"], task, recipe.prep_width)
            self.ways.append(choose_way(chosen, recipe, task))


def _matmul(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Return the operations a second of products of squares: of small ones where large ones take long (bf16 without hardware)."""
    small = _rate(device, dtype, min(side, SMALL_SIDE))
    return _rate(device, dtype, side) if 2 * side**3 / small < LONGEST_PRODUCT else small


def _rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        wait(device)
        start = time.perf_counter()
        a @ b
        wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
