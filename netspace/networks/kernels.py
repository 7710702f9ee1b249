"""The weights of a network as a list of small kernels, each with a coordinate (NeRN, Sec. 3.1), and how smooth they are.

Which tensors are kernels is read from the modules (`layer_kinds`), or from names and shapes where only a state dict is there.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from netspace.errors import NetspaceError, UsageError

Kind = Literal["convolution", "matrix"]


# Leaf names of tensors that have a convolution's number of axes and are none: positions, tokens, layer scales, magnitudes
OTHER = re.compile(
    r"(^|_)(bias|pos|position\w*|embed\w*|token\w*|table|scale|gamma|beta|mask|prompt\w*|g|original0)(_|$)"
)


NORM = re.compile(r"(^|_)(\w*norm|ln|bn|gn)\d*(_|$)")  # last part of a normalisation's module path


NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)


CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


PARAMETRISED = re.compile(r"(^|\.)parametrizations\.")


def layer_kinds(state: Mapping[str, Tensor], module: nn.Module | None = None) -> dict[str, Kind]:
    """Return the kind of each tensor that is a kernel of a convolution of 1 or 2 axes or a matrix, in their order.

    A layer of `module` that is torch's own, or derived from one, decides for its tensors. For layers of unknown classes,
    and without a module, a tensor of 3 or 4 axes is a kernel unless its name or the shape of its layer's bias speaks against it.
    """
    layers = {} if module is None else dict(module.named_modules())
    tied = further_names(state)  # a tensor of several names goes by its first
    kinds = {name: _kind(name, state, layers.get(layer_of(name))) for name in state if name not in tied}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def further_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the first name of each tensor that has another name before this one in a state dict (tied weights)."""
    first: dict[int, str] = {}
    firsts = {name: first.setdefault(id(value), name) for name, value in state.items()}
    return {name: before for name, before in firsts.items() if name != before}


def layer_of(name: str) -> str:
    """Return the module path of the layer that a tensor belongs to; for a parametrised layer, that of the layer itself.

    >>> layer_of("features.0.weight"), layer_of("features.0.parametrizations.weight.original1")
    ('features.0', 'features.0')
    """
    inside = PARAMETRISED.search(name)
    return name[: inside.start()] if inside else name.rpartition(".")[0]


def _kind(name: str, state: Mapping[str, Tensor], layer: nn.Module | None) -> Kind | None:
    value, leaf = state[name], name.rpartition(".")[2]
    if not value.is_floating_point() or value.dim() not in (2, 3, 4) or not value.numel() or leaf == "bias":
        return None
    shape = tuple(value.shape)
    if isinstance(layer, _ConvNd):
        grid = (layer.in_channels, layer.out_channels) if layer.transposed else (layer.out_channels, layer.in_channels)
        whole = (grid[0], grid[1] // layer.groups, *layer.kernel_size)
        return "convolution" if shape == whole and not OTHER.search(leaf) else None
    bias = state.get(f"{name.removesuffix('weight')}bias") if leaf == "weight" else None
    is_norm = isinstance(layer, NORMS) or (bias is not None and bias.dim() > 1)
    if value.dim() == 2:
        return None if is_norm or min(shape) < 2 else "matrix"
    if is_norm or (layer is not None and _is_torchs(layer)):
        return None
    return "convolution" if _named_as_kernel(name, shape) else None


def _is_torchs(layer: nn.Module) -> bool:
    """Return whether a layer is torch's own or derived from one, such as LayerNorm; containers are not."""
    return any(
        each.__module__.startswith("torch.nn.modules.") and each not in CONTAINERS for each in type(layer).__mro__
    )


def _named_as_kernel(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor of 3 or 4 axes is a convolution's kernel by its name and shape alone."""
    leaf = name.rpartition(".")[2]
    if OTHER.search(leaf) or NORM.search(layer_of(name).rpartition(".")[2]):
        return False
    return "weight" in leaf or (shape[0] > 1 and prod(shape[1:]) > 1)  # not a table for one input, nor a layer scale


Pointwise = Literal["centre", "tiles"]  # 1x1 convolutions as the centre of a kernel (NeRN), or cut as matrices are


LARGEST = 31  # side of a kernel that is taken for one by its name and shape alone


TILE = 3  # side of a matrix's tiles where no convolution says otherwise


@dataclass(frozen=True)
class Layer:
    """One tensor that is represented."""

    name: str
    shape: tuple[int, ...]
    tiled: bool = False  # a 1x1 convolution that is cut as a matrix

    @property
    def is_matrix(self) -> bool:
        """Whether the layer is cut into tiles."""
        return len(self.shape) == 2 or self.tiled

    def grid(self, side: int) -> tuple[int, int]:
        """Return (F, C): the numbers of filters and channels, or of rows and columns of tiles."""
        first, second = self.shape[:2]
        return (-(-first // side), -(-second // side)) if self.is_matrix else (first, second)

    def window(self, side: int) -> tuple[slice, slice]:
        """Return the rows and columns of a kernel in the predicted K x K: the centre, or the middle row for one axis."""
        if self.is_matrix:
            return slice(0, side), slice(0, side)
        sides = (1, *self.shape[2:])[-2:]
        starts = [(side - each) // 2 for each in sides]
        return slice(starts[0], starts[0] + sides[0]), slice(starts[1], starts[1] + sides[1])


@dataclass(frozen=True)
class Kernels:
    """The layers that are represented, in the order of the network."""

    layers: tuple[Layer, ...]
    side: int  # K

    @classmethod
    def of(
        cls,
        state: Mapping[str, Tensor],
        patterns: Sequence[str] = (),
        side: int | None = None,
        pointwise: Pointwise = "centre",
        module: nn.Module | None = None,
    ) -> Kernels:
        """Return all convolutions of a state dict; or the weights whose names match a pattern ('layer?.*.conv*', '*.mlp.*').

        The kind of each tensor comes from `module` where it is given, else from names and shapes (`layer_kinds`). With a `side`,
        larger kernels are left out. Raises `NetspaceError` for weights that are not finite, a network with nothing to
        represent, and a kernel that is too large to be one, `UsageError` for a pattern that matches no weight.
        """
        kinds = layer_kinds(state, module)
        shapes = {name: tuple(state[name].shape) for name in kinds}
        if not shapes:
            raise NetspaceError(
                f"there is nothing to represent: no convolution or matrix among {len(state)} tensors ({_few(list(state))})"
            )
        names = [name for name, kind in kinds.items() if kind == "convolution"]
        _check_sides(names if module is None and not patterns and side is None else [], shapes)
        if patterns:
            for pattern in patterns:
                if not fnmatch.filter(shapes, pattern):
                    others = fnmatch.filter(state, pattern)
                    if others:
                        raise UsageError(
                            f"{pattern!r} names {_few(others)}, of shape {tuple(state[others[0]].shape)}, which is neither a "
                            f"convolution's kernel nor a matrix; there are: {_few(list(shapes), 40)}"
                        )
                    raise UsageError(f"no weight matches {pattern!r}; there are: {_few(list(shapes), 40)}")
            names = [name for name in shapes if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
        if not names:
            raise NetspaceError(
                f"this network has no convolution; name matrices to represent by a pattern, such as {_few(list(shapes))}"
            )
        for name in names:
            if not torch.isfinite(state[name].float()).all():
                raise NetspaceError(f"{name} holds values that are not finite: they cannot be represented")
        if not any(state[name].float().any() for name in names):
            raise NetspaceError(f"all values of {_few(names)} are 0: there is nothing to represent")
        layers = tuple(
            Layer(name, shapes[name], pointwise == "tiles" and len(shapes[name]) > 2 and prod(shapes[name][2:]) == 1)
            for name in names
        )
        if side is not None:
            layers = tuple(layer for layer in layers if layer.is_matrix or max(layer.shape[2:]) <= side)
            if not layers:
                raise NetspaceError(
                    f"all of {_few(names)} have kernels larger than {side} x {side}: choose a larger side"
                )
        widest = max((max(layer.shape[2:]) for layer in layers if not layer.is_matrix), default=TILE)
        return cls(layers, side or widest)

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of kernels of each layer; N is their sum."""
        return tuple(prod(layer.grid(self.side)) for layer in self.layers)

    @property
    def parameters(self) -> int:
        """The number of represented values."""
        return sum(prod(layer.shape) for layer in self.layers)

    def coordinates(self, normalised: bool = False) -> Tensor:
        """Return the integers (l, f, c) of every kernel (NeRN, Eq. 1), float32 (N, 3); normalised: (l / L, f / F_l, c / C_l)."""
        pieces = []
        for index, layer in enumerate(self.layers):
            filters, channels = layer.grid(self.side)
            grid = torch.cartesian_prod(torch.tensor([index]), torch.arange(filters), torch.arange(channels)).float()
            pieces.append(grid / torch.tensor([len(self.layers), filters, channels]) if normalised else grid)
        return torch.cat(pieces)

    def gather(self, state: Mapping[str, Tensor]) -> Tensor:
        """Return the kernels (N, K, K) of a state dict, with zeros around smaller ones."""
        return torch.cat([self._cut(layer, state[layer.name]) for layer in self.layers])

    def mask(self) -> Tensor:
        """Return which values of (N, K, K) are weights, bool."""
        return self.gather({layer.name: torch.ones(layer.shape) for layer in self.layers}).bool()

    def scatter(self, kernels: Tensor) -> dict[str, Tensor]:
        """Return kernels (N, K, K) as named weights; gradients pass through, and values around smaller kernels are dropped."""
        pieces = kernels.split(self.counts)
        return {layer.name: self._put(layer, piece) for layer, piece in zip(self.layers, pieces, strict=True)}

    def _cut(self, layer: Layer, weight: Tensor) -> Tensor:
        rows, columns = layer.window(self.side)
        filters, channels = layer.grid(self.side)
        if layer.is_matrix:
            padding = (0, channels * self.side - weight.shape[1], 0, filters * self.side - weight.shape[0])
            tiles = torch.nn.functional.pad(weight.float().flatten(1), padding)
            tiles = tiles.reshape(filters, self.side, channels, self.side).transpose(1, 2)
            return tiles.reshape(-1, self.side, self.side)
        if rows.start < 0 or columns.start < 0:
            raise NetspaceError(f"{layer.name} has kernels of {layer.shape[2:]}, larger than {self.side} x {self.side}")
        kernels = weight.new_zeros(filters * channels, self.side, self.side, dtype=torch.float32)
        kernels[:, rows, columns] = weight.float().reshape(filters * channels, *(1, *layer.shape[2:])[-2:])
        return kernels

    def _put(self, layer: Layer, kernels: Tensor) -> Tensor:
        rows, columns = layer.window(self.side)
        if layer.is_matrix:
            filters, channels = layer.grid(self.side)
            tiles = kernels.view(filters, channels, self.side, self.side).transpose(1, 2)
            whole = tiles.reshape(filters * self.side, channels * self.side)
            return whole[: layer.shape[0], : layer.shape[1]].reshape(layer.shape)
        return kernels[:, rows, columns].reshape(layer.shape)


def _check_sides(names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `NetspaceError` for a kernel whose name and shape alone are known, and that is too large to be one."""
    for name in names:
        if max(shapes[name][2:]) > LARGEST:
            raise NetspaceError(
                f"{name} of shape {shapes[name]} would be a convolution with a side of {max(shapes[name][2:])}, where kernels of up "
                f"to {LARGEST} are expected of a network whose module is not known: give --arch, or set 'side' to the largest "
                "kernel's, or name the 'layers' to represent"
            )


def filter_errors(original: Tensor, other: Tensor) -> Tensor:
    """Return the relative error of each filter of weights (F, ...), float32 (F,)."""
    before, after = original.float().flatten(1), other.float().flatten(1)
    return (after - before).norm(dim=1) / before.norm(dim=1).clamp_min(1e-12)


def _few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def smoothness_loss(weights: Iterable[Tensor]) -> Tensor:
    """Return the sum of distances between neighbouring kernels of layers (F, C, ...): a scalar (NeRN, Eq. 6).

    Kernel [f, c] is compared with [f + 1, c] and [f, c + 1] for f < F - 1 and c < C - 1, as the equation's bounds have it: a
    layer of one filter or one channel counts nothing. The distance is the cosine's, 1 - cos, or |a - b| for kernels of one
    value. A kernel of zeros is at distance 1 from any other. A matrix (F, C) of a linear layer is a 1x1 convolution. Raises
    `ValueError` if there are no weights.

    >>> import torch
    >>> float(smoothness_loss([torch.tensor([[1.0, 2.0], [4.0, 9.0]]).view(2, 2, 1, 1)]))
    4.0
    """
    sums = []
    for weight in weights:
        kernels = weight[:, :, None].flatten(2)
        single = kernels.shape[2] == 1
        kernels = kernels if single else F.normalize(kernels, dim=2)
        here, below, right = kernels[:-1, :-1], kernels[1:, :-1], kernels[:-1, 1:]
        if single:
            sums.append((here - below).abs().sum() + (here - right).abs().sum())
        else:
            sums.append((1 - (here * below).sum(2)).sum() + (1 - (here * right).sum(2)).sum())
    if not sums:
        raise ValueError("smoothness_loss takes the weights of one layer at least; found none")
    return torch.stack(sums).sum()
