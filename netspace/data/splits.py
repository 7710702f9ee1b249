"""Cutting labelled images into splits: seeded, stratified, the same on every machine."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from netspace.data.base import Split


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """A random order (N,) in which every stretch has each class in its due share, to within an image or two.

    The r-th of the n images of a class (in random order) goes to place (r + 1/2) / n of the whole; ties fall
    randomly. So any prefix, or any cut into consecutive pieces, is stratified. The numbers come from
    `RandomState`, whose stream numpy has promised never to change (NEP 19).

    >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
    >>> labels[stratified_order(labels, seed=0)[:3]].sort().values
    tensor([0, 0, 1])
    """
    array = labels.cpu().numpy()
    shuffled = np.random.RandomState(seed).permutation(len(array))
    by_class = shuffled[np.argsort(array[shuffled], kind="stable")]
    counts = np.bincount(array) if len(array) else np.zeros(1, dtype=np.int64)
    starts = np.cumsum(counts) - counts
    kind = array[by_class]
    place = np.empty(len(array))
    place[by_class] = (np.arange(len(array)) - starts[kind] + 0.5) / counts[kind]
    return torch.from_numpy(shuffled[np.argsort(place[shuffled], kind="stable")])


def cut(pool: Split, sizes: tuple[int, ...], seed: int) -> tuple[Split, ...]:
    """Stratified, disjoint splits of these `sizes`, which together are no more than the pool."""
    assert sum(sizes) <= len(pool), (sizes, len(pool))
    order = stratified_order(pool.labels, seed)
    ends = np.cumsum(sizes)
    return tuple(pool.take(order[end - size : end]) for size, end in zip(sizes, ends, strict=True))
