"""A forward and backward pass of M networks in training: in this precision and layout, stacked or alone, compiled or not.

Axes: M members, P parameters, B images of a batch, C channels, H W pixels. The forward is the module's own, through
`torch.func`, and a function of tensors alone: batch norm's new statistics come back beside the losses, so that a pass
that fails half-way has changed nothing, and that a graph of the pass can be recorded and played again.

Precision. Weights stay in float32; 'bf16' is autocast. `vmap` hides convolutions from autocast (torch 2.15), so stacked
ones are given their weights in bf16.

Layout. Channels last is what bf16 convolutions like, and stacked ones in any precision: `vmap` makes of them one grouped
convolution of M * C channels, and they are last where images lie in memory as (B, H, W, M, C).

Compiled. `torch.compile`, on GPUs with CUDA graphs. A compiled pass is one for M and B: where members have left, it is
filled up to the next power of two, so that there are a few passes, not one for every M.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from model_zoo.recipe import ZooRecipe
from netspace.networks.batch import give_convolutions, stacked_channels_last
from netspace.networks.kernels import smoothness_loss
from netspace.networks.prep import unflatten
from netspace.networks.spec import NetSpec
from netspace.tasks import Task

Precision = Literal["float32", "bf16"]
Layout = Literal["plain", "channels last"]
PASSES = 64  # compiled ones that a process may hold: a few for each architecture


@dataclass(frozen=True)
class Way:
    """How a group is trained: so many networks at once, in this precision and layout."""

    fused: int = 1  # 1: alone, by a plain forward; more: stacked, by vmap
    precision: Precision = "float32"  # of the forward and backward pass; weights are in float32
    layout: Layout = "plain"  # of images and feature maps

    def __str__(self) -> str:
        return f"{self.fused} at once, {self.precision}" + (f", {self.layout}" if self.layout != "plain" else "")


class Forward:
    """Losses and gradients of networks of one architecture; several groups may share one, and then share what was compiled."""

    def __init__(self, module: nn.Module, recipe: ZooRecipe, way: Way, task: Task) -> None:
        self.module, self.way, self.task, self.device = module.requires_grad_(False), way, task, task.device
        self.spec = NetSpec.from_module(module, "training", {}, task.input_shape)
        self.smoothness, self.compiled = recipe.smoothness, recipe.compile
        self.kernels = [name for name, value in module.named_parameters() if value.ndim > 2]
        self.half = way.precision == "bf16"
        self.halved = give_convolutions(module) if self.half and way.fused > 1 else frozenset[str]()
        stacked: Callable[..., tuple[Tensor, dict[str, Tensor]]] = vmap(self._loss, randomness="different")
        self.run = self._alone if way.fused == 1 else stacked
        if self.compiled:
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, PASSES)
            graphs = "reduce-overhead" if task.device.type == "cuda" else None
            self.run = torch.compile(self.run, dynamic=False, mode=graphs)

    def __call__(
        self, rows: Tensor, buffers: dict[str, Tensor], images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Losses (M,), gradients (M, P) and new buffers of parameters (M, P), on normalised images (M, B, C, H, W) with
        labels (M, B). What a compiled pass gave is overwritten by the next.
        """
        count, last = len(rows), self.way.layout == "channels last" and images.dim() == 5  # (M, B, C, H, W)
        if self.compiled:
            rows, images, labels = (self._filled(each) for each in (rows, images, labels))
            buffers = {name: self._filled(value) for name, value in buffers.items()}
            if self.device.type == "cuda":
                torch.compiler.cudagraph_mark_step_begin()
        if last and self.way.fused == 1:
            images = images[0].contiguous(memory_format=torch.channels_last)[None]
        elif last:
            images = stacked_channels_last(images)
        rows.requires_grad_()
        with self._autocast():
            losses, held = self.run(rows, buffers, images, labels)
        (gradient,) = torch.autograd.grad(losses.sum(), rows)
        return losses.detach()[:count], gradient[:count], {name: value[:count] for name, value in held.items()}

    def _filled(self, each: Tensor) -> Tensor:
        """Up to one of a few lengths by the first of all."""
        length = min(1 << (len(each) - 1).bit_length(), max(self.way.fused, len(each)))
        return torch.cat([each, each[:1].expand(length - len(each), *each.shape[1:])]) if length > len(each) else each

    def _alone(
        self, rows: Tensor, buffers: dict[str, Tensor], images: Tensor, labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, held = self._loss(rows[0], {name: value[0] for name, value in buffers.items()}, images[0], labels[0])
        return loss[None], {name: value[None] for name, value in held.items()}

    def _loss(
        self, row: Tensor, buffers: dict[str, Tensor], images: Tensor, labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Of one network: parameters (P,), images (B, C, H, W), labels (B,)."""
        weights, held = unflatten(row, self.spec), {name: value.clone() for name, value in buffers.items()}
        used = {name: value.bfloat16() if name in self.halved else value for name, value in weights.items()}
        logits = functional_call(self.module, {**used, **held}, (images,))
        loss = self.task.training_loss(logits.float() if self.half else logits, labels)
        if self.smoothness and self.kernels:
            with torch.autocast(self.device.type, enabled=False):
                loss = loss + self.smoothness * smoothness_loss(weights[name] for name in self.kernels)
        return loss, held

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.half else contextlib.nullcontext()
