"""Small networks of others, for inputs (B, 1, 8, 8): kinds that `compress` has to tell apart. Named as `foreign:NAME`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm3(nn.Module):
    """Weights with three and four axes that are no convolution's."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.c, self.norm, self.fc = nn.Conv2d(1, 8, 3, padding=1), nn.LayerNorm([8, 8, 8]), nn.Linear(512, classes)
        self.position = nn.Parameter(torch.randn(1, 8, 8, 8) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.fc(F.relu(self.norm(self.c(x) + self.position)).flatten(1)))


class Tied(nn.Module):
    """Two names for one tensor, twice: a matrix and a kernel."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.c, self.d = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.e, self.down, self.up = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(512, 32), nn.Linear(512, 32)
        self.e.weight, self.up.weight, self.fc = self.d.weight, self.down.weight, nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.e(F.relu(self.d(F.relu(self.c(x))))).relu().flatten(1)
        return torch.as_tensor(self.fc(F.relu(self.down(h)) + self.up(h)))


def weight_norm(classes: int = 10) -> nn.Module:
    """Parametrised convolutions."""
    wrap = nn.utils.parametrizations.weight_norm
    first, second = wrap(nn.Conv2d(1, 8, 3, padding=1)), wrap(nn.Conv2d(8, 8, 3))
    return nn.Sequential(first, nn.ReLU(), second, nn.Flatten(), nn.Linear(288, classes))
