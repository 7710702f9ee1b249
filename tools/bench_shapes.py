"""`tools/bench.py shapes`: networks that are shapes, fitted many at a time and one after another."""

from __future__ import annotations

from dataclasses import dataclass

import reference
import torch
from bench_cases import CHOICE, RATE, ZooCase
from torch.utils.flop_counter import FlopCounterMode

from model_zoo.recipe import ArchConfig, SplitConfig, ZooRecipe
from netspace import archs
from netspace.tasks import DataConfig, load


@dataclass(frozen=True)
class ShapesCase(ZooCase):
    """Sirens of a width, each fitted to a chair by Adam; `images` are the points of each."""

    width: float = 0.25

    def __str__(self) -> str:
        return f"shapes: {self.arch}, width {self.width}, batch {self.batch}"

    def data(self) -> DataConfig:
        return DataConfig(name="chairs", points=self.images)

    def arch_config(self) -> ArchConfig:
        """The architecture with its width."""
        return ArchConfig(arch=self.arch, width=self.width)

    def recipe(self) -> ZooRecipe:
        return ZooRecipe(
            data=self.data(),
            archs={"bench": self.arch_config()},
            members=SplitConfig(train=CHOICE, val=0, test=0),
            batch_size=self.batch,
        )


def shapes_cases(quick: bool) -> list[ShapesCase]:
    """Return the cases: that of zoo/chairs, and the width of the paper."""
    if quick:
        return [ShapesCase("siren", 3, 64, images=128, members=2, width=0.0625)]
    return [
        ShapesCase("siren", 3, 256, images=4096, members=64, width=0.25),
        ShapesCase("siren", 3, 256, images=1024, members=16, width=1.0),
    ]


class ReferenceShapes:
    """One pass over the points of every member, one network after another."""

    def __init__(self, case: ShapesCase, device: torch.device, members: int) -> None:
        task = load(case.data(), device=device)
        settings = case.arch_config().settings(task.input_shape, task.num_outputs)
        self.batch = case.batch
        self.networks = [archs.build(case.arch, **settings).to(device) for _ in range(members)]
        self.optimizers = [torch.optim.Adam(network.parameters(), lr=RATE) for network in self.networks]
        seeds = torch.arange(members)
        self.points, self.distances = (each("train", slice(None), seeds) for each in (task.inputs, task.targets))
        with FlopCounterMode(display=False) as counter:
            reference.regression_step(
                self.networks[0], self.optimizers[0], self.points[0, : case.batch], self.distances[0, : case.batch]
            )
        self.flops = counter.get_total_flops() / case.batch * case.images * members

    def run(self) -> None:
        for row, (network, optimizer) in enumerate(zip(self.networks, self.optimizers, strict=True)):
            for index in torch.randperm(self.points.shape[1], device=self.points.device).split(self.batch):
                reference.regression_step(network, optimizer, self.points[row, index], self.distances[row, index])
