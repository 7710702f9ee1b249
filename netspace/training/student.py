"""A smaller network of the same architecture that is distilled from a larger one: what compression is compared with.

Axes: B inputs of a batch, G groups of channels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from netspace.networks.widths import Widths
from netspace.tasks import Task
from netspace.training.loop import Stage
from netspace.training.network import NetworkConfig, NetworkLearner, train

TEMPERATURE, ALPHA = 2.0, 0.7  # of the teacher's logits, and the weight of its loss; the rest is the labels'


class StudentLearner(NetworkLearner):
    """A network in training on a teacher's outputs and on the task's targets."""

    name = "student"

    def __init__(
        self,
        module: nn.Module,
        teacher: Callable[[Tensor], Tensor],
        task: Task,
        config: NetworkConfig,
        steps: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """`teacher` returns outputs (B, C) for inputs (B, ...). Raises as `NetworkLearner`."""
        super().__init__(module, task, config, rank, world_size)
        self.teacher, self.stages = teacher, [Stage(steps, config.optimizer)]
        self.log_every, self.validate_every = max(steps // 20, 1), steps

    def terms(self, model: nn.Module, number: int, part: int) -> dict[str, Tensor]:
        """Return the loss of NetSpace's Eq. 5 for one network."""
        inputs, targets = self.batch(number)
        with torch.no_grad():
            teacher = self.teacher(inputs)
        loss = self.task.distillation_loss(model(inputs)[None], teacher, targets, TEMPERATURE, ALPHA)
        return {"distillation": loss.sum()}

    def settings(self) -> str:
        """Return what decides the training, apart from the networks' weights."""
        return f"{super().settings()} {self.stages[0].steps}"


def train_student(
    module: nn.Module,
    teacher: Callable[[Tensor], Tensor],
    task: Task,
    config: NetworkConfig,
    steps: int,
    folder: Path,
) -> nn.Module:
    """Train `module` in place and return it, in evaluation mode; a stopped training goes on from its checkpoint in `folder`.

    Raises as `NetworkLearner` and `train`.
    """
    return train(
        lambda rank, world_size: StudentLearner(module, teacher, task, config, steps, rank, world_size), task, folder
    )


def widest(info: Widths, fits: Callable[[tuple[int, ...]], bool]) -> tuple[int, ...] | None:
    """Return the largest widths (G,), all groups at one compression rate, that fit; None if the smallest do not.

    `fits` says so of widths, and of all narrower ones if it does.
    """
    low, high = 0.0, 1.0  # compression rates; of all channels but one, every group has one left
    if not fits(info.at(1 - 1e-9)):
        return None
    if fits(info.full()):
        return info.full()
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(info.at(middle)) else (middle, high)
    return info.at(min(high, 1 - 1e-9))
