"""`tools/bench.py scale` and `accuracy`: how the cost of a zoo grows, and whether the fast way trains networks as good as the plain.

Axes: M members. Every point runs in processes of its own, warmed up, as the builder would run it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import reference
import torch
from bench_cases import OurZoo, ZooCase, plain_loader

from model_zoo.forward import Way
from model_zoo.recipe import ArchConfig, EpochConfig, RunPlan, SplitConfig, ZooRecipe
from model_zoo.trainer import Group
from model_zoo.work import candidate
from netspace import archs
from netspace.networks.batch import NetBatch
from netspace.networks.family import ArchClass, Family, Networks
from netspace.networks.prep import flatten
from netspace.process import keep_freed_memory
from netspace.tasks import DataConfig, load
from netspace.training.validation import accuracies


@dataclass(frozen=True)
class Point:
    """One zoo on the way from small to large."""

    axis: str  # what grows
    value: int
    case: ZooCase
    processes: int
    fused: int
    width: float = 1.0


def points(quick: bool, processes: int) -> list[Point]:
    """Return the points: 8 to 512 members, 5k to 500k parameters, 1 to `processes` processes."""
    small, large = ZooCase("lenetlike", 8, 50, images=500), ZooCase("lenetlike", 28, 128, images=1024)
    if quick:
        tiny = ZooCase("lenetlike", 8, 10, images=20, members=2)
        return [Point("members", 2, tiny, 1, 2, 0.5)]
    by_members = [
        Point("members", members, replace(small, members=members), processes, min(128, members // processes), 0.5)
        for members in (8, 32, 128, 512)
    ]
    widths = {5_146: 0.34, 49_187: 1.05, 500_338: 3.4}  # parameters: width
    by_size = [
        Point("parameters", size, replace(large, members=4), processes, 1, width) for size, width in widths.items()
    ]
    by_processes = [Point("processes", count, replace(large, members=4), count, 1) for count in range(1, processes + 1)]
    return [*by_members, *by_size, *by_processes]


class PointZoo(OurZoo):
    """One process's part of a point's zoo, one epoch a run."""

    def __init__(self, point: Point, device: torch.device) -> None:
        arch = ArchConfig(arch=point.case.arch, width=point.width)
        members = max(1, point.case.members // point.processes)
        super().__init__(point.case, device, members, Way(point.fused), arch)


@dataclass(frozen=True)
class AccuracyComparison:
    """Accuracies of networks trained in two ways on the same task."""

    arch: str
    way: str
    fast: tuple[float, float]  # mean test accuracy, half the width of its 95 % interval
    plain: tuple[float, float]
    difference: tuple[float, float]  # fast - plain

    @property
    def alike(self) -> bool:
        """Whether the interval of the difference contains 0."""
        return abs(self.difference[0]) <= self.difference[1]


class Accuracy:
    """Not a contestant: trains members both ways and compares their test accuracies."""

    def __init__(self, arch: str, way: Way, members: int, epochs: int, side: int, device: torch.device) -> None:
        keep_freed_memory()
        data = DataConfig(name="digits", image_size=side)
        task, config = load(data, device=device), ArchConfig(arch=arch)
        settings = SplitConfig(train=members, val=0, test=0)
        recipe = ZooRecipe(
            data=data,
            archs={"a": config},
            members=settings,
            epochs=EpochConfig(first=epochs, last=epochs),
            batch_size=50,
        )
        chosen = candidate("a", config, task, recipe.prep_width)
        arch_class = ArchClass("a", NetBatch(chosen.skeleton, chosen.spec), chosen.size)
        runs = [RunPlan("a", number, number, (epochs,), 1e-3, "train") for number in range(members)]
        fast, plain = [], []
        for _, snapshot in Group(task, chosen.make, runs, recipe, way).epochs():
            if snapshot is not None:
                fast.append(flatten(chosen.folder(snapshot.state), chosen.spec))
        loader = plain_loader(task, recipe.batch_size)
        for number in range(members):
            torch.manual_seed(1000 + number)
            network = archs.build(arch, **archs.task_settings(arch, {}, task.input_shape, task.num_outputs)).to(device)
            optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
            for _ in range(epochs):
                reference.train_epoch(network, optimizer, loader, device)
            plain.append({name: value.detach() for name, value in network.state_dict().items()})
        stacked = {name: torch.stack([state[name] for state in plain]) for name in plain[0]}
        parameters = [torch.cat(fast), flatten(chosen.folder(stacked), chosen.spec)]
        family = Family([arch_class])
        sets = [Networks.of_class(family, 0, flat) for flat in parameters]
        one, two = (torch.from_numpy(accuracies(networks, task, "test")) for networks in sets)
        between = 1.96 * float((one.var() / len(one) + two.var() / len(two)).sqrt())
        self.rates = AccuracyComparison(
            arch, str(way), _interval(one), _interval(two), (float(one.mean() - two.mean()), between)
        )


def _interval(values: torch.Tensor) -> tuple[float, float]:
    return float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5


def scale_table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the time of `Point`s as Markdown."""
    lines = ["| what grows | value | how | seconds an epoch | member images/s |", "|---|---|---|---|---|"]
    return lines + [
        f"| {row['axis']} | {row['value']:,} | {row['how']} | {row['seconds']:.3g} | {row['per_second']:,.0f} |"
        for row in rows
    ]


def accuracy_table(rows: list[dict[str, Any]]) -> list[str]:
    """Return `AccuracyComparison`s as Markdown."""
    lines = ["| networks | fast way | its accuracy | plain | difference, points | alike |", "|---|---|---|---|---|---|"]
    return lines + [
        f"| {row['arch']} | {row['way']} | {_text(row['fast'])} | {_text(row['plain'])} | "
        f"{100 * row['difference'][0]:+.2f} ± {100 * row['difference'][1]:.2f} | {'yes' if row['alike'] else 'no'} |"
        for row in rows
    ]


def _text(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.2f} ± {100 * interval[1]:.2f} %"
