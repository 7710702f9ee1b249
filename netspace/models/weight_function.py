"""The weights of a network as a function of coordinates that say its size: one function, every width (NeuMeta, Sec. 3.2).

Every tensor is cut into blocks, one for each pair of channel groups that its axes belong to. A block's value at channel
i of n on one axis and j of m on another depends on the relative positions (i + 1/2) / n and (j + 1/2) / m, on its layer
and on the sizes (Eq. 3), and is divided by the fan-in (Eq. 4). Functions are `WeightGrid`, piecewise linear in the
positions (ours), and `WeightMlps`, residual MLPs of embedded coordinates (the paper's).

Axes: G groups, N coordinates, V values of a coordinate (those of a kernel), n channels, C channels at full width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from netspace.config import Settings
from netspace.networks.widths import Widths


class FunctionConfig(Settings):
    """How weights depend on coordinates."""

    # grid: piecewise linear (ours); mlps: one residual MLP for each tensor (the paper's); mlp: one for all tensors
    kind: Literal["grid", "mlps", "mlp"] = "grid"
    hidden: int = Field(256, ge=1)  # width of MLPs
    layers: int = Field(5, ge=2)  # linear layers of MLPs
    frequencies: int = Field(16, ge=1)  # of each embedded coordinate
    # half the width of the neighbourhood over which weights are averaged, in channels (Eq. 9); 0: at the coordinate alone
    noise: float = Field(0.5, ge=0, le=8)


@dataclass(frozen=True)
class Axis:
    """The channels along an axis of a tensor: segments of (group or none, size at full width, repeats)."""

    segments: tuple[tuple[int | None, int, int], ...]

    def sizes(self, widths: Sequence[int]) -> list[int]:
        """Return the number of channels of each segment at widths (G,)."""
        return [size if group is None else widths[group] for group, size, _ in self.segments]

    def length(self, widths: Sequence[int]) -> int:
        """Return the length of the axis at widths (G,)."""
        return sum(n * repeats for n, (_, _, repeats) in zip(self.sizes(widths), self.segments, strict=True))


@dataclass(frozen=True)
class Layout:
    """One parameter: its layer's index of `depth` layers, the axes of its output and input channels, its other axes."""

    name: str
    layer: int
    depth: int
    axes: tuple[Axis, ...]  # (outputs,) or (outputs, inputs)
    transposed: bool  # the tensor has inputs before outputs
    rest: tuple[int, ...]  # of a kernel: its height and width

    def fan_in(self, widths: Sequence[int]) -> int:
        """Return the number of input channels, 1 of a tensor without."""
        return self.axes[1].length(widths) if len(self.axes) > 1 else 1


def layouts(module: nn.Module, info: Widths) -> tuple[Layout, ...]:
    """Return the layout of each parameter of `module`, in its order. Axes whose size is fixed have one segment without a group."""
    uses: dict[tuple[str, int], list[tuple[int, int, int, int]]] = {}
    for index, group in enumerate(info.groups):
        for use in group.uses:
            uses.setdefault((use.name, use.axis), []).append((use.start, index, group.size, use.repeats))
    layers = {name: index for index, name in enumerate(dict.fromkeys(_layer(n) for n, _ in module.named_parameters()))}
    made = []
    for name, value in module.named_parameters():
        layer = module.get_submodule(_layer(name))
        channels = 2 if isinstance(layer, (_ConvNd, nn.Linear)) and value.dim() > 1 else 1
        axes = [_axis(uses.get((name, axis), []), value.shape[axis]) for axis in range(channels)]
        transposed = isinstance(layer, _ConvTransposeNd) and channels == 2
        if channels == 2 and getattr(layer, "groups", 1) > 1:  # depthwise: no channel is read from elsewhere
            axes, rest = axes[:1], tuple(value.shape[1:])
        else:
            rest = tuple(value.shape[channels:])
        axes = axes[::-1] if transposed else axes
        made.append(Layout(name, layers[_layer(name)], len(layers), tuple(axes), transposed, rest))
    return tuple(made)


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _axis(found: list[tuple[int, int, int, int]], length: int) -> Axis:
    segments: list[tuple[int | None, int, int]] = []
    reached = 0
    for start, group, size, repeats in sorted(found):
        if start > reached:
            segments.append((None, start - reached, 1))
        segments.append((group, size, repeats))
        reached = start + size * repeats
    if reached < length:
        segments.append((None, length - reached, 1))
    return Axis(tuple(segments))


class WeightFunction(nn.Module, ABC):
    """A function from coordinates to the parameters of a network of any widths."""

    def __init__(self, module: nn.Module, info: Widths, config: FunctionConfig) -> None:
        super().__init__()
        self.info, self.config, self.layouts = info, config, layouts(module, info)

    def forward(
        self, widths: Sequence[int], band: float | None = None, names: set[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the parameters at widths (G,), each the mean over its neighbourhood (Eq. 9).

        Args:
            band: The fraction of each group's channels to whose number of parts the function is smoothed; none: not at all.
            names: Those to compute with gradients; none: all. The others have none.
        """
        return {
            each.name: self._with_gradient(each, names, partial(self.expected, each, widths, band))
            for each in self.layouts
        }

    def noisy(self, widths: Sequence[int], random: torch.Generator, names: set[str] | None = None) -> dict[str, Tensor]:
        """Return the parameters at widths (G,), each at coordinates disturbed by uniform noise (Eq. 9, one draw)."""
        return {
            each.name: self._with_gradient(each, names, partial(self.drawn, each, widths, random))
            for each in self.layouts
        }

    def _with_gradient(self, layout: Layout, names: set[str] | None, compute: Callable[[], Tensor]) -> Tensor:
        if names is None or layout.name in names:
            return compute()
        with torch.no_grad():
            return compute().detach()

    @torch.no_grad()
    def mean_of_draws(self, widths: Sequence[int], draws: int, random: torch.Generator) -> dict[str, Tensor]:
        """Return the mean of so many noisy draws of the parameters at widths (G,) (Eq. 9, plainly)."""
        total: dict[str, Tensor] = {}
        for _ in range(draws):
            for name, value in self.noisy(widths, random).items():
                total[name] = value / draws if name not in total else total[name] + value / draws
        return total

    @abstractmethod
    def expected(self, layout: Layout, widths: Sequence[int], band: float | None = None) -> Tensor:
        """Return a parameter at widths (G,), each value the mean over its neighbourhood."""

    @abstractmethod
    def drawn(self, layout: Layout, widths: Sequence[int], random: torch.Generator) -> Tensor:
        """Return a parameter at widths (G,), each value at a coordinate disturbed by noise."""

    @abstractmethod
    def start(self, parameters: Mapping[str, Tensor]) -> None:
        """Begin near the parameters of a network at full width, as far as the function can without training."""
