"""What morphing is compared with: networks of other widths that are trained one by one, pruned, slimmable or resampled.

Each function returns a network for each of the given widths, in evaluation mode and on the task's device, with exactly
the shapes of `netspace.networks.widths.resized`. Batch norm can be recalibrated alike for all of them.

Axes: W networks of different widths, G groups of channels.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from netspace.hardware import send
from netspace.networks.pruning import Criterion, pruned
from netspace.networks.resizing import recalibrate, resampled, with_first_channels
from netspace.networks.widths import Widths, resized
from netspace.tasks import Task
from netspace.training.batches import Images
from netspace.training.network import NetworkConfig, calibration, train_network
from netspace.training.slimmable import SlimmableConfig, train_slimmable

WidthList = Sequence[Sequence[int]]  # W widths (G,)


def recalibrated(networks: Sequence[nn.Module], task: Task, config: NetworkConfig) -> list[nn.Module]:
    """Recalibrate the batch norms of networks in place, all on the same inputs, and return the networks."""
    return [recalibrate(each.to(task.device), calibration(task, config.seed, config.batch_size)) for each in networks]


def individual_networks(
    module: nn.Module, info: Widths, widths: WidthList, task: Task, config: NetworkConfig, folder: Path
) -> list[nn.Module]:
    """Train a fresh network at each of the widths by itself; a stopped training goes on from its checkpoint in `folder`.

    `module` says what is resized; its weights do not matter. Raises as `resized` and `train_network`.
    """
    return [
        train_network(resized(module, info, each, config.seed), task, config, folder / _name("individual", each))
        for each in widths
    ]


def pruned_networks(
    module: nn.Module,
    info: Widths,
    widths: WidthList,
    task: Task,
    config: NetworkConfig,
    criterion: Criterion,
) -> list[nn.Module]:
    """Prune a trained `module` to each of the widths, without training afterwards.

    'taylor' takes the gradients of the task's loss on the first batch of a training. Raises as `pruned`.
    """
    inputs, index = Images(task, config.seed).take(0, config.batch_size)
    targets = task.targets("train", send(index, task.device))

    def loss(network: nn.Module) -> Tensor:
        return task.training_loss(network(inputs), targets)

    trained = copy.deepcopy(module).to(task.device)
    return [pruned(trained, info, each, criterion, seed=config.seed, loss=loss) for each in widths]


def slimmable_networks(
    module: nn.Module,
    info: Widths,
    widths: WidthList,
    task: Task,
    config: NetworkConfig,
    slimmable: SlimmableConfig,
    folder: Path,
    fresh: bool = True,
) -> list[nn.Module]:
    """Train one set of weights for all widths (US-Net) and return its networks, recalibrated.

    It begins with `fresh` weights, and those of `module` do not matter; or else with the weights of `module`. A stopped training
    goes on from its checkpoint in `folder`. Raises as `resized`, `train_slimmable` and `first_channels`.
    """
    start = resized(module, info, info.full(), config.seed) if fresh else module
    full = train_slimmable(start, info, task, config, slimmable, folder / "slimmable")
    return recalibrated([with_first_channels(full, info, each) for each in widths], task, config)


def resampled_networks(
    module: nn.Module, info: Widths, widths: WidthList, task: Task, config: NetworkConfig
) -> list[nn.Module]:
    """Interpolate the weights of a trained `module`, whose channels are in order, at each of the widths; recalibrated.

    Raises as `resampled`.
    """
    return recalibrated([resampled(module, info, each) for each in widths], task, config)


def _name(kind: str, widths: Sequence[int]) -> str:
    """Return the name of a training's folder, which is short for any number of groups."""
    return f"{kind}-{hashlib.sha256(repr(tuple(widths)).encode()).hexdigest()[:12]}"
