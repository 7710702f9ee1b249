"""CIFAR-10 and CIFAR-100 in their binary version: plain bytes (https://www.cs.toronto.edu/~kriz/cifar.html).

Their Python version is a pickle, which can run code, so it is never opened. A record is the label (CIFAR-100:
coarse label, fine label), then 3 x 32 x 32 pixels; the label used is the last one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from netspace.data.base import Split, broken, missing

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """Where one CIFAR keeps what."""

    folder: str
    train: tuple[str, ...]
    test: str
    names: str  # text file: the classes, one a line
    labels: int  # bytes of labels before the pixels


CIFAR10 = Layout(
    "cifar-10-batches-bin",
    tuple(f"data_batch_{n}.bin" for n in range(1, 6)),
    "test_batch.bin",
    "batches.meta.txt",
    1,
)
CIFAR100 = Layout("cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", 2)


def read_cifar_binary(root: Path, name: str, layout: Layout, how: str) -> tuple[Split, Split, tuple[str, ...]]:
    """Training and test images (N, 3, 32, 32), class names; raises `NetspaceError` if missing or broken."""
    folder = root / layout.folder
    files = (*layout.train, layout.test, layout.names)
    absent = [folder / file for file in files if not (folder / file).is_file()]
    if absent:
        raise missing(name, absent, f"{how} (the binary version: the Python version is a pickle and is not opened)")
    classes = tuple((folder / layout.names).read_text("utf-8", "replace").split())
    parts = [_records(folder / file, layout.labels, len(classes)) for file in layout.train]
    train = Split(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))
    return train, _records(folder / layout.test, layout.labels, len(classes)), classes


def _records(path: Path, labels: int, classes: int) -> Split:
    data = np.fromfile(path, dtype=np.uint8)
    if not len(data) or len(data) % (labels + PIXELS):
        raise broken(path, f"whole records of {labels + PIXELS} bytes", f"{len(data)} bytes")
    records = data.reshape(-1, labels + PIXELS)
    label = torch.from_numpy(records[:, labels - 1].astype(np.int64))
    if int(label.max()) >= classes:
        raise broken(path, f"labels below {classes}, the number of class names", f"label {int(label.max())}")
    return Split(torch.from_numpy(records[:, labels:].reshape(-1, 3, 32, 32).copy()), label)
