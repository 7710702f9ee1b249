"""VanillaCNN: five 3x3 convolutions with padding 1 and one linear layer (netspace.md, Suppl. III, Fig. 3).

Contract. On 32x32x3 with 10 classes 68,818 parameters, on 64x64x3 with 200 classes 112,856 (Suppl., Tab. I).
The rule by image size that gives both, from 8 to 224 pixels:
- below 48 pixels channels 8, 8, 32, 64, 64 with strides 2, 1, 2, 1, 2; below 16 the first stride is 1;
- from 48 on channels 8, 16, 32, 64, 64, all with stride 2.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from netspace.archs.common import SLOPE, check, scaled


def vanillacnn(*, channels: int = 3, classes: int = 10, image_size: int = 32, width: float = 1.0) -> nn.Module:
    """VanillaCNN for images (B, channels, image_size, image_size) -> logits (B, classes).

    `width` scales the channels. Raises `UsageError` for a setting out of range.

    >>> sum(parameter.numel() for parameter in vanillacnn().parameters())
    68818
    """
    check("vanillacnn", channels, classes, image_size, width)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before, side = channels, image_size
    for number, (out, stride) in enumerate(_convolutions(image_size), 1):
        layers[f"conv{number}"] = nn.Conv2d(before, scaled(out, width), 3, stride, 1)
        layers[f"act{number}"] = nn.LeakyReLU(SLOPE)
        before, side = scaled(out, width), (side - 1) // stride + 1
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(before * side * side, classes)
    return nn.Sequential(layers)


def _convolutions(side: int) -> list[tuple[int, int]]:
    """(channels, stride) of each convolution."""
    if side >= 48:
        return [(8, 2), (16, 2), (32, 2), (64, 2), (64, 2)]
    return [(8, 1 if side < 16 else 2), (8, 1), (32, 2), (64, 1), (64, 2)]
