"""The parameters of a network as tokens with coordinates: what a coordinate decoder emits and a token encoder reads.

Axes: N tokens, K side of a token, T = K * K its values, P parameters, D components of a coordinate.
A token is the kernel of one filter and channel, or a K x K tile of a matrix; 1x1 convolutions are tiled, and a vector, such
as a bias, is a matrix of one column. The cutting is that of `netspace.networks.kernels`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from netspace.networks.batch import NetBatch
from netspace.networks.kernels import TILE, Kernels, Layer, layer_kinds, layer_of
from netspace.networks.prep import unflatten

KINDS = 3  # convolution, matrix, vector
POSITIONS = ("layer", "filter", "channel")
SIZES = ("layers", "filters", "channels", "kernel", "stride")
COLUMNS = ("kind", *POSITIONS, *(f"{name} / count" for name in POSITIONS), *(f"log2 {name}" for name in SIZES))


@dataclass(frozen=True)
class Tokens:
    """Where each parameter of an architecture lies among its tokens, and the tokens' coordinates."""

    index: Tensor  # (P,) int64, the position t * N + n of each parameter among T x N values
    coordinates: Tensor  # (N, D) float32, as `COLUMNS` names them
    fan_in: Tensor  # (P,) float32, inputs of the layer that each parameter belongs to
    side: int  # K

    def __len__(self) -> int:
        return len(self.coordinates)

    def flat(self, values: Tensor) -> Tensor:
        """Return the parameters (M, P) among the values (M, T, N) of tokens."""
        return Gather.apply(values.flatten(1), self.index)

    def cut(self, flat: Tensor) -> Tensor:
        """Return the values (M, T, N) of tokens for parameters (M, P); values that are no parameters are zero."""
        values = flat.new_zeros(len(flat), self.side**2 * len(self))
        return values.index_copy(1, self.index, flat).view(len(flat), self.side**2, len(self))


class Gather(torch.autograd.Function):
    """Columns of a matrix, each taken once at most: the gradient is a copy, where that of an index adds up."""

    @staticmethod
    def forward(ctx, values: Tensor, index: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        """Return the columns (M, P) at `index` (P,) of values (M, T * N)."""
        ctx.save_for_backward(index)
        ctx.columns = values.shape[1]
        return values.index_select(1, index)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        """Return the gradient (M, T * N) of the values for that of the columns, (M, P); the index has none."""
        (index,) = ctx.saved_tensors
        return gradient.new_zeros(len(gradient), ctx.columns).index_copy(1, index, gradient), None


def widest_kernel(nets: NetBatch) -> int:
    """Return the side of the largest kernel among an architecture's convolutions; 0 where it has none, or only 1x1."""
    layers = [layer for layer in _layers(nets) if not layer.is_matrix]
    return max((max(layer.shape[2:]) for layer in layers), default=0)


def tokens_of(nets: NetBatch, side: int | None = None) -> Tokens:
    """Return the tokens of an architecture, of `side` or that of its largest kernel.

    Raises `ValueError` for a side below that of a kernel.
    """
    layers, spec = _layers(nets), nets.spec
    side = side or widest_kernel(nets) or TILE
    if widest_kernel(nets) > side:
        raise ValueError(
            f"tokens of {side} x {side} cannot hold a kernel of {widest_kernel(nets)} x {widest_kernel(nets)}"
        )
    kernels = Kernels(tuple(layers), side)
    count = sum(kernels.counts)
    at = torch.arange(count)[:, None] + torch.arange(side**2) * count  # token n's value t is at t * N + n
    placed = kernels.scatter(at.view(count, side, side))
    index = torch.cat([placed[name].flatten() for name in spec.names])
    return Tokens(index, _coordinates(layers, nets, side), _fan_in(nets), side)


def _layers(nets: NetBatch) -> list[Layer]:
    """Return every parameter of an architecture as a layer that is cut into kernels or tiles, in the order of the spec."""
    spec = nets.spec
    shaped = unflatten(torch.ones(spec.num_parameters), spec)
    kinds = layer_kinds({name: value.clone() for name, value in shaped.items()}, nets.skeleton)
    layers = []
    for name, shape in zip(spec.names, spec.shapes, strict=True):
        if kinds.get(name) == "convolution":
            layers.append(Layer(name, shape, tiled=prod(shape[2:]) == 1))
        else:
            layers.append(Layer(name, (shape[0] if shape else 1, prod(shape[1:]))))
    return layers


def _coordinates(layers: list[Layer], nets: NetBatch, side: int) -> Tensor:
    paths = list(dict.fromkeys(layer_of(layer.name) for layer in layers))
    modules = dict(nets.skeleton.named_modules())
    shapes = _weight_shapes(nets)
    pieces = []
    for layer in layers:
        path, vector = layer_of(layer.name), len(layer.shape) == 2 and layer.shape[1] == 1
        depth, kind = paths.index(path), 2 if vector else 1 if layer.is_matrix else 0
        weight = shapes.get(path, layer.shape)
        kernel, stride = max(weight[2:], default=1), max(getattr(modules.get(path), "stride", None) or (1,))
        sizes = [math.log2(size) for size in (len(paths), weight[0], max(weight[1], 1), kernel, stride)]
        grid, totals = layer.grid(side), layer.shape[:2]
        centre = (side - 1) / 2 if layer.is_matrix else 0.0
        reach = side if layer.is_matrix else 1
        axes = [
            (torch.arange(cells) * reach + centre).clamp_max(total - 1)
            for cells, total in zip(grid, totals, strict=True)
        ]
        positions = torch.cartesian_prod(*axes).float()  # (n, 2)
        relative = (positions + 0.5) / torch.tensor(totals)
        constant = torch.tensor([[kind, depth]]).expand(len(positions), -1)
        tail = torch.tensor([sizes]).expand(len(positions), -1)
        ratio = torch.full((len(positions), 1), (depth + 0.5) / len(paths))
        pieces.append(torch.cat([constant, positions, ratio, relative, tail], dim=1))
    return torch.cat(pieces)


def _weight_shapes(nets: NetBatch) -> dict[str, tuple[int, ...]]:
    """Return the shape of the weight of each layer that has one of two axes or more."""
    named = zip(nets.spec.names, nets.spec.shapes, strict=True)
    return {layer_of(name): shape for name, shape in named if len(shape) > 1}


def _fan_in(nets: NetBatch) -> Tensor:
    shapes = _weight_shapes(nets)
    fans = [
        torch.full((size,), float(prod(shapes.get(layer_of(name), shape)[1:])))
        for name, shape, size in zip(nets.spec.names, nets.spec.shapes, nets.spec.sizes, strict=True)
    ]
    return torch.cat(fans)
