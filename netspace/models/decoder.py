"""NetSpace's decoder: a latent vector becomes a PRep (NetSpace, Sec. III and Fig. 1).

Axes: M members, H W of a PRep, E = s * s latent size.
"""

from __future__ import annotations

from math import isqrt
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from netspace.config import Settings
from netspace.errors import UsageError
from netspace.models.encoder import SLOPE


class DecoderConfig(Settings):
    """How the decoder starts."""

    start: Literal["small", "reference"] = "small"  # decoded networks start near zero, or near the best training member
    slope: float = Field(SLOPE, ge=0, lt=1)  # of its LeakyReLUs
    share: float = Field(0.3, gt=0)  # with 'reference': how far around it, in units of each layer's spread in the zoo


class ConvDecoder(nn.Module):
    """Convolutions that gain depth, reshapes that spend it on space, and a scale of its own for every element.

    The independent element-wise scale and bias come last, initialised N(0, 1e-3) and U(0, 1e-2) as the authors
    do; `start_near` replaces them so that all decoded networks start near one that works. Of several architectures, with
    `classes` of them, each then has a scale and bias of its own; else one serves all, as in the paper.
    """

    def __init__(
        self, latent: int, size: tuple[int, int], config: DecoderConfig | None = None, classes: int = 1
    ) -> None:
        super().__init__()
        side = isqrt(max(latent, 0))
        if latent <= 0 or side * side != latent or side % 4:
            raise UsageError(
                f"the convolutional decoder takes a latent size that is the square of a multiple of 4 "
                f"(16, 64, 144, 256, ... 4096), not {latent}"
            )
        self.side, self.latent, self.size = side, latent, size
        self.recompute = False  # the stages' activations in the backward pass, instead of keeping them
        self.config = config or DecoderConfig()
        rows, width = size
        self.deepen = nn.Conv2d(1, 256 * rows, 3, stride=2, padding=1)
        self.widen = nn.Conv2d(128, width // 8, 3, stride=2, padding=1)
        self.fill = nn.Conv2d(latent // 8, 256, 3, stride=2, padding=1)
        self.emit = nn.Conv2d(256, 32, 3, padding=1)
        self.activation = nn.LeakyReLU(self.config.slope)
        each = (classes, *size) if classes > 1 and self.config.start == "reference" else size
        self.scale = nn.Parameter(torch.randn(each) * 1e-3)
        self.bias = nn.Parameter(torch.rand(each) * 1e-2)

    def start_near(self, reference: Tensor, spread: Tensor, latents: Tensor) -> None:
        """Sets scale and bias so that `latents` (M, E) decode to networks around `reference` (H, W) or (A, H, W).

        They differ from it by `config.share` of `spread`, of the same shape, on average. The convolutions before are drawn again by
        He et al. (2015), which keeps the signal's size from latent to PRep.
        """
        for layer in (self.deepen, self.widen, self.fill, self.emit):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.scale.copy_(self.config.share * spread / self.values(latents).std())
        self.bias.copy_(reference)

    def values(self, latents: Tensor) -> Tensor:
        """What the convolutions emit (M, H, W), before every element's own scale and bias."""
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

    def forward(self, latents: Tensor, class_ids: Tensor | None = None) -> Tensor:
        """PReps (M, H, W) of latents (M, E), as networks of the ClassIds (M,) where there are several architectures.

        Raises `UsageError` for a latent of another size.
        """
        if latents.shape[-1] != self.latent:
            raise UsageError(f"a latent of {latents.shape[-1]} values was given; this space's have {self.latent}")
        values = self.values(latents).float()
        if self.scale.dim() == 2:
            return values * self.scale + self.bias
        assert class_ids is not None
        return values * self.scale.index_select(0, class_ids) + self.bias.index_select(0, class_ids)
