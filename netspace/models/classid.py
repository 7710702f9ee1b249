"""The ClassId head: which architecture a latent stands for (NetSpace, Suppl. I).

Axes: M networks, A architectures, E = s * s latent size.
"""

from __future__ import annotations

from math import isqrt

from torch import Tensor, nn

from netspace.models.encoder import SLOPE

CHANNELS = 10  # after the convolution, as the authors' implementation has it


class ClassIdHead(nn.Module):
    """One convolution on the latent as a square image, LeakyReLU, and one linear layer."""

    def __init__(self, latent: int, classes: int) -> None:
        super().__init__()
        self.side = isqrt(latent)
        self.conv = nn.Conv2d(1, CHANNELS, 3, stride=2, padding=1)
        self.activation = nn.LeakyReLU(SLOPE)
        self.fc = nn.Linear(CHANNELS * (self.side // 2) ** 2, classes)

    def forward(self, latents: Tensor) -> Tensor:
        """ClassId logits (M, A) of latents (M, E)."""
        seen = self.activation(self.conv(latents.view(-1, 1, self.side, self.side)))
        logits: Tensor = self.fc(seen.flatten(1))
        return logits.float()
