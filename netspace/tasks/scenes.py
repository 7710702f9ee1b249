"""Pictures with a class for every pixel: sprites of known classes pasted over photographs.

Everything is whole numbers after sprites were resized, and every random number is drawn by `RandomState`, so that equal
settings give equal pictures on every machine. Photographs are those that scikit-learn carries ('china.jpg' by danielbuechele
and 'flower.jpg' by vultilion, both CC BY 2.0); all splits have pieces of both, while their sprites differ.

Axes: N pictures, H W pixels of one, S the side of sprites, G sprites, L sprites of a picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from netspace.errors import NetspaceError
from netspace.tasks import packaged
from netspace.tasks.base import SPLITS, DataConfig, broken, data_root, missing
from netspace.tasks.images import Split, resize
from netspace.tasks.readers import eight_bits
from netspace.tasks.splitting import cut

VERSION = 1  # to be raised when the same settings would give other pictures
SHRINKS = 3  # sizes of photographs: whole, half, and so on
COLOURS = (80, 256)  # of digits: lowest level of red, green and blue, and one more than the highest
SPRITE = 64  # pixels of a side of sprites that are read from files
FRACTIONS = (0.7, 0.1, 0.2)  # of the sprites of files, for train, val and test
MAX_SPRITES = 20_000  # in a folder
HOW = (
    "unpack it with `python tools/emoji.py FOLDER` from npm's emoji-datasource-google 16.0.0 and set data.root to FOLDER, or "
    "take data.images digits, which needs no download"
)


@dataclass(frozen=True)
class Style:
    """How pictures are composed."""

    objects: tuple[int, int]  # fewest and most sprites of a picture
    sides: tuple[float, float]  # smallest and largest side of a sprite, in sides of the picture
    light: tuple[float, float]  # darkest and brightest photograph, as factors of its pixels


DIGITS = Style(
    objects=(1, 3), sides=(0.25, 0.5), light=(0.2, 0.6)
)  # thin and bright: they need the dark and little overlap
ARTWORK = Style(objects=(1, 4), sides=(0.25, 0.625), light=(0.4, 1.0))


@dataclass(frozen=True, eq=False)
class Sprites:
    """Images with opacity, their colours multiplied by it."""

    pixels: UInt8[Tensor, "G 4 S S"]  # red, green and blue times opacity, and opacity
    labels: Int64[Tensor, " G"]  # classes from 1: 0 is the background
    style: Style


@dataclass(frozen=True, eq=False)
class Scenes:
    """Pictures with the class of each pixel."""

    images: UInt8[Tensor, "N 3 H W"]
    labels: UInt8[Tensor, "N H W"]  # 0 is the background


def digit_sprites(config: DataConfig) -> tuple[dict[str, Sprites], tuple[str, ...]]:
    """Return scikit-learn's digits in a colour of each scan, by split, and the names of the classes; split by scan."""
    splits = cut(packaged.digits(), (1000, 297, 500), config.split_seed)
    sprites = {}
    for number, (name, scans) in enumerate(zip(SPLITS, splits, strict=True)):
        random = np.random.RandomState([config.split_seed, number, VERSION])
        colours = torch.from_numpy(random.randint(*COLOURS, (len(scans), 3, 1, 1)))
        colours = colours.expand(-1, -1, *scans.images.shape[2:])
        sprites[name] = _sprites(scans.images, colours, scans.labels + 1, DIGITS)
    return sprites, ("background", *map(str, range(10)))


def folder_sprites(config: DataConfig) -> tuple[dict[str, Sprites], tuple[str, ...]]:
    """Return the PNG files of a folder with a subfolder for each class, by split, and the names of the classes.

    Each is resized to 64 pixels a side. Raises `NetspaceError` if there are none, too many or too few, or one is broken.
    """
    root = data_root(config.root)
    looked = [root / "emoji"] if config.root is None else [root, root / "emoji"]
    for folder in looked:
        groups = {each.name: sorted(each.glob("*.png")) for each in sorted(folder.glob("*")) if each.is_dir()}
        groups = {name: files for name, files in groups.items() if files}
        if groups:
            break
    else:
        raise missing("emoji", looked, HOW)
    files = [file for each in groups.values() for file in each]
    if len(groups) > 254 or len(files) > MAX_SPRITES:
        raise NetspaceError(
            f"{folder} has {len(files):,} PNG files in {len(groups)} classes, but at most {MAX_SPRITES:,} in 254 are read: give "
            "fewer"
        )
    layers = torch.cat([_decode(file) for file in files])
    labels = torch.cat([torch.full((len(each),), label) for label, each in enumerate(groups.values(), 1)])
    sizes = [int(len(files) * fraction) for fraction in FRACTIONS[1:]]
    if not min(sizes):
        raise NetspaceError(f"{folder} has {len(files)} PNG files, and each split needs at least one: give 10 or more")
    pool = cut(Split(layers, labels), (len(files) - sum(sizes), *sizes), config.split_seed)
    sprites = {
        name: _sprites(each.images[:, 3:], each.images[:, :3], each.labels, ARTWORK)
        for name, each in zip(SPLITS, pool, strict=True)
    }
    return sprites, ("background", *groups)


def _decode(file: Path) -> UInt8[Tensor, "1 4 S S"]:
    """Return one file as red, green, blue and opacity. Raises `NetspaceError` if it is not an image, or as `eight_bits`."""
    try:
        with Image.open(file) as image:
            pixels = torch.from_numpy(np.array(eight_bits(image, file).convert("RGBA")))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what PIL raises for bad files
        raise broken(file, "an image", str(error) or type(error).__name__) from error
    return resize(pixels.permute(2, 0, 1)[None], SPRITE)


def _sprites(opacity: Tensor, colours: Tensor, labels: Tensor, style: Style) -> Sprites:
    """Return sprites of opacity (G, 1, S, S) and colours (G, 3, S, S), both 0 to 255."""
    colours = (colours.int() * opacity.int() + 127) // 255
    return Sprites(torch.cat([colours.to(torch.uint8), opacity], 1), labels, style)


def compose(
    sprites: Sprites,
    photographs: list[UInt8[np.ndarray, "h w 3"]],
    size: int,
    total: int,
    count: int,
    seed: tuple[int, ...],
) -> Scenes:
    """Return the first `count` of `total` pictures of `size` pixels a side: sprites over a piece of a photograph.

    A sprite's class is drawn first, all alike, then a sprite of that class, its size and its position inside the picture.
    Later sprites cover earlier ones; a pixel is of the last that is more than half opaque there, else background.
    """
    random = np.random.RandomState([*seed, VERSION])
    least, most = sprites.style.objects
    objects = random.randint(least, most + 1, total)
    chosen = _draw_sprites(sprites.labels.numpy(), random, (total, most))
    low, high = (round(each * size) for each in sprites.style.sides)
    sides = random.randint(low, high + 1, (total, most))
    corners = (random.random_sample((2, total, most)) * (size - sides + 1)).astype(np.int64)
    images = _backgrounds(photographs, sprites.style.light, size, total, count, random)
    labels = np.zeros((count, size, size), np.uint8)
    for layer in range(most):
        for side in np.unique(sides[:count, layer]):
            rows = np.flatnonzero((sides[:count, layer] == side) & (objects[:count] > layer))
            stamps = resize(sprites.pixels[chosen[rows, layer]], int(side)).numpy()
            classes = sprites.labels.numpy()[chosen[rows, layer]]
            _paste(images, labels, rows, corners[:, rows, layer], stamps, classes)
    return Scenes(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels))


def _draw_sprites(labels: np.ndarray, random: np.random.RandomState, shape: tuple[int, int]) -> np.ndarray:
    """Return indices of sprites of classes `labels` (G,), each class equally often."""
    classes, counts = np.unique(labels, return_counts=True)
    order, starts = np.argsort(labels, kind="stable"), np.cumsum(counts) - counts
    drawn = random.randint(len(classes), size=shape)
    indices: np.ndarray = order[starts[drawn] + (random.random_sample(shape) * counts[drawn]).astype(np.int64)]
    return indices


def _backgrounds(
    photographs: list[np.ndarray],
    light: tuple[float, float],
    size: int,
    total: int,
    count: int,
    random: np.random.RandomState,
) -> UInt8[np.ndarray, "N H W 3"]:
    """Return pieces of photographs, whole or shrunk, mirrored or not, darker or not."""
    pool = [shrunk for each in photographs for shrunk in _shrunk(each, size)]
    which, mirrored = random.randint(len(pool), size=total)[:count], random.randint(2, size=total)[:count].astype(bool)
    places = random.random_sample((2, total))[:, :count]
    levels = random.randint(round(256 * light[0]), round(256 * light[1]) + 1, total)[:count]
    images = np.empty((count, size, size, 3), np.uint8)
    across = np.arange(size)
    for number, photograph in enumerate(pool):
        rows = np.flatnonzero(which == number)
        tops, lefts = ((places[axis, rows] * (photograph.shape[axis] - size + 1)).astype(np.int64) for axis in (0, 1))
        columns = np.where(mirrored[rows, None], across[::-1], across) + lefts[:, None]
        pieces = photograph[(tops[:, None] + across)[:, :, None], columns[:, None, :]]
        images[rows] = pieces.astype(np.int32) * levels[rows, None, None, None] // 256
    return images


def _shrunk(photograph: np.ndarray, size: int) -> list[np.ndarray]:
    """Return a photograph and its halves, of those that a picture of `size` pixels fits in; the first in any case."""
    found = [photograph]
    for _ in range(SHRINKS - 1):
        last = found[-1].astype(np.int32)
        height, width = last.shape[0] // 2, last.shape[1] // 2
        if min(height, width) < size:
            break
        blocks = last[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
        found.append(((blocks.sum((1, 3)) + 2) // 4).astype(np.uint8))
    return found


def _paste(
    images: np.ndarray,
    labels: np.ndarray,
    rows: np.ndarray,
    corners: np.ndarray,
    stamps: np.ndarray,
    classes: np.ndarray,
) -> None:
    """Paste sprites (K, 4, s, s) of `classes` (K,) into the pictures `rows` (K,) at `corners` (2, K), one for each."""
    across = np.arange(stamps.shape[2])
    index = rows[:, None, None], (corners[0][:, None] + across)[:, :, None], (corners[1][:, None] + across)[:, None, :]
    opacity = stamps[:, 3].astype(np.int32)
    covered = images[index].astype(np.int32) * (255 - opacity)[..., None]
    images[index] = (stamps[:, :3].transpose(0, 2, 3, 1) + (covered + 127) // 255).clip(0, 255)
    labels[index] = np.where(2 * opacity > 255, classes[:, None, None], labels[index])
