"""What the filters do that a predictor represents best and worst: mean activation maps of one layer (NeRN, Sec. 5, Fig. 5 right).

Axes: B images, F filters of a layer, h w the sides of its outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from netspace.networks.kernels import Layer, filter_errors
from netspace.networks.state_dict import run_types, run_with_maps
from netspace.results.compressed import ActivationMaps, FilterMaps

MAX_FILTERS = 10  # of each group, as in the paper
MAX_SIDE = 32  # of a map; larger ones are averaged to it


@torch.no_grad()
def activation_maps(
    module: nn.Module,
    original: Mapping[str, Tensor],
    reconstructed: Mapping[str, Tensor],
    inputs: Tensor,
    layers: Sequence[Layer],
) -> ActivationMaps | None:
    """Return the original's mean activations for inputs (B, ...) of the filters with the smallest and the largest relative error.

    The layer is the last convolution among the represented `layers` whose outputs are maps (B, F, h, w) of more than one pixel; an activation
    is the absolute value of its output. None if there is no such layer.
    """
    state = run_types(original, module)
    for layer in reversed(layers):
        maps = run_with_maps(module, state, inputs[:1], [layer])[1]
        if len(layer.shape) != 4 or len(maps) != 1 or maps[0].dim() != 4:
            continue
        filters, height, width = maps[0].shape[1:]
        if filters == layer.shape[0] > 1 and height * width > 1:
            means = _means(module, state, inputs, layer)
            errors = filter_errors(original[layer.name], reconstructed[layer.name])
            order, few = errors.argsort(stable=True), min(MAX_FILTERS, filters // 2)
            best, worst = order[:few], order.flip(0)[:few]
            groups = {name: _group(rows, errors, means) for name, rows in (("best", best), ("worst", worst))}
            return ActivationMaps(layer=layer.name, count=filters, images=len(inputs), **groups)
    return None


def _means(module: nn.Module, state: dict[str, Tensor], inputs: Tensor, layer: Layer) -> Tensor:
    """Return the mean absolute outputs (F, h, w) of a layer over inputs (B, ...)."""
    total = torch.zeros(())
    for batch in inputs.split(128):
        total = total + run_with_maps(module, state, batch, [layer])[1][0].double().abs().sum(0)
    means = total / len(inputs)
    sides = min(MAX_SIDE, means.shape[1]), min(MAX_SIDE, means.shape[2])
    return torch.nn.functional.adaptive_avg_pool2d(means, sides)


def _group(rows: Tensor, errors: Tensor, means: Tensor) -> FilterMaps:
    return FilterMaps(filters=rows.tolist(), relative_errors=errors[rows].tolist(), maps=means[rows].tolist())
