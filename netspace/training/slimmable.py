"""Networks of all widths that share one set of weights: universally slimmable networks (US-Net, Yu & Huang 2019).

A network of smaller widths is the first channels of each group of the full one. Each step trains the largest, the
smallest and a few random widths (the sandwich rule), all but the largest on the outputs of the largest (in-place
distillation). Batch norm always uses the batch's statistics; afterwards each width gets its own by
`netspace.networks.resizing.recalibrate`.

Axes: G groups, B inputs of a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from netspace.config import Settings
from netspace.networks.resizing import first_channels
from netspace.networks.widths import Widths, flexible
from netspace.streams import Stream, generator
from netspace.tasks import Task
from netspace.training.network import NetworkConfig, NetworkLearner, train


class SlimmableConfig(Settings):
    """Which widths are trained."""

    narrowest: float = Field(0.5, gt=0, lt=1)  # compression rate gamma of the smallest network
    random: int = Field(2, ge=0)  # further networks in a step, of a gamma between 0 and that
    each_group: bool = False  # the random ones have a gamma for each group of channels by itself


class Slimmable(nn.Module):
    """The shared weights: inputs (B, ...) and widths to outputs, one for each choice of widths."""

    def __init__(self, module: nn.Module, info: Widths) -> None:
        super().__init__()
        self.net, self.info = flexible(module), info

    def forward(self, inputs: Tensor, choices: Sequence[Sequence[int]] | None = None) -> list[Tensor] | Tensor:
        """Return the outputs at each of the `choices`, widths (G,); without them the output at full width."""
        if choices is None:
            output: Tensor = self.net(inputs)
            return output
        weights = dict(self.net.named_parameters())
        return [functional_call(self.net, first_channels(weights, self.info, each), (inputs,)) for each in choices]


class SlimmableLearner(NetworkLearner):
    """Shared weights in training; validation is of the full width, with the statistics of each batch."""

    name = "slimmable network"
    model: Slimmable

    def __init__(
        self,
        model: Slimmable,
        task: Task,
        config: NetworkConfig,
        slimmable: SlimmableConfig,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Raises as `NetworkLearner`."""
        super().__init__(model, task, config, rank, world_size)
        self.slimmable = slimmable

    def terms(self, model: nn.Module, number: int, part: int) -> dict[str, Tensor]:
        """Return the task's loss of the full width, and the others' distance to its outputs."""
        inputs, targets = self.batch(number)
        largest, *others = model(inputs, self.choices(number))
        teacher = largest.detach()
        return {
            "task": self.task.training_loss(largest, targets),
            "distillation": torch.stack([self.task.behaviour_loss(each, teacher) for each in others]).sum(),
        }

    def choices(self, number: int) -> list[tuple[int, ...]]:
        """Return the widths of step `number`: largest, smallest, and random ones."""
        info, config = self.model.info, self.slimmable
        random = generator(self.config.seed, Stream.DRAWN_WIDTHS, number)
        drawn = config.narrowest * torch.rand(
            config.random, len(info.groups) if config.each_group else 1, generator=random
        )
        chosen = [
            tuple(info.at(gamma)[group] for group, gamma in enumerate(row))
            for row in drawn.expand(-1, len(info.groups)).tolist()
        ]
        return [info.full(), info.at(config.narrowest), *chosen]

    def settings(self) -> str:
        """Return what decides the training, apart from the network's first weights."""
        return f"{super().settings()} {self.slimmable.model_dump_json()}"


def train_slimmable(
    module: nn.Module, info: Widths, task: Task, config: NetworkConfig, slimmable: SlimmableConfig, folder: Path
) -> nn.Module:
    """Train a copy of `module` at all widths at once and return it at full width, in evaluation mode.

    Statistics of its batch norms are those that `module` has: recalibrate each width. Raises as `train_network`.
    """
    model = Slimmable(module, info)
    train(lambda *process: SlimmableLearner(model, task, config, slimmable, *process), task, folder)
    full = copy.deepcopy(module)
    full.load_state_dict({**module.state_dict(), **model.net.state_dict()})
    return full.eval()
