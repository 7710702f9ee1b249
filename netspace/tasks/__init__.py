"""What networks are for: the `Task` protocol, and images with labels, whole and resident on the device as uint8.

    data = load_images(DataConfig(name="digits"), device="cuda")
    for images, labels in data.batches("train", 128, generator):
        logits = network(data.normalise(data.augment(images, generator)))

`DATASETS` is the dictionary of images that can be loaded, `TASKS` that of other tasks. Nothing is ever downloaded by
`load`; `fetch` does that when asked. Every reader takes plain bytes and images apart by itself: no file that is read
here can run code. Left out: data sets larger than memory."""

from __future__ import annotations

from netspace.tasks.base import DataConfig, Task
from netspace.tasks.data_sets import DATASETS, TASKS, DataSet, load, load_images
from netspace.tasks.images import Classification, Split
from netspace.tasks.readers import fetch

__all__ = [
    "DATASETS",
    "TASKS",
    "Classification",
    "DataConfig",
    "DataSet",
    "Split",
    "Task",
    "fetch",
    "load",
    "load_images",
]
