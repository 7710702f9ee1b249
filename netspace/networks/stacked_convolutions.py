"""Convolutions of stacked networks on CPUs, by loops of our own, where libraries are made for more channels.

`vmap` makes one grouped convolution of those of M networks, with few channels for each group. For such, oneDNN and torch reach a tenth
of what a processor can; the loops of `netspace.native.convolutions` half of it. Inside `batch_last()` all convolutions under `vmap` are
computed so, with gradients; between them, feature maps have the batch last in memory, which elementwise layers keep.

Axes: M networks, B inputs, C channels, H W pixels; O output channels, K L rows and columns of a kernel, Y X pixels of outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from netspace.networks.stacked_batch_norm import batch_norm
from netspace.networks.threads import DTYPES, check_once_differentiable, in_threads, new_batch_last, to_numpy


@dataclass(frozen=True)
class Geometry:
    """How the pixels of padded images lie in memory, and which of them a convolution reads."""

    images: tuple[int, int, int, int, int]  # M or 1, B, C, H, W
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def padding_in_memory(self) -> tuple[int, int]:
        """Rows and columns of zeros on each side that are stored: none where the loops can do without, which is at a stride of one column."""
        return self.padding if self.stride[1] > 1 else (0, 0)

    @property
    def stored(self) -> tuple[int, int]:
        """Rows and columns in memory, columns filled up to a multiple of the stride."""
        rows, columns = (size + 2 * pad for size, pad in zip(self.images[3:], self.padding_in_memory, strict=True))
        return rows, -(-columns // self.stride[1]) * self.stride[1]

    @property
    def outputs(self) -> tuple[int, int]:
        """Y, X."""
        reach = zip(self.images[3:], self.padding, self.kernel, self.dilation, self.stride, strict=True)
        y, x = (
            (size + 2 * pad - dilation * (taps - 1) - 1) // stride + 1 for size, pad, taps, dilation, stride in reach
        )
        return y, x

    def packed(self, images: Tensor) -> Tensor:
        """Return images (M, B, C, H, W), a row for each network, in memory as (M, C, H, stride, W / stride, B).

        At a stride of one column that is a view of images that have the batch last in memory.
        """
        from netspace.native.convolutions import pack

        count, batch, channels, _, _ = self.images
        images = images.permute(0, 2, 3, 4, 1)
        if self.stride[1] == 1:
            return images.reshape(count, -1)
        (rows, columns), stride = self.stored, self.stride[1]
        out = images.new_empty(count, channels, rows, stride, columns // stride, batch)
        in_threads(pack, count, *to_numpy((images, out)), *self.padding_in_memory)
        return out.view(count, -1)

    def unpacked(self, packed: Tensor) -> Tensor:
        """Return images (M, B, C, H, W), the batch last in memory, of rows as `packed` makes them."""
        from netspace.native.convolutions import unpack

        _, batch, channels, height, width = self.images
        (rows, columns), stride, count = self.stored, self.stride[1], len(packed)
        if stride == 1:
            return packed.view(count, channels, height, width, batch).permute(0, 4, 1, 2, 3)
        parts = packed.view(count, channels, rows, stride, columns // stride, batch)
        out = packed.new_empty(count, channels, height, width, batch)
        in_threads(unpack, count, *to_numpy((parts, out)), *self.padding_in_memory)
        return out.permute(0, 4, 1, 2, 3)

    def reads(self) -> tuple[np.ndarray, np.ndarray]:
        """Return taps (T, 4) and sizes (5,), as the loops take them."""
        _, batch, channels, _, _ = self.images
        (rows, columns), stride, (_, x) = self.stored, self.stride[1], self.outputs
        each, row = channels // self.groups, columns * batch
        around = [pad - stored for pad, stored in zip(self.padding, self.padding_in_memory, strict=True)]
        channel, down, right = np.meshgrid(
            np.arange(each),
            self.dilation[0] * np.arange(self.kernel[0]) - around[0],
            self.dilation[1] * np.arange(self.kernel[1]) - around[1],
            indexing="ij",
        )
        begin = (channel * rows + down) * row + right % stride * (row // stride) + right // stride * batch
        low = np.maximum(-(right // stride), 0) * batch  # at other strides all columns are stored
        high = np.minimum(columns // stride - right // stride, x) * batch
        taps = np.stack([each.ravel() for each in (begin, down, low, high)], axis=1)
        sizes = [self.groups, each * rows * row, rows, self.stride[0], self.stride[0] * row]
        return np.ascontiguousarray(taps, dtype=np.int64), np.array(sizes, dtype=np.int64)


class StackedConvolution(torch.autograd.Function):
    """Convolutions of images (M or 1, B, C, H, W) by weights (M, O, C / groups, K, L) and biases (M, O): outputs (M, B, O, Y, X)."""

    @staticmethod
    def forward(images: Tensor, weights: Tensor, bias: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """Return the outputs, the batch last in memory, and the images as the loops take them."""
        count, channels = weights.shape[:2]
        outputs = new_batch_last(images, geometry.images[1], count, channels, *geometry.outputs)
        return outputs, convolved(images, weights, bias, geometry, outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep what gradients need."""
        _, weights, _, ctx.geometry = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # else zeros as large as the images are made for the second output
        ctx.save_for_backward(output[1], weights)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        """Return gradients of images, weights and biases, of those that need them."""
        check_once_differentiable()
        if gradient is None:
            return None, None, None, None
        return gradients(ctx.saved_tensors, ctx.geometry, ctx.needs_input_grad, gradient)


def convolved(images: Tensor, weights: Tensor, bias: Tensor, geometry: Geometry, outputs: Tensor) -> Tensor:
    """Write outputs (M, B, O, Y, X), which have the batch last in memory; return the images as the loops take them."""
    from netspace.native.convolutions import convolve

    packed, rows = geometry.packed(images), outputs.permute(0, 2, 3, 4, 1).flatten(3)
    in_threads(convolve, len(weights), *to_numpy((packed, weights.flatten(2), bias, rows)), *geometry.reads())
    return packed


def gradients(
    saved: tuple[Tensor, Tensor], geometry: Geometry, needed: Sequence[bool], gradient: Tensor
) -> tuple[Tensor | None, ...]:
    """Return gradients of images, weights and biases, of those that are needed, from that of outputs (M, B, O, Y, X)."""
    from netspace.native.convolutions import image_gradients, weight_gradients

    (packed, weights), count = saved, len(saved[1])
    given = gradient.permute(0, 2, 3, 4, 1).flatten(3)
    found: list[Tensor | None] = [None, None, given.sum((2, 3)) if needed[2] else None, None]
    if needed[1]:
        of_weights = packed.new_empty(weights.flatten(2).shape)
        in_threads(weight_gradients, count, *to_numpy((packed, given, of_weights)), *geometry.reads())
        found[1] = of_weights.view(weights.shape)
    if needed[0]:
        of_images = packed.new_empty(count, packed.shape[1])
        in_threads(image_gradients, count, *to_numpy((given, weights.flatten(2), of_images)), *geometry.reads())
        own = geometry.unpacked(of_images)
        found[0] = own if len(packed) == count else own.sum(0, keepdim=True)
    return tuple(found)


class Convolution(torch.autograd.Function):
    """The convolution of one network: images (B, C, H, W), weights (O, C / groups, K, L), bias (O,). `vmap` stacks it."""

    @staticmethod
    def forward(images: Tensor, weights: Tensor, bias: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """Return the outputs (B, O, Y, X), and the images as the loops take them."""
        outputs = new_batch_last(images, len(images), len(weights), *geometry.outputs)
        return outputs, convolved(images[None], weights[None], bias[None], geometry, outputs[None])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep what gradients need."""
        StackedConvolution.setup_context(ctx, (None, inputs[1], None, inputs[3]), output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        """Return gradients of images, weights and bias, of those that need them."""
        check_once_differentiable()
        if gradient is None:
            return None, None, None, None
        packed, weights = ctx.saved_tensors
        found = gradients((packed, weights[None]), ctx.geometry, ctx.needs_input_grad, gradient[None])
        return tuple(None if each is None else each[0] for each in found)

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], images: Tensor, weights: Tensor, bias: Tensor, geometry: Geometry
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int | None]]:
        """Run the convolutions of M networks as one."""
        count = info.batch_size
        weights, bias = (
            each.expand(count, *each.shape) if dim is None else each.movedim(dim, 0)
            for each, dim in zip((weights, bias), dims[1:3], strict=True)
        )
        images = images[None] if dims[0] is None else images.movedim(dims[0], 0)
        stacked = replace(geometry, images=(len(images), *geometry.images[1:]))
        found: tuple[Tensor, Tensor] = StackedConvolution.apply(images, weights, bias, stacked)
        return found, (0, 0 if dims[0] is not None else None)


class _BatchLast(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable[..., Any], types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        ours = OURS.get(function)
        if ours is not None and (found := ours(*args, **(kwargs or {}))) is not None:
            return found
        return function(*args, **(kwargs or {}))


def batch_last() -> TorchFunctionMode:
    """Compute convolutions of stacked networks, and batch norm in training, by our own loops, inside the block."""
    return _BatchLast()


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """Return the outputs (B, O, Y, X) of one network, as torch would; None where only torch can."""
    given = [each for each in (input, weight, bias) if each is not None]
    if input.dim() != 4 or weight.dim() != 4 or isinstance(padding, str) or torch.is_autocast_enabled("cpu"):
        return None
    if input.device.type != "cpu" or len({each.dtype for each in given}) > 1 or input.dtype not in DTYPES:
        return None
    channels, kernel = weight.shape[1] * groups, (weight.shape[2], weight.shape[3])
    images = (1, input.shape[0], input.shape[1], input.shape[2], input.shape[3])
    geometry = Geometry(images, kernel, _pair(stride), _pair(padding), _pair(dilation), groups)
    positive = (*input.shape, *weight.shape, *geometry.stride, *geometry.dilation, groups)
    if min(positive) < 1 or min(geometry.padding) < 0 or min(geometry.outputs) < 1:
        return None  # torch says what is wrong
    if input.shape[1] != channels or weight.shape[0] % groups or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    if bias is None:
        bias = weight.new_zeros(weight.shape[0])
    outputs: Tensor = Convolution.apply(input, weight, bias, geometry)[0]
    return outputs


def _pair(value: Any) -> tuple[int, int]:
    first, second = (
        (value if len(value) == 2 else (*value, *value)) if isinstance(value, tuple | list) else (value, value)
    )
    return int(first), int(second)


OURS: dict[Callable[..., Any], Callable[..., Tensor | None]] = {torch.conv2d: _convolution, F.batch_norm: batch_norm}
