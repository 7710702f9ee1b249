"""Decoders: a latent vector becomes a PRep (NetSpace, Sec. III and Fig. 1).

Axes: M members, H W of a PRep, E latent size, for the convolutional decoder E = s * s.
`ConvDecoder` is the paper's. `LinearDecoder` is one matrix: on small networks it gives back as much for a twentieth of the
time. Both end in a scale and bias of every element."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import isqrt
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from netspace.config import Settings
from netspace.errors import UsageError
from netspace.models.encoders import SLOPE


class DecoderConfig(Settings):
    """Which decoder, and how it starts."""

    kind: Literal["conv", "linear"] = "conv"  # the paper's convolutions, or one matrix
    start: Literal["small", "reference"] = "small"  # decoded networks start near zero, or near the best training member
    slope: float = Field(SLOPE, ge=0, lt=1)  # of the LeakyReLUs (conv)
    rank: int | None = Field(None, ge=1)  # of the matrix, as two factors: for networks of many parameters (linear)
    share: float = Field(0.3, gt=0)  # with 'reference': how far around it, in units of each layer's spread in the zoo


class Decoder(nn.Module, ABC):
    """What emits PReps from latents, and the scale and bias of every element that come last.

    They are initialised N(0, 1e-3) and U(0, 1e-2), as the authors do; `start_near` replaces them so that all decoded
    networks start near one that works. Of several architectures, with `classes` of them, each then has a scale and bias
    of its own; else one serves all, as in the paper.
    """

    def __init__(
        self, latent: int, size: tuple[int, int], config: DecoderConfig | None = None, classes: int = 1
    ) -> None:
        super().__init__()
        self.latent, self.size, self.config = latent, size, config or DecoderConfig()
        self.recompute = False  # activations in the backward pass, instead of keeping them
        self.layers(latent, size)
        each = (classes, *size) if classes > 1 and self.config.start == "reference" else size
        self.scale = nn.Parameter(torch.randn(each) * 1e-3)
        self.bias = nn.Parameter(torch.rand(each) * 1e-2)

    @abstractmethod
    def layers(self, latent: int, size: tuple[int, int]) -> None:
        """Makes the layers that `values` uses. Raises `UsageError` for a latent size that they do not take."""

    @abstractmethod
    def values(self, latents: Tensor) -> Tensor:
        """What the layers emit (M, H, W), before every element's own scale and bias."""

    @torch.no_grad()
    def start_near(self, reference: Tensor, spread: Tensor, latents: Tensor) -> None:
        """Sets scale and bias so that `latents` (M, E) decode to networks around `reference` (H, W) or (A, H, W).

        They differ from it by `config.share` of `spread`, of the same shape, on average. The layers before are drawn again by
        He et al. (2015), which keeps the signal's size from latent to PRep.
        """
        for layer in self._weighted():
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        self.scale.copy_(self.config.share * spread / self.values(latents).std())
        self.bias.copy_(reference)

    def _weighted(self) -> Iterator[nn.Conv2d | nn.Linear]:
        return (layer for layer in self.children() if isinstance(layer, nn.Conv2d | nn.Linear))

    def forward(self, latents: Tensor, class_ids: Tensor | None = None) -> Tensor:
        """PReps (M, H, W) of latents (M, E), as networks of the ClassIds (M,) where there are several architectures.

        Raises `UsageError` for a latent of another size.
        """
        if latents.shape[-1] != self.latent:
            raise UsageError(f"a latent of {latents.shape[-1]} values was given; this space's have {self.latent}")
        values = self.values(latents).float()
        if self.scale.dim() == 2:
            return torch.addcmul(self.bias, values, self.scale)
        assert class_ids is not None
        return torch.addcmul(self.bias.index_select(0, class_ids), values, self.scale.index_select(0, class_ids))


class ConvDecoder(Decoder):
    """Convolutions that gain depth, and reshapes that spend it on space (NetSpace, Fig. 1)."""

    def layers(self, latent: int, size: tuple[int, int]) -> None:
        """Four convolutions. Raises `UsageError` for a latent that is not the square of a multiple of 4."""
        self.side = isqrt(max(latent, 0))
        if latent <= 0 or self.side**2 != latent or self.side % 4:
            raise UsageError(
                f"the convolutional decoder takes a latent size that is the square of a multiple of 4 "
                f"(16, 64, 144, 256, ... 4096), not {latent}"
            )
        rows, width = size
        self.deepen = nn.Conv2d(1, 256 * rows, 3, stride=2, padding=1)
        self.widen = nn.Conv2d(128, width // 8, 3, stride=2, padding=1)
        self.fill = nn.Conv2d(latent // 8, 256, 3, stride=2, padding=1)
        self.emit = nn.Conv2d(256, 32, 3, padding=1)
        self.activation = nn.LeakyReLU(self.config.slope)

    def values(self, latents: Tensor) -> Tensor:
        """What the convolutions emit (M, H, W)."""
        x = latents.view(-1, 1, self.side, self.side)
        for stage in (self._depth, self._width, self._content):
            x = checkpoint(stage, x, use_reentrant=False) if self.recompute and torch.is_grad_enabled() else stage(x)
        return x.reshape(-1, *self.size)

    def _depth(self, x: Tensor) -> Tensor:
        return self._dense(self.deepen(x).reshape(-1, 128, self.size[0], self.latent // 2))

    def _width(self, x: Tensor) -> Tensor:
        return self._dense(self.widen(x).reshape(-1, self.latent // 8, self.size[0] // 2, self.size[1] // 4))

    def _content(self, x: Tensor) -> Tensor:
        emitted: Tensor = self.emit(self._dense(self.fill(x).reshape(-1, 256, self.size[0] // 4, self.size[1] // 8)))
        return emitted

    def _dense(self, images: Tensor) -> Tensor:
        """Activated, and on a GPU in channels-last order; on a CPU the reordering costs more than it brings."""
        activated: Tensor = self.activation(images)
        return activated.contiguous(memory_format=torch.channels_last) if images.is_cuda else activated


class LinearDecoder(Decoder):
    """One matrix from latent to PRep, or two whose product has a rank."""

    def layers(self, latent: int, size: tuple[int, int]) -> None:
        """The matrix, without a bias: every element has one of its own."""
        elements, rank = size[0] * size[1], self.config.rank
        self.reduce = None if rank is None else nn.Linear(latent, rank, bias=False)
        self.emit = nn.Linear(rank or latent, elements, bias=False)

    def values(self, latents: Tensor) -> Tensor:
        """What the matrix gives (M, H, W)."""
        reduced = latents if self.reduce is None else self.reduce(latents)
        values: Tensor = self.emit(reduced)
        return values.view(-1, *self.size)


DECODERS: dict[str, type[Decoder]] = {"conv": ConvDecoder, "linear": LinearDecoder}
