"""The weights of a network as a list of small kernels, each with a coordinate: what a coordinate network predicts.

Axes: N kernels, K the side of the largest, L layers, F filters and C channels of a layer.

NeRN (Sec. 3.1) gives the K x K kernel at channel c of filter f of layer l the coordinate (l, f, c); smaller kernels are the
centre of what is predicted. Convolutions of 1 or 2 axes, grouped, depthwise and 1x1 are taken so; matrices (linear and
attention projections, and 1x1 convolutions if asked for) are cut into K x K tiles, whose rows and columns then count as
filters and channels. Works on the state dict of any module; nothing is built or run.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from netspace.errors import NetspaceError, UsageError
from netspace.layer_kinds import layer_kinds

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
        """Whether it is cut into tiles."""
        return len(self.shape) == 2 or self.tiled

    def grid(self, side: int) -> tuple[int, int]:
        """(F, C): how many filters and channels, or rows and columns of tiles."""
        first, second = self.shape[:2]
        return (-(-first // side), -(-second // side)) if self.is_matrix else (first, second)

    def window(self, side: int) -> tuple[slice, slice]:
        """Where a kernel lies in the K x K that is predicted: at the centre; one of one axis in the middle row."""
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
        """All convolutions of a state dict; or the weights whose names match a pattern ('layer?.*.conv*', '*.mlp.*').

        What each tensor is comes from `module` where it is given, else from names and shapes (`layer_kinds`). With a `side`,
        larger kernels are left out. Raises `NetspaceError` for weights that are not finite, a network with nothing to
        represent, and a side that no kernel is believed to have, `UsageError` for a pattern that matches no weight.
        """
        kinds = layer_kinds(state, module)
        able = {name: tuple(state[name].shape) for name in kinds}
        if not able:
            raise NetspaceError(
                f"there is nothing to represent: no convolution or matrix among {len(state)} tensors ({_few(list(state))})"
            )
        names = [name for name, kind in kinds.items() if kind == "convolution"]
        _check_sides(names if module is None and not patterns and side is None else [], able)
        if patterns:
            for pattern in patterns:
                if not fnmatch.filter(able, pattern):
                    others = fnmatch.filter(state, pattern)
                    if others:
                        raise UsageError(
                            f"{pattern!r} names {_few(others)}, of shape {tuple(state[others[0]].shape)}, which is neither a "
                            f"convolution's kernel nor a matrix; there are: {_few(list(able), 40)}"
                        )
                    raise UsageError(f"no weight matches {pattern!r}; there are: {_few(list(able), 40)}")
            names = [name for name in able if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
        if not names:
            raise NetspaceError(
                f"this network has no convolution; name matrices to represent by a pattern, such as {_few(list(able))}"
            )
        for name in names:
            if not torch.isfinite(state[name].float()).all():
                raise NetspaceError(f"{name} holds values that are not finite: they cannot be represented")
        if not any(state[name].float().any() for name in names):
            raise NetspaceError(f"all values of {_few(names)} are 0: there is nothing to represent")
        layers = tuple(
            Layer(name, able[name], pointwise == "tiles" and len(able[name]) > 2 and prod(able[name][2:]) == 1)
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
        """Kernels of each layer; N is their sum."""
        return tuple(prod(layer.grid(self.side)) for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Represented values."""
        return sum(prod(layer.shape) for layer in self.layers)

    def coordinates(self, normalised: bool = False) -> Tensor:
        """The integers (l, f, c) of every kernel (NeRN, Eq. 1), float32 (N, 3); normalised: (l / L, f / F_l, c / C_l)."""
        pieces = []
        for index, layer in enumerate(self.layers):
            filters, channels = layer.grid(self.side)
            grid = torch.cartesian_prod(torch.tensor([index]), torch.arange(filters), torch.arange(channels)).float()
            pieces.append(grid / torch.tensor([len(self.layers), filters, channels]) if normalised else grid)
        return torch.cat(pieces)

    def gather(self, state: Mapping[str, Tensor]) -> Tensor:
        """The kernels (N, K, K) of a state dict; zeros around smaller ones."""
        return torch.cat([self._cut(layer, state[layer.name]) for layer in self.layers])

    def mask(self) -> Tensor:
        """Which values of (N, K, K) are weights, bool."""
        return self.gather({layer.name: torch.ones(layer.shape) for layer in self.layers}).bool()

    def scatter(self, kernels: Tensor) -> dict[str, Tensor]:
        """Kernels (N, K, K) as named weights; gradients flow through, what lies around smaller kernels is left out."""
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


def _few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
