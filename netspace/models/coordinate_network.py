"""The coordinate network (INR): embedded coordinates become weights (NeRN, Sec. 3.1, Eq. 1).

Axes: N coordinates, D their components, K values of a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from netspace.config import Settings
from netspace.networks.tokens import KINDS, POSITIONS, SIZES

RELATIVE_FREQUENCIES = (
    8  # of relative positions: higher ones would make sizes in between unlike both of their neighbours
)
CHUNK = 1 << 14  # coordinates that are predicted at once where there are no gradients
SIZE_FREQUENCIES, LARGEST_SIZE = 4, 16  # of the logarithms of sizes, which are divided by the latter
BASES = {
    "smooth": 0.76,
    "rough": 1.25,
}  # the authors': for kernels made smooth, by order or by Eq. 6 in training, and for others


class EmbeddingConfig(Settings):
    """How coordinates are embedded."""

    coordinates: Literal["raw", "normalised"] = (
        "raw"  # integers (l, f, c) as in Eq. 1; normalised: divided by their counts
    )
    base: float | Literal["smooth", "rough"] = "smooth"  # b of Eq. 1: a number, or smooth or rough after the network
    count: int = Field(40, ge=1)  # number of frequencies of each coordinate

    @field_validator("base", mode="before")
    @classmethod
    def _able(cls, base: Any) -> Any:
        try:
            able = base in BASES or 0 < float(base) < math.inf
        except (TypeError, ValueError):
            able = False
        if not able:
            raise ValueError(f"expected a number above 0, or one of {', '.join(BASES)}")
        return base


@dataclass(frozen=True)
class Distinct:
    """Coordinates (N, D) by the values that each takes, few for the places of a network: what is made of one alone, such as
    its embedding, is made once."""

    values: tuple[Tensor, ...]  # D of (U,), each its own U
    places: Tensor  # (N, D): of each coordinate's value among all D U of them

    @classmethod
    def of(cls, coordinates: Tensor) -> Distinct:
        """Of coordinates (N, D)."""
        found = [torch.unique(column, return_inverse=True) for column in coordinates.unbind(1)]
        starts = accumulate((len(values) for values, _ in found[:-1]), initial=0)
        places = [inverse + start for (_, inverse), start in zip(found, starts, strict=True)]
        return cls(tuple(values for values, _ in found), torch.stack(places, dim=1))

    def __len__(self) -> int:
        return len(self.places)

    def take(self, rows: Tensor | slice) -> Distinct:
        """Some of them: those at `rows`, indices (R,) or a slice."""
        return Distinct(self.values, self.places[rows])

    def split(self, size: int) -> list[Distinct]:
        """All, `size` at a time."""
        return [Distinct(self.values, piece) for piece in self.places.split(size)]


class Embedding(nn.Module):
    """gamma(v) = [sin(b^0 pi v), cos(b^0 pi v), ..., sin(b^(M-1) pi v), cos(b^(M-1) pi v)] of every coordinate (Eq. 1).

    Raw coordinates are integers, for which b^m and b^m modulo 2 give the same values: the latter keeps angles small, so
    that float32 computes them exactly enough (1.25^39 * 512 * pi is ten million, where neighbouring float32 are 1 apart).
    """

    frequencies: Tensor

    def __init__(self, config: EmbeddingConfig) -> None:
        super().__init__()
        base = BASES[config.base] if isinstance(config.base, str) else config.base
        powers = base ** torch.arange(config.count, dtype=torch.float64)
        powers = powers.remainder(2) if config.coordinates == "raw" else powers
        self.register_buffer("frequencies", (math.pi * powers).float(), persistent=False)

    def forward(self, coordinates: Tensor) -> Tensor:
        """(N, D) -> (N, 2 M D), coordinate by coordinate, sine and cosine of a frequency side by side."""
        angles = coordinates[..., None] * self.frequencies
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def embedded_size(config: EmbeddingConfig, dimensions: int = 3) -> int:
    """2 M D: how many values `Embedding` gives."""
    return 2 * config.count * dimensions


class PredictorConfig(Settings):
    """How a predictor is made."""

    hidden: int = Field(160, ge=1)  # width of the hidden layers
    layers: int = Field(5, ge=2)  # number of linear layers
    # nerf: the middle layer is given the embedding too. skip, the authors' residual predictor: the first layer, without a
    # ReLU of its own, is added to the output of the middle one. residual (ours): each hidden layer is added to its input.
    kind: Literal["plain", "skip", "residual", "nerf"] = "plain"
    embedding: EmbeddingConfig = EmbeddingConfig()


def layer_sizes(config: PredictorConfig, values: int, dimensions: int = 3) -> list[tuple[int, int]]:
    """Inputs and outputs of each linear layer of a predictor that emits so many values."""
    first, middle = embedded_size(config.embedding, dimensions), config.layers // 2
    inputs = [first, *[config.hidden] * (config.layers - 1)]
    if config.kind == "nerf":
        inputs[middle] += first
    return list(zip(inputs, [*[config.hidden] * (config.layers - 1), values], strict=True))


def parameter_count(config: PredictorConfig, values: int, dimensions: int = 3) -> int:
    """The number of a predictor's parameters."""
    return sum((inputs + 1) * outputs for inputs, outputs in layer_sizes(config, values, dimensions))


class Predictor(nn.Module):
    """An MLP with ReLU from embedded coordinates to values."""

    def __init__(self, config: PredictorConfig, values: int, dimensions: int = 3) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.embedding)
        middle = config.layers // 2
        self.again = middle if config.kind == "nerf" else -1
        self.skip = middle if config.kind == "skip" and middle < config.layers - 1 else -1
        self.linears = nn.ModuleList(nn.Linear(*sizes) for sizes in layer_sizes(config, values, dimensions))
        for linear in self.linears:
            assert isinstance(linear, nn.Linear)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)

    @torch.no_grad()
    def match(self, coordinates: Tensor | Distinct, targets: Tensor, mask: Tensor | None = None) -> None:
        """Scales the last layer so that what is first predicted has the targets' (N, D) mean and variance (NeRN, App. B).

        With a `mask` (N, D), bool, only values where it is set count.
        """
        last = self.linears[-1]
        assert isinstance(last, nn.Linear)
        predicted = torch.cat([self(piece) for piece in coordinates.split(CHUNK)])
        if mask is not None:
            predicted, targets = predicted[mask], targets[mask]
        if targets.numel() > 1:
            factor = targets.std() / predicted.std().clamp_min(1e-12)
        else:  # a single value has no spread: it is the bias
            factor = torch.zeros(())
        last.weight.mul_(factor)
        last.bias.copy_((targets.mean() - factor * predicted.mean()).expand_as(last.bias))

    def forward(self, coordinates: Tensor | Distinct) -> Tensor:
        """Values (N, D) of coordinates (N, dimensions)."""
        shown = [self.embedding(each[:, None]) for each in _columns(coordinates)]
        x = first_output = torch.empty(0)
        last = len(self.linears) - 1
        for place, linear in enumerate(self.linears):
            assert isinstance(linear, nn.Linear)
            if place == 0:
                y = _of_embedding(linear.weight, linear.bias, shown, coordinates)
            elif place == self.again:
                first, second = linear.weight.split(
                    [self.config.hidden, linear.in_features - self.config.hidden], dim=1
                )
                y = F.linear(x, first) + _of_embedding(second, linear.bias, shown, coordinates)
            else:
                y = linear(x)
            if place == last:
                return torch.as_tensor(y)
            if place == 0 and self.config.kind == "skip":
                x = first_output = y
                continue
            y = torch.relu(y + first_output if place == self.skip else y)
            x = x + y if self.config.kind == "residual" and place > 0 else y
        raise AssertionError("a predictor has layers")


def _columns(coordinates: Tensor | Distinct) -> Sequence[Tensor]:
    return coordinates.values if isinstance(coordinates, Distinct) else coordinates.unbind(1)


def _of_embedding(weight: Tensor, bias: Tensor, shown: list[Tensor], coordinates: Tensor | Distinct) -> Tensor:
    """A linear layer of embedded coordinates: a sum over coordinates, for distinct values of a few rows of tables."""
    if not isinstance(coordinates, Distinct):
        return F.linear(torch.cat(shown, dim=1), weight, bias)
    device = weight.device.type
    halved = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    with torch.autocast(device, enabled=False):
        parts = weight.split([each.shape[1] for each in shown], dim=1)
        first, *more = (F.linear(each, part) for each, part in zip(shown, parts, strict=True))
        table = torch.cat([first + bias, *more])
    # its gradient adds up thousands of rows: in float32, as bf16 would lose them
    return F.embedding_bag(coordinates.places, table, mode="sum").to(halved)


class TokenEmbedding(nn.Module):
    """Coordinates of tokens (N, D), as `networks.tokens.COLUMNS` names them, embedded (N, `size`).

    The kind is one of three; integer positions are embedded as raw coordinates are (Eq. 1), relative ones and the logarithms
    of sizes, which say what network a token belongs to (NeuMeta, Eq. 3), as normalised ones. Each component of a position has so
    many `frequencies`, of a relative one so many `relative`, and of a size `sizes`: few of these make what lies between two sizes like both.
    """

    def __init__(self, frequencies: int, relative: int = RELATIVE_FREQUENCIES, sizes: int = SIZE_FREQUENCIES) -> None:
        super().__init__()
        self.raw = Embedding(EmbeddingConfig(coordinates="raw", base="smooth", count=frequencies))
        self.relative = Embedding(EmbeddingConfig(coordinates="normalised", base=1.6, count=relative))
        self.sizes = Embedding(EmbeddingConfig(coordinates="normalised", base=1.6, count=sizes))
        self.size = KINDS + 2 * ((frequencies + relative) * len(POSITIONS) + sizes * len(SIZES))

    def forward(self, coordinates: Tensor) -> Tensor:
        """Return (N, `size`) of coordinates (N, D)."""
        kind, positions, relative, sizes = coordinates.split([1, len(POSITIONS), len(POSITIONS), len(SIZES)], dim=1)
        return torch.cat(
            [
                F.one_hot(kind[:, 0].long(), KINDS).to(coordinates.dtype),
                self.raw(positions),
                self.relative(relative),
                self.sizes(sizes / LARGEST_SIZE),
            ],
            dim=1,
        )


class Trunk(nn.Module):
    """A residual MLP from embedded coordinates to features, whose normalised inputs a latent may scale and shift (FiLM).

    Each block adds linear(relu(norm(x))) to x. Without the norms, FiLM diverges.
    """

    def __init__(self, inputs: int, hidden: int, blocks: int, latent: int | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.blocks = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(blocks + 1))
        self.films = nn.ModuleList(nn.Linear(latent, 2 * hidden) for _ in range(blocks + 1) if latent is not None)

    def forward(self, embedded: Tensor, latents: Tensor | None = None) -> Tensor:
        """Return features (N, hidden) of embedded coordinates (N, inputs); of latents (M, E) one set each, (M, N, hidden)."""
        x = self.first(embedded)
        for index, block in enumerate(self.blocks):
            x = x + block(torch.relu(self._normed(index, x, latents)))
        return torch.relu(self._normed(len(self.blocks), x, latents))

    def _normed(self, index: int, x: Tensor, latents: Tensor | None) -> Tensor:
        normed: Tensor = self.norms[index](x)
        if latents is None:
            return normed
        scale, shift = self.films[index](latents)[:, None].chunk(2, dim=-1)
        return torch.addcmul(normed + shift, normed, scale)
