"""What can be said about a data set in a configuration file, and where data sets lie on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from netspace.config import Settings

DATA_VARIABLE = "NETSPACE_DATA"


class DataConfig(Settings):
    """Which images, cut how, in which shape. Equal configurations give equal data, on every machine."""

    name: str = Field(default="digits", description="one of netspace.data.DATASETS")
    root: Path | None = Field(
        default=None,
        description="folder of the data sets; none: $NETSPACE_DATA, or ~/.cache/netspace/data. "
        "For 'folder', the folder of images itself",
    )
    image_size: int | None = Field(
        default=None, ge=1, description="height and width in pixels, antialiased; none: the data set's own"
    )
    channels: Literal[1, 3] | None = Field(
        default=None, description="1 makes colour grey, 3 repeats grey; none: the data set's own"
    )
    split_seed: int = Field(default=0, ge=0, lt=2**32, description="seed of the stratified cut into splits")
    crop_padding: int | None = Field(
        default=None,
        ge=0,
        description="augmentation: zero pixels on each side before the random crop, 0 for no crop; "
        "none: the data set's own (4 for CIFAR, 8 for Tiny-ImageNet, else 0)",
    )
    flip: bool | None = Field(
        default=None, description="augmentation: mirror every second image; none: the data set's own"
    )
    mean: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] | None = Field(
        default=None,
        min_length=1,
        description="normalisation: the mean of each channel that is subtracted, pixels in 0..1; none: the training images'",
    )
    std: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] | None = Field(
        default=None,
        min_length=1,
        description="normalisation: what each channel is divided by then; none: the training images' standard deviation",
    )
    limit: int | None = Field(default=None, ge=1, description="keep only this many training images, stratified")
    classes: int | None = Field(default=None, ge=1, description="number of classes of 'generated' (10)")


def data_root(root: Path | None = None) -> Path:
    """The folder of the data sets: `root`, else $NETSPACE_DATA, else ~/.cache/netspace/data."""
    chosen = root or os.environ.get(DATA_VARIABLE) or Path("~", ".cache", "netspace", "data")
    return Path(chosen).expanduser()
