"""How networks and sets of networks are measured.

Axes: M members, B inputs, C classes, P parameters. Fractions, never per cent. Everything is exact over the
whole split that is given: no sampling, except where the docstring says so.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of right predictions (...,) of logits (..., B, C) for labels (B,)."""
    return (logits.argmax(-1) == labels).double().mean(-1)


def agreement(first: Tensor, second: Tensor) -> Tensor:
    """Share of inputs for which two networks predict the same class, (...,) for logits (..., B, C)."""
    return (first.argmax(-1) == second.argmax(-1)).double().mean(-1)


def overlap(first: Tensor, second: Tensor, top: int = 5) -> Tensor:
    """Share of the `top` likeliest classes that two networks have in common, mean over inputs: (...,) for logits (..., B, C)."""
    taken = [logits.topk(min(top, logits.shape[-1]), dim=-1).indices for logits in (first, second)]
    return (taken[0][..., :, None] == taken[1][..., None, :]).any(-1).double().mean((-2, -1))


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of two networks' logits for each input, averaged over inputs: (...,) for logits (..., B, C)."""
    return F.cosine_similarity(first.double(), second.double(), dim=-1).mean(-1)


def divergence(predicted: Tensor, target: Tensor) -> Tensor:
    """KL(softmax(target) || softmax(predicted)) in nats, averaged over inputs: (...,) for logits (..., B, C)."""
    log_p, log_t = F.log_softmax(predicted.double(), -1), F.log_softmax(target.double(), -1)
    return F.kl_div(log_p, log_t, reduction="none", log_target=True).sum(-1).mean(-1)


def r2(predicted: np.ndarray, target: np.ndarray) -> float:
    """Coefficient of determination: 1 for equality, 0 for always saying the targets' mean, below for worse.

    NaN where the targets do not vary.
    """
    if np.ptp(target) == 0:  # the sum of squares below need not be 0 then: the mean is rounded
        return float("nan")
    return 1 - float(((predicted - target) ** 2).sum()) / float(((target - target.mean()) ** 2).sum())


def mean_absolute_error(predicted: np.ndarray, target: np.ndarray) -> float:
    """Mean |predicted - target|: the paper's validation measure when both are accuracies."""
    return float(np.abs(predicted - target).mean())


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation (ties share their mean rank); NaN where one of the two does not vary."""
    from scipy.stats import rankdata

    ranks = rankdata(first), rankdata(second)
    if np.ptp(ranks[0]) == 0 or np.ptp(ranks[1]) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def diversity(flat: Tensor) -> float:
    """Mean L2 distance between all pairs of networks (M, P); NaN for fewer than two."""
    if len(flat) < 2:
        return float("nan")
    return float(torch.pdist(flat.float()).mean())


def nearest(queries: Tensor, bank: Tensor) -> Tensor:
    """Row number in `bank` (N, P) of the L2-nearest network of each query (M, P): (M,)."""
    exact = "donot_use_mm_for_euclid_dist"  # a matrix product's rounding mixes up networks that lie close together
    return torch.cdist(queries.float(), bank.float(), compute_mode=exact).argmin(-1)
