"""LeNetLike, VanillaCNN and ResNets for 8 to 224 pixels (NetSpace, Suppl. III, Fig. 3-4; He et al. 2016, Sec. 4.2); NeuMeta's LeNet.

Parameter counts are those of NetSpace, Suppl., Tab. I, on 32x32x3 with 10 classes and on 64x64x3 with 200 classes:
LeNetLike 62,006 and 79,612; VanillaCNN 68,818 and 112,856; with batch norm ResNet8 78,042 and 128,792, ResNet32 466,906
and 517,656, ResNet56 855,770 and 906,520. LeakyReLU throughout but in `morph_lenet`.

LeNetLike has two or more strided convolutions and three linear layers:
- below 20 pixels the two convolutions are 3x3, and below 12 the first has stride 1;
- from 20 to 47 they are 5x5 with stride 2, to 6 and 16 channels;
- from 48 on, padded 5x5 convolutions of 4 channels first halve the image until it is below 48; the two that
  follow have 8 and 16 channels.

VanillaCNN has five 3x3 convolutions with padding 1 and one linear layer:
- below 48 pixels channels 8, 8, 32, 64, 64 with strides 2, 1, 2, 1, 2; below 16 the first stride is 1;
- from 48 on channels 8, 16, 32, 64, 64, all with stride 2.

ResNets have 3 stages of blocks and torchvision's names (`layer1.0.conv1`, `layer2.0.downsample.0`). Convolutions before
batch norm have no bias; where a block changes shape its shortcut is a 1x1 convolution and batch norm. With
`batch_norm=False` the convolutions have biases, and the state has the names and shapes of the folded network. The last
map has a quarter of the image's side. It is averaged over squares of 8 or a little more: one up to 60 pixels, 2x2 up to
92, 7x7 at 224; the linear layer sees all of them.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from functools import partial

from torch import Tensor, nn

from netspace.errors import UsageError

SMALLEST, LARGEST = 8, 224  # sides of square images that every architecture is defined for, in pixels
SLOPE = 0.01  # of LeakyReLU for negative inputs


def scaled(channels: int, width: float) -> int:
    """Return `channels * width`, rounded half up, at least 2; `channels` itself for width 1.

    >>> [scaled(5, width) for width in (1.0, 0.5, 0.1)]
    [5, 3, 2]
    """
    return channels if width == 1 else max(2, math.floor(channels * width + 0.5))


def check(arch: str, channels: int, classes: int, image_size: int, width: float) -> None:
    """Check settings that all architectures have. Raises `UsageError` if one is out of range."""

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
    """Build LeNetLike for images (B, channels, image_size, image_size) -> logits (B, classes).

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
    """Return (channels, kernel, stride, padding) of each convolution."""
    if side < 20:
        return [(6, 3, 1 if side < 12 else 2, 0), (16, 3, 2, 0)]
    halvings = []
    while side >= 48:
        halvings.append((4, 5, 2, 2))
        side = (side + 1) // 2
    return [*halvings, (8 if halvings else 6, 5, 2, 0), (16, 5, 2, 0)]


ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}  # of the Small CNN Zoo


def small_cnn(
    *,
    channels: int = 1,
    classes: int = 10,
    image_size: int = 28,
    width: float = 1.0,
    activation: str = "relu",
    padding: int | None = None,
) -> nn.Module:
    """Build the network of the Small CNN Zoo (Unterthiner et al. 2020): images (B, channels, H, W) -> logits (B, classes).

    Three 3x3 convolutions of 16 channels and stride 2, the mean over the map, a linear layer. `width` scales the channels. `padding` is 0, and 1 below 15 pixels, if it is not given.
    Raises `UsageError` for a setting out of range.

    >>> sum(parameter.numel() for parameter in small_cnn().parameters())
    4970
    """
    check("small_cnn", channels, classes, image_size, width)
    smallest = 15 if padding == 0 else SMALLEST
    padding = int(image_size < 15) if padding is None else padding
    if activation not in ACTIVATIONS or padding not in (0, 1) or image_size < smallest:
        raise UsageError(
            f"small_cnn needs activation to be one of {', '.join(ACTIVATIONS)}, and padding 0 (from 15 pixels on) or 1, not "
            f"{activation!r} and {padding!r} for image_size={image_size!r}."
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before, out, side = channels, scaled(16, width), image_size
    for number in (1, 2, 3):
        layers[f"conv{number}"] = nn.Conv2d(before, out, 3, 2, padding)
        layers[f"act{number}"] = ACTIVATIONS[activation]()
        before, side = out, (side + 2 * padding - 3) // 2 + 1
    layers["pool"], layers["flatten"] = nn.AvgPool2d(side), nn.Flatten()
    layers["fc"] = nn.Linear(out, classes)
    return nn.Sequential(layers)


def vanillacnn(*, channels: int = 3, classes: int = 10, image_size: int = 32, width: float = 1.0) -> nn.Module:
    """Build VanillaCNN for images (B, channels, image_size, image_size) -> logits (B, classes).

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
    """Return (channels, stride) of each convolution."""
    if side >= 48:
        return [(8, 2), (16, 2), (32, 2), (64, 2), (64, 2)]
    return [(8, 1 if side < 16 else 2), (8, 1), (32, 2), (64, 1), (64, 2)]


def morph_lenet(*, channels: int = 1, classes: int = 10, image_size: int = 28, width: float = 1.0) -> nn.Module:
    """Build the LeNet of NeuMeta's MNIST for images (B, channels, image_size, image_size) -> logits (B, classes).

    Three convolutions (3x3, 5x5, 5x5) of h, 2 h and 4 h channels with replicated edges, ReLU and average pooling by 2 after
    each, and one linear layer. `width` scales h, which is 32, the authors' largest. The linear layer reads the mean of the
    last map; the authors' reads its first pixel. Raises `UsageError` for a setting out of range.

    >>> [sum(parameter.numel() for parameter in morph_lenet(width=width).parameters()) for width in (1, 0.25)]
    [257802, 16458]
    """
    check("morph_lenet", channels, classes, image_size, width)
    hidden = scaled(32, width)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before = channels
    for number, (out, kernel) in enumerate(((hidden, 3), (2 * hidden, 5), (4 * hidden, 5)), 1):
        layers[f"conv{number}"] = nn.Conv2d(before, out, kernel, padding=kernel // 2, padding_mode="replicate")
        layers[f"act{number}"], layers[f"pool{number}"] = nn.ReLU(), nn.AvgPool2d(2)
        before = out
    layers["mean"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    layers["fc"] = nn.Linear(before, classes)
    return nn.Sequential(layers)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, before, H, W) -> (B, after, H / stride, W / stride)."""

    def __init__(self, before: int, after: int, stride: int, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=not batch_norm)
        self.bn1 = norm(after, batch_norm)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=not batch_norm)
        self.bn2 = norm(after, batch_norm)
        self.act = nn.LeakyReLU(SLOPE)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            shortcut = nn.Conv2d(before, after, 1, stride, bias=not batch_norm)
            self.downsample = nn.Sequential(shortcut, norm(after, batch_norm))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, after, H / stride, W / stride), rounded up, of inputs (B, before, H, W)."""
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
        self.bn1 = norm(stem, batch_norm)
        self.act = nn.LeakyReLU(SLOPE)
        self.layer1 = _stage(blocks, stem, stages[0], 1, batch_norm)
        self.layer2 = _stage(blocks, stages[0], stages[1], 2, batch_norm)
        self.layer3 = _stage(blocks, stages[1], stages[2], 2, batch_norm)
        side = (image_size + 3) // 4
        cells = max(1, side // 8)
        stride = side // cells
        self.pool = nn.AvgPool2d(side - (cells - 1) * stride, stride)  # cells touch or overlap: no pixel is left out
        self.fc = nn.Linear(stages[2] * cells**2, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, classes) of images (B, channels, image_size, image_size)."""
        x = self.act(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def norm(channels: int, batch_norm: bool) -> nn.Module:
    """Return batch norm, or the identity in its place: the names of what follows are the same."""
    return nn.BatchNorm2d(channels) if batch_norm else nn.Identity()


def _stage(blocks: int, before: int, after: int, stride: int, batch_norm: bool) -> nn.Sequential:
    first = BasicBlock(before, after, stride, batch_norm)
    return nn.Sequential(first, *(BasicBlock(after, after, 1, batch_norm) for _ in range(blocks - 1)))


def shallower(network: nn.Module, depth: int) -> tuple[ResNet, list[list[int]]]:
    """Return a copy of a ResNet with fewer blocks, `depth` layers in all, and which blocks of each stage it has.

    Of K blocks instead of L, block k is the one whose relative position l / L is next to k / K, so the first, which may
    change the shape, stays. Raises `UsageError` for another network, and for a depth that it does not have or exceeds its own.

    >>> shallower(resnet20(), 14)[1]
    [[0, 2], [0, 2], [0, 2]]
    """
    if not isinstance(network, ResNet):
        raise UsageError(
            "a depth was asked for, but only networks of the resnet family have blocks to leave out: leave --depth out"
        )
    stages = (network.layer1, network.layer2, network.layer3)
    own, blocks = len(stages[0]), _blocks_of(depth)
    if blocks > own:
        raise UsageError(f"the network has {6 * own + 2} layers, and only fewer can be had, not {depth}")
    chosen = [math.floor(block * own / blocks + 0.5) for block in range(blocks)]
    made = copy.deepcopy(network)
    for name in ("layer1", "layer2", "layer3"):
        stage = made.get_submodule(name)
        setattr(made, name, nn.Sequential(*(stage.get_submodule(str(block)) for block in chosen)))
    return made, [chosen] * len(stages)


def _blocks_of(depth: int) -> int:
    """Return the blocks of each stage of a ResNet of `depth` layers. Raises `UsageError` if there is none."""
    blocks, rest = divmod(depth - 2, 6) if isinstance(depth, int) and not isinstance(depth, bool) else (0, 1)
    if rest or blocks < 1:
        raise UsageError(f"resnet needs depth to be 8, 14, 20, 26 and so on (6 for each block, and 2), not {depth!r}.")
    return blocks


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
    """Build a ResNet of 6 * blocks + 2 layers for images (B, channels, image_size, image_size) -> logits (B, classes).

    `width` scales the channels. Raises `UsageError` for a setting out of range.

    >>> sum(parameter.numel() for parameter in resnet8().parameters())
    78042
    """
    name = f"resnet{6 * blocks + 2}"
    check(name, channels, classes, image_size, width)
    if not isinstance(batch_norm, bool):
        raise UsageError(f"{name} needs batch_norm to be true or false, not {batch_norm!r}.")
    return ResNet(blocks, channels, classes, image_size, width, batch_norm)


def resnet_of_depth(
    *,
    depth: int = 8,
    channels: int = 3,
    classes: int = 10,
    image_size: int = 32,
    width: float = 1.0,
    batch_norm: bool = True,
) -> nn.Module:
    """Build a ResNet of `depth` layers: 6 for each block of a stage, and 2. Raises `UsageError` for another depth.

    >>> sum(parameter.numel() for parameter in resnet_of_depth(depth=8).parameters())
    78042
    """
    settings = {"channels": channels, "classes": classes, "image_size": image_size, "width": width}
    return resnet(_blocks_of(depth), **settings, batch_norm=batch_norm)  # type: ignore[arg-type]


resnet8 = partial(resnet, 1)
resnet14 = partial(resnet, 2)
resnet20 = partial(resnet, 3)
resnet32 = partial(resnet, 5)
resnet56 = partial(resnet, 9)
