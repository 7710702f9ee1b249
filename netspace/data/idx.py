"""MNIST and its likes: four IDX files, gzipped or plain, read without torchvision (it refuses Debian's .gz).

An IDX file is two zero bytes, the type (8: uint8), the number of axes, each axis as a big-endian uint32, the
bytes (http://yann.lecun.com/exdb/mnist/).
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from torch import Tensor

from netspace.data.base import Split, broken, missing

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
DEFLATE = 1100  # bytes that one compressed byte stands for at most; zlib's own bound is 1032


def read_idx(path: Path, axes: int) -> Tensor:
    """The uint8 array of an IDX file, .gz or plain, with that many axes; else raises `NetspaceError`."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as opened:
            file = cast(IO[bytes], opened)
            magic = file.read(4)
            if magic != bytes((0, 0, 8, axes)):
                raise broken(
                    path,
                    f"an IDX file of {axes} axes (first bytes 0, 0, 8, {axes})",
                    f"first bytes {list(magic)}",
                )
            header = file.read(4 * axes)
            if len(header) < 4 * axes:
                raise broken(path, f"{axes} sizes", "the end of the file")
            shape = tuple(int(n) for n in np.frombuffer(header, dtype=">u4"))
            size = math.prod(shape)
            largest = path.stat().st_size * (DEFLATE if path.suffix == ".gz" else 1)
            if size > largest:
                raise broken(path, f"at most the {largest} values that its bytes can hold", f"sizes {shape}")
            data = file.read(size + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise broken(path, "a readable IDX file", str(error) or type(error).__name__) from error
    if len(data) != size:
        found = f"only {len(data)}" if len(data) < size else "more"
        raise broken(path, f"{size} values for its sizes {shape}", found)
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).reshape(shape).copy())


def find(folder: Path, name: str) -> Path | None:
    """`name` or `name`.gz in the folder, whichever is there."""
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def read_idx_files(folders: list[Path], name: str, how: str) -> tuple[Split, Split]:
    """Training and test images (N, 1, H, W) from the first folder that has all four files.

    Raises `NetspaceError`: the set is missing (`how` says where to get it), or a file is broken.
    """
    for folder in folders:
        found = {key: [find(folder, file) for file in files] for key, files in FILES.items()}
        if all(path for paths in found.values() for path in paths):
            train, test = (_pair(cast(list[Path], found[key])) for key in FILES)
            return train, test
    raise missing(name, [folder / f"{FILES['train'][0]}[.gz]" for folder in folders], how)


def _pair(paths: list[Path]) -> Split:
    images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
    if len(images) != len(labels):
        raise broken(paths[1], f"{len(images)} labels, one for each image", f"{len(labels)}")
    return Split(images[:, None], labels.long())
