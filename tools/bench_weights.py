"""The contestants of `tools/bench.py morph`: weights of a morph's networks, and steps of its training, ours and plain ones.

Sampling: all weights of a network at gamma 0.5 (NeuMeta, Eq. 9). The plain side takes the mean of K = 50 noisy draws, each of all
coordinates of a tensor at once; ours their expectation.

A step: the sandwich rule's four networks (the full width, the narrowest, two at random), each with its weights, its forward pass and
its loss, one after another; backward; Adam. The plain sides make weights as one would write it down:

- grid, by kernels: each kernel is interpolated from the four next to it, in a loop over output and input channels;
- grid, by channels: along each axis, each channel is interpolated from the two next to it, in a loop over channels;
- MLPs, by tensors: coordinates (Eq. 3) are listed in a loop over output and input channels, then embedded and put through the tensor's
  MLP all at once.

Noise is 0 in steps, so that all sides compute the same weights. Axes: n m output and input channels, N coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from bench_cases import Case, PlainSteps, Steps
from torch import Tensor
from torch.func import functional_call

from netspace import archs
from netspace.models.weight_function import FunctionConfig, Layout
from netspace.models.weight_grid import WeightGrid
from netspace.models.weight_mlps import SIZE, ResidualMlp, WeightMlps
from netspace.networks.widths import find_widths
from netspace.process import keep_freed_memory
from netspace.saved_morph import make_function
from netspace.streams import Stream, generator
from netspace.tasks import DataConfig, load
from netspace.training.morph import MorphConfig, MorphLearner
from netspace.training.optimizers import Optimizer

DRAWS = 50  # K of Eq. 9
GAMMA = 0.5
Loop = Literal["kernels", "channels", "tensors"]


@dataclass(frozen=True)
class WeightsCase(Case):
    """A morph of random weights."""

    kind = "morph"
    config: MorphConfig
    arch: str
    width: float
    data: DataConfig
    steps: int  # timed together; networks, of sampling
    loop: Loop | None = None  # of a step's plain side; none: sampling

    def learner(self, device: torch.device) -> MorphLearner:
        """Return the learner of `netspace morph fit` in the case."""
        task = load(self.data, device=device)
        settings = archs.task_settings(self.arch, {"width": self.width}, task.input_shape, task.num_outputs)
        torch.manual_seed(self.config.seed)
        module = archs.build(self.arch, **settings)
        info = find_widths(module, task.inputs("train", slice(2)), self.arch)
        function = make_function(module, info, self.config.function, self.config.seed)
        function.start(dict(module.named_parameters()))
        learner = MorphLearner(module, info, function, task, self.config)
        learner.begin(0)
        return learner


def weights_cases(quick: bool) -> list[WeightsCase]:
    """Return the cases of a ResNet20 on grey images of 14 x 14, as in docs/benchmarks-morph.md; tiny ones if `quick`.

    Where a step of the plain side takes seconds, it is a ResNet8's, or one of half its width.
    """
    arch, small_arch, half, width = ("resnet8", "resnet8", 0.2, 0.2) if quick else ("resnet20", "resnet8", 0.5, 1.0)
    side, limit, batch = (8, 16, 4) if quick else (14, 512, 64)
    data = DataConfig(name="generated", image_size=side, channels=1, limit=limit)
    small = {"hidden": 8, "layers": 3, "frequencies": 2} if quick else {}

    def case(name: str, kind: Literal["grid", "mlps"], loop: Loop | None, arch: str, width: float) -> WeightsCase:
        function = FunctionConfig(kind=kind, noise=0.5 if loop is None else 0.0, **small)
        config = MorphConfig(function=function, batch_size=batch)
        return WeightsCase(f"{name}, {arch} x {width:g}", config, arch, width, data, 1, loop)

    return [
        case("sampling, grid", "grid", None, arch, width),
        case("sampling, MLPs", "mlps", None, arch, width),
        case("step, grid by kernels", "grid", "kernels", small_arch, half),
        case("step, grid by channels", "grid", "channels", arch, width),
        case("step, MLPs by tensors", "mlps", "tensors", small_arch, half),
    ]


class OurWeights(Steps):
    """Sampling: expectations. A step: the learner's own."""

    def __init__(self, case: WeightsCase, device: torch.device) -> None:
        keep_freed_memory()
        self.case, self.learner = case, case.learner(device)
        stage = self.learner.stages[0]
        self.optimizer = Optimizer(self.learner.model, stage.optimizer, stage.steps)

    def loss(self) -> Tensor:
        return torch.stack(list(self.learner.terms(self.learner.model, self.number, 0).values())).sum()

    def run(self) -> None:
        if self.case.loop is not None:
            super().run()
            return
        with torch.no_grad():
            self.weights()

    def weights(self) -> dict[str, Tensor]:
        return self.learner.function(self.learner.info.at(GAMMA))


class PlainWeights(PlainSteps):
    """The same, plain; from the same weights, at the same widths, on the same images."""

    def __init__(self, case: WeightsCase, device: torch.device) -> None:
        self.case, self.learner = case, case.learner(device)
        self.function = self.learner.function
        self.optimizer = torch.optim.Adam(self.function.parameters(), lr=self.learner.stages[0].optimizer.learning_rate)
        self.flops, self.loop = 0, case.loop
        if case.loop is not None:
            # only products and convolutions are counted, which neither loop of a grid has; over kernels it takes a minute
            self.loop = "channels" if case.loop == "kernels" else case.loop
            self.count()
            self.loop = case.loop

    def run(self) -> None:
        if self.case.loop is not None:
            super().run()
            return
        info = self.learner.info
        self.function.mean_of_draws(info.at(GAMMA), DRAWS, generator(0, Stream.MORPH_DRAWS))

    def loss(self) -> Tensor:
        learner, task = self.learner, self.learner.task
        assert learner.images is not None and task is not None
        inputs, index = learner.images.take(self.number, learner.config.batch_size)
        targets, teacher, losses = task.targets("train", index), None, []
        drawn = generator(learner.config.seed, Stream.DRAWN_WIDTHS, 0, self.number, 0)
        for widths, _ in learner.choices(drawn):
            outputs = functional_call(learner.model.net, self.weights(widths), (inputs,))
            if teacher is None:
                losses.append(task.training_loss(outputs, targets))
                teacher = outputs.detach()
            else:
                losses.append(task.behaviour_loss(outputs, teacher))
        return torch.stack(losses).sum()

    def weights(self, widths: Sequence[int]) -> dict[str, Tensor]:
        """Return the parameters of a network at widths (G,), tensor by tensor."""
        return {layout.name: self.tensor(layout, widths) for layout in self.function.layouts}

    def tensor(self, layout: Layout, widths: Sequence[int]) -> Tensor:
        counts = [axis.length(widths) for axis in layout.axes]
        scale = layout.fan_in(self.learner.info.full()) / layout.fan_in(widths)
        if isinstance(self.function, WeightMlps):
            return scale * by_tensors(self.function, layout, counts)
        assert isinstance(self.function, WeightGrid)
        value = self.function.values[self.function.index[layout.name]]
        return scale * (by_kernels if self.loop == "kernels" else by_channels)(value, counts)


def neighbours(channel: int, count: int, size: int) -> tuple[int, int, float]:
    """Return the two values, of `size`, next to a channel of `count`, and the weight of the second."""
    position = min(max((channel + 0.5) * size / count - 0.5, 0.0), size - 1.0)
    low = min(int(position), max(size - 2, 0))
    return low, min(low + 1, size - 1), position - low


def by_kernels(value: Tensor, counts: Sequence[int]) -> Tensor:
    """Return a parameter with `counts` channels along its first axes: kernel after kernel."""
    rows = []
    for i in range(counts[0]):
        low, high, upper = neighbours(i, counts[0], value.shape[0])
        if len(counts) == 1:
            rows.append((1 - upper) * value[low] + upper * value[high])
            continue
        kernels = []
        for j in range(counts[1]):
            left, right, further = neighbours(j, counts[1], value.shape[1])
            first = (1 - further) * value[low, left] + further * value[low, right]
            second = (1 - further) * value[high, left] + further * value[high, right]
            kernels.append((1 - upper) * first + upper * second)
        rows.append(torch.stack(kernels))
    return torch.stack(rows)


def by_channels(value: Tensor, counts: Sequence[int]) -> Tensor:
    """Return a parameter with `counts` channels along its first axes: channel after channel, axis after axis."""
    for axis, count in enumerate(counts):
        channels = []
        for i in range(count):
            low, high, upper = neighbours(i, count, value.shape[axis])
            channels.append((1 - upper) * value.select(axis, low) + upper * value.select(axis, high))
        value = torch.stack(channels, axis)
    return value


def by_tensors(function: WeightMlps, layout: Layout, counts: Sequence[int]) -> Tensor:
    """Return a parameter with `counts` channels along its first axes, all coordinates through its MLP at once."""
    outputs, inputs = counts[0], counts[1] if len(counts) > 1 else 1
    coordinates = []
    for i in range(outputs):
        for j in range(inputs):
            position_in = (j + 0.5) / inputs if len(counts) > 1 else 0.0
            coordinates.append(
                [
                    layout.layer / layout.depth,
                    position_in,
                    (i + 0.5) / outputs,
                    layout.depth / SIZE,
                    inputs / SIZE,
                    outputs / SIZE,
                ]
            )
    index = function.index[layout.name]
    mlp = function.mlps[index]
    assert isinstance(mlp, ResidualMlp)
    values = mlp(mlp.first(function.embedding(torch.tensor(coordinates, device=function.spread.device))))
    values = values * function.spread[index] + function.mean[index]
    return values.reshape(*counts, *layout.rest)
