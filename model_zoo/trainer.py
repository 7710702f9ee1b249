"""Train M networks of one architecture at once, each its own run: seed, data order, rate, schedule, decay, last epoch.

Axes: M members, P parameters, B images of a batch, N training images, C classes. The parameters of all members are one
tensor (M, P); the forward pass is the module's own, through `torch.func`. A member that has reached its last epoch
leaves, and a waiting run replaces it. A member's weights depend on its own plan alone, up to rounding: every random
number that it uses comes from its seed. Which runs there are is in `model_zoo.recipe`, what becomes of finished members
in `model_zoo.work`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model_zoo.forward import Forward, StackedOptimizer, Way
from model_zoo.recipe import RunPlan, ZooRecipe
from netspace.errors import NetspaceError, UsageError, ran_out
from netspace.hardware import send
from netspace.networks.prep import unflatten
from netspace.streams import generator
from netspace.tasks import Classification, Task


@dataclass(frozen=True)
class Snapshot:
    """Runs that became members, at an epoch of their plans."""

    runs: list[RunPlan]
    epochs: list[int]  # of each
    state: dict[str, Tensor]  # parameters and buffers, stacked (M, ...)


class Group:
    """Runs in training, `way.fused` at once. Iterate `epochs()`; between epochs, `state()` is all that a restart needs.

    `width` is the maximum number of members in a forward pass; `step` halves it if memory runs out. `forward` is that
    of an earlier group of the same architecture, recipe and way, so that it is compiled once.
    """

    def __init__(
        self,
        task: Task,
        make: Callable[[], nn.Module],
        runs: Sequence[RunPlan],
        recipe: ZooRecipe,
        way: Way,
        width: int | None = None,
        forward: Forward | None = None,
    ) -> None:
        self.task, self.recipe, self.way, self.make = task, recipe, way, make
        self.width = width or way.fused
        self.all = list(runs)
        if forward is None:
            forward = Forward(_seeded(make, self.all[0].initial_seed).to(task.device).train(), recipe, way, task)
        self.forward, self.spec = forward, forward.spec
        self.flat = next(forward.module.parameters()).new_empty(0, self.spec.num_parameters)
        self.buffers = {name: value.new_empty(0, *value.shape) for name, value in forward.module.named_buffers()}
        self.optimizer = StackedOptimizer(recipe.optimizer, self.flat, self.spec)
        self.round = 0  # epochs of the group
        self.runs: list[RunPlan] = []
        self.begun: list[int] = []  # the round before the first epoch of each run
        self.waiting = self.all
        self._decays: Tensor | None = None
        self._data: dict[int, tuple[Tensor, Tensor]] = {}  # by run: its images and labels, if they vary
        self._fill()

    def epochs(self) -> Iterator[tuple[int, Snapshot | None]]:
        """Train an epoch at a time; yield the number of images that all members saw in it, and a snapshot or None."""
        while self.runs:
            self.round += 1
            seen = self._one_epoch()
            ready = [index for index, run in enumerate(self.runs) if self.epoch(index) in run.epochs]
            snapshot = self._snapshot(ready) if ready else None
            unfinished = [index for index, run in enumerate(self.runs) if run.epochs[-1] > self.epoch(index)]
            if len(unfinished) < len(self.runs):
                self._keep(unfinished)
                self._fill()
            yield seen, snapshot

    def epoch(self, index: int) -> int:
        """Return the epoch, from 1 on, that a member is in or has just ended."""
        return self.round - self.begun[index]

    @property
    def epochs_done(self) -> int:
        """The epochs of all runs together, finished runs included."""
        started, training = self.all[: len(self.all) - len(self.waiting)], {run.run for run in self.runs}
        finished = sum(run.epochs[-1] for run in started if run.run not in training)
        return finished + sum(self.epoch(index) for index in range(len(self.runs)))

    def step(self, images: Tensor, labels: Tensor, rates: Tensor) -> Tensor:
        """Update all members on normalised images (M, B, C, H, W), labels (M, B) at rates (M, 1); return losses (M,).

        If memory does not hold all members' passes, they run in halves, quarters and so on from then on: the same
        networks, a little slower. Raises `NetspaceError` if not even one fits.
        """
        losses, gradient = self._within_memory(images, labels)
        self.optimizer.step(self.flat, gradient, rates, self._decays)
        return losses

    def state(self) -> dict[str, Any]:
        """Return everything that a restart needs, as plain tensors and values."""
        return {
            "round": self.round,
            "runs": [run.run for run in self.runs],
            "begun": self.begun,
            "waiting": len(self.waiting),
            "flat": self.flat,
            "buffers": self.buffers,
            "optimizer": self.optimizer.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state()` of a group of the same runs."""
        by_number = {run.run: run for run in self.all}
        device = self.task.device
        self.round, self.begun = int(state["round"]), [int(begun) for begun in state["begun"]]
        self.runs = [by_number[number] for number in state["runs"]]
        self.waiting = self.all[len(self.all) - int(state["waiting"]) :]
        self.flat = state["flat"].to(device).clone()
        self.buffers = {name: value.to(device).clone() for name, value in state["buffers"].items()}
        self.optimizer.load(state["optimizer"])
        self._set_decays()

    def _within_memory(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return losses (M,) and gradients (M, P), with fewer members at once when memory runs out."""
        while True:
            width = min(self.width, len(self.runs))
            try:
                return self._backward(images, labels)
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
                if width == 1:
                    raise NetspaceError(
                        f"the device's memory does not hold one network in training with {labels.shape[1]} images: set "
                        "batch_size lower"
                    ) from None
            self.width = -(-width // 2)
            if self.task.device.type == "cuda":
                torch.cuda.empty_cache()

    def _backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        results = []
        for start in range(0, len(self.flat), self.width):
            part = slice(start, start + self.width)
            buffers = {name: value[part] for name, value in self.buffers.items()}
            losses, gradient, buffers = self.forward(self.flat[part], buffers, images[part], labels[part])
            if self.width < len(self.flat):  # the next part may overwrite the results of this one
                losses, gradient = losses.clone(), gradient.clone()
                buffers = {name: value.clone() for name, value in buffers.items()}
            results.append((losses, gradient, buffers))
        self.buffers = {name: torch.cat([buffers[name] for _, _, buffers in results]) for name in self.buffers}
        gradient = results[0][1] if len(results) == 1 else torch.cat([each for _, each, _ in results])
        return torch.cat([losses for losses, _, _ in results]), gradient

    def _one_epoch(self) -> int:
        task, batch, device = self.task, self.recipe.batch_size, self.task.device
        count = task.size("train")
        orders, draws = self._draws(count)
        starts = range(0, count, batch)
        rates = send(self._rates(len(starts)), device)
        seeds = torch.tensor([run.seed for run in self.runs])
        labels = self._labels()
        for number, start in enumerate(starts):
            index = orders[:, start : start + batch]  # (M, B)
            inputs = task.augmented(index, draws[:, :, start : start + batch], seeds)
            targets = task.targets("train", index, seeds) if labels is None else labels.gather(1, index)
            self.step(inputs, targets, rates[number])
        return count * len(self.runs)

    def _draws(self, count: int) -> tuple[Tensor, Tensor]:
        """Return each member's order (M, N) of inputs in an epoch, and random numbers (M, K, N) that augment them."""
        orders, draws = [], []
        for index, run in enumerate(self.runs):
            random = generator(run.seed, self.epoch(index))
            orders.append(self._order(run, count, random))
            draws.append(self.task.draw_augmentation(count, random))
        return send(torch.stack(orders), self.task.device), send(torch.stack(draws), self.task.device)

    def _order(self, run: RunPlan, count: int, random: torch.Generator) -> Tensor:
        """Return the indices (count,) of a run's inputs in an epoch: each once, or several passes over its own."""
        if run.variety is None:
            return torch.randperm(count, generator=random)
        images, _ = self._own_data(run)
        passes = -(-count // len(images))
        return torch.cat([images[torch.randperm(len(images), generator=random)] for _ in range(passes)])[:count]

    def _own_data(self, run: RunPlan) -> tuple[Tensor, Tensor]:
        """Return the indices (n,) of a run's training images and its labels (N,), on the CPU."""
        assert run.variety is not None
        if run.run not in self._data:
            labels = self.task.targets("train", slice(None)).cpu()
            if not isinstance(self.task, Classification):
                raise UsageError(
                    f"variety is of networks that classify images; {self.task.name} is another task: leave it out"
                )
            self._data[run.run] = run.variety.training_data(labels, run.seed)
        return self._data[run.run]

    def _labels(self) -> Tensor | None:
        """Return each member's own labels (M, N); None if all have those of the data."""
        if self.recipe.variety is None:
            return None
        return send(torch.stack([self._own_data(run)[1] for run in self.runs]), self.task.device)

    def _rates(self, steps: int) -> Tensor:
        """Return the learning rates (steps, M, 1) of this epoch's steps."""
        config = self.recipe.optimizer
        rows = [
            [
                run.learning_rate * config.factor(run.schedule, (self.epoch(index) - 1 + step / steps) / run.epochs[-1])
                for index, run in enumerate(self.runs)
            ]
            for step in range(steps)
        ]
        return torch.tensor(rows, dtype=self.flat.dtype).unsqueeze(-1)

    def _snapshot(self, members: list[int]) -> Snapshot:
        rows = torch.tensor(members, device=self.flat.device)
        state = {**unflatten(self.flat[rows], self.spec), **{name: value[rows] for name, value in self.buffers.items()}}
        runs, epochs = [self.runs[index] for index in members], [self.epoch(index) for index in members]
        return Snapshot(runs, epochs, {name: value.clone() for name, value in state.items()})

    def _keep(self, members: list[int]) -> None:
        rows = torch.tensor(members, dtype=torch.int64, device=self.flat.device)
        self.runs, self.begun = [self.runs[index] for index in members], [self.begun[index] for index in members]
        self.flat = self.flat[rows].clone()
        self.buffers = {name: value[rows].clone() for name, value in self.buffers.items()}
        self.optimizer.keep(rows)

    def _fill(self) -> None:
        """Start waiting runs until `way.fused` are in training."""
        free = self.way.fused - len(self.runs)
        new, self.waiting = self.waiting[:free], self.waiting[free:]
        if new:
            modules = [_seeded(self.make, run.initial_seed) for run in new]
            rows = [torch.cat([value.detach().flatten() for value in module.parameters()]) for module in modules]
            self.flat = torch.cat([self.flat, torch.stack(rows).to(self.flat.device)])
            for name, value in self.buffers.items():
                buffers = torch.stack([module.get_buffer(name) for module in modules])
                self.buffers[name] = torch.cat([value, buffers.to(value.device)])
            self.runs, self.begun = self.runs + new, self.begun + [self.round] * len(new)
            self.optimizer.join(len(new))
        self._set_decays()

    def _set_decays(self) -> None:
        decays = [[run.weight_decay] for run in self.runs]
        self._decays = self.flat.new_tensor(decays) if any(decay for (decay,) in decays) else None


def _seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
