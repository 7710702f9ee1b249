"""The equations of the papers, one pure function each.

Axes: M members, B inputs of a batch, C classes, H W of a PRep. Logits are (..., B, C); a loss is averaged over
B and over leading axes, so one network and a batch of M give the same scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from netspace.native import feature_distances

CACHED = 1 << 18  # float32 values of an intermediate result that stay in a processor's cache


def prediction_loss(predicted: Tensor, target: Tensor, temperature: float, relative: bool = False) -> Tensor:
    """How far the predicted networks' outputs are from the targets': distillation (NetSpace, Eq. 1 and 3).

    KL(softmax(t / T) || softmax(p / T)) * T^2 for logits (..., B, C), as Hinton et al. (2015) define it: the
    target's distribution is the reference. Computed in float32.

    With `relative`, T counts in units of the spread of each target network's logits, so that a network hardly
    trained, whose logits are all small, weighs as much as one that is sure of itself.

    >>> import torch
    >>> same = torch.randn(2, 5, 3)
    >>> float(prediction_loss(same, same, temperature=4.0))
    0.0
    """
    predicted, target = predicted.float(), target.float()
    scale: Tensor | float = temperature
    if relative:
        scale = temperature * target.std((-2, -1), keepdim=True).clamp_min(1e-6)
    log_p = F.log_softmax(predicted / scale, dim=-1)
    log_t = F.log_softmax(target / scale, dim=-1)
    divergence = F.kl_div(log_p, log_t, reduction="none", log_target=True).sum(-1)
    return divergence.mean().clamp_min(0) * temperature**2


def distillation_loss(predicted: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float) -> Tensor:
    """What each network has to learn from a teacher and from the labels (NetSpace, Eq. 3 to 5, and 8 to 10).

    alpha * KL(softmax(t* / T) || softmax(p / T)) * T^2 + (1 - alpha) * CE(p, y) for logits (M, B, C), the teacher's (B, C)
    and labels (B,); averaged over B, one value for each network (M,).

    >>> import torch
    >>> answers = torch.tensor([[[9.0, 0.0], [0.0, 9.0]]])
    >>> round(float(distillation_loss(answers, answers[0], torch.tensor([0, 1]), 4.0, 0.9)), 4)
    0.0
    """
    predicted, teacher = predicted.float(), teacher.float()
    log_p, log_t = F.log_softmax(predicted / temperature, dim=-1), F.log_softmax(teacher / temperature, dim=-1)
    told = F.kl_div(log_p, log_t.expand_as(log_p), reduction="none", log_target=True).sum(-1).mean(-1) * temperature**2
    each = labels.expand(predicted.shape[:-1])
    task = F.cross_entropy(predicted.flatten(0, -2), each.flatten(), reduction="none").view(each.shape).mean(-1)
    return alpha * told + (1 - alpha) * task


def class_loss(logits: Tensor, class_ids: Tensor) -> Tensor:
    """How far ClassId logits (M, A) are from the ClassIds (M,), one value for each network (M,) (NetSpace, Eq. 6 and 7).

    Between two networks at gamma it is the ClassId (1 - gamma) * c_A + gamma * c_B, which Eq. 12 makes whole (Eq. 7).
    """
    return F.cross_entropy(logits.float(), class_ids, reduction="none")


def blend(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """What a network between two should answer: their logits (M, B, C) mixed, `share` (M,) of the second.

    Each network's logits are brought to one spread before, and to the mixed spread after, so that a network that is
    sure of itself does not outvote one that is not: the blend moves evenly from the first to the second.
    """
    share = share.view(-1, 1, 1)
    spreads = [logits.float().std((-2, -1), keepdim=True).clamp_min(1e-6) for logits in (first, second)]
    mixed = (1 - share) * first.float() / spreads[0] + share * second.float() / spreads[1]
    return mixed * ((1 - share) * spreads[0] + share * spreads[1])


def weight_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of two sets of (standardised) parameters of one shape.

    The structural term that 'Structure Is Not Enough' (2025) sets beside the behaviour term.
    """
    return F.mse_loss(predicted.float(), target.float())


def reconstruction_loss(predicted: Tensor, target: Tensor, mask: Tensor, weights: int | None = None) -> Tensor:
    """Root of the mean squared difference of kernels (N, D), where `mask` (N, D) says that there is a weight (NeRN, Eq. 3).

    The paper divides the norm by the number of weights; the authors' implementation, as this, takes the root of the mean.

    With `weights`, the kernels are a sample of a network of so many weights, and the loss is estimated over all of them:
    its value is that of the sample, its gradient smaller by the sample's fraction of the weights, as other weights do not
    depend on what was drawn.
    """
    squares = ((predicted.float() - target.float()) * mask).square().sum()
    error = (squares / mask.sum() + 1e-20).sqrt()
    return error if weights is None else torch.lerp(error.detach(), error, mask.sum() / weights)


def feature_loss(
    predicted: Sequence[Tensor], target: Sequence[Tensor], weight: float = 1.0, places: Tensor | None = None
) -> Tensor:
    """Distance of feature maps (B, ...) of l2-norm 1 for each sample, summed over layers, mean over B (NeRN, Eq. 4).

    Times `weight`, its weight among other terms. With `places` (B,) the target's maps are those rows of (N, ...). Computed in
    float32 from maps of any precision; gradients flow to `predicted` alone. A map of zeros is at distance 1 and has no
    gradient: it has no direction. B is a map's own where layers fold other axes into it.
    """
    rows = [_rows(one, two) for one, two in zip(predicted, target, strict=True)]
    if all(feature_distances.fits(*pair) for pair in rows):
        return _Halves.apply(weight, places, *(one for one, _ in rows), *(two.detach() for _, two in rows))
    if places is not None:
        rows = [(one, two.index_select(0, places)) for one, two in rows]
    distances = _UnitDistances.apply(*(one for one, _ in rows), *(two for _, two in rows))
    return weight * torch.stack([each.mean() for each in distances]).sum()


def _rows(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps as (B, D), in one order: that in which `predicted` lies in memory, so that it is not copied."""
    if predicted.dim() == 4 and predicted.is_contiguous(memory_format=torch.channels_last):
        predicted, target = predicted.permute(0, 2, 3, 1), target.permute(0, 2, 3, 1)
    return predicted.flatten(1), target.flatten(1)


class _Halves(torch.autograd.Function):
    """The whole loss of maps a, a', ..., b, b', ... (B, D) in bf16 on a processor, and the gradient of the a in the same pass.

    All maps at once, so that threads that share them begin once.
    """

    @staticmethod
    def forward(ctx: Any, weight: float, places: Tensor | None, *rows: Tensor) -> Tensor:
        count = len(rows) // 2
        learns = any(ctx.needs_input_grad[2 : 2 + count])
        pairs = list(zip(rows[:count], rows[count:], strict=True))
        scales = [weight / max(len(a), 1) for a, _ in pairs] if learns else None
        found, gradients = feature_distances.unit_distances(pairs, scales, places)
        ctx.save_for_backward(*gradients)
        return weight * torch.stack([each.mean() for each in found]).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        if float(grad) != 1:  # no device to wait for
            gradients = [each * grad for each in gradients]  # in bf16, as a tensor without axes changes no precision
        return None, None, *gradients, *[None] * len(gradients)


class _UnitDistances(torch.autograd.Function):
    """|u - v| (B,) of the unit vectors u = a / |a| and v = b / |b| of rows a and b (B, D), for maps a, a', ..., b, b', ...

    The gradient is that of the a alone. It is (u (u . v) - v) / (|a| |u - v|), of a's and b's own span: two factors a row
    are all that is kept.
    """

    @staticmethod
    def forward(ctx: Any, *rows: Tensor) -> tuple[Tensor, ...]:
        pairs = zip(rows[: len(rows) // 2], rows[len(rows) // 2 :], strict=True)
        found = [_unit_distances(*pair) for pair in pairs]
        ctx.save_for_backward(*rows, *found)
        return tuple(each[:, 2].clone() for each in found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        count = len(grads)
        first, second, found = (ctx.saved_tensors[start : start + count] for start in (0, count, 2 * count))
        mixes = [(a, b, *_factors(each, grad)) for a, b, each, grad in zip(first, second, found, grads, strict=True)]
        return *(_mixed(*each) for each in mixes), *[None] * count


def _factors(found: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Of a's rows and b's (B,) in the gradient, from their norms and distances (B, 3) and the gradient of these (B,)."""
    lengths_a, lengths_b, away = found.unbind(1)
    flat = (away == 0) | (lengths_a <= 1e-12) | (lengths_b <= 1e-12)
    of_a = (1 - away.square() / 2) / (lengths_a.square() * away)
    of_b = -1 / (lengths_a * lengths_b * away)
    return torch.where(flat, 0, grad * of_a), torch.where(flat, 0, grad * of_b)


def _unit_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a|, |b| and |a / |a| - b / |b|| of rows (B, D): (B, 3). A few rows at a time: what is computed in float32 stays in a cache."""
    found = []
    for one, two in zip(*_pieces(a, b), strict=True):
        one, two = one.float(), two.float()
        lengths = [torch.linalg.vector_norm(rows, dim=1, keepdim=True) for rows in (one, two)]
        scales = [length.clamp_min(1e-12).reciprocal() for length in lengths]
        away = torch.linalg.vector_norm((one * scales[0]).addcmul_(two, scales[1], value=-1), dim=1, keepdim=True)
        found.append(torch.cat([*lengths, away], dim=1))
    return torch.cat(found)


def _mixed(a: Tensor, b: Tensor, of_a: Tensor, of_b: Tensor) -> Tensor:
    """Rows of_a * a + of_b * b (B, D) in their precision, a few at a time."""
    mixed = torch.empty_like(a)
    for held, one, two, factor, other in zip(*_pieces(mixed, a, b, of_a[:, None], of_b[:, None]), strict=True):
        held.copy_((one.float() * factor).addcmul_(two.float(), other))
    return mixed


def _pieces(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The same few rows of each of several matrices, as many as a processor's cache holds; all on a GPU."""
    count, width = tensors[0].shape
    rows = count if tensors[0].is_cuda else min(count, max(1, CACHED // max(width, 1)))
    return [each.split(max(rows, 1)) for each in tensors]
