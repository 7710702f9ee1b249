"""Train M networks of one architecture at once, each its own run: seed, data order, rate, schedule, decay, last epoch.

Axes: M members, P parameters, B images of a batch, N training images, C classes. The parameters of all members
are one tensor (M, P); a forward is the module's own, through `torch.func`. A member that has reached its last epoch
leaves, and a waiting run takes its place. A member's weights depend on its own plan alone, up to rounding: every
random number it uses comes from its seed. What is left out: which runs there are (`model_zoo.recipe`), and where
finished members go (`model_zoo.work`).
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
    """Members that reached an epoch at which their plans want them."""

    runs: list[RunPlan]
    epochs: list[int]  # of each
    state: dict[str, Tensor]  # parameters and buffers, stacked (M, ...)


class Group:
    """Runs in training, `way.fused` at once. Iterate `epochs()`; between epochs, `state()` is all that a restart needs.

    `width` is the most members in one forward pass, where memory holds no more; `step` halves it by itself. `forward` is
    that of an earlier group of the same architecture, recipe and way, so that it is compiled once.
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
            forward = Forward(_seeded(make, self.all[0].seed).to(task.device).train(), recipe, way, task)
        self.forward, self.spec = forward, forward.spec
        held = dict(forward.module.named_buffers())
        self.flat = next(forward.module.parameters()).new_empty(0, self.spec.num_parameters)
        self.buffers = {name: value.new_empty(0, *value.shape) for name, value in held.items()}
        self.optimizer = StackedOptimizer(recipe.optimizer, self.flat)
        self.round = 0  # epochs of the group; a member's own began with it
        self.runs: list[RunPlan] = []
        self.begun: list[int] = []  # the round before each member's first epoch
        self.waiting = self.all
        self._decays: Tensor | None = None
        self._lessons: dict[int, tuple[Tensor, Tensor]] = {}  # by run: its images and labels, where they vary
        self._fill()

    def epochs(self) -> Iterator[tuple[int, Snapshot | None]]:
        """Trains on; after every epoch yields the images seen in it by all members, and a snapshot or None."""
        while self.runs:
            self.round += 1
            seen = self._one_epoch()
            ready = [place for place, run in enumerate(self.runs) if self.epoch(place) in run.epochs]
            snapshot = self._snapshot(ready) if ready else None
            going = [place for place, run in enumerate(self.runs) if run.epochs[-1] > self.epoch(place)]
            if len(going) < len(self.runs):
                self._keep(going)
                self._fill()
            yield seen, snapshot

    def epoch(self, place: int) -> int:
        """The epoch, from 1 on, that the member at a place is in or has just ended."""
        return self.round - self.begun[place]

    @property
    def epochs_done(self) -> int:
        """By all runs together, those that have left included."""
        behind = len(self.all) - len(self.waiting)
        gone = {run.run for run in self.all[:behind]} - {run.run for run in self.runs}
        left = sum(run.epochs[-1] for run in self.all if run.run in gone)
        return left + sum(self.epoch(place) for place in range(len(self.runs)))

    def step(self, images: Tensor, labels: Tensor, rates: Tensor) -> Tensor:
        """One step on images (M, B, C, H, W), normalised, and labels (M, B) at rates (M, 1); losses (M,).

        Where memory does not hold all members' forward passes, they are taken in halves, quarters and so on from then
        on: the same networks, a little slower. Raises `NetspaceError` where not even one fits.
        """
        losses, gradient = self._within_memory(images, labels)
        self.optimizer.step(self.flat, gradient, rates, self._decays)
        return losses

    def state(self) -> dict[str, Any]:
        """Everything a restart needs, as plain tensors and values."""
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
        """Goes on from `state()` of a group of the same runs."""
        by_number = {run.run: run for run in self.all}
        device = self.task.device
        self.round, self.begun = int(state["round"]), [int(begun) for begun in state["begun"]]
        self.runs = [by_number[number] for number in state["runs"]]
        self.waiting = self.all[len(self.all) - int(state["waiting"]) :]
        self.flat = state["flat"].to(device).clone()
        self.buffers = {name: value.to(device).clone() for name, value in state["buffers"].items()}
        self.optimizer.load(state["optimizer"])
        self._settle()

    def _within_memory(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (M,) and gradients (M, P); takes fewer members at once when memory runs out."""
        while True:
            wide = min(self.width, len(self.runs))
            try:
                return self._backward(images, labels)
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
                if wide == 1:
                    raise NetspaceError(
                        f"the device's memory does not hold one network in training with {labels.shape[1]} images: set "
                        "batch_size lower"
                    ) from None
            self.width = -(-wide // 2)
            if self.task.device.type == "cuda":
                torch.cuda.empty_cache()

    def _backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        found = []
        for start in range(0, len(self.flat), self.width):
            part = slice(start, start + self.width)
            held = {name: value[part] for name, value in self.buffers.items()}
            losses, gradient, held = self.forward(self.flat[part], held, images[part], labels[part])
            if self.width < len(self.flat):  # the next part may overwrite what this one gave
                losses, gradient = losses.clone(), gradient.clone()
                held = {name: value.clone() for name, value in held.items()}
            found.append((losses, gradient, held))
        self.buffers = {name: torch.cat([held[name] for _, _, held in found]) for name in self.buffers}
        gradient = found[0][1] if len(found) == 1 else torch.cat([each for _, each, _ in found])
        return torch.cat([losses for losses, _, _ in found]), gradient

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
        """Of every member for one epoch: the order (M, N) of inputs, and the numbers (M, K, N) that augment them."""
        orders, draws = [], []
        for place, run in enumerate(self.runs):
            random = generator(run.seed, self.epoch(place))
            orders.append(self._order(run, count, random))
            draws.append(self.task.draw_augmentation(count, random))
        return send(torch.stack(orders), self.task.device), send(torch.stack(draws), self.task.device)

    def _order(self, run: RunPlan, count: int, random: torch.Generator) -> Tensor:
        """The inputs (count,) of one epoch of a run: each once, or those that it sees in as many passes as that takes."""
        if run.variety is None:
            return torch.randperm(count, generator=random)
        seen, _ = self._lesson(run)
        passes = -(-count // len(seen))
        return torch.cat([seen[torch.randperm(len(seen), generator=random)] for _ in range(passes)])[:count]

    def _lesson(self, run: RunPlan) -> tuple[Tensor, Tensor]:
        """The training images (n,) that a run sees and its labels (N,), on the CPU."""
        assert run.variety is not None
        if run.run not in self._lessons:
            labels = self.task.targets("train", slice(None)).cpu()
            if not isinstance(self.task, Classification):
                raise UsageError(
                    f"variety is of networks that classify images; {self.task.name} is another task: leave it out"
                )
            self._lessons[run.run] = run.variety.lessons(labels, run.seed)
        return self._lessons[run.run]

    def _labels(self) -> Tensor | None:
        """Each member's own labels (M, N); None where all have those of the data."""
        if self.recipe.variety is None:
            return None
        return send(torch.stack([self._lesson(run)[1] for run in self.runs]), self.task.device)

    def _rates(self, steps: int) -> Tensor:
        """Learning rates of this epoch's steps, (steps, M, 1)."""
        config = self.recipe.optimizer
        rows = [
            [
                run.learning_rate * config.factor(run.schedule, (self.epoch(place) - 1 + step / steps) / run.epochs[-1])
                for place, run in enumerate(self.runs)
            ]
            for step in range(steps)
        ]
        return torch.tensor(rows, dtype=self.flat.dtype).unsqueeze(-1)

    def _snapshot(self, places: list[int]) -> Snapshot:
        rows = torch.tensor(places, device=self.flat.device)
        state = {**unflatten(self.flat[rows], self.spec)}
        state.update({name: value[rows] for name, value in self.buffers.items()})
        runs, epochs = [self.runs[place] for place in places], [self.epoch(place) for place in places]
        return Snapshot(runs, epochs, {name: value.clone() for name, value in state.items()})

    def _keep(self, places: list[int]) -> None:
        rows = torch.tensor(places, dtype=torch.int64, device=self.flat.device)
        self.runs, self.begun = [self.runs[place] for place in places], [self.begun[place] for place in places]
        self.flat = self.flat[rows].clone()
        self.buffers = {name: value[rows].clone() for name, value in self.buffers.items()}
        self.optimizer.keep(rows)

    def _fill(self) -> None:
        """Waiting runs take the free places."""
        free = self.way.fused - len(self.runs)
        new, self.waiting = self.waiting[:free], self.waiting[free:]
        if new:
            modules = [_seeded(self.make, run.seed) for run in new]
            rows = [torch.cat([value.detach().flatten() for value in module.parameters()]) for module in modules]
            self.flat = torch.cat([self.flat, torch.stack(rows).to(self.flat.device)])
            held = [dict(module.named_buffers()) for module in modules]
            for name, value in self.buffers.items():
                self.buffers[name] = torch.cat([value, torch.stack([each[name] for each in held]).to(value.device)])
            self.runs, self.begun = self.runs + new, self.begun + [self.round] * len(new)
            self.optimizer.join(len(new))
        self._settle()

    def _settle(self) -> None:
        """After members came or left."""
        decays = [[run.weight_decay] for run in self.runs]
        self._decays = self.flat.new_tensor(decays) if any(decay for (decay,) in decays) else None


def _seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
