"""Small networks of kinds that people really have and that are hard to represent. Images are (B, 1, 8, 8), 10 classes.

An architecture is named 'networks_that_go_wrong:NAME'.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PostAct(nn.Module):
    """Convolution, ReLU, batch norm: folding changes no name and no shape."""

    def __init__(self, classes: int = 10, width: int = 4) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width * 16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.max_pool2d(self.b1(F.relu(self.c1(x))), 2).flatten(1))


class Constant(nn.Module):
    """A table that is no parameter: drawn or fixed, in a buffer (persistent or not) or a plain attribute."""

    def __init__(self, classes: int = 10, kind: str = "attribute", drawn: bool = True) -> None:
        super().__init__()
        table = torch.randn(64, 16) * 0.3 if drawn else torch.arange(64 * 16).mul(1.7).sin().view(64, 16)
        if kind == "attribute":
            self.table = table
        else:
            self.register_buffer("table", table, persistent=kind == "buffer")
        self.fc1, self.fc2 = nn.Linear(32, 16), nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1) @ self.table
        return self.fc2(F.relu(self.fc1(torch.cat([z.sin(), z.cos()], 1))))


class WithPosition(nn.Module):
    """A fixed position table in a non-persistent buffer, beside a batch norm that is folded."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.register_buffer("position", torch.linspace(-1, 1, 64).view(1, 1, 8, 8), persistent=False)
        self.c, self.b, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(self.c(x + self.position))).flatten(1))


class IndexTable(nn.Module):
    """A buffer of integers that the forward pass indexes with, as windowed attention has."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(63, -1, -1))
        self.bias = nn.Parameter(torch.zeros(64))
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1) + self.bias[self.order])


class Spectral(nn.Module):
    """Complex weights."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.w, self.fc = nn.Parameter(torch.randn(8, 5, dtype=torch.cfloat)), nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.fft.irfft2(torch.fft.rfft2(x[:, 0]) * self.w, s=(8, 8)).relu().flatten(1))


class Tied(nn.Module):
    """Two names for one tensor."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.down, self.up, self.fc = nn.Linear(64, 16), nn.Linear(64, 16), nn.Linear(16, classes)
        self.up.weight = self.down.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.down(x.flatten(1))) + self.up(x.flatten(1)))


class Recurrent(nn.Module):
    """A network that vmap cannot stack."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.g, self.fc = nn.GRU(8, 8, batch_first=True), nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.g(x[:, 0])[0][:, -1])


class TwoHeads(nn.Module):
    """Two outputs in training, one in evaluation; two in both where `always`."""

    def __init__(self, classes: int = 10, always: bool = False) -> None:
        super().__init__()
        self.c, self.fc, self.aux = nn.Conv2d(1, 4, 3), nn.Linear(144, classes), nn.Linear(144, classes)
        self.always = always

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        h = F.relu(self.c(x)).flatten(1)
        return (self.fc(h), self.aux(h)) if self.training or self.always else self.fc(h)


class ActNorm(nn.BatchNorm2d):
    """A batch norm with the activation inside it, as timm's BatchNormAct2d."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, input: Tensor) -> Tensor:
        return self.act(super().forward(input))


class Timmlike(nn.Module):
    """A batch norm of a subclass with a forward of its own."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.c, self.b, self.fc = nn.Conv2d(1, 4, 3), ActNorm(4), nn.Linear(144, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.c(x)).flatten(1))


class MobileBlock(nn.Module):
    """Depthwise 7x7, pointwise, batch norms with and without an activation; its path depends on the size of its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise, self.norm1 = nn.Conv2d(channels, channels, 7, padding=3, groups=channels), ActNorm(channels)
        self.pointwise, self.norm2 = nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == 4, f"Input width ({2 * x.shape[-1]}) doesn't match model (8)."
        return x + self.norm2(self.pointwise(self.norm1(self.depthwise(x))))


class MobileLike(nn.Module):
    """Like timm's ConvNeXt, MobileViT and TinyViT: large depthwise kernels, parts that cannot be traced, one size of images."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 2, 2, bias=False), nn.BatchNorm2d(16)
        self.block, self.fc = MobileBlock(16), nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(self.norm(self.stem(x))).flatten(1))


class NoMomentum(nn.Module):
    """A batch norm that keeps a cumulative average."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.c, self.b, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.Linear(144, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(self.c(x))).flatten(1))


class FunctionalDropout(nn.Module):
    """Dropout called as a function, which follows `self.training`."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.c, self.b, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(144, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout(F.relu(self.b(self.c(x))), 0.2, self.training)
        return self.fc(F.dropout2d(h, 0.1, self.training).flatten(1))


class Noisy(nn.Module):
    """Noise in evaluation too: no function of its parameters."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1) + torch.randn_like(x.flatten(1)))


class Talking(nn.Module):
    """Every forward pass prints, also what looks like the reports of a worker process."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        print(f"{tuple(x.shape)} of {x.dtype}", "{", "7", sep="\n", flush=True)
        return self.fc(x.flatten(1))


class OwnStatistics(nn.Module):
    """A float buffer that training changes, and that is no batch norm's."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.n, self.fc = nn.InstanceNorm2d(1, track_running_stats=True), nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.n(x).flatten(1))


postact, constant, with_position, index_table, spectral, tied = (
    PostAct,
    Constant,
    WithPosition,
    IndexTable,
    Spectral,
    Tied,
)
recurrent, two_heads, timmlike, no_momentum, talking = Recurrent, TwoHeads, Timmlike, NoMomentum, Talking
functional_dropout, noisy, own_statistics, mobile_like = FunctionalDropout, Noisy, OwnStatistics, MobileLike
