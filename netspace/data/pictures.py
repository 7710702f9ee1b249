"""A folder of pictures of any size, as networks trained on ImageNet are shown them.

Axes: B images.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from netspace.data.decode import SUFFIXES, decode_one
from netspace.errors import UsageError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's training images, channels in [0, 1]
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


def shown(files: list[Path], size: int, batch: int = 32) -> Iterator[Tensor]:
    """Batches (B, 3, size, size) of pictures: the shorter side resized, the centre cut out, ImageNet's mean and spread taken off.

    Raises `NetspaceError` for a file that is not a picture.
    """
    from torchvision.transforms.v2.functional import center_crop, normalize, resize

    for start in range(0, len(files), batch):
        squares = [
            center_crop(resize(decode_one(file, None), [round(size / SHARE)], antialias=True), [size, size])
            for file in files[start : start + batch]
        ]
        yield normalize(torch.stack(squares).float() / 255, MEAN, STD)
