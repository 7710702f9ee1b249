"""What networks are for: the `Task` protocol, and images with labels, whole and resident on the device as uint8.

    data = load_images(DataConfig(name="digits"), device="cuda")
    for images, labels in data.batches("train", 128, generator):
        logits = network(data.normalise(data.augment(images, generator)))

`DATASETS` is the dictionary of images that can be loaded, `TASKS` that of other tasks. `load` never downloads anything;
`fetch` does. No file that is read here can run code. Data sets larger than memory are not supported.
"""

from __future__ import annotations

from netspace.tasks.base import DataConfig, Task
from netspace.tasks.data_sets import DATASETS, NUMBERED, TASKS, DataSet, fetch, load, load_images
from netspace.tasks.images import Classification, Split

__all__ = [
    "DATASETS",
    "NUMBERED",
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
