"""Positional embeddings of coordinates (NeRN, Eq. 1).

Axes: N coordinates, D of each, M frequencies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from netspace.config import Settings

BASES = {
    "smooth": 0.76,
    "rough": 1.25,
}  # the authors': for kernels made smooth, by order or by Eq. 6 in training, and for others


class EmbeddingConfig(Settings):
    """How coordinates are embedded."""

    coordinates: Literal["raw", "normalised"] = "raw"  # integers (l, f, c) as in Eq. 1; normalised: by their counts
    base: float | Literal["smooth", "rough"] = "smooth"  # b of Eq. 1, by value or by what the network is like
    count: int = Field(40, ge=1)  # frequencies of each coordinate

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
        """Some of them."""
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
