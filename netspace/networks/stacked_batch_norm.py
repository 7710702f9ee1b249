"""Batch norm of stacked networks in training on CPUs, by loops of our own, as `stacked_convolutions` has the batch last in memory.

Under `vmap` torch has no stacked batch norm: it copies feature maps so that all networks' channels are one axis, and back, and scales
them in passes of their own.

Axes: M networks, B inputs, C channels, H W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from netspace.networks.threads import DTYPES, in_threads, to_numpy


class StackedBatchNorm(torch.autograd.Function):
    """Outputs (M, B, C, H, W), means and biased variances (M, C) of images (M, B, C, H, W), weights and biases (M, C)."""

    @staticmethod
    def forward(images: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return outputs with the batch last in memory, and what each channel was normalised by."""
        from netspace.native.batch_norm import normalise

        outputs = _batch_last_like(images)
        means, variances = torch.empty_like(weight), torch.empty_like(weight)
        values = to_numpy((_channels(images), weight, bias, _channels(outputs), means, variances))
        in_threads(normalise, len(images), *values, epsilon)
        return outputs, means, variances

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what gradients need."""
        images, weight, _, ctx.epsilon = inputs
        _, means, variances = output
        ctx.mark_non_differentiable(means, variances)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(images, weight, means, variances)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        """Return gradients of images, weights and biases."""
        return (*gradients(ctx.saved_tensors, ctx.epsilon, gradient), None)


def gradients(saved: tuple[Tensor, ...], epsilon: float, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of images, weights and biases from that of outputs (M, B, C, H, W)."""
    from netspace.native.batch_norm import gradients

    images, weight, means, variances = saved
    of_images, of_weight, of_bias = _batch_last_like(images), torch.empty_like(weight), torch.empty_like(weight)
    given = (_channels(gradient), _channels(images), weight, means, variances, _channels(of_images), of_weight, of_bias)
    in_threads(gradients, len(images), *to_numpy(given), epsilon)
    return of_images, of_weight, of_bias


class BatchNorm(torch.autograd.Function):
    """Batch norm of one network: images (B, C, H, W), weight and bias (C,). `vmap` stacks it."""

    @staticmethod
    def forward(images: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return outputs (B, C, H, W), means and variances (C,)."""
        outputs, means, variances = StackedBatchNorm.forward(images[None], weight[None], bias[None], epsilon)
        return outputs[0], means[0], variances[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what gradients need."""
        StackedBatchNorm.setup_context(ctx, inputs, output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        """Return gradients of images, weight and bias."""
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
    statistics in place; None where only torch can."""
    given = [each for each in (input, weight, bias, running_mean, running_var) if each is not None]
    if not training or input.dim() != 4 or not input.numel() or input.device.type != "cpu":
        return None
    if len({each.dtype for each in given}) > 1 or input.dtype not in DTYPES or torch.is_autocast_enabled("cpu"):
        return None
    count = input.numel() // input.shape[1]
    if count == 1 or any(len(each) != input.shape[1] for each in given[1:]):
        return None  # torch says what is wrong
    weight = input.new_ones(input.shape[1]) if weight is None else weight
    bias = input.new_zeros(input.shape[1]) if bias is None else bias
    outputs: Tensor
    outputs, means, variances = BatchNorm.apply(input, weight, bias, eps)
    unbiased = variances * (count / (count - 1))
    for running, new in ((running_mean, means), (running_var, unbiased)):
        if running is not None:
            running.mul_(1 - momentum).add_(momentum * new)
    return outputs


def _channels(images: Tensor) -> Tensor:
    """Return (M, C, H * W * B) of images (M, B, C, H, W): a view if these have the batch last in memory."""
    return images.permute(0, 2, 3, 4, 1).flatten(2)


def _batch_last_like(images: Tensor) -> Tensor:
    """Return new memory for images (M, B, C, H, W) with the batch last; no view, since layers may write over it."""
    _, batch, channels, height, width = images.shape
    pixels = height * width * batch
    return torch.empty_strided(images.shape, (channels * pixels, 1, pixels, width * batch, batch), dtype=images.dtype)
