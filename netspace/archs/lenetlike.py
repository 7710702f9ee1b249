"""LeNetLike: two or more strided convolutions and three linear layers (netspace.md, Suppl. III, Fig. 3).

Contract. On 32x32x3 with 10 classes 62,006 parameters, on 64x64x3 with 200 classes 79,612 (Suppl., Tab. I).
The rule by image size that gives both, from 8 to 224 pixels:
- below 20 pixels the two convolutions are 3x3, and below 12 the first has stride 1;
- from 20 to 47 they are 5x5 with stride 2, to 6 and 16 channels;
- from 48 on, padded 5x5 convolutions of 4 channels first halve the image until it is below 48; the two that
  follow have 8 and 16 channels.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from netspace.archs.common import SLOPE, check, scaled


def lenetlike(*, channels: int = 3, classes: int = 10, image_size: int = 32, width: float = 1.0) -> nn.Module:
    """LeNetLike for images (B, channels, image_size, image_size) -> logits (B, classes).

    `width` scales the channels and the two hidden layers. Raises `UsageError` for a setting out of range.

    >>> sum(parameter.numel() for parameter in lenetlike().parameters())
    62006
    """
    check("lenetlike", channels, classes, image_size, width)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before, side = channels, image_size
    for number, (out, kernel, stride, padding) in enumerate(_convolutions(image_size), 1):
        layers[f"conv{number}"] = nn.Conv2d(before, scaled(out, width), kernel, stride, padding)
        layers[f"act{number}"] = nn.LeakyReLU(SLOPE)
        before, side = scaled(out, width), (side + 2 * padding - kernel) // stride + 1
    hidden = scaled(120, width), scaled(84, width)
    layers["flatten"] = nn.Flatten()
    layers["fc1"], layers["fc1_act"] = nn.Linear(before * side * side, hidden[0]), nn.LeakyReLU(SLOPE)
    layers["fc2"], layers["fc2_act"] = nn.Linear(*hidden), nn.LeakyReLU(SLOPE)
    layers["fc3"] = nn.Linear(hidden[1], classes)
    return nn.Sequential(layers)


def _convolutions(side: int) -> list[tuple[int, int, int, int]]:
    """(channels, kernel, stride, padding) of each convolution."""
    if side < 20:
        return [(6, 3, 1 if side < 12 else 2, 0), (16, 3, 2, 0)]
    halvings = []
    while side >= 48:
        halvings.append((4, 5, 2, 2))
        side = (side + 1) // 2
    return [*halvings, (8 if halvings else 6, 5, 2, 0), (16, 5, 2, 0)]
