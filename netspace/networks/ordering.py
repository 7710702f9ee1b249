"""The order of channels that makes the weights of a network smooth (NeuMeta, Sec. 3.3, Eq. 8).

A network whose channels are permuted, group by group (`channels.py`), computes the same function. Total variation is the
sum of differences between neighbouring channels, so the best order of a group is the shortest path through its
channels. The order along one axis of a parameter does not change the variation along another (Proposition 1): each group is
ordered by itself, even where two of its axes meet in one parameter.

Axes: C channels of a group, K values of a channel in one parameter, B inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from netspace.native.matrix_paths import greedy_path, path_length, short_path
from netspace.networks.alignment import check_same_outputs
from netspace.networks.channels import ChannelGroup, Use, channel_values, permute
from netspace.networks.graph import run
from netspace.streams import Stream, generator

STARTS = 64  # channels of a group from which greedy paths start, at most


def total_variation(tensors: Mapping[str, Tensor], groups: Sequence[ChannelGroup]) -> float:
    """Return the sum of absolute differences between neighbouring channels, over all groups and their parameters.

    Of each parameter these are TV_out if the group writes it, TV_in if it reads it; biases and the scales of norms count, too.
    Channels with several entries on an axis, such as those of flattened maps, are compared entry by entry.
    """
    total = 0.0
    for group in groups:
        for use in group.uses:
            values = _values(tensors, group, use)
            total += float((values[1:] - values[:-1]).abs().sum())
    return total


def _values(tensors: Mapping[str, Tensor], group: ChannelGroup, use: Use) -> Tensor:
    """Return a parameter's values (C, K) in float64."""
    return channel_values(tensors[use.name].detach()[None], use, group.size)[0].double()


def channel_distances(tensors: Mapping[str, Tensor], group: ChannelGroup) -> np.ndarray:
    """Return the distances (C, C) of a group's channels, in float64: L1, over all of its parameters (NeuMeta, Eq. 8)."""
    total = torch.zeros(group.size, group.size, dtype=torch.float64)
    for use in group.uses:
        values = _values(tensors, group, use)
        total += torch.cdist(values, values, p=1).cpu()
    return total.numpy()


def smooth_orders(
    tensors: Mapping[str, Tensor], groups: Sequence[ChannelGroup], seed: int = 0
) -> list[Int64[Tensor, " C"]]:
    """Return an order of each group's channels in which total variation is low: channel i was the order's i-th entry.

    Each is a short path through the channels (`netspace.native.matrix_paths`), and never longer than the network's own order. The
    same for the same seed.

    Raises:
        NetspaceError: a parameter is not finite.
    """
    orders = []
    for index, group in enumerate(groups):
        distances = channel_distances(tensors, group)
        start = int(torch.randint(2**62, (), generator=generator(seed, Stream.CHANNEL_ORDERS, index)))
        found, own = short_path(distances, start), np.arange(group.size)
        shorter = path_length(distances, found) < path_length(distances, own)
        orders.append(torch.from_numpy(found if shorter else own))
    return orders


def greedy_orders(tensors: Mapping[str, Tensor], groups: Sequence[ChannelGroup]) -> list[Int64[Tensor, " C"]]:
    """Return the orders of groups that always go on to the nearest channel left: of several starts, each group's best."""
    orders = []
    for group in groups:
        distances = channel_distances(tensors, group)
        paths = [greedy_path(distances, start) for start in range(min(STARTS, group.size))]
        orders.append(torch.from_numpy(min(paths, key=lambda path: path_length(distances, path))))
    return orders


def ordered(
    tensors: Mapping[str, Tensor], groups: Sequence[ChannelGroup], orders: Sequence[Int64[Tensor, " C"]]
) -> dict[str, Tensor]:
    """Return a network's parameters with the channels of its groups in these orders."""
    moved = dict(tensors)
    for group, order in zip(groups, orders, strict=True):
        own = {use.name: moved[use.name][None] for use in group.uses}
        order = order.to(next(iter(own.values())).device)
        moved |= {name: value[0] for name, value in permute(own, group, order[None]).items()}
    return moved


def ordered_module(
    module: nn.Module, groups: Sequence[ChannelGroup], orders: Sequence[Int64[Tensor, " C"]]
) -> nn.Module:
    """Return a copy of `module` with its channels in these orders, the statistics of its batch norms with them.

    Groups are those of `widths.find_widths`, which does not mind statistics. A batch norm without weights is not in them, so that
    its statistics stay where they are: `check_function` notices.
    """
    made = copy.deepcopy(module)
    tensors = {**dict(made.named_parameters()), **dict(made.named_buffers())}
    with torch.no_grad():
        for name, value in ordered(tensors, [_with_statistics(made, group) for group in groups], orders).items():
            tensors[name].copy_(value)
    return made


def _with_statistics(module: nn.Module, group: ChannelGroup) -> ChannelGroup:
    """Return a group that has the statistics of the batch norms on its channels, too."""
    uses = list(group.uses)
    for use in group.uses:
        path, _, name = use.name.rpartition(".")
        layer = module.get_submodule(path)
        if name == "weight" and isinstance(layer, _BatchNorm):
            prefix = use.name.removesuffix(name)
            buffers = [each for each in ("running_mean", "running_var") if getattr(layer, each) is not None]
            uses += [Use(f"{prefix}{each}", 0, use.start, use.repeats) for each in buffers]
    return ChannelGroup(group.size, tuple(uses))


def check_function(module: nn.Module, reordered: nn.Module, inputs: Tensor, label: str) -> None:
    """Raise `NetspaceError` unless both have the same outputs for inputs (B, ...), evaluated in float64."""
    exact = [copy.deepcopy(each).double().eval() for each in (module, reordered)]
    before, after = (run(each, inputs.double(), label) for each in exact)
    check_same_outputs(before, after, f"networks of {label} with reordered channels answer")
