"""The forward and backward passes of M networks in training, stacked or alone, and optimisers over all of them at once.

Axes: M members (networks), P parameters, B images of a batch, C channels, H W pixels. The forward pass is the module's
own, through `torch.func`, and a function of tensors alone: it returns batch norm's new statistics with the losses, so
that a pass that fails has changed nothing, and a graph of the pass can be recorded and replayed.

Precision. Weights stay in float32; 'bf16' is autocast. `vmap` hides convolutions from autocast (torch 2.15), so stacked
ones get their weights in bf16.

Layout. Channels last is fastest for bf16 convolutions, and for stacked ones in any precision: `vmap` makes of them one
grouped convolution of M * C channels, and these are last if images are in memory as (B, H, W, M, C). Batch last are convolutions
of small stacked networks on CPUs by our own loops (`netspace.networks.stacked_convolutions`).

Compiled. `torch.compile`, on GPUs with CUDA graphs. A compiled pass is for one M and B: when members have left, the
batch is filled up to the next power of two, so that there are a few passes, not one for every M.

Optimisers. One flat tensor (M, P), each member with its own rate: torch's optimisers have one rate for a tensor, so
members that differ in rate, weight decay or age would need a tensor each. The rules are torch's (`torch.optim.Adam`,
`AdamW`, `SGD`), tested equal to them in float64.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn
from torch.func import functional_call, vmap

from netspace.config import Settings
from netspace.errors import UsageError
from netspace.networks.batch import bf16_convolutions, stacked_channels_last
from netspace.networks.kernels import smoothness_loss
from netspace.networks.prep import unflatten
from netspace.networks.spec import NetSpec
from netspace.networks.stacked_convolutions import batch_last
from netspace.orthogonal import orthogonalise
from netspace.tasks import Task

if TYPE_CHECKING:
    from model_zoo.recipe import ZooRecipe

Precision = Literal["float32", "bf16"]
Layout = Literal["plain", "channels last", "batch last"]
MAX_COMPILED = 64  # compiled passes of a process: a few for each architecture


@dataclass(frozen=True)
class Way:
    """How a group is trained: the number of networks at once, precision and layout."""

    fused: int = 1  # 1: a plain forward pass; more: stacked by vmap
    precision: Precision = "float32"  # of the forward and backward pass; weights are in float32
    layout: Layout = "plain"  # of images and feature maps

    def __str__(self) -> str:
        return f"{self.fused} at once, {self.precision}" + (f", {self.layout}" if self.layout != "plain" else "")


def smooth_layers(module: nn.Module, kernels: float, linear: float) -> list[tuple[float, list[str]]]:
    """Return the weights of smoothness terms in the loss that are not 0, and the names of the parameters that each counts.

    `kernels` is the weight of the term of convolutions, `linear` that of the matrices of `nn.Linear`; a term without layers is left out.
    """
    linears = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Linear)}
    matrices = [name for name, value in module.named_parameters() if id(value) in linears]
    convolutions = [name for name, value in module.named_parameters() if value.ndim > 2]
    return [(weight, names) for weight, names in ((kernels, convolutions), (linear, matrices)) if weight and names]


class Forward:
    """Computes losses and gradients of networks of one architecture. Groups may share one, with its compiled passes."""

    def __init__(self, module: nn.Module, recipe: ZooRecipe, way: Way, task: Task) -> None:
        self.module, self.way, self.task, self.device = module.requires_grad_(False), way, task, task.device
        self.spec = NetSpec.from_module(module, "training", {}, task.input_shape)
        self.compiled = recipe.compile
        self.smooth = smooth_layers(module, recipe.smoothness, recipe.smoothness_linear)
        self.autocast = way.precision == "bf16"
        self.bf16_names = bf16_convolutions(module) if self.autocast and way.fused > 1 else frozenset[str]()
        stacked: Callable[..., tuple[Tensor, dict[str, Tensor]]] = vmap(self._loss, randomness="different")
        self.run = self._alone if way.fused == 1 else stacked
        if self.compiled:
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_COMPILED)
            graphs = "reduce-overhead" if task.device.type == "cuda" else None
            self.run = torch.compile(self.run, dynamic=False, mode=graphs)

    def __call__(
        self, rows: Tensor, buffers: dict[str, Tensor], images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return losses (M,), gradients (M, P) and buffers of networks (M, P) on images (M, B, C, H, W), labels (M, B).

        The results of a compiled pass are overwritten by the next.
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
        half = torch.autocast(self.device.type, torch.bfloat16) if self.autocast else contextlib.nullcontext()
        with half, batch_last() if self.way.layout == "batch last" else contextlib.nullcontext():
            losses, buffers = self.run(rows, buffers, images, labels)
        (gradient,) = torch.autograd.grad(losses.sum(), rows)
        return losses.detach()[:count], gradient[:count], {name: value[:count] for name, value in buffers.items()}

    def _filled(self, each: Tensor) -> Tensor:
        """Repeat the first row until there are as many as a compiled pass has."""
        length = min(1 << (len(each) - 1).bit_length(), max(self.way.fused, len(each)))
        return torch.cat([each, each[:1].expand(length - len(each), *each.shape[1:])]) if length > len(each) else each

    def _alone(
        self, rows: Tensor, buffers: dict[str, Tensor], images: Tensor, labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, buffers = self._loss(rows[0], {name: value[0] for name, value in buffers.items()}, images[0], labels[0])
        return loss[None], {name: value[None] for name, value in buffers.items()}

    def _loss(
        self, row: Tensor, buffers: dict[str, Tensor], images: Tensor, labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and new buffers of one network: parameters (P,), images (B, C, H, W), labels (B,)."""
        weights, buffers = unflatten(row, self.spec), {name: value.clone() for name, value in buffers.items()}
        cast = {name: value.bfloat16() if name in self.bf16_names else value for name, value in weights.items()}
        logits = functional_call(self.module, {**cast, **buffers}, (images,))
        loss = self.task.training_loss(logits.float() if self.autocast else logits, labels)
        if self.smooth:
            with torch.autocast(self.device.type, enabled=False):
                for weight, names in self.smooth:
                    loss = loss + weight * smoothness_loss(weights[name] for name in names)
        return loss, buffers


Schedule = Literal["constant", "cosine", "steps"]


class OptimizerConfig(Settings):
    """How members are trained."""

    model_config = ConfigDict(allow_inf_nan=False)

    # an optimiser of torch by its name; muon: orthogonalised momentum for matrices inside the network, Adam for the rest
    name: Literal["adam", "adamw", "sgd", "muon"] = "adam"
    learning_rate: float | tuple[float, float] = (
        1e-3  # a pair [low, high] is a range from which each run draws, log-uniformly
    )
    weight_decay: float | tuple[float, float] = 0.0  # a pair is a range, as for learning_rate
    momentum: float = 0.9  # sgd only
    betas: tuple[float, float] = (0.9, 0.999)  # adam, adamw and muon, whose momentum is the first
    # of muon: rate of the matrices in a run with the highest learning rate; in others in proportion
    muon_rate: float = Field(0.003, gt=0)
    schedule: Schedule | tuple[Schedule, ...] = "constant"  # if a list, each run draws one
    milestones: tuple[float, ...] = (0.5, 0.6, 0.7)  # of 'steps': fractions of the last epoch of a run
    decay: float = 0.1  # of 'steps': factor of the learning rate at each milestone

    def factor(self, schedule: Schedule, progress: float) -> float:
        """Return the factor of the peak rate at `progress` (0 to 1) of a run."""
        if schedule == "cosine":
            return (1 + cos(pi * min(progress, 1.0))) / 2
        if schedule == "steps":
            return float(self.decay ** sum(progress >= milestone for milestone in self.milestones))
        return 1.0


MUON_SIDE = 16  # rows and columns that a matrix has at least to be orthogonalised: not those of a network's ends


def inner_matrices(spec: NetSpec) -> list[tuple[slice, tuple[int, int]]]:
    """Return where weights that are orthogonalised lie in a flat vector (P,), and their rows and columns."""
    found = []
    for start, size, shape in zip(spec.offsets, spec.sizes, spec.shapes, strict=True):
        if len(shape) > 1 and min(shape[0], size // shape[0]) >= MUON_SIDE:
            found.append((slice(start, start + size), (shape[0], size // shape[0])))
    return found


class StackedOptimizer:
    """Updates flat parameters (M, P) in place from their gradients, each member at its own rate, decay and age."""

    def __init__(self, config: OptimizerConfig, flat: Tensor, spec: NetSpec | None = None) -> None:
        """`spec` says where the matrices are that muon orthogonalises. Raises `UsageError` for muon where there are none."""
        self.config = config
        self.matrices = inner_matrices(spec) if config.name == "muon" and spec is not None else []
        if config.name == "muon" and not self.matrices:
            raise UsageError(
                f"optimizer.name muon is for networks with inner matrices of {MUON_SIDE} rows and columns or more, and "
                "there are none: choose adam"
            )
        self.steps = torch.zeros(len(flat), 1, dtype=torch.float64, device=flat.device)  # of each member
        self.moments = [torch.zeros_like(flat) for _ in range(1 if config.name == "sgd" else 2)]

    @torch.no_grad()
    def step(self, flat: Tensor, gradient: Tensor, rates: Tensor, decays: Tensor | None = None) -> None:
        """Update parameters (M, P) at learning rates (M, 1) and weight decays (M, 1), None for no decay at all."""
        self.steps += 1
        config = self.config
        if decays is not None and config.name == "adamw":
            flat.mul_(1 - rates * decays)
        elif decays is not None:
            gradient = gradient + decays * flat
        if config.name == "sgd":
            velocity = self.moments[0]
            velocity.mul_(config.momentum).add_(gradient)
            flat.addcmul_(velocity, rates, value=-1)
            return
        first, second = self.moments
        beta1, beta2 = config.betas
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = rates / (1 - beta1**self.steps).to(rates.dtype)
        root = (1 - beta2**self.steps).rsqrt().to(flat.dtype)
        matrices = [
            flat[:, part] - self._orthogonal(gradient[:, part], first[:, part], shape, rates)
            for part, shape in self.matrices
        ]
        flat.addcdiv_(first * scale, second.sqrt().mul_(root).add_(1e-8), value=-1)
        for (part, _), stepped in zip(self.matrices, matrices, strict=True):
            flat[:, part] = stepped

    def _orthogonal(self, gradient: Tensor, momentum: Tensor, shape: tuple[int, int], rates: Tensor) -> Tensor:
        """Return Muon's steps (M, R * C) of one matrix of each member, from Nesterov momentum."""
        config, (rows, columns) = self.config, shape
        highest = config.learning_rate if isinstance(config.learning_rate, float) else config.learning_rate[1]
        update = torch.lerp(gradient, momentum, config.betas[0]).reshape(-1, rows, columns)
        factor = config.muon_rate / highest * max(1.0, rows / columns) ** 0.5
        return orthogonalise(update, update.dtype).flatten(1) * (rates * factor)

    def keep(self, rows: Tensor) -> None:
        """Keep the members in `rows`, indices (K,), and drop the others."""
        self.steps = self.steps[rows].clone()
        self.moments = [moment[rows].clone() for moment in self.moments]

    def join(self, count: int) -> None:
        """Append `count` members that have taken no step yet."""
        self.steps = torch.cat([self.steps, self.steps.new_zeros(count, 1)])
        self.moments = [torch.cat([moment, moment.new_zeros(count, moment.shape[1])]) for moment in self.moments]

    def state(self) -> dict[str, object]:
        """Return what a checkpoint needs."""
        return {"steps": self.steps, "moments": self.moments}

    def load(self, state: dict[str, object]) -> None:
        """Continue from `state()`."""
        device = self.steps.device
        self.steps = state["steps"].to(device).clone()  # type: ignore[attr-defined]
        self.moments = [moment.to(device).clone() for moment in state["moments"]]  # type: ignore[attr-defined]
