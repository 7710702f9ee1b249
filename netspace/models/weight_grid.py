"""Weights that are piecewise linear functions of the relative positions of channels.

Axes: G groups, n channels, C channels at full width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from netspace.models.weight_function import Axis, FunctionConfig, Layout, WeightFunction
from netspace.networks.widths import Widths


def hats(count: int, cells: int, radius: float, band: int | None = None) -> Float[Tensor, "n C"]:
    """Return the weights with which `count` channels average the values at `cells` equidistant points of [0, 1].

    Channel i is at (i + 1/2) / count, a value at (j + 1/2) / cells; between them values are interpolated linearly, beyond
    the outermost ones they are constant. Each channel averages over `radius` channels on both sides, exactly. With a
    `band` the function is first averaged over each of so many equal parts and interpolated between their centres.
    """
    if band is not None and band < min(count, cells):
        return hats(count, band, 0.0) @ hats(band, cells, 0.5)
    if count == cells and radius == 0:
        return torch.eye(cells)
    points = (torch.arange(count, dtype=torch.float64) + 0.5) * (cells / count) - 0.5  # in cells
    reach = radius * cells / count
    far = math.ceil(reach) + 1  # cells beyond the edges that a window may touch
    knots = torch.arange(-far, cells + far, dtype=torch.float64)
    if reach > 0:
        upper, lower = (_hat_integral(points[:, None] + side * reach - knots) for side in (1, -1))
        rows = (upper - lower) / (2 * reach)
    else:
        rows = (1 - (points[:, None] - knots).abs()).clamp_min(0)
    inner = rows[:, far : far + cells].clone()
    inner[:, 0] += rows[:, :far].sum(1)
    inner[:, -1] += rows[:, far + cells :].sum(1)
    return (inner / inner.sum(1, keepdim=True)).float()


@lru_cache(maxsize=256)
def _kept_hats(count: int, cells: int, radius: float, band: int | None, device: torch.device) -> Tensor:
    return hats(count, cells, radius, band).to(device)


def _hat_integral(x: Tensor) -> Tensor:
    """Return the integral of max(0, 1 - |t|) up to x."""
    x = x.clamp(-1, 1)
    return 0.5 + x - 0.5 * x.abs() * x


class WeightGrid(WeightFunction):
    """Piecewise linear weights: a value for each channel at full width, between which others are interpolated.

    It has as many parameters as the network at full width.
    """

    def __init__(self, module: nn.Module, info: Widths, config: FunctionConfig) -> None:
        super().__init__(module, info, config)
        named = dict(module.named_parameters())
        self.values = nn.ParameterList(nn.Parameter(named[each.name].detach().clone()) for each in self.layouts)
        self.index = {each.name: index for index, each in enumerate(self.layouts)}

    def start(self, parameters: Mapping[str, Tensor]) -> None:
        """Begin at the parameters of a network at full width."""
        with torch.no_grad():
            for each, value in zip(self.layouts, self.values, strict=True):
                value.copy_(parameters[each.name])

    def expected(self, layout: Layout, widths: Sequence[int], band: float | None = None) -> Tensor:
        """Return a parameter at widths (G,)."""
        value = self.values[self.index[layout.name]]
        axes = layout.axes[::-1] if layout.transposed else layout.axes
        for position, axis in enumerate(axes):
            value = self._resampled(value, position, axis, widths, band)
        scale = layout.fan_in(self.info.full()) / layout.fan_in(widths)
        return value if scale == 1 else value * scale

    def _resampled(self, value: Tensor, position: int, axis: Axis, widths: Sequence[int], band: float | None) -> Tensor:
        parts = []
        lengths = [size * repeats for _, size, repeats in axis.segments]
        for part, (group, size, repeats), n in zip(
            value.split(lengths, position), axis.segments, axis.sizes(widths), strict=True
        ):
            if group is None:
                parts.append(part)
                continue
            parts_of_band = None if band is None else max(1, round(band * size))
            rows = _kept_hats(n, size, self.config.noise, parts_of_band, value.device).to(value.dtype)
            channels = part.unflatten(position, (size, repeats)).movedim(position, 0)
            moved = (rows @ channels.flatten(1)).unflatten(1, channels.shape[1:])
            parts.append(moved.movedim(0, position).flatten(position, position + 1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, position)

    def drawn(self, layout: Layout, widths: Sequence[int], random: torch.Generator) -> Tensor:
        """Return a parameter at widths (G,), each value interpolated at a position disturbed by noise."""
        value = self.values[self.index[layout.name]]
        value = value.transpose(0, 1) if layout.transposed else value
        shape = [axis.length(widths) for axis in layout.axes]
        scale = layout.fan_in(self.info.full()) / layout.fan_in(widths)
        total = torch.zeros(*shape, *value.shape[len(shape) :], device=value.device)
        knots = []
        for position, axis in enumerate(layout.axes):
            noise = (2 * torch.rand(shape, generator=random) - 1).to(value.device) * self.config.noise
            knots.append(_knots(axis, widths, noise, position))
        for corner in range(1 << len(knots)):
            weight, index = torch.ones(shape, device=value.device), []
            for bit, (low, high, upper) in enumerate(knots):
                chosen = corner >> bit & 1
                weight = weight * (upper if chosen else 1 - upper)
                index.append(high if chosen else low)
            total = total + value[tuple(index)] * weight.reshape(*shape, *(1 for _ in value.shape[len(shape) :]))
        total = total * scale
        return total.transpose(0, 1).contiguous() if layout.transposed else total


def _knots(axis: Axis, widths: Sequence[int], noise: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two values next to each disturbed position along an axis, and the weight of the second, each like `noise`."""
    low, high, upper, start = [], [], [], 0
    pieces = noise.split([n * r for n, (_, _, r) in zip(axis.sizes(widths), axis.segments, strict=True)], position)
    for piece, n, (group, size, repeats) in zip(pieces, axis.sizes(widths), axis.segments, strict=True):
        shape = [-1 if each == position else 1 for each in range(noise.dim())]
        channel = torch.arange(n * repeats, device=noise.device).div(repeats, rounding_mode="floor").reshape(shape)
        inner = torch.arange(n * repeats, device=noise.device).remainder(repeats).reshape(shape)
        disturbed = piece if group is not None else torch.zeros_like(piece)
        point = ((channel + 0.5 + disturbed) * (size / n) - 0.5).clamp(0, size - 1)
        first = point.floor().clamp(max=max(size - 2, 0))
        low.append(start + first.long() * repeats + inner)
        high.append(start + (first.long() + 1).clamp(max=size - 1) * repeats + inner)
        upper.append(point - first)
        start += size * repeats
    return torch.cat(low, position), torch.cat(high, position), torch.cat(upper, position)
