"""Weights that are residual MLPs of embedded coordinates (NeuMeta, Sec. 3.2).

Axes: G groups, N coordinates, V values of a coordinate (those of a kernel), n m channels, D values of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from netspace.models.coordinate_network import Embedding, EmbeddingConfig
from netspace.models.weight_function import Axis, FunctionConfig, Layout, WeightFunction
from netspace.networks.widths import Widths

SIZE = 64.0  # N of Eq. 3: what sizes are divided by
TENSOR_EMBEDDING = 16  # values that say to one MLP for all tensors which one is meant
NEAR, FAR = math.sqrt(5 / 24 - 0.16), 0.4  # so that the points below have the second moments of the unit square
# Points of the unit square about 0, a turned square and its centre: their mean is that of the whole for cubic functions.
QUADRATURE = ((0.0, 0.0), (FAR, NEAR), (-FAR, -NEAR), (NEAR, -FAR), (-NEAR, FAR))


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
