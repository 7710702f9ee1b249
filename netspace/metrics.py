"""Measures of networks and of sets of networks, exact over all inputs that are given. Fractions, never per cent.

Axes: M, N networks, B inputs, C classes, P parameters; of pixels N inputs of K classes; S latents of an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

COLUMNS = 4096  # parameters whose distances are added at once, so that memory stays bounded


def accuracy(logits: Float[Tensor, "*M B C"], labels: Int64[Tensor, "*#M B"]) -> Float[Tensor, "*M"]:
    """Return the fraction of correct predictions."""
    return (logits.argmax(-1) == labels).double().mean(-1)


def agreement(first: Float[Tensor, "*#M B C"], second: Float[Tensor, "*#M B C"]) -> Float[Tensor, ...]:
    """Return the fraction of inputs for which two networks predict the same class."""
    return (first.argmax(-1) == second.argmax(-1)).double().mean(-1)


def overlap(first: Float[Tensor, "*#M B C"], second: Float[Tensor, "*#M B C"], top: int = 5) -> Float[Tensor, ...]:
    """Return the fraction of the `top` likeliest classes that two networks have in common, averaged over inputs."""
    taken = [logits.topk(min(top, logits.shape[-1]), dim=-1).indices for logits in (first, second)]
    return (taken[0][..., :, None] == taken[1][..., None, :]).any(-1).double().mean((-2, -1))


def cosine(first: Float[Tensor, "*#M B C"], second: Float[Tensor, "*#M B C"]) -> Float[Tensor, ...]:
    """Return the cosine of two networks' logits for each input, averaged over inputs."""
    return F.cosine_similarity(first.double(), second.double(), dim=-1).mean(-1)


def divergence(predicted: Float[Tensor, "*#M B C"], target: Float[Tensor, "*#M B C"]) -> Float[Tensor, ...]:
    """Return KL(softmax(target) || softmax(predicted)) in nats, averaged over inputs."""
    log_p, log_t = F.log_softmax(predicted.double(), -1), F.log_softmax(target.double(), -1)
    return F.kl_div(log_p, log_t, reduction="none", log_target=True).sum(-1).mean(-1)


def agreements(first: Float[Tensor, "M B C"], second: Float[Tensor, "N B C"]) -> Float[Tensor, "M N"]:
    """Count the inputs for which both of every pair predict the same class: exact in float32."""
    one_hot = [F.one_hot(logits.argmax(-1), logits.shape[-1]).float().flatten(1) for logits in (first, second)]
    return one_hot[0] @ one_hot[1].T


def divergences(target: Float[Tensor, "M B C"], predicted: Float[Tensor, "N B C"]) -> Float[Tensor, "M N"]:
    """Return KL(target || predicted) of every pair in nats, summed over inputs."""
    votes = target.softmax(-1)
    entropy = -(votes * target.log_softmax(-1)).sum((1, 2))
    return -entropy[:, None] - votes.flatten(1) @ predicted.log_softmax(-1).flatten(1).T


def concordance(first: Float[Tensor, "*#M B C"], second: Float[Tensor, "*#M B C"]) -> Float[Tensor, ...]:
    """Return Lin's concordance of two networks' outputs over inputs and outputs, from 0 to 1 for equality.

    1 - mean squared difference / (both variances + squared difference of means) (Lin, 1989).
    """
    a, b = first.double(), second.double()
    axes = (-2, -1)
    error = (a - b).square().mean(axes)
    scale = a.var(axes, correction=0) + b.var(axes, correction=0) + (a.mean(axes) - b.mean(axes)).square()
    return torch.where(scale > 0, 1 - error / scale.clamp_min(1e-300), torch.ones_like(scale)).clamp_min(0)


def within(first: Float[Tensor, "*#M B C"], second: Float[Tensor, "*#M B C"], tolerance: float) -> Float[Tensor, ...]:
    """Return the fraction of outputs that differ by less than `tolerance` (NetSpace, Suppl. V); NaN if one is unknown."""
    difference = (first.double() - second.double()).abs()
    known = difference.isfinite().all(-1).all(-1)
    return torch.where(known, (difference < tolerance).double().mean((-2, -1)), torch.nan)


def confusion(
    predicted: Int64[Tensor, "*M N"], labels: Int64[Tensor, "*#M N"], classes: int
) -> Int64[Tensor, "*M K K"]:
    """Count pairs of classes: entry [k, l] is the number of inputs of class k that a network says are of class l."""
    lead = predicted.shape[:-1]
    pairs = (labels * classes + predicted).reshape(-1, predicted.shape[-1])
    first = torch.arange(len(pairs), device=pairs.device)[:, None] * classes**2  # of each network
    counts = torch.bincount((pairs + first).flatten(), minlength=len(pairs) * classes**2)
    return counts.view(*lead, classes, classes)


def mean_iou(confusions: Int64[Tensor, "*M K K"]) -> Float[Tensor, "*M"]:
    """Return the intersection over union of truth and prediction, averaged over the classes that occur in either."""
    hits, truth, predicted = _of_classes(confusions)
    return (hits / (truth + predicted - hits)).nanmean(-1)


def macro_f1(confusions: Int64[Tensor, "*M K K"]) -> Float[Tensor, "*M"]:
    """Return the F1 score, averaged over the classes that occur in truth or prediction."""
    hits, truth, predicted = _of_classes(confusions)
    return (2 * hits / (truth + predicted)).nanmean(-1)


def _of_classes(confusions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return how often each class was right, was true, and was predicted: (*M, K) float64 each."""
    counts = confusions.double()
    return counts.diagonal(dim1=-2, dim2=-1), counts.sum(-1), counts.sum(-2)


def importance_weighted_nll(log_weights: Float[Tensor, "*M S B"]) -> Float[Tensor, "*M"]:
    """Return -log of the mean weight of S latents of each image, averaged over images, in nats (Burda et al. 2016, Eq. 8).

    A weight is p(image, latent) / q(latent | image), of latents drawn from q. The result is an upper bound of the negative
    log-likelihood, on average over draws, that falls with S.
    """
    samples = log_weights.shape[-2]
    return -(log_weights.logsumexp(-2) - math.log(samples)).mean(-1)


def linear_cka(first: Float[Tensor, "B _"], second: Float[Tensor, "B _"]) -> float:
    """Return the linear centred kernel alignment, 0 to 1, of two representations (B, D) and (B, D') of the same inputs.

    It is |Y'X|^2 / (|X'X| |Y'Y|) in Frobenius norms, of centred features (Kornblith et al. 2019, Sec. 3), computed from B x B
    matrices where that is less. Orthogonal maps and scales of features do not change it. NaN for features that do not vary.
    """
    x, y = (each.double() - each.double().mean(dim=0) for each in (first, second))
    if max(x.shape[1], y.shape[1]) > len(x):
        left, right = x @ x.T, y @ y.T
        both, norms = float((left * right).sum()), float(left.norm() * right.norm())
    else:
        both, norms = float((y.T @ x).square().sum()), float((x.T @ x).norm() * (y.T @ y).norm())
    return both / norms if norms else float("nan")


def r2(predicted: np.ndarray, target: np.ndarray) -> float:
    """Return the coefficient of determination of values (M,): 1 for equality, 0 for the mean of the targets, below for worse.

    NaN if the targets do not vary.
    """
    if np.ptp(target) == 0:  # the sum of squares below need not be 0 then: the mean is rounded
        return float("nan")
    return 1 - float(((predicted - target) ** 2).sum()) / float(((target - target.mean()) ** 2).sum())


def mean_absolute_error(predicted: np.ndarray, target: np.ndarray) -> float:
    """Return the mean |predicted - target| of values (M,): of accuracies, the validation measure of NetSpace."""
    return float(np.abs(predicted - target).mean())


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Return the rank correlation of values (M,), ties at their mean rank; NaN if one of the two does not vary."""
    from scipy.stats import rankdata

    ranks = rankdata(first), rankdata(second)
    if np.ptp(ranks[0]) == 0 or np.ptp(ranks[1]) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def linear_r2(x: np.ndarray, y: np.ndarray) -> float:
    """Return R2 of the least-squares line through points x, y (M,): their squared correlation.

    NaN if one of the two does not vary.
    """
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1] ** 2)


def diversity(flat: Float[Tensor, "M P"]) -> float:
    """Return the mean L2 distance between all pairs of networks; NaN for fewer than two."""
    count = len(flat)
    if count < 2:
        return float("nan")
    distances = _squared_distances(flat, flat).sqrt()
    return float((distances.sum() - distances.diagonal().sum()) / (count * (count - 1)))


def nearest(queries: Float[Tensor, "M P"], bank: Float[Tensor, "N P"]) -> Int64[Tensor, " M"]:
    """Return the row of the L2-nearest network in `bank` for each query."""
    return _squared_distances(queries, bank).argmin(-1)


def _squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """Return squared L2 distances (M, N) of networks (M, P) and (N, P), by matrix products over a part of P at a time.

    In float64 and relative to the mean network: else rounding would mix up networks that are close together.
    """
    total = torch.zeros(len(first), len(second), dtype=torch.float64, device=first.device)
    for one, other in zip(first.split(COLUMNS, dim=1), second.split(COLUMNS, dim=1), strict=True):
        centre = other.double().mean(0)
        a, b = one.double() - centre, other.double() - centre
        total += torch.addmm(a.square().sum(1)[:, None] + b.square().sum(1), a, b.T, alpha=-2)
    return total.clamp_min(0)


PEER_RANGE = 0.01  # a peer's accuracy differs from the member's by at most so much: one point
PEER_ROWS = 16  # members compared with their peers at once
PEER_ELEMENTS = 1 << 24  # rows x peers x inputs compared at once, so that memory stays bounded


@dataclass(frozen=True)
class Identity:
    """Whether predicted networks are like their own targets rather than like any network of the same accuracy.

    The peers of a member are the other members whose accuracy lies within one point of its target's. The Jaccard index
    of two networks is the number of inputs that both get wrong over the number that one or both get wrong; 1 if neither
    makes a mistake. Values of peers are means over a member's peers, NaN if it has none.
    """

    agreement_own: np.ndarray  # (M,) of a prediction with its own target
    agreement_peers: np.ndarray  # (M,) of a prediction with the peers of its target
    jaccard_own: np.ndarray  # (M,)
    jaccard_peers: np.ndarray  # (M,)

    @classmethod
    def concatenate(cls, parts: Sequence[Identity]) -> Identity:
        """Return one record of the members of all parts, in their order."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def summary(self) -> dict[str, float | int | None]:
        """Return means over the members that have peers; the others are only counted, in `without_peers`."""
        known = np.isfinite(self.agreement_peers)
        values = {field.name: getattr(self, field.name)[known] for field in fields(self)}
        values = {"own_minus_peers": values["agreement_own"] - values["agreement_peers"], **values}
        means = {name: float(value.mean()) if known.any() else float("nan") for name, value in values.items()}
        return {
            **{name: mean if np.isfinite(mean) else None for name, mean in means.items()},
            "members": int(known.sum()),
            "without_peers": int((~known).sum()),
        }


def identity(predicted: Int64[Tensor, "M B"], target: Int64[Tensor, "M B"], labels: Int64[Tensor, " B"]) -> Identity:
    """Compare the classes that predicted networks and their targets predict for labelled inputs.

    Members are sorted by their target's accuracy, so that the peers of neighbours are a slice.
    """
    count, inputs = target.shape
    right = (target == labels).sum(1)
    order = right.argsort(stable=True)
    sorted_right = right[order]
    limit = int(PEER_RANGE * inputs + 1e-9)  # in inputs: exact
    target, predicted = target[order], predicted[order]
    wrong_target, wrong_predicted = (target != labels).float(), (predicted != labels).float()  # whole numbers: exact
    table = torch.full((4, count), float("nan"), dtype=torch.float64, device=target.device)
    for rows in torch.arange(count, device=target.device).split(PEER_ROWS):
        low = int(torch.searchsorted(sorted_right, sorted_right[rows[0]] - limit))
        high = int(torch.searchsorted(sorted_right, sorted_right[rows[-1]] + limit, right=True))
        columns = torch.arange(low, high, device=target.device)
        pieces = target[low:high].split(max(PEER_ELEMENTS // (PEER_ROWS * inputs), 1))
        same = torch.cat([(predicted[rows, None] == piece).double().mean(2) for piece in pieces], dim=1)
        both = (wrong_predicted[rows] @ wrong_target[low:high].T).double()
        either = wrong_predicted[rows].sum(1)[:, None] + wrong_target[low:high].sum(1) - both
        overlaps = torch.where(either > 0, both / either.clamp_min(1), torch.ones_like(both))
        near = (sorted_right[rows][:, None] - sorted_right[columns]).abs() <= limit
        own = rows[:, None] == columns
        peers = near & ~own
        for first, values in ((0, same), (2, overlaps)):
            table[first, rows] = values[own]
            table[first + 1, rows] = (values * peers).sum(1) / peers.sum(1)  # 0 / 0 is NaN: no peers
    return Identity(*table[:, order.argsort()].cpu().numpy())


def identity_of(agreements: Float[Tensor, "M M"], scores: Float[Tensor, " M"]) -> Identity:
    """Compare by agreements of all predicted networks with all targets and the targets' scores; no Jaccard index."""
    near = (scores[:, None] - scores).abs() <= PEER_RANGE
    peers = near & ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    same = agreements.double()
    others = (same * peers).sum(1) / peers.sum(1)  # 0 / 0 is NaN: no peers
    unknown = np.full(len(scores), np.nan)
    return Identity(same.diagonal().cpu().numpy(), others.cpu().numpy(), unknown, unknown)
