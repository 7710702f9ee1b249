"""Image classification data sets, whole and resident on the device as uint8.

    data = load(DataConfig(name="digits"), device="cuda")
    for images, labels in data.batches("train", 128, generator):
        logits = network(data.normalise(data.augment(images, generator)))

`DATASETS` is the dictionary of what can be loaded. Nothing is ever downloaded by `load`; `fetch` does that
when asked. Every reader takes plain bytes and images apart by itself: no file that is read here can run code.
Left out: data sets larger than memory, and labels other than one class an image."""

from __future__ import annotations

from netspace.tasks.data_sets import DATASETS, DataSet, load
from netspace.tasks.images import DataConfig, Split, TaskData
from netspace.tasks.readers import fetch

__all__ = ["DATASETS", "DataConfig", "DataSet", "Split", "TaskData", "fetch", "load"]
