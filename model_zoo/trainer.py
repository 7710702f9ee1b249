"""Train M networks of one architecture at once, each its own run: seed, data order, rate, last epoch.

Axes: M members, P parameters, B images of a batch, N training images, C classes. The parameters of all members
are one tensor (M, P); a forward is the module's own, through `torch.func`. A member's weights depend on its own
plan alone, up to rounding: every random number it uses comes from its seed. What is left out: which runs there
are (`model_zoo.recipe`), and where finished members go (`model_zoo.builder`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from model_zoo.optim import StackedOptimizer
from model_zoo.recipe import RunPlan, ZooRecipe
from netspace.data import TaskData
from netspace.data.augment import crop_flip
from netspace.prep import unflatten
from netspace.runtime import generator
from netspace.spec import NetSpec


@dataclass(frozen=True)
class Way:
    """How a group is trained: so many networks at once, in this precision."""

    fused: int = 1  # 1: alone, by a plain forward; more: stacked, by vmap
    precision: str = "float32"  # or 'bf16': forward and backward in bf16 and channels-last, weights in float32

    def __str__(self) -> str:
        return f"{self.fused} at once, {self.precision}"


@dataclass(frozen=True)
class Snapshot:
    """Members that reached an epoch at which their plans want them."""

    runs: list[RunPlan]
    epoch: int
    state: dict[str, Tensor]  # parameters and buffers, stacked (M, ...)


class Group:
    """M runs in training. Iterate `epochs()`; between epochs, `state()` is all that a restart needs."""

    def __init__(
        self, task: TaskData, make: Callable[[], nn.Module], runs: Sequence[RunPlan], recipe: ZooRecipe, way: Way
    ) -> None:
        self.task, self.recipe, self.way = task, recipe, way
        self.runs = list(runs)
        modules = [_seeded(make, run.seed) for run in runs]
        self.module = modules[0].to(task.device).train()
        self.spec = NetSpec.from_module(self.module, "training", {}, task.image_shape)
        rows = [torch.cat([value.detach().flatten() for value in module.parameters()]) for module in modules]
        self.flat = torch.stack(rows).to(task.device).requires_grad_()
        names = [name for name, _ in modules[0].named_buffers()]
        buffers = [dict(module.named_buffers()) for module in modules]
        self.buffers = {name: torch.stack([held[name] for held in buffers]).to(task.device) for name in names}
        self.module.requires_grad_(False)
        if way.precision == "bf16":
            self.module.to(memory_format=torch.channels_last)
        self.optimizer = StackedOptimizer(recipe.optimizer, self.flat)
        self.epoch = 0

    def epochs(self) -> Iterator[tuple[int, Snapshot | None]]:
        """Trains on; after every epoch yields the images seen in it by all members, and a snapshot or None.

        A member leaves the group after its last epoch.
        """
        while self.runs:
            self.epoch += 1
            seen = self._one_epoch()
            ready = [place for place, run in enumerate(self.runs) if self.epoch in run.epochs]
            snapshot = self._snapshot(ready) if ready else None
            going = [place for place, run in enumerate(self.runs) if run.epochs[-1] > self.epoch]
            if len(going) < len(self.runs):
                self._keep(going)
            yield seen, snapshot

    def step(self, images: Tensor, labels: Tensor, rates: Tensor) -> Tensor:
        """One step on images (M, B, C, H, W), normalised, and labels (M, B) at rates (M, 1); losses (M,)."""
        self.flat.grad = None
        with self._autocast():
            if self.way.fused == 1:
                losses = torch.stack(
                    [
                        self._loss(
                            self.flat[member], {name: value[member] for name, value in self.buffers.items()}, x, y
                        )
                        for member, (x, y) in enumerate(zip(images, labels, strict=True))
                    ]
                )
            else:
                stacked = vmap(self._loss, randomness="different")
                losses = stacked(self.flat, self.buffers, images, labels)
        losses.sum().backward()
        assert self.flat.grad is not None
        self.optimizer.step(self.flat, self.flat.grad, rates)
        return losses.detach()

    def state(self) -> dict[str, Any]:
        """Everything a restart needs, as plain tensors and values."""
        return {
            "epoch": self.epoch,
            "runs": [run.run for run in self.runs],
            "flat": self.flat.detach(),
            "buffers": self.buffers,
            "optimizer": self.optimizer.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from `state()` of a group of the same runs."""
        left = set(state["runs"])
        self.runs = [run for run in self.runs if run.run in left]
        device = self.task.device
        self.epoch = int(state["epoch"])
        self.flat = state["flat"].to(device).requires_grad_()
        self.buffers = {name: value.to(device) for name, value in state["buffers"].items()}
        self.optimizer = StackedOptimizer(self.recipe.optimizer, self.flat)
        self.optimizer.load(state["optimizer"])

    def _loss(self, row: Tensor, buffers: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        if self.way.precision == "bf16" and self.way.fused == 1:  # vmap knows no channels-last
            images = images.contiguous(memory_format=torch.channels_last)
        logits = functional_call(self.module, {**unflatten(row, self.spec), **buffers}, (images,))
        return F.cross_entropy(logits.float() if self.way.precision == "bf16" else logits, labels)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.way.precision == "bf16":
            return torch.autocast(self.task.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def _one_epoch(self) -> int:
        task, batch, device = self.task, self.recipe.batch_size, self.task.device
        images, labels = task.train.images, task.train.labels
        orders, offsets, mirrored = self._draws(len(labels))
        starts = range(0, len(labels), batch)
        rates = self._rates(len(starts)).to(device)
        for number, start in enumerate(starts):
            places = orders[:, start : start + batch]  # (M, B)
            chosen = images[places]
            if task.crop_padding or task.flip:
                stop = start + batch
                moved = crop_flip(
                    chosen.flatten(0, 1),
                    offsets[:, :, start:stop].transpose(0, 1).flatten(1),
                    mirrored[:, start:stop].flatten(),
                    task.crop_padding,
                )
                chosen = moved.view_as(chosen)
            self.step(task.normalise(chosen), labels[places], rates[number])
        return len(labels) * len(self.runs)

    def _draws(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of every member for one epoch: order (M, N), crop offsets (M, 2, N), mirrored (M, N)."""
        orders, offsets, mirrored = [], [], []
        padding, device = self.task.crop_padding, self.task.device
        for run in self.runs:
            random = generator(run.seed, self.epoch)
            orders.append(torch.randperm(count, generator=random))
            if padding or self.task.flip:
                shift = torch.randint(2 * padding + 1, (2, count), generator=random)
                offsets.append(shift)
                flips = torch.randint(2, (count,), generator=random).bool()
                mirrored.append(flips if self.task.flip else torch.zeros_like(flips))
        empty = torch.empty(0)
        return (
            torch.stack(orders).to(device),
            torch.stack(offsets).to(device) if offsets else empty,
            torch.stack(mirrored).to(device) if mirrored else empty,
        )

    def _rates(self, steps: int) -> Tensor:
        """Learning rates of this epoch's steps, (steps, M, 1)."""
        config = self.recipe.optimizer
        rows = [
            [run.learning_rate * config.factor((self.epoch - 1 + step / steps) / run.epochs[-1]) for run in self.runs]
            for step in range(steps)
        ]
        return torch.tensor(rows, dtype=self.flat.dtype).unsqueeze(-1)

    def _snapshot(self, places: list[int]) -> Snapshot:
        rows = torch.tensor(places, device=self.flat.device)
        state = {**unflatten(self.flat.detach()[rows], self.spec)}
        state.update({name: value[rows] for name, value in self.buffers.items()})
        return Snapshot([self.runs[place] for place in places], self.epoch, {k: v.clone() for k, v in state.items()})

    def _keep(self, places: list[int]) -> None:
        rows = torch.tensor(places, dtype=torch.int64, device=self.flat.device)
        self.runs = [self.runs[place] for place in places]
        self.flat = self.flat.detach()[rows].clone().requires_grad_()
        self.buffers = {name: value[rows].clone() for name, value in self.buffers.items()}
        self.optimizer.keep(rows)


def _seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
