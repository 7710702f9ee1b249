"""Decoders: a latent vector becomes a PRep (NetSpace, Sec. III and Fig. 1).

Axes: M members, H W of a PRep, E latent size, for the convolutional decoder E = s * s.
`ConvDecoder` is the paper's. `LinearDecoder` is one matrix: on small networks it gives back as much for a twentieth of the
time. `MLPDecoder` has hidden layers before that matrix. All end in a scale and bias of every element. `CoordinateDecoder` is a network from coordinates to weights, which also
decodes sizes that nobody declared. Another decoder is a class and a line in the table `DECODERS`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from itertools import pairwise
from math import isqrt

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from netspace.errors import UsageError
from netspace.models.coordinate_decoder import CoordinateConfig, CoordinateDecoder
from netspace.models.decoder import Decoder, DecoderConfig
from netspace.models.encoder import Statistics

SQUARE = "the square of a multiple of 4 (16, 64, 144, 256, ... 4096)"  # what convolutions on a latent take


def is_square(latent: int) -> bool:
    """Whether a latent size is the square of a multiple of 4."""
    side = isqrt(max(latent, 0))
    return latent > 0 and side**2 == latent and side % 4 == 0


class ElementwiseDecoder(Decoder):
    """Layers that emit PReps from latents, and the scale and bias of every element that come last.

    They are initialised N(0, 1e-3) and U(0, 1e-2), as the authors do; `start_near` replaces them so that all decoded
    networks start near one that works. Of several architectures, with `classes` of them, each then has a scale and bias
    of its own; else one serves all, as in the paper.
    """

    def __init__(
        self, latent: int, size: tuple[int, int], config: DecoderConfig | None = None, classes: int = 1
    ) -> None:
        super().__init__(latent, size, config, classes)
        self.layers(latent, size)
        each = (classes, *size) if classes > 1 and self.config.start == "reference" else size
        self.scale = nn.Parameter(torch.randn(each) * 1e-3)
        self.bias = nn.Parameter(torch.rand(each) * 1e-2)

    @abstractmethod
    def layers(self, latent: int, size: tuple[int, int]) -> None:
        """Make the layers that `values` uses."""

    @abstractmethod
    def values(self, latents: Tensor) -> Tensor:
        """What the layers emit (M, H, W), before every element's own scale and bias."""

    def initialise(self, statistics: Statistics, encoder: nn.Module) -> None:
        """Start near the references, where the settings say so."""
        if self.config.start != "reference":
            return
        assert statistics.references is not None
        with torch.no_grad():
            latents = torch.cat([encoder(preps, class_id) for class_id, preps in statistics.examples.items()])
        self.start_near(statistics.references, statistics.deviation, latents)

    def elementwise(self) -> list[nn.Parameter]:
        """Return the last scale and bias."""
        return [self.scale, self.bias]

    def scales(self) -> list[nn.Parameter]:
        """Return the last scale."""
        return [self.scale]

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


class ConvDecoder(ElementwiseDecoder):
    """Convolutions that gain depth, and reshapes that spend it on space (NetSpace, Fig. 1)."""

    @classmethod
    def refusal(cls, latent: int, config: DecoderConfig) -> str | None:
        """Return why a latent is not the square of a multiple of 4, or which setting is another decoder's."""
        if config.start == "emitted":
            return "decoder.start emitted is for decoder.kind coordinate"
        if not is_square(latent):
            return f"decoder.kind conv takes a latent size that is {SQUARE}, not {latent}"
        return "decoder.rank is for decoder.kind linear" if config.rank is not None else None

    def layers(self, latent: int, size: tuple[int, int]) -> None:
        """Make the four convolutions."""
        self.side, (rows, width) = isqrt(latent), size
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


class LinearDecoder(ElementwiseDecoder):
    """One matrix from latent to PRep, or two whose product has a rank."""

    @classmethod
    def refusal(cls, latent: int, config: DecoderConfig) -> str | None:
        """Return why a rank is above the latent size, or which setting is another decoder's."""
        if config.start == "emitted":
            return "decoder.start emitted is for decoder.kind coordinate"
        return None if (config.rank or 0) <= latent else "decoder.rank is at most latent"

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


class MLPConfig(DecoderConfig):
    """Settings of the decoder `mlp`."""

    hidden: int = Field(512, ge=1)  # outputs of each hidden layer
    depth: int = Field(1, ge=1, le=16)  # hidden layers


class MLPDecoder(ElementwiseDecoder):
    """Hidden layers of ReLUs, and a matrix from the last to the PRep: networks need not lie in a plane of weights."""

    Config = MLPConfig
    config: MLPConfig

    @classmethod
    def refusal(cls, latent: int, config: DecoderConfig) -> str | None:
        """Return which setting is another decoder's."""
        if config.start == "emitted":
            return "decoder.start emitted is for decoder.kind coordinate"
        return "decoder.rank is for decoder.kind linear" if config.rank is not None else None

    def layers(self, latent: int, size: tuple[int, int]) -> None:
        """The hidden layers and the last matrix, which has no bias: every element has one of its own."""
        sizes = [latent, *[self.config.hidden] * self.config.depth]
        self.inner = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.emit = nn.Linear(sizes[-1], size[0] * size[1], bias=False)

    def _weighted(self) -> Iterator[nn.Conv2d | nn.Linear]:
        yield from (layer for layer in self.inner if isinstance(layer, nn.Linear))
        yield self.emit

    def values(self, latents: Tensor) -> Tensor:
        """What the last matrix gives (M, H, W)."""
        for layer in self.inner:
            latents = nn.functional.relu(layer(latents))
        values: Tensor = self.emit(latents)
        return values.view(-1, *self.size)


__all__ = [
    "DECODERS",
    "ConvDecoder",
    "CoordinateConfig",
    "CoordinateDecoder",
    "Decoder",
    "DecoderConfig",
    "ElementwiseDecoder",
    "LinearDecoder",
    "MLPConfig",
    "MLPDecoder",
]

DECODERS: dict[str, type[Decoder]] = {
    "conv": ConvDecoder,
    "linear": LinearDecoder,
    "mlp": MLPDecoder,
    "coordinate": CoordinateDecoder,
}
