"""Small networks whose widths are arguments: what a resized network must be equal to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)


class UNet(nn.Module):
    """Two scales, concatenated twice: widths of `down`, `middle` and `side`."""

    def __init__(self, down: int = 4, middle: int = 6, side: int = 3) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, down, 3, padding=1), nn.BatchNorm2d(down), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(down, middle, 3, padding=1), nn.BatchNorm2d(middle, affine=False))
        self.up = nn.ConvTranspose2d(middle, side, 2, stride=2)
        self.last = nn.Conv2d(down + side, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        low = F.relu(self.middle(F.max_pool2d(skip, 2)))
        output: Tensor = self.last(torch.cat([skip, F.relu(self.up(low))], dim=1))
        return output


class Separable(nn.Module):
    """A stem and two depthwise-separable convolutions, one with two outputs for each channel and a PReLU."""

    def __init__(self, stem: int = 4, first: int = 6, second: int = 5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU6(inplace=True)),
            *(nn.Conv2d(stem, stem, 3, padding=1, groups=stem, bias=False), nn.BatchNorm2d(stem), nn.Hardswish()),
            *(nn.Conv2d(stem, first, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU6()),
            *(
                nn.Conv2d(first, 2 * first, 3, stride=2, groups=first),
                nn.PReLU(2 * first),
                nn.Conv2d(2 * first, second, 1),
            ),
        )
        self.pool, self.classifier = nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.Dropout(0.2), nn.Linear(second, 3))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return output


class Vae(nn.Module):
    """An encoder and a decoder with linear layers at the map: `module` unflattens by a layer, else by a view."""

    def __init__(self, one: int = 3, two: int = 4, three: int = 5, four: int = 3, layer: bool = True) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(1, one, 3, 2, 1), nn.ReLU(), nn.Conv2d(one, two, 3, 2, 1), nn.ReLU(), nn.Flatten())
        )
        self.mean, self.log_variance = nn.Linear(two * 4, 2), nn.Linear(two * 4, 2)
        self.start = nn.Linear(2, three * 4)
        self.map = nn.Unflatten(1, (three, 2, 2)) if layer else None
        self.decoder = nn.Sequential(
            *(nn.ReLU(), nn.ConvTranspose2d(three, four, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(four, 1, 4, 2, 1))
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.encoder(x)
        mean, log_variance = self.mean(y), self.log_variance(y)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean) if self.training else mean
        y = self.start(z)
        y = y.view(y.shape[0], -1, 2, 2) if self.map is None else self.map(y)
        return self.decoder(y), mean, log_variance


def mlp(first: int = 7, second: int = 5) -> nn.Module:
    layers = (nn.Flatten(), nn.Linear(64, first), nn.BatchNorm1d(first), nn.ReLU(), nn.Linear(first, second))
    return nn.Sequential(*layers, nn.Tanh(), nn.Linear(second, 3))


def trained(module: nn.Module) -> nn.Module:
    """Give batch norms statistics that differ by channel, as training does."""
    torch.manual_seed(0)
    module.train()
    for _ in range(2):
        module(torch.randn(4, 1, 8, 8))
    return module.eval()
