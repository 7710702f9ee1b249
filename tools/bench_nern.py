"""The contestants of `tools/bench.py nern`: steps of fitting a coordinate network to a network, ours and plain ones.

Axes: N kernels, K their side, B images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from bench_cases import Case, PlainSteps, Steps
from torch import Tensor, nn
from torch.func import functional_call

from netspace import archs
from netspace.compression.fit import begin
from netspace.config import load as load_recipe
from netspace.models.coordinate_network import BASES
from netspace.process import keep_freed_memory
from netspace.tasks import DataConfig, load
from netspace.training.fit import NernStep, Original
from netspace.training.optimizers import Optimizer
from netspace.training.recipe import FitConfig

POOL = 2048  # images of the pool whose maps are cached


@dataclass(frozen=True)
class NernCase(Case):
    """A step of a fit by the whole of Eq. 2, to a network of random weights."""

    kind = "nern"
    config: FitConfig
    arch: str
    data: DataConfig
    steps: int  # timed together


def nern_cases(quick: bool) -> list[NernCase]:
    """Return the paper's fit, of ResNet20, with images of all the data and of a pool."""
    paper = load_recipe(FitConfig, "compress/paper")
    if quick:
        data = DataConfig(name="generated", image_size=8, channels=1, limit=20)
        (stage,) = (each.model_copy(update={"images": 8, "kernels": 256}) for each in paper.stages)
        predictor = paper.predictor.model_copy(update={"hidden": 16})
        return [
            NernCase(
                "paper, tiny",
                paper.model_copy(update={"stages": (stage,), "predictor": predictor, "order": "in-filter"}),
                "resnet8",
                data,
                1,
            )
        ]
    data = DataConfig(name="generated", image_size=28, channels=1, limit=4096)
    pooled = tuple(stage.model_copy(update={"pool": POOL}) for stage in paper.stages)
    return [
        NernCase("paper, ResNet20, 28x28x1", paper, "resnet20", data, 2),
        NernCase(
            f"the same, a pool of {POOL:,} images", paper.model_copy(update={"stages": pooled}), "resnet20", data, 2
        ),
    ]


def step_of(case: NernCase, device: torch.device) -> NernStep:
    """Return the step of `netspace compress fit` in the case."""
    task = load(case.data, device=device)
    settings = archs.task_settings(case.arch, {}, task.input_shape, task.num_outputs)
    torch.manual_seed(case.config.seed)
    module = archs.skeleton(case.arch, settings, task.input_shape)
    state = {name: value.detach().clone() for name, value in module.state_dict().items()}
    step = NernStep(case.config, begin(state, case.config, None), Original(state, module, task), device)
    step.begin(case.config.stages[0], 0)
    return step


class OurFit(Steps):
    """The fit's own step."""

    def __init__(self, case: NernCase, device: torch.device) -> None:
        keep_freed_memory()
        self.case, self.step = case, step_of(case, device)
        stage = self.step.stage
        self.optimizer = Optimizer(self.step.predictor, stage.optimizer, stage.steps)
        for number in range(-(-(stage.pool or 0) // stage.images)):  # as in all but the first steps of a fit
            self.step(self.step.predictor, number)

    def loss(self) -> Tensor:
        return torch.stack(list(self.step(self.step.predictor, self.number).values())).sum()


class PlainPredictor(nn.Module):
    """Eq. 1 and an MLP with ReLU: coordinates (N, 3) -> kernels (N, K * K)."""

    def __init__(self, base: float, count: int, hidden: int, layers: int, values: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * base ** torch.arange(count))
        sizes = [6 * count, *[hidden] * (layers - 1), values]
        self.linears = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))

    def forward(self, coordinates: Tensor) -> Tensor:
        angles = coordinates[:, :, None] * self.frequencies
        x = torch.stack([torch.sin(angles), torch.cos(angles)], dim=-1).flatten(1)
        for linear in self.linears[:-1]:
            x = F.relu(linear(x))
        return self.linears[-1](x)


def built(kernels: Tensor, shapes: dict[str, tuple[int, ...]], side: int) -> dict[str, Tensor]:
    """Return weights of convolutions by name, from kernels (N, K * K) in the network's order; small ones from the middle."""
    weights, start = {}, 0
    for name, (filters, channels, height, width) in shapes.items():
        piece = kernels[start : start + filters * channels].view(filters, channels, side, side)
        top, left = (side - height) // 2, (side - width) // 2
        weights[name] = piece[:, :, top : top + height, left : left + width]
        start += filters * channels
    return weights


def run_with_maps(
    network: nn.Module, state: dict[str, Tensor], layers: Sequence[str], images: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Return logits (B, C) and the outputs of the named layers."""
    maps: list[Tensor] = []
    handles = [
        network.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: maps.append(output))
        for layer in layers
    ]
    logits = functional_call(network, state, (images,))
    for handle in handles:
        handle.remove()
    return logits, maps


def nern_loss(
    predictor: nn.Module,
    network: nn.Module,
    state: dict[str, Tensor],
    shapes: dict[str, tuple[int, ...]],
    coordinates: Tensor,
    positions: Tensor,
    target: Tensor,
    mask: Tensor,
    chosen: Tensor,
    images: Tensor,
    weights: tuple[float, float, float],
) -> Tensor:
    """Return NeRN's Eq. 2 over all kernels, with gradients through the `chosen` ones; `weights` are those of its terms.

    `positions` (N,) are the positions of each coordinate's kernel in the network; `target` and `mask` are (N, K * K) by
    coordinate.
    """
    with torch.no_grad():
        kernels = predictor(coordinates)
    kernels[chosen] = predictor(coordinates[chosen])
    difference = (kernels - target) * mask
    reconstruction = torch.sqrt(difference.square().sum() / mask.sum())
    in_network = torch.empty_like(kernels)
    in_network[positions] = kernels
    student_state = {**state, **built(in_network, shapes, math.isqrt(target.shape[1]))}
    layers = [name.removesuffix(".weight") for name in shapes]
    with torch.no_grad():
        teacher, teacher_maps = run_with_maps(network, state, layers, images)
    student, student_maps = run_with_maps(network, student_state, layers, images)
    distillation = F.kl_div(F.log_softmax(student, 1), F.softmax(teacher, 1), reduction="batchmean")
    features = torch.zeros((), device=images.device)
    for one, two in zip(student_maps, teacher_maps, strict=True):
        distance = F.normalize(one.flatten(1), dim=1) - F.normalize(two.flatten(1), dim=1)
        features = features + distance.norm(dim=1).mean()
    return weights[0] * reconstruction + weights[1] * distillation + weights[2] * features


class ReferenceFit(PlainSteps):
    """The same step, plain, in float32: from the same weights, on the same images and kernels."""

    def __init__(self, case: NernCase, device: torch.device) -> None:
        self.case, self.ours = case, OurFit(case, device)  # for its stream of images and kernels, and its first weights
        step, config = self.ours.step, case.config.predictor
        base = config.embedding.base
        value = BASES[base] if isinstance(base, str) else base
        values = step.target.shape[1]
        self.predictor = PlainPredictor(value, config.embedding.count, config.hidden, config.layers, values).to(device)
        self.predictor.load_state_dict(step.predictor.state_dict(), strict=False)
        assert step.original.module is not None
        self.network = step.original.module
        self.shapes = {layer.name: layer.shape for layer in step.compressed.kernels.layers}
        normalised = config.embedding.coordinates == "normalised"
        self.coordinates = step.compressed.kernels.coordinates(normalised).to(device)
        self.positions = step.compressed.places.to(device)
        settings = step.stage.optimizer
        self.optimizer = torch.optim.RAdam(
            self.predictor.parameters(),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            decoupled_weight_decay=True,
        )
        self.count()

    def loss(self) -> Tensor:
        step, stage = self.ours.step, self.ours.step.stage
        chosen = step.chosen(self.number)
        assert chosen is not None and step.images is not None
        return nern_loss(
            self.predictor,
            self.network,
            step.state,
            self.shapes,
            self.coordinates,
            self.positions,
            step.target,
            step.mask,
            chosen,
            step.images.take(self.number, stage.images)[0],
            (stage.reconstruction, stage.distillation, stage.features),
        )
