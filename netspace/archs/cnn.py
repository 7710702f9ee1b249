"""LeNetLike and VanillaCNN (NetSpace, Suppl. III, Fig. 3), and what all named architectures share.

Parameter counts are those of NetSpace, Suppl., Tab. I; the rules by image size give them from 8 to 224 pixels.

LeNetLike: two or more strided convolutions and three linear layers. On 32x32x3 with 10 classes 62,006 parameters, on
64x64x3 with 200 classes 79,612:
- below 20 pixels the two convolutions are 3x3, and below 12 the first has stride 1;
- from 20 to 47 they are 5x5 with stride 2, to 6 and 16 channels;
- from 48 on, padded 5x5 convolutions of 4 channels first halve the image until it is below 48; the two that
  follow have 8 and 16 channels.

VanillaCNN: five 3x3 convolutions with padding 1 and one linear layer. On 32x32x3 with 10 classes 68,818 parameters, on
64x64x3 with 200 classes 112,856:
- below 48 pixels channels 8, 8, 32, 64, 64 with strides 2, 1, 2, 1, 2; below 16 the first stride is 1;
- from 48 on channels 8, 16, 32, 64, 64, all with stride 2.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn

from netspace.errors import UsageError

# Every architecture is defined between these sides of a square image, in pixels.
SMALLEST, LARGEST = 8, 224

# LeakyReLU's slope for negative inputs, in all of them.
SLOPE = 0.01


def scaled(channels: int, width: float) -> int:
    """`channels * width`, rounded half up, at least 2; `channels` itself for width 1.

    >>> [scaled(5, width) for width in (1.0, 0.5, 0.1)]
    [5, 3, 2]
    """
    return channels if width == 1 else max(2, math.floor(channels * width + 0.5))


def check(arch: str, channels: int, classes: int, image_size: int, width: float) -> None:
    """Raises `UsageError` for a setting that no architecture accepts."""

    def whole(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    for name, value in (("channels", channels), ("classes", classes)):
        if not whole(value) or value < 1:
            raise UsageError(f"{arch} needs {name} to be a whole number of at least 1, not {value!r}.")
    if not whole(image_size) or not SMALLEST <= image_size <= LARGEST:
        raise UsageError(
            f"{arch} takes square images of {SMALLEST} to {LARGEST} pixels a side, not "
            f"image_size={image_size!r}: resize the images."
        )
    if isinstance(width, bool) or not isinstance(width, (int, float)) or not 0 < width < math.inf:
        raise UsageError(f"{arch} needs width to be a number above 0 (1 is the original), not {width!r}.")


def lenetlike(*, channels: int = 3, classes: int = 10, image_size: int = 32, width: float = 1.0) -> nn.Module:
    """LeNetLike for images (B, channels, image_size, image_size) -> logits (B, classes).

    `width` scales the channels and the two hidden layers. Raises `UsageError` for a setting out of range.

    >>> sum(parameter.numel() for parameter in lenetlike().parameters())
    62006
    """
    check("lenetlike", channels, classes, image_size, width)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before, side = channels, image_size
    for number, (out, kernel, stride, padding) in enumerate(_lenet_convolutions(image_size), 1):
        layers[f"conv{number}"] = nn.Conv2d(before, scaled(out, width), kernel, stride, padding)
        layers[f"act{number}"] = nn.LeakyReLU(SLOPE)
        before, side = scaled(out, width), (side + 2 * padding - kernel) // stride + 1
    hidden = scaled(120, width), scaled(84, width)
    layers["flatten"] = nn.Flatten()
    layers["fc1"], layers["fc1_act"] = nn.Linear(before * side * side, hidden[0]), nn.LeakyReLU(SLOPE)
    layers["fc2"], layers["fc2_act"] = nn.Linear(*hidden), nn.LeakyReLU(SLOPE)
    layers["fc3"] = nn.Linear(hidden[1], classes)
    return nn.Sequential(layers)


def _lenet_convolutions(side: int) -> list[tuple[int, int, int, int]]:
    """(channels, kernel, stride, padding) of each convolution."""
    if side < 20:
        return [(6, 3, 1 if side < 12 else 2, 0), (16, 3, 2, 0)]
    halvings = []
    while side >= 48:
        halvings.append((4, 5, 2, 2))
        side = (side + 1) // 2
    return [*halvings, (8 if halvings else 6, 5, 2, 0), (16, 5, 2, 0)]


def vanillacnn(*, channels: int = 3, classes: int = 10, image_size: int = 32, width: float = 1.0) -> nn.Module:
    """VanillaCNN for images (B, channels, image_size, image_size) -> logits (B, classes).

    `width` scales the channels. Raises `UsageError` for a setting out of range.

    >>> sum(parameter.numel() for parameter in vanillacnn().parameters())
    68818
    """
    check("vanillacnn", channels, classes, image_size, width)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before, side = channels, image_size
    for number, (out, stride) in enumerate(_vanilla_convolutions(image_size), 1):
        layers[f"conv{number}"] = nn.Conv2d(before, scaled(out, width), 3, stride, 1)
        layers[f"act{number}"] = nn.LeakyReLU(SLOPE)
        before, side = scaled(out, width), (side - 1) // stride + 1
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(before * side * side, classes)
    return nn.Sequential(layers)


def _vanilla_convolutions(side: int) -> list[tuple[int, int]]:
    """(channels, stride) of each convolution."""
    if side >= 48:
        return [(8, 2), (16, 2), (32, 2), (64, 2), (64, 2)]
    return [(8, 1 if side < 16 else 2), (8, 1), (32, 2), (64, 1), (64, 2)]
