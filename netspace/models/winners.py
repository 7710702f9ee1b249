"""Two strided convolutions and a maximum over the width, with gradients through the winners alone.

Axes: M members, h channels after the first convolution, C after the second, H W of a PRep, V width after both.
A maximum over V positions passes its gradient to one of them, so of the M x C x H x V gradients of the second
convolution's output all but M x C x H are zero. The backward pass gathers the inputs that the winners saw
and multiplies only those: for the paper's encoder 1 in 2,500.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

TAPS, STRIDE, PADDING = 3, 2, 1  # of both convolutions, along the width


def widest(images: Tensor, first: nn.Conv2d, second: nn.Conv2d, slope: float) -> Tensor:
    """max over the width of conv2(leaky_relu(conv1(images))): (M, 1, H, W) -> (M, C, H).

    Both are 1x3 convolutions of stride 2 and padding 1 with a bias, the first from one channel to h, the second from h
    to C. Of equal maxima one wins, as in max pooling. First derivatives only.
    """
    result: Tensor = _Widest.apply(images, first.weight, first.bias, second.weight, second.bias, slope)
    return result


class _Widest(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, slope: float
    ) -> Tensor:
        dense = images.contiguous(memory_format=torch.channels_last)
        hidden = F.leaky_relu_(F.conv2d(dense, weight1, bias1, (1, STRIDE), (0, PADDING)), slope)
        wide = F.conv2d(hidden, weight2, bias2, (1, STRIDE), (0, PADDING))
        best, where = wide.permute(0, 2, 3, 1).max(dim=2)  # (M, H, C)
        ctx.save_for_backward(images, hidden, where, weight1, weight2)
        ctx.slope = slope
        return best.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, hidden, where, weight1, weight2 = ctx.saved_tensors
        wanted = weight1.dtype
        coming = gradient.transpose(1, 2).to(wanted)  # (M, H, C)
        reach = torch.arange(TAPS, device=images.device) - PADDING
        seen = STRIDE * where.unsqueeze(-1) + reach  # (M, H, C, 3): positions of `hidden` before each winner
        inside = (seen >= 0) & (seen < hidden.shape[3])
        seen = seen.clamp(0, hidden.shape[3] - 1)
        member = torch.arange(len(images), device=images.device)[:, None, None, None]
        row = torch.arange(images.shape[2], device=images.device)[None, :, None, None]
        values = hidden.permute(0, 2, 3, 1)[member, row, seen].to(wanted)  # (M, H, C, 3, h)
        values = values * inside.unsqueeze(-1)
        of_weight2 = torch.einsum("mrc,mrcth->cht", coming, values).unsqueeze(2)
        back = coming[..., None, None] * weight2[:, :, 0].transpose(1, 2)  # (M, H, C, 3, h)
        slopes = (values > 0).to(wanted) * (1 - ctx.slope) + ctx.slope
        back = back * slopes * inside.unsqueeze(-1)
        before = STRIDE * seen.unsqueeze(-1) + reach  # (M, H, C, 3, 3): positions of the image before those
        present = (before >= 0) & (before < images.shape[3])
        before = before.clamp(0, images.shape[3] - 1)
        pixels = images[:, 0][member.unsqueeze(-1), row.unsqueeze(-1), before] * present
        of_weight1 = back.flatten(0, 3).T @ pixels.to(wanted).flatten(0, 3)  # (h, 3)
        of_images = None
        if ctx.needs_input_grad[0]:
            shares = (back @ weight1[:, 0, 0]) * present  # (M, H, C, 3, 3)
            of_images = torch.zeros_like(images[:, 0], dtype=wanted)
            of_images.scatter_add_(2, before.flatten(2), shares.flatten(2))
            of_images = of_images.unsqueeze(1).to(images.dtype)
        return (
            of_images,
            of_weight1[:, None, None],
            back.sum((0, 1, 2, 3)),
            of_weight2,
            coming.sum((0, 1)),
            None,
        )
