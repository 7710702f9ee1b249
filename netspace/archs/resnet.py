"""ResNets for small images: 3 stages of blocks (He et al. 2016, Sec. 4.2; netspace.md, Suppl., Fig. 3-4).

Contract. The parameter counts of netspace.md, Suppl., Tab. I, with batch norm: on 32x32x3 with 10 classes
ResNet8 78,042, ResNet32 466,906, ResNet56 855,770; on 64x64x3 with 200 classes 128,792, 517,656, 906,520.
Convolutions before batch norm have no bias; where a block changes shape its shortcut is a 1x1 convolution and
batch norm; LeakyReLU throughout. With `batch_norm=False` the convolutions have biases and the state has the
names and shapes of the folded network. Names are torchvision's (`layer1.0.conv1`, `layer2.0.downsample.0`).

The last map has a quarter of the image's side. It is averaged over squares of 8 or a little more: one up to
60 pixels, 2x2 up to 92, 7x7 at 224; the linear layer sees all of them.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from netspace.archs.cnn import SLOPE, check, scaled
from netspace.errors import UsageError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, before, H, W) -> (B, after, H / stride, W / stride)."""

    def __init__(self, before: int, after: int, stride: int, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=not batch_norm)
        self.bn1 = _norm(after, batch_norm)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=not batch_norm)
        self.bn2 = _norm(after, batch_norm)
        self.act = nn.LeakyReLU(SLOPE)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            shortcut = nn.Conv2d(before, after, 1, stride, bias=not batch_norm)
            self.downsample = nn.Sequential(shortcut, _norm(after, batch_norm))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.bn1(self.conv1(x)))
        y = self.act(self.bn2(self.conv2(y)) + self.downsample(x))
        return y


class ResNet(nn.Module):
    """Images (B, channels, image_size, image_size) -> logits (B, classes); 3 stages of `blocks` each."""

    def __init__(
        self, blocks: int, channels: int, classes: int, image_size: int, width: float, batch_norm: bool
    ) -> None:
        super().__init__()
        stem, *stages = (scaled(each, width) for each in (16, 16, 32, 64))
        self.conv1 = nn.Conv2d(channels, stem, 3, 1, 1, bias=not batch_norm)
        self.bn1 = _norm(stem, batch_norm)
        self.act = nn.LeakyReLU(SLOPE)
        self.layer1 = _stage(blocks, stem, stages[0], 1, batch_norm)
        self.layer2 = _stage(blocks, stages[0], stages[1], 2, batch_norm)
        self.layer3 = _stage(blocks, stages[1], stages[2], 2, batch_norm)
        side = (image_size + 3) // 4
        cells = max(1, side // 8)
        stride = side // cells
        self.pool = nn.AvgPool2d(side - (cells - 1) * stride, stride)  # cells that meet or overlap, none left out
        self.fc = nn.Linear(stages[2] * cells**2, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def _norm(channels: int, batch_norm: bool) -> nn.Module:
    return nn.BatchNorm2d(channels) if batch_norm else nn.Identity()


def _stage(blocks: int, before: int, after: int, stride: int, batch_norm: bool) -> nn.Sequential:
    first = BasicBlock(before, after, stride, batch_norm)
    return nn.Sequential(first, *(BasicBlock(after, after, 1, batch_norm) for _ in range(blocks - 1)))


def resnet(
    blocks: int,
    /,
    *,
    channels: int = 3,
    classes: int = 10,
    image_size: int = 32,
    width: float = 1.0,
    batch_norm: bool = True,
) -> nn.Module:
    """A ResNet of 6 * blocks + 2 layers; `width` scales its channels. Raises `UsageError`.

    >>> sum(parameter.numel() for parameter in resnet8().parameters())
    78042
    """
    name = f"resnet{6 * blocks + 2}"
    check(name, channels, classes, image_size, width)
    if not isinstance(batch_norm, bool):
        raise UsageError(f"{name} needs batch_norm to be true or false, not {batch_norm!r}.")
    return ResNet(blocks, channels, classes, image_size, width, batch_norm)


resnet8 = partial(resnet, 1)
resnet20 = partial(resnet, 3)
resnet32 = partial(resnet, 5)
resnet56 = partial(resnet, 9)
