"""Batch norm of stacked networks in training on CPUs, by loops of our own, as `stacked_convolutions` has the batch last in memory.

Under `vmap` torch has no stacked batch norm: it copies feature maps so that all networks' channels are one axis, and back, and scales
them in passes of their own.

Axes: M networks, B inputs, C channels, H W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from netspace.networks.threads import DTYPES, check_once_differentiable, in_threads, new_batch_last, to_numpy


class StackedBatchNorm(torch.autograd.Function):
    """Outputs (M, B, C, H, W), means and biased variances (M, C) of images (M, B, C, H, W), weights and biases (M, C)."""

    @staticmethod
    def forward(images: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return outputs with the batch last in memory, and what each channel was normalised by."""
        count, batch, *sizes = images.shape
        outputs = new_batch_last(images, batch, count, *sizes)
        return (outputs, *normalised(images, weight, bias, epsilon, outputs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what gradients need."""
        images, weight, _, ctx.epsilon = inputs
        _, means, variances = output
        ctx.mark_non_differentiable(means, variances)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(images, weight, means, variances)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        """Return gradients of images, weights and biases."""
        check_once_differentiable()
        if gradient is None:
            return None, None, None, None
        return (*gradients(ctx.saved_tensors, ctx.epsilon, gradient), None)


def normalised(images: Tensor, weight: Tensor, bias: Tensor, epsilon: float, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Write outputs (M, B, C, H, W), which have the batch last in memory; return means and biased variances (M, C)."""
    from netspace.native.batch_norm import normalise

    means, variances = weight.new_empty(weight.shape), weight.new_empty(weight.shape)
    values = to_numpy((_channels(images), weight, bias, _channels(outputs), means, variances))
    in_threads(normalise, len(images), *values, epsilon)
    return means, variances


def gradients(saved: tuple[Tensor, ...], epsilon: float, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of images, weights and biases from that of outputs (M, B, C, H, W)."""
    from netspace.native.batch_norm import gradients

    images, weight, means, variances = saved
    count, batch, *sizes = images.shape
    found = new_batch_last(images, batch, count, *sizes), weight.new_empty(weight.shape), weight.new_empty(weight.shape)
    given = (_channels(gradient), _channels(images), weight, means, variances, _channels(found[0]), *found[1:])
    in_threads(gradients, count, *to_numpy(given), epsilon)
    return found


class BatchNorm(torch.autograd.Function):
    """Batch norm of one network: images (B, C, H, W), weight and bias (C,). `vmap` stacks it."""

    @staticmethod
    def forward(images: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return outputs (B, C, H, W), means and variances (C,)."""
        outputs = new_batch_last(images, *images.shape)
        means, variances = normalised(images[None], weight[None], bias[None], epsilon, outputs[None])
        return outputs, means[0], variances[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what gradients need."""
        StackedBatchNorm.setup_context(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        """Return gradients of images, weight and bias."""
        check_once_differentiable()
        if gradient is None:
            return None, None, None, None
        found = gradients(tuple(each[None] for each in ctx.saved_tensors), ctx.epsilon, gradient[None])
        return (*(each[0] for each in found), None)

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], images: Tensor, weight: Tensor, bias: Tensor, epsilon: float
    ) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, int, int]]:
        """Run the batch norms of M networks as one."""
        images, weight, bias = (
            each.expand(info.batch_size, *each.shape) if dim is None else each.movedim(dim, 0)
            for each, dim in zip((images, weight, bias), dims[:3], strict=True)
        )
        found: tuple[Tensor, Tensor, Tensor] = StackedBatchNorm.apply(images, weight, bias, epsilon)
        return found, (0, 0, 0)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """Return the outputs (B, C, H, W) of one network's batch norm in training, as `F.batch_norm` would, which updates the
    statistics in place; None where only torch can, or says what is wrong."""
    running = [each for each in (running_mean, running_var) if each is not None]
    given = [*running, *(each for each in (weight, bias) if each is not None)]
    if not training or input.dim() != 4 or not input.numel() or input.device.type != "cpu":
        return None
    if {each.dtype for each in given} - {input.dtype} or input.dtype not in DTYPES or torch.is_autocast_enabled("cpu"):
        return None
    channels = input.shape[1]
    count = input.numel() // channels
    if count == 1 or eps <= 0 or momentum is None or any(each.shape != (channels,) for each in given):
        return None
    if len(running) == 1 or any(each.requires_grad for each in running):
        return None
    weight = input.new_ones(channels) if weight is None else weight
    bias = input.new_zeros(channels) if bias is None else bias
    outputs: Tensor
    outputs, means, variances = BatchNorm.apply(input, weight, bias, eps)
    for each, new in zip(running, (means, variances * (count / (count - 1))), strict=False):
        each.copy_(
            (1 - momentum) * each + momentum * new
        )  # one change: if the networks share it, that is refused before
    return outputs


def _channels(images: Tensor) -> Tensor:
    """Return (M, C, H * W * B) of images (M, B, C, H, W): a view if these have the batch last in memory."""
    return images.permute(0, 2, 3, 4, 1).flatten(2)
