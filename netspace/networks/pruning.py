"""Channels kept by structured pruning, with torch-pruning's scores (DepGraph, Fang et al. 2023); nothing is trained after it.

torch-pruning scores a group of coupled layers as a whole. The groups given to it here are those of `Widths`, so that
pruned networks have exactly the widths that others have: its own graph does not know linear layers whose outputs become
a map, nor depthwise convolutions with several outputs for each channel. Where it does know the network, its groups are
the same.

Axes: G groups, C channels of a group.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from netspace.errors import NetspaceError, UsageError, unknown
from netspace.networks.resizing import check_narrower, summed_axes, with_channels
from netspace.networks.widths import Widths
from netspace.streams import Stream, generator

Criterion = Literal["l1", "taylor", "random"]


def pruned(
    module: nn.Module,
    info: Widths,
    widths: Sequence[int],
    criterion: Criterion,
    *,
    seed: int = 0,
    loss: Callable[[nn.Module], Tensor] | None = None,
) -> nn.Module:
    """Return a copy of a trained `module` at widths (G,) that keeps the channels with the highest scores, in their order.

    The copy is in evaluation mode. Statistics of batch norm are those of the kept channels.

    Args:
        criterion: 'l1', the sum of absolute weights that read or write a channel; 'taylor', the sum of absolute products
            of weight and gradient; 'random'.
        seed: of 'random'.
        loss: of 'taylor': the loss () of a network on a batch.

    Raises:
        UsageError: a width is below 1 or above the full one, the criterion is unknown, or 'taylor' has no loss.
        NetspaceError: torch-pruning is not installed, or `resized` refuses the widths.
    """
    check_narrower(info, widths)
    scores = channel_scores(module, info, criterion, seed=seed, loss=loss)
    kept = [score.topk(width).indices.sort().values for score, width in zip(scores, widths, strict=True)]
    return with_channels(module, info, kept)


def channel_scores(
    module: nn.Module,
    info: Widths,
    criterion: Criterion,
    *,
    seed: int = 0,
    loss: Callable[[nn.Module], Tensor] | None = None,
) -> list[Float[Tensor, " C"]]:
    """Return the score of each channel, by group. Arguments and errors as of `pruned`."""
    if criterion not in get_args(Criterion):
        raise unknown("criterion of pruning", criterion, get_args(Criterion))
    if criterion == "random":
        drawn = (generator(seed, Stream.RANDOM_CHANNELS, number) for number in range(len(info.groups)))
        return [torch.rand(group.size, generator=each) for group, each in zip(info.groups, drawn, strict=True)]
    tp = _torch_pruning()
    scored = copy.deepcopy(module).eval()
    if criterion == "taylor":
        if loss is None:
            raise UsageError("pruning by taylor needs the gradients of a loss: give a batch, or prune by l1")
        loss(scored.requires_grad_()).backward()
        for value in scored.parameters():
            value.grad = (
                torch.zeros_like(value) if value.grad is None else value.grad
            )  # of what the loss does not depend on
    score = tp.importance.GroupMagnitudeImportance(p=1) if criterion == "l1" else tp.importance.GroupTaylorImportance()
    scores = (score(group).cpu() for group in _groups(tp, scored, info))
    return [each[: group.size] for each, group in zip(scores, info.groups, strict=True)]


def _groups(tp: Any, module: nn.Module, info: Widths) -> Iterator[Any]:
    """Yield torch-pruning's record of each group: layers, what is pruned of them, and the channels of their entries."""
    summed = summed_axes(module)
    for own in info.groups:
        group = tp.dependency.Group()
        for use in sorted(own.uses, key=lambda use: use.repeats):  # scores are as many as entries of the first
            path, _, parameter = use.name.rpartition(".")
            prune = _pruning_function(tp, module.get_submodule(path), (use.name, use.axis) in summed)
            if parameter != "weight" or prune is None:
                continue
            node = tp.dependency.Node(module.get_submodule(path), None, path)
            entries = range(use.start, use.start + own.size * use.repeats)
            group.add_dep(tp.dependency.Dependency(prune, prune, node, node), list(entries))
            group[-1].root_idxs = [(entry - use.start) // use.repeats for entry in entries]
        yield group


def _pruning_function(tp: Any, layer: nn.Module, summed: bool) -> Any:
    """Return torch-pruning's function for the inputs or outputs of a layer; None for what it does not score."""
    if isinstance(layer, nn.Linear):
        return tp.prune_linear_in_channels if summed else tp.prune_linear_out_channels
    if isinstance(layer, _ConvNd):
        if layer.groups > 1:
            return None
        return tp.prune_conv_in_channels if summed else tp.prune_conv_out_channels
    return tp.prune_batchnorm_out_channels if isinstance(layer, _BatchNorm) else None


def _torch_pruning() -> Any:
    try:
        return import_module("torch_pruning")
    except ModuleNotFoundError as error:
        raise NetspaceError(
            f"pruning needs {error.name}, which is not installed: pip install 'netspace[morph]'"
        ) from None
