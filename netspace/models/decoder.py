"""What every decoder is: a latent vector becomes a PRep (NetSpace, Sec. III and Fig. 1). The kinds are in `decoders`.

Axes: M members (networks), H W of a PRep, E latent size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field
from torch import Tensor, nn

from netspace.config import KindSettings
from netspace.errors import UsageError
from netspace.models.encoder import SLOPE, Statistics
from netspace.networks.family import Family


class DecoderConfig(KindSettings):
    """Which decoder, and how it starts."""

    kind: str = "conv"  # conv: the paper's convolutions; linear: one matrix; mlp: hidden layers before it; coordinate: from coordinates
    # small: decoded networks start near zero. reference: near the best training member, by a table of its weights. emitted:
    # near it, by a coordinate network that is fitted to it first, which also knows sizes in between (coordinate)
    start: Literal["small", "reference", "emitted"] = "small"
    slope: float = Field(SLOPE, ge=0, lt=1)  # negative slope of the LeakyReLUs (conv)
    rank: int | None = Field(
        None, ge=1
    )  # rank of the matrix, as two factors, for networks with many parameters; none: full (linear, coordinate)
    share: float = Field(
        0.3, gt=0
    )  # with start 'reference': initial scale around it, in units of the standard deviation of each layer in the zoo

    @classmethod
    def table(cls) -> Mapping[str, type[Decoder]]:
        """Return the decoders by their kinds."""
        from netspace.models.decoders import DECODERS

        return DECODERS


class Decoder(nn.Module, ABC):
    """Turns latents into PReps: what the training, the optimiser and a space ask of any decoder."""

    Config: ClassVar[type[DecoderConfig]] = DecoderConfig

    def __init__(
        self, latent: int, size: tuple[int, int], config: DecoderConfig | None = None, classes: int = 1
    ) -> None:
        """`size` is (H, W) of decoded PReps, `classes` the number of architectures.

        Raises `UsageError` for a latent size or settings that this decoder does not take.
        """
        super().__init__()
        self.latent, self.size, self.config, self.classes = latent, size, config or self.Config(), classes
        self.recompute = False  # activations in the backward pass, instead of storing them, where a decoder can
        if problem := self.refusal(latent, self.config):
            raise UsageError(problem)

    @classmethod
    def build(cls, latent: int, config: DecoderConfig, family: Family) -> Self:
        """Return a fresh decoder of a family's networks."""
        return cls(latent, family.size, config, len(family))

    @abstractmethod
    def forward(self, latents: Tensor, class_ids: Tensor | None = None) -> Tensor:
        """PReps (M, H, W) of latents (M, E), as networks of the ClassIds (M,) where there are several architectures."""

    @classmethod
    def refusal(cls, latent: int, config: DecoderConfig) -> str | None:
        """Return why a latent size or settings are not taken, in one sentence; None where they are."""
        return None

    def initialise(self, statistics: Statistics, encoder: nn.Module) -> None:
        """Set scales by what is known of the zoo's networks, and by how the fresh encoder encodes them."""

    def elementwise(self) -> list[nn.Parameter]:
        """Return the parameters of one value for each element of a PRep, which have a learning rate of their own."""
        return []

    def scales(self) -> list[nn.Parameter]:
        """Return the parameters that everything learnt from a latent is multiplied by, where there are such."""
        return []

    def not_matrices(self) -> list[nn.Parameter]:
        """Return the parameters of two axes or more that are no weights of a linear map."""
        return self.elementwise()
