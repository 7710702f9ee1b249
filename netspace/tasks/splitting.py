"""Cutting a pool of labelled images into stratified splits, by a seed.

Axes: N images.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from netspace.tasks.images import Split


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """Return a random order (N,) of which every prefix is stratified, to within an image or two.

    The r-th of the n images of a class (in random order) goes to position (r + 1/2) / n of the whole; ties are broken
    at random. So any consecutive pieces are stratified, too. The numbers come from `RandomState`, whose stream numpy
    has promised never to change (NEP 19).

    >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
    >>> labels[stratified_order(labels, seed=0)[:3]].sort().values
    tensor([0, 0, 1])
    """
    array = labels.cpu().numpy()
    shuffled = np.random.RandomState(seed).permutation(len(array))
    by_class = shuffled[np.argsort(array[shuffled], kind="stable")]
    counts = np.bincount(array) if len(array) else np.zeros(1, dtype=np.int64)
    starts = np.cumsum(counts) - counts
    label = array[by_class]
    position = np.empty(len(array))
    position[by_class] = (np.arange(len(array)) - starts[label] + 0.5) / counts[label]
    return torch.from_numpy(shuffled[np.argsort(position[shuffled], kind="stable")])


def cut(pool: Split, sizes: tuple[int, ...], seed: int) -> tuple[Split, ...]:
    """Return stratified, disjoint splits of these `sizes`, which together are not larger than the pool."""
    assert sum(sizes) <= len(pool), (sizes, len(pool))
    order = stratified_order(pool.labels, seed)
    ends = np.cumsum(sizes)
    return tuple(pool.take(order[end - size : end]) for size, end in zip(sizes, ends, strict=True))
