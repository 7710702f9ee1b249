"""A folder of pictures of any size, as networks of images are shown them: a square of the centre, normalised.

Axes: B images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netspace.errors import UsageError
from netspace.tasks.readers import SUFFIXES, decode_one

Channels = tuple[float, float, float]  # red, green, blue


@dataclass(frozen=True)
class Normalisation:
    """How pixels in [0, 1] are normalised: (pixels - mean) / std of each channel."""

    name: str  # as --normalise has it
    mean: Channels
    std: Channels

    def figures(self) -> dict[str, Any]:
        """What JSON says of it."""
        return {"normalise": self.name, "mean": list(self.mean), "std": list(self.std)}


IMAGENET = Normalisation("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of its training images


NORMALISATIONS = {
    each.name: each
    for each in (
        IMAGENET,
        Normalisation("none", (0.0,) * 3, (1.0,) * 3),  # pixels stay in [0, 1]
        Normalisation("0-255", (0.0,) * 3, (1 / 255,) * 3),  # pixels as they are in a file
    )
}


SHARE = 224 / 256  # of the shorter side that is shown


def pictures(folder: Path) -> list[Path]:
    """The picture files in a folder and below it, sorted. Raises `UsageError` if there are none."""
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )
    if not found:
        raise UsageError(f"there are no pictures in {folder}: give a folder of {', '.join(sorted(SUFFIXES))} files")
    return found


def normalisation(text: str) -> Normalisation:
    """The normalisation called `text`: a name, or MEAN/STD, each a number or three with commas between.

    Raises `UsageError` for anything else.

    >>> normalisation("0.5/0.25").std
    (0.25, 0.25, 0.25)
    """
    if text in NORMALISATIONS:
        return NORMALISATIONS[text]
    try:
        mean, std = (tuple(float(word) for word in part.split(",")) for part in text.split("/"))
    except ValueError:
        mean = std = ()
    wide = [part * 3 if len(part) == 1 else part for part in (mean, std)]
    if any(len(part) != 3 or not all(map(math.isfinite, part)) for part in wide) or min(wide[1]) <= 0:
        raise UsageError(
            f"--normalise {text!r} was expected to be {', '.join(NORMALISATIONS)}, or MEAN/STD of pixels in [0, 1], each a "
            "number or three with commas between, as in 0.5,0.5,0.5/0.25"
        )
    return Normalisation(text, (wide[0][0], wide[0][1], wide[0][2]), (wide[1][0], wide[1][1], wide[1][2]))


def shown(files: list[Path], size: int, batch: int = 32, by: Normalisation = IMAGENET) -> Iterator[Tensor]:
    """Batches (B, 3, size, size) of pictures: the shorter side resized, the centre cut out, the pixels normalised.

    Raises `NetspaceError` for a file that is not a picture.
    """
    from torchvision.transforms.v2.functional import center_crop, normalize, resize

    for start in range(0, len(files), batch):
        squares = [
            center_crop(resize(decode_one(file, None), [round(size / SHARE)], antialias=True), [size, size])
            for file in files[start : start + batch]
        ]
        yield normalize(torch.stack(squares).float() / 255, list(by.mean), list(by.std))
