"""The weights of a network as a function of coordinates that say its size: one function, every width (NeuMeta, Sec. 3.2).

Every tensor is cut into blocks, one for each pair of channel groups that its axes belong to. A block's value at channel
i of n on one axis and j of m on another depends on the relative positions (i + 1/2) / n and (j + 1/2) / m, on its layer
and on the sizes (Eq. 3), and is divided by the fan-in (Eq. 4). Two functions are here: `WeightGrid`, piecewise linear in
the positions (ours), and `WeightMlps`, residual MLPs of embedded coordinates (the paper's).

Axes: G groups, N coordinates, V values of a coordinate (those of a kernel), n channels, C channels at full width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from netspace.config import Settings
from netspace.models.coordinate_network import Embedding, EmbeddingConfig
from netspace.networks.widths import Widths

SIZE = 64.0  # N of Eq. 3: what sizes are divided by
TENSOR_EMBEDDING = 16  # values that say to one MLP for all tensors which one is meant
NEAR, FAR = math.sqrt(5 / 24 - 0.16), 0.4  # so that the points below have the second moments of the unit square
# Points of the unit square about 0, a turned square and its centre: their mean is that of the whole for cubic functions.
QUADRATURE = ((0.0, 0.0), (FAR, NEAR), (-FAR, -NEAR), (NEAR, -FAR), (-NEAR, FAR))


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


class WeightFunction(nn.Module):
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

    def expected(self, layout: Layout, widths: Sequence[int], band: float | None = None) -> Tensor:
        """Return a parameter at widths (G,), each value the mean over its neighbourhood."""
        raise NotImplementedError

    def drawn(self, layout: Layout, widths: Sequence[int], random: torch.Generator) -> Tensor:
        """Return a parameter at widths (G,), each value at a coordinate disturbed by noise."""
        raise NotImplementedError

    def start(self, parameters: Mapping[str, Tensor]) -> None:
        """Begin near the parameters of a network at full width, as far as the function can without training."""
        raise NotImplementedError


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


class ResidualMlp(nn.Module):
    """Embedded coordinates to values: a linear layer, residual layers with a learnt scale, a linear layer (NeuMeta)."""

    def __init__(self, inputs: int, values: int, config: FunctionConfig) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, config.hidden)
        self.blocks = nn.ModuleList(nn.Linear(config.hidden, config.hidden) for _ in range(config.layers - 2))
        self.scales = nn.Parameter(torch.full((config.layers - 2,), 0.1))
        self.last = nn.Linear(config.hidden, values)

    def forward(self, first: Float[Tensor, "N hidden"]) -> Float[Tensor, "N V"]:
        """Return values of what the first layer makes of coordinates."""
        x = torch.relu(first)
        for block, scale in zip(self.blocks, self.scales, strict=True):
            x = x + scale * torch.relu(block(x))
        values: Tensor = self.last(x)
        return values


class WeightMlps(WeightFunction):
    """Residual MLPs of embedded coordinates: one for each tensor (the paper's), or one for all with an embedding of the tensor."""

    spread: Tensor
    mean: Tensor

    def __init__(self, module: nn.Module, info: Widths, config: FunctionConfig) -> None:
        super().__init__(module, info, config)
        self.embedding = Embedding(EmbeddingConfig(coordinates="normalised", base=2.0, count=config.frequencies))
        self.shared = config.kind == "mlp"
        kernels = [each.rest for each in self.layouts if len(each.rest) == 2]
        self.largest = tuple(max((rest[axis] for rest in kernels), default=1) for axis in (0, 1))
        inputs, values = 6 * 2 * config.frequencies, [self._count(each) for each in self.layouts]
        if self.shared:
            self.tensors = nn.Embedding(len(self.layouts), TENSOR_EMBEDDING)
            self.mlps = nn.ModuleList([ResidualMlp(inputs + TENSOR_EMBEDDING, max(values), config)])
        else:
            self.mlps = nn.ModuleList(ResidualMlp(inputs, count, config) for count in values)
        self.index = {each.name: index for index, each in enumerate(self.layouts)}
        self.register_buffer("spread", torch.ones(len(self.layouts)))  # of each tensor's values
        self.register_buffer("mean", torch.zeros(len(self.layouts)))

    def _count(self, layout: Layout) -> int:
        """Return how many values a tensor has at each coordinate."""
        if self.shared and len(layout.rest) == 2:
            return math.prod(self.largest)
        return math.prod([*layout.rest, *(max(r for _, _, r in axis.segments) for axis in layout.axes)])

    @torch.no_grad()
    def start(self, parameters: Mapping[str, Tensor]) -> None:
        """Begin with the mean and the standard deviation of each tensor of a network at full width (NeRN, App. B)."""
        full = self.info.full()
        self.spread.fill_(1)
        self.mean.fill_(0)
        for index, each in enumerate(self.layouts):
            before, value = self.expected(each, full), parameters[each.name]
            if not self.shared and before.numel() > 1:
                last = self.mlps[index].last
                assert isinstance(last, nn.Linear)
                factor = 1 / before.std().clamp_min(1e-12)
                last.weight.mul_(factor)
                last.bias.copy_((last.bias - before.mean()) * factor)
            self.spread[index] = value.std() if value.numel() > 1 else value.abs().mean()
            self.mean[index] = value.mean()

    def expected(self, layout: Layout, widths: Sequence[int], band: float | None = None) -> Tensor:
        """Return a parameter at widths (G,), each value the mean of a few points of its neighbourhood; `band` is ignored."""
        points = QUADRATURE if self.config.noise else QUADRATURE[:1]
        firsts = []
        for point in points:
            columns = []
            for axis, shift in zip(layout.axes, point, strict=False):
                positions = _positions(axis, widths, 2 * self.config.noise * shift).to(self.spread)
                reach = _spacing(axis, widths).to(self.spread) * self.config.noise / math.sqrt(len(points))
                columns.append(self._averaged(positions, reach))
            firsts.append(self._first(layout, columns, widths))
        shape = [len(points), *firsts[0].shape[:-1]]
        values = self._mlp(layout)(torch.stack(firsts).flatten(0, -2)).unflatten(0, shape).mean(0)
        return self._arranged(layout, values, widths)

    def drawn(self, layout: Layout, widths: Sequence[int], random: torch.Generator) -> Tensor:
        """Return a parameter at widths (G,), each value at coordinates disturbed by noise: positions and sizes, in channels."""
        counts = [sum(axis.sizes(widths)) for axis in layout.axes]
        noise = (2 * torch.rand(4, *counts, generator=random) - 1).to(self.spread) * self.config.noise
        grid = [
            _positions(axis, widths, 0.0)
            .to(noise)
            .view(*(-1 if each == position else 1 for each in range(len(counts))))
            + noise[position]
            * _spacing(axis, widths).to(noise).view(*(-1 if each == position else 1 for each in range(len(counts))))
            for position, axis in enumerate(layout.axes)
        ]
        sizes = [(count + noise[2 + position]) / SIZE for position, count in enumerate(self._sizes(layout, widths))]
        position_in = grid[1] if len(grid) > 1 else torch.zeros_like(grid[0])
        rest = [torch.full_like(grid[0], each) for each in (layout.layer / layout.depth, layout.depth / SIZE)]
        coordinates = torch.stack([rest[0], position_in, grid[0], rest[1], sizes[1], sizes[0]], dim=-1).flatten(0, -2)
        mlp = self._mlp(layout)
        embedded = self.embedding(coordinates)
        if self.shared:
            which = self.tensors.weight[self.index[layout.name]].expand(len(embedded), -1)
            embedded = torch.cat([embedded, which], dim=1)
        return self._arranged(layout, mlp(mlp.first(embedded)).unflatten(0, counts), widths)

    def _mlp(self, layout: Layout) -> ResidualMlp:
        mlp = self.mlps[0 if self.shared else self.index[layout.name]]
        assert isinstance(mlp, ResidualMlp)
        return mlp

    def _sizes(self, layout: Layout, widths: Sequence[int]) -> tuple[int, int]:
        """Return the number of output and of input channels, 1 of a tensor without."""
        return layout.axes[0].length(widths), layout.fan_in(widths)

    def _first(self, layout: Layout, columns: Sequence[Tensor], widths: Sequence[int]) -> Tensor:
        """Return what the first layer makes of a grid of coordinates, given their embeddings (n, D) and (m, D): a sum."""
        first = self._mlp(layout).first
        size = 2 * self.config.frequencies
        parts = first.weight.split([*[size] * 6, *([TENSOR_EMBEDDING] if self.shared else [])], dim=1)
        outputs, inputs = self._sizes(layout, widths)
        alone = [(0, layout.layer / layout.depth), (3, layout.depth / SIZE), (4, inputs / SIZE), (5, outputs / SIZE)]
        if len(columns) == 1:
            alone.append((1, 0.0))
        total: Tensor = first.bias
        for column, value in alone:
            total = total + F.linear(self.embedding(self.spread.new_tensor([[value]])), parts[column])[0]
        if self.shared:
            total = total + F.linear(self.tensors.weight[self.index[layout.name]], parts[6])
        rows = F.linear(columns[0], parts[2]) + total
        if len(columns) == 1:
            return rows
        return rows[:, None] + F.linear(columns[1], parts[1])

    def _averaged(self, positions: Float[Tensor, " n"], reach: Float[Tensor, " n"]) -> Float[Tensor, "n D"]:
        """Return the mean embedding of positions over `reach` on both sides: each frequency is damped by a sinc."""
        damped = torch.sinc(reach[:, None] * self.embedding.frequencies / math.pi)
        return self.embedding(positions[:, None]) * damped.repeat_interleave(2, dim=1)

    def _arranged(self, layout: Layout, values: Tensor, widths: Sequence[int]) -> Tensor:
        """Return a parameter of values (n, V) or (n, m, V), in its own units: Eq. 4, relative to full width."""
        index = self.index[layout.name]
        scale = layout.fan_in(self.info.full()) / layout.fan_in(widths)
        values = (values * self.spread[index] + self.mean[index]) * scale
        repeats = [max(r for _, _, r in axis.segments) for axis in layout.axes]
        if self.shared and len(layout.rest) == 2:
            starts = [(most - side) // 2 for most, side in zip(self.largest, layout.rest, strict=True)]
            kernel = values[..., : math.prod(self.largest)].unflatten(-1, self.largest)
            for axis, (start, side) in enumerate(zip(starts, layout.rest, strict=True)):
                kernel = kernel.narrow(axis - 2, start, side)
        elif self.shared and math.prod(repeats) == 1 and not layout.rest:
            kernel = values.mean(-1)
        else:
            kernel = self._repeated(layout, values[..., : math.prod([*layout.rest, *repeats])], repeats, widths)
        return kernel.transpose(0, 1).contiguous() if layout.transposed else kernel

    @staticmethod
    def _repeated(layout: Layout, values: Tensor, repeats: Sequence[int], widths: Sequence[int]) -> Tensor:
        """Return values (n, m, V) as (outputs, inputs, ...): V has the repeats of each channel, and the kernel."""
        values = values.unflatten(-1, (*repeats, *(layout.rest or (1,))))
        for position, axis in enumerate(layout.axes):
            at = len(layout.axes) if len(layout.axes) - position else 0
            parts = [
                part.narrow(at, 0, count).movedim(at, position + 1).flatten(position, position + 1)
                for part, (_, _, count) in zip(values.split(axis.sizes(widths), position), axis.segments, strict=True)
            ]
            values = torch.cat(parts, position)
        return values if layout.rest else values.squeeze(-1)


def _positions(axis: Axis, widths: Sequence[int], shift: float) -> Float[Tensor, " n"]:
    """Return the relative position of each channel along an axis at widths (G,), moved by `shift` channels."""
    total, start, parts = sum(size for _, size, _ in axis.segments), 0, []
    for n, (_, size, _) in zip(axis.sizes(widths), axis.segments, strict=True):
        parts.append((start + (torch.arange(n, dtype=torch.float64) + 0.5 + shift) * (size / n)) / total)
        start += size
    return torch.cat(parts).float()


def _spacing(axis: Axis, widths: Sequence[int]) -> Float[Tensor, " n"]:
    """Return how far neighbouring channels are from each other along an axis, for each channel."""
    total = sum(size for _, size, _ in axis.segments)
    pairs = zip(axis.sizes(widths), axis.segments, strict=True)
    return torch.cat([torch.full((n,), size / n / total) for n, (_, size, _) in pairs])


def make_function(module: nn.Module, info: Widths, config: FunctionConfig, seed: int) -> WeightFunction:
    """Return a fresh weight function for the parameters of `module`; torch's random state stays as it was."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return (WeightGrid if config.kind == "grid" else WeightMlps)(module, info, config)
