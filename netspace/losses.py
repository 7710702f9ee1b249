"""The equations of the papers, one pure function each.

Axes: M members (networks), B inputs of a batch, C classes, A architectures, N kernels, D values of a kernel or of a
feature map, P pixels, E latent size. A loss is averaged over B and over leading axes, so one network and a batch of M give the same scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from netspace.networks.outputs import squared_errors

CACHE_VALUES = 1 << 18  # float32 values of an intermediate result that stay in a processor's cache


def prediction_loss(
    predicted: Float[Tensor, "*M B C"], target: Float[Tensor, "*M B C"], temperature: float, relative: bool = False
) -> Float[Tensor, ""]:
    """Return the distillation loss between logits of predicted and target networks (NetSpace, Eq. 1 and 3).

    KL(softmax(t / T) || softmax(p / T)) * T^2 (Hinton et al. 2015): the target's distribution is the reference.
    Computed in float32. With `relative`, T is in units of the standard deviation of each target network's logits, so
    that a network that is hardly trained, whose logits are all small, counts as much as others.

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


def output_loss(predicted: Sequence[Tensor], target: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Return the squared relative error of outputs of any shape, |p - t|^2 / |t|^2, as a mean over tensors.

    Where a target is zero, its error is the squared distance itself. Raises `NetspaceError` for tensors of other shapes.

    >>> import torch
    >>> target = [torch.ones(2, 3), torch.ones(4)]
    >>> float(output_loss([2 * target[0], target[1]], target))
    0.5
    """
    apart, whole = squared_errors(predicted, target).unbind(1)
    return (apart / torch.where(whole > 0, whole, 1.0)).mean()


def contrastive_loss(
    predicted: Float[Tensor, "M B C"], target: Float[Tensor, "M B C"], temperature: float
) -> Float[Tensor, ""]:
    """Return how hard it is to tell which target network each predicted one is of (InfoNCE, van den Oord et al. 2018).

    The cross-entropy of softmax(s / temperature) with the network's own target, where s are cosines between the outputs of
    predicted and of target networks, as they differ from the mean of all targets. 0 for one network, which has no others.

    >>> import torch
    >>> outputs = torch.randn(4, 8, 3)
    >>> bool(contrastive_loss(outputs, outputs, 0.1) < contrastive_loss(outputs.flip(0), outputs, 0.1))
    True
    """
    mean = target.float().mean(0)
    ours, theirs = (F.normalize((each.float() - mean).flatten(1), dim=1) for each in (predicted, target))
    return F.cross_entropy(ours @ theirs.mT / temperature, torch.arange(len(ours), device=ours.device))


def distillation_loss(
    predicted: Float[Tensor, "M B C"],
    teacher: Float[Tensor, "B C"],
    labels: Int64[Tensor, " B"],
    temperature: float,
    alpha: float,
) -> Float[Tensor, " M"]:
    """Return each network's loss on a teacher's logits and on labels (NetSpace, Eq. 3 to 5, and 8 to 10).

    alpha * KL(softmax(t* / T) || softmax(p / T)) * T^2 + (1 - alpha) * CE(p, y).

    >>> import torch
    >>> logits = torch.tensor([[[9.0, 0.0], [0.0, 9.0]]])
    >>> round(float(distillation_loss(logits, logits[0], torch.tensor([0, 1]), 4.0, 0.9)), 4)
    0.0
    """
    predicted, teacher = predicted.float(), teacher.float()
    log_p, log_t = F.log_softmax(predicted / temperature, dim=-1), F.log_softmax(teacher / temperature, dim=-1)
    divergence = F.kl_div(log_p, log_t.expand_as(log_p), reduction="none", log_target=True).sum(-1).mean(-1)
    each = labels.expand(predicted.shape[:-1])
    task = F.cross_entropy(predicted.flatten(0, -2), each.flatten(), reduction="none").view(each.shape).mean(-1)
    return alpha * (divergence * temperature**2) + (1 - alpha) * task


def class_loss(logits: Float[Tensor, "M A"], class_ids: Int64[Tensor, " M"]) -> Float[Tensor, " M"]:
    """Return the cross-entropy of each network's ClassId logits (NetSpace, Eq. 6).

    For a point between two networks at gamma, the ClassId is (1 - gamma) * c_A + gamma * c_B (Eq. 7), an integer by Eq.
    12.
    """
    return F.cross_entropy(logits.float(), class_ids, reduction="none")


def blend(
    first: Float[Tensor, "M B C"], second: Float[Tensor, "M B C"], gamma: Float[Tensor, " M"]
) -> Float[Tensor, "M B C"]:
    """Return the target logits of networks between two: their logits, mixed with `gamma` of the second.

    Each network's logits are divided by their standard deviation before, and multiplied by the mixed one after, so that
    a confident network does not outvote another: the blend moves evenly from the first to the second.
    """
    gamma = gamma.view(-1, 1, 1)
    spreads = [logits.float().std((-2, -1), keepdim=True).clamp_min(1e-6) for logits in (first, second)]
    mixed = (1 - gamma) * first.float() / spreads[0] + gamma * second.float() / spreads[1]
    return mixed * ((1 - gamma) * spreads[0] + gamma * spreads[1])


def evidence_bound(
    logits: Float[Tensor, "*M B P"],
    mean: Float[Tensor, "*M B E"],
    log_variance: Float[Tensor, "*M B E"],
    pixels: Float[Tensor, "*#M B P"],
) -> Float[Tensor, "*M B"]:
    """Return the evidence lower bound of each image, in nats (Kingma and Welling 2014, Eq. 10, with one latent).

    Pixels are Bernoulli: grey values from 0 to 1 are probabilities of white, so the bound is that of images made black and white
    at random, on average over them.

    >>> import torch
    >>> zero = torch.zeros(1, 3)
    >>> round(float(evidence_bound(zero, zero, zero, torch.ones(1, 3)) / 3), 4)  # a coin for each pixel
    -0.6931
    """
    kl = 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum(-1)
    return pixel_log_likelihood(logits, pixels) - kl


def pixel_log_likelihood(logits: Float[Tensor, "*M B P"], pixels: Float[Tensor, "*#M B P"]) -> Float[Tensor, "*M B"]:
    """Return the log-likelihood of each image in nats, its pixels (0 to 1) Bernoulli with these logits."""
    return -F.binary_cross_entropy_with_logits(logits, pixels.expand_as(logits), reduction="none").sum(-1)


def autoencoder_divergence(
    predicted: tuple[Tensor, Tensor, Tensor], target: tuple[Tensor, Tensor, Tensor]
) -> Float[Tensor, "*M B"]:
    """Return how far a variational autoencoder is from another for each image, in nats: KL(target || predicted).

    Both are logits of pixels (*M, B, P), mean and log-variance (*M, B, E); their Bernoulli and Gaussian divergences are added.
    """
    (logits, mean, log_variance), (target_logits, target_mean, target_log_variance) = predicted, target
    pixels = target_logits.sigmoid()
    of_pixels = pixel_log_likelihood(target_logits, pixels) - pixel_log_likelihood(logits, pixels)
    squares = target_log_variance.exp() + (target_mean - mean).square()
    of_latents = 0.5 * (log_variance - target_log_variance + squares / log_variance.exp() - 1).sum(-1)
    return of_pixels + of_latents


def weight_loss(predicted: Float[Tensor, "*S"], target: Float[Tensor, "*S"]) -> Float[Tensor, ""]:
    """Return the mean squared difference of two sets of (standardised) parameters.

    The structural term that 'Structure Is Not Enough' (2025) adds to the behaviour term.
    """
    return F.mse_loss(predicted.float(), target.float())


def reconstruction_loss(
    predicted: Float[Tensor, "N D"], target: Float[Tensor, "N D"], mask: Tensor, weights: int | None = None
) -> Float[Tensor, ""]:
    """Return the root mean squared difference of kernels over the weights, where `mask` (N, D) is 1 (NeRN, Eq. 3).

    The paper divides the norm by the number of weights; the authors' code, as this, takes the root of the mean. With
    `weights`, the kernels are a sample of those of a network with so many weights. The value is then the sample's, and
    the gradient is multiplied by the sample's fraction of the weights: other weights do not depend on what was drawn.
    Kernels without any weight have no error.
    """
    squares = ((predicted.float() - target.float()) * mask).square().sum()
    error = (squares / mask.sum().clamp_min(1) + 1e-20).sqrt()
    return error if weights is None else torch.lerp(error.detach(), error, mask.sum() / weights)


def feature_loss(
    predicted: Sequence[Tensor], target: Sequence[Tensor], weight: float = 1.0, index: Tensor | None = None
) -> Float[Tensor, ""]:
    """Return `weight` times the distance of feature maps (B, ...) of l2-norm 1 for each sample (NeRN, Eq. 4).

    Distances are summed over layers and averaged over B; B differs between maps if layers fold other axes into it. With
    `index` (B,) the target's maps are rows of tables (N, ...). Computed in float32 from maps of any precision; only
    `predicted` gets gradients. A map of zeros is at distance 1 and has no gradient.
    """
    from netspace.native import feature_distances  # here, as numba takes a third of a second and few commands need it

    pairs = [_flattened(one, two) for one, two in zip(predicted, target, strict=True)]
    if all(feature_distances.fits(*pair) for pair in pairs):
        return _CompiledLoss.apply(weight, index, *(one for one, _ in pairs), *(two.detach() for _, two in pairs))
    if index is not None:
        pairs = [(one, two.index_select(0, index)) for one, two in pairs]
    distances = _UnitDistances.apply(*(one for one, _ in pairs), *(two for _, two in pairs))
    return weight * torch.stack([each.mean() for each in distances]).sum()


def _flattened(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return both maps as (B, D), in the order in which `predicted` lies in memory, so that it is not copied."""
    if predicted.dim() == 4 and predicted.is_contiguous(memory_format=torch.channels_last):
        predicted, target = predicted.permute(0, 2, 3, 1), target.permute(0, 2, 3, 1)
    return predicted.flatten(1), target.flatten(1)


class _CompiledLoss(torch.autograd.Function):
    """The weighted loss of bf16 maps a, a', ..., b, b', ... (B, D) on a CPU, with the gradients of a in the same pass.

    All maps are passed at once, so that the threads that share them start once.
    """

    @staticmethod
    def forward(ctx: Any, weight: float, index: Tensor | None, *rows: Tensor) -> Tensor:
        from netspace.native import feature_distances

        count = len(rows) // 2
        learns = any(ctx.needs_input_grad[2 : 2 + count])
        pairs = list(zip(rows[:count], rows[count:], strict=True))
        scales = [weight / max(len(a), 1) for a, _ in pairs] if learns else None
        distances, gradients = feature_distances.unit_distances(pairs, scales, index)
        ctx.save_for_backward(*gradients)
        return weight * torch.stack([each.mean() for each in distances]).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        if float(grad) != 1:  # no device to wait for
            gradients = [each * grad for each in gradients]  # in bf16, as a tensor without axes changes no precision
        return None, None, *gradients, *[None] * len(gradients)


class _UnitDistances(torch.autograd.Function):
    """|u - v| (B,) of unit vectors u = a / |a| and v = b / |b| of rows a, b (B, D), for maps a, a', ..., b, b', ...

    Only a gets gradients: (u (u . v) - v) / (|a| |u - v|), a mixture of a and b with two factors for each row.
    """

    @staticmethod
    def forward(ctx: Any, *rows: Tensor) -> tuple[Tensor, ...]:
        pairs = zip(rows[: len(rows) // 2], rows[len(rows) // 2 :], strict=True)
        lengths = [_lengths(*pair) for pair in pairs]
        ctx.save_for_backward(*rows, *lengths)
        return tuple(each[:, 2].clone() for each in lengths)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        count = len(grads)
        first, second, lengths = (ctx.saved_tensors[start : start + count] for start in (0, count, 2 * count))
        mixes = [(a, b, *_factors(each, grad)) for a, b, each, grad in zip(first, second, lengths, grads, strict=True)]
        return *(_mixture(*each) for each in mixes), *[None] * count


def _factors(lengths: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors (B,) of a and b in the gradient, from |a|, |b|, |u - v| (B, 3) and the gradient of |u - v|."""
    a, b, distance = lengths.unbind(1)
    flat = (distance == 0) | (a <= 1e-12) | (b <= 1e-12)
    of_a = (1 - distance.square() / 2) / (a.square() * distance)
    of_b = -1 / (a * b * distance)
    return torch.where(flat, 0, grad * of_a), torch.where(flat, 0, grad * of_b)


def _lengths(a: Tensor, b: Tensor) -> Tensor:
    """Return |a|, |b| and |a / |a| - b / |b|| of rows (B, D): (B, 3)."""
    pieces = []
    for one, two in _pieces(a, b):
        one, two = one.float(), two.float()
        lengths = [torch.linalg.vector_norm(rows, dim=1, keepdim=True) for rows in (one, two)]
        scales = [length.clamp_min(1e-12).reciprocal() for length in lengths]
        distance = torch.linalg.vector_norm((one * scales[0]).addcmul_(two, scales[1], value=-1), dim=1, keepdim=True)
        pieces.append(torch.cat([*lengths, distance], dim=1))
    return torch.cat(pieces)


def _mixture(a: Tensor, b: Tensor, of_a: Tensor, of_b: Tensor) -> Tensor:
    """Return rows of_a * a + of_b * b (B, D) in their precision."""
    result = torch.empty_like(a)
    for rows, one, two, first, second in _pieces(result, a, b, of_a[:, None], of_b[:, None]):
        rows.copy_((one.float() * first).addcmul_(two.float(), second))
    return result


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same rows of all matrices: as many as a processor's cache holds in float32, or all on a GPU."""
    count, width = tensors[0].shape
    rows = count if tensors[0].is_cuda else min(count, max(1, CACHE_VALUES // max(width, 1)))
    return zip(*(each.split(max(rows, 1)) for each in tensors), strict=True)
