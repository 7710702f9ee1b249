"""The order of a network's channels in which its weights are smooth: another network with the same answers.

A permutation of channels in all layers that write and read them costs no bytes in a file.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from netspace.errors import NetspaceError
from netspace.networks.ordering import ordered, smooth_orders
from netspace.networks.widths import find_widths
from netspace.training.fit import Original


def channel_order(original: Original, seed: int, label: str) -> dict[str, Tensor]:
    """Return the network's state dict with the channels of each group in a smooth order, which changes no answer.

    Raises `NetspaceError` if the network's groups of channels cannot be found.
    """
    if original.module is None or original.input_shape is None:
        raise NetspaceError(f"the order of channels needs the module of {label} and the shape of its input")
    module = original.module
    info = find_widths(module, torch.zeros(1, *original.input_shape), label)
    weights = {name: value for name, value in original.state.items() if value.is_floating_point()}
    groups = [
        replace(group, uses=(*group.uses, *statistics))
        for group, statistics in zip(info.groups, info.statistics, strict=True)
    ]
    return {**original.state, **ordered(weights, groups, smooth_orders(weights, info.groups, seed))}
