"""The term that makes a network's kernels smooth in training (NeRN, Eq. 6).

Axes: F filters and C channels of a convolution. It stands below the other losses, for zoos are trained with it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


def smoothness_loss(weights: Iterable[Tensor]) -> Tensor:
    """How far neighbouring kernels of convolutions (F, C, ...) are from each other, summed: a scalar (NeRN, Eq. 6).

    Kernel [f, c] is compared with [f + 1, c] and [f, c + 1] for f < F - 1 and c < C - 1, as the equation's bounds have it: a
    layer of one filter or one channel counts nothing. The distance is the cosine's, 1 - cos, or |a - b| for kernels of one
    value. A kernel of zeros is at distance 1 from any other. Raises `ValueError` where there are no weights.

    >>> import torch
    >>> float(smoothness_loss([torch.tensor([[1.0, 2.0], [4.0, 9.0]]).view(2, 2, 1, 1)]))
    4.0
    """
    found = []
    for weight in weights:
        kernels = weight.flatten(2)
        single = kernels.shape[2] == 1
        kernels = kernels if single else F.normalize(kernels, dim=2)
        here, below, beside = kernels[:-1, :-1], kernels[1:, :-1], kernels[:-1, 1:]
        if single:
            found.append((here - below).abs().sum() + (here - beside).abs().sum())
        else:
            found.append((1 - (here * below).sum(2)).sum() + (1 - (here * beside).sum(2)).sum())
    if not found:
        raise ValueError("smoothness_loss takes the weights of one convolution at least; found none")
    return torch.stack(found).sum()
