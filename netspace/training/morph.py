"""Training the weights of a network as a function of coordinates, so that it is good at every width (NeuMeta, Sec. 3.4).

In stages: first the function learns a network's weights, without data; then each step runs networks of several widths on
a batch of the task (Eq. 10). The grid begins at the weights and needs no first stage.

Axes: G groups of channels, B inputs of a batch, K networks of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call

from netspace.config import Seed, Settings
from netspace.models.weight_function import FunctionConfig, WeightFunction
from netspace.networks.resizing import recalibrate
from netspace.networks.widths import Widths, flexible, resized
from netspace.precision import Precision, choose
from netspace.streams import Stream, generator
from netspace.tasks import DataConfig, Task
from netspace.training.batches import Images, autocast
from netspace.training.loop import Learner, Loop, Stage, Validation, make_accelerator, step_trial
from netspace.training.network import calibration, network_score
from netspace.training.optimizers import OptimizerConfig


class WidthsConfig(Settings):
    """Which widths are trained in a step."""

    narrowest: float = Field(0.5, gt=0, lt=1)  # compression rate gamma of the narrowest network that is trained
    random: int = Field(2, ge=0)  # networks of a random gamma between 0 and that
    each_group: bool = False  # these have a gamma for each group of channels by itself
    sandwich: bool = True  # the full and the narrowest network too, in every step (US-Net)
    smooth: float = Field(0.0, ge=0, le=1)  # fraction of the random networks whose function is smoothed
    band: float = Field(0.2, gt=0, le=1)  # the smoothest, as a fraction of the channels at full width

    @model_validator(mode="after")
    def _has_networks(self) -> Self:
        if not (self.sandwich or self.random):
            raise ValueError("a step without sandwich and random networks trains none")
        return self


class MorphLossConfig(Settings):
    """The terms of Eq. 10 and their weights; the task's has weight 1."""

    distillation: bool = (
        True  # narrower networks learn the outputs of the full one in the same step (US-Net), not the targets
    )
    reconstruction: float = Field(0.0, ge=0)  # lambda 1: the full network's weights stay near those of the network
    fade: float = Field(
        1.0, gt=0, le=1
    )  # fraction of the stage after which reconstruction has faded to 0; 1: it does not fade
    regularisation: float = Field(0.0, ge=0)  # lambda 2: weight of the squared norm of all weights


class MorphStageConfig(Settings):
    """One stage of the training, with an optimiser of its own."""

    learns: Literal["weights", "widths"] = "widths"  # weights: those of the network, without data; widths: the task
    epochs: float | None = Field(None, gt=0)  # passes over the training inputs; none: `steps`
    steps: int | None = Field(None, ge=1)  # of the optimiser; none: `epochs`
    optimizer: OptimizerConfig = OptimizerConfig(name="adam", learning_rate=0.005, schedule="cosine")

    @model_validator(mode="after")
    def _has_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("a stage has epochs or steps")
        if self.learns == "weights" and self.steps is None:
            raise ValueError("a stage that learns weights sees no inputs, so it has steps and no epochs")
        return self


class MorphConfig(Settings):
    """The recipe of a morph: how a network's weights become a function of its size."""

    bundled: ClassVar[str] = "morph"

    seed: Seed = 0  # of all random numbers
    data: DataConfig | None = None  # the task of a network that is no member of a zoo; none: that of the zoo
    start: Literal["network", "nothing"] = "network"  # nothing: fresh weights of the same architecture
    batch_norm: Literal["keep", "fold"] = "keep"  # keep: each width gets statistics of its own after sampling
    order: bool = True  # permute channels, so that neighbours are alike (Eq. 8)
    function: FunctionConfig = FunctionConfig()
    sampling: Literal["expected", "noisy"] = (
        "expected"  # weights in training: the mean of a neighbourhood, or one draw (Eq. 9)
    )
    widths: WidthsConfig = WidthsConfig()
    loss: MorphLossConfig = MorphLossConfig()
    tensors: float = Field(1.0, gt=0, le=1)  # fraction of the tensors that get gradients in a step, drawn anew
    stages: tuple[MorphStageConfig, ...] = Field((MorphStageConfig(epochs=6),), min_length=1)  # one after the other
    batch_size: int = Field(128, ge=2)  # inputs
    precision: Precision = "auto"  # of the networks that are run; auto: the faster one on this machine
    log_every: int = Field(50, ge=1)  # steps
    validate_every: int = Field(500, ge=1)  # steps


class Morphing(nn.Module):
    """A weight function and the network whose weights it gives, which has batch norm of each batch's statistics."""

    def __init__(self, module: nn.Module, info: Widths, function: WeightFunction) -> None:
        super().__init__()
        self.info, self.function = info, function
        self.net = flexible(module)
        for value in self.net.parameters():
            value.requires_grad_(False)

    def forward(self, inputs: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the outputs of a network with these weights for inputs (B, ...)."""
        output: Tensor = functional_call(self.net, dict(weights), (inputs,))
        return output


class MorphLearner(Learner):
    """A weight function in training; validation at three trained widths chooses the weights that are kept."""

    name = "morph"

    def __init__(
        self,
        module: nn.Module,
        info: Widths,
        function: WeightFunction,
        task: Task | None,
        config: MorphConfig,
        save: Path | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """`module` has the weights that the function learns, its channels in order; it is not changed."""
        self.module, self.info, self.task, self.config = module, info, task, config
        self.device = task.device if task is not None else torch.device("cpu")
        self.model = Morphing(module, info, function).to(self.device).train()
        self.function = self.model.function
        self.target = {name: value.detach().to(self.device) for name, value in module.named_parameters()}
        self.log_every, self.validate_every = config.log_every, config.validate_every
        self.images = Images(task, config.seed) if task is not None else None
        self.own = slice(rank, None, world_size)
        self.stages = [Stage(self._steps(each), each.optimizer) for each in config.stages]
        self.best: dict[str, Tensor] = {}
        narrowest = config.widths.narrowest
        self.validated = tuple(dict.fromkeys((info.full(), info.at(narrowest / 2), info.at(narrowest))))
        self.networks = [resized(module, info, each, 0).to(self.device) for each in self.validated]

    def _steps(self, stage: MorphStageConfig) -> int:
        if stage.steps is not None:
            return stage.steps
        assert self.task is not None and stage.epochs is not None
        return max(1, round(stage.epochs * self.task.size("train") / self.config.batch_size))

    def begin(self, stage: int) -> None:
        """Begin with the best weights so far."""
        self.stage, self.number = self.config.stages[stage], stage
        self.steps = self.stages[stage].steps
        if self.best:
            self.function.load_state_dict(self.best)

    def terms(self, model: nn.Module, number: int, part: int) -> dict[str, Tensor]:
        """Return the terms of Eq. 10."""
        full = self.info.full()
        if self.stage.learns == "weights":
            return {"reconstruction": weight_error(self._weights(full, number, None, None), self.target)}
        names, random = self._trained_tensors(number), self._random(number, 0)
        assert self.images is not None and self.task is not None
        inputs, index = self.images.take(number, self.config.batch_size)
        inputs, targets = inputs[self.own], self.task.targets("train", index[self.own])
        terms: dict[str, list[Tensor]] = {}
        teacher: Tensor | None = None
        for position, (widths, band) in enumerate(self.choices(random)):
            weights = self._weights(widths, number, band, names, position)
            with autocast(self.config.precision, self.device):
                outputs = model(inputs, weights)
            outputs = outputs.float()
            if teacher is None or not self.config.loss.distillation:
                terms.setdefault("task", []).append(self.task.training_loss(outputs, targets))
            else:
                terms.setdefault("distillation", []).append(self.task.behaviour_loss(outputs, teacher))
            if position == 0:
                teacher = outputs.detach() if self.config.widths.sandwich else None
                more = self._weight_terms(weights, widths, number, names)
                terms |= {name: [value] for name, value in more.items()}
        return {name: torch.stack(values).sum() for name, values in terms.items()}

    def choices(self, random: torch.Generator) -> list[tuple[tuple[int, ...], float | None]]:
        """Return the widths of a step's networks, and to which band each one's function is smoothed."""
        config, groups = self.config.widths, len(self.info.groups)
        drawn = config.narrowest * torch.rand(config.random, groups if config.each_group else 1, generator=random)
        chosen: list[tuple[tuple[int, ...], float | None]] = []
        if config.sandwich:
            chosen = [(self.info.full(), None), (self.info.at(config.narrowest), None)]
        for row in drawn.expand(-1, groups).tolist():
            smooth, band = torch.rand(2, generator=random).tolist()
            widths = tuple(self.info.at(gamma)[group] for group, gamma in enumerate(row))
            chosen.append((widths, config.band**band if smooth < config.smooth else None))
        return chosen

    def _weights(
        self,
        widths: Sequence[int],
        number: int,
        band: float | None,
        names: set[str] | None,
        position: int = 0,
    ) -> dict[str, Tensor]:
        if self.config.sampling == "noisy":
            return self.function.noisy(widths, self._random(number, 1 + position), names)
        return self.function(widths, band, names)

    def _weight_terms(
        self, weights: Mapping[str, Tensor], widths: Sequence[int], number: int, names: set[str] | None
    ) -> dict[str, Tensor]:
        """Return the terms of the weights of a step's first network; those of the full one are near the network's."""
        loss, terms = self.config.loss, {}
        faded = 1.0 if loss.fade == 1 else max(0.0, 1 - number / (loss.fade * self.steps))
        if loss.reconstruction and faded:
            full = self.info.full()
            whole = weights if tuple(widths) == full else self._weights(full, number, None, names)
            terms["reconstruction"] = loss.reconstruction * faded * weight_error(whole, self.target)
        if loss.regularisation:
            squares = torch.stack([value.square().sum() for value in weights.values()])
            terms["regularisation"] = loss.regularisation * squares.sum()
        return terms

    def _trained_tensors(self, number: int) -> set[str] | None:
        if self.config.tensors == 1:
            return None
        names = [each.name for each in self.function.layouts]
        count = max(1, round(self.config.tensors * len(names)))
        order = torch.randperm(
            len(names), generator=generator(self.config.seed, Stream.MORPH_TENSORS, self.number, number)
        )
        return {names[index] for index in order[:count].tolist()}

    def _random(self, number: int, part: int) -> torch.Generator:
        return generator(self.config.seed, Stream.DRAWN_WIDTHS, self.number, number, part)

    def validate(self) -> Validation:
        """Score networks at full width, half way to the narrowest, and at the narrowest; without a task, the weights' error."""
        with torch.no_grad():
            error = float(weight_error(self.function(self.info.full()), self.target))
        if self.task is None or self.stage.learns == "weights":
            return Validation({"weight_error": error}, (-error,), f"weight error {error:.3f}")
        scores = []
        for widths, network in zip(self.validated, self.networks, strict=True):
            fill(network, self.function, widths)
            recalibrate(network, calibration(self.task, self.config.seed, self.config.batch_size))
            scores.append(network_score(network, self.task, "val"))
        merits = [float(self.task.merit(score)) for score in scores]
        figures: dict[str, float | None] = {"weight_error": error}
        figures |= {f"val_score_{index}": score for index, score in enumerate(scores)}
        note = "val " + ", ".join(f"{score:.3f}" for score in scores)
        return Validation(figures, (sum(merits) / len(merits),), note)

    def save_best(self, weights: dict[str, Tensor]) -> None:
        """Keep the weights for the next stage, or as the result."""
        prefix = "function."
        self.best = {
            name.removeprefix(prefix): value.detach().clone()
            for name, value in weights.items()
            if name.startswith(prefix)
        }

    def state(self) -> dict[str, Any]:
        """Return the best weights."""
        return {"best": self.best}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.best = {name: value.to(self.device) for name, value in state["best"].items()}

    def timed_precision(self) -> dict[str, str]:
        """Return `precision` as the settings ask for it, or for 'auto' the one in which a step is fastest here."""
        config, number = (
            self.config,
            next((n for n, each in enumerate(self.config.stages) if each.learns == "widths"), None),
        )
        if self.task is None or number is None:
            return {"precision": "float32"}
        self.begin(number)

        def make(precision: dict[str, str]) -> Callable[[], dict[str, Tensor]]:
            def terms() -> dict[str, Tensor]:
                self.config = config.model_copy(update=precision)
                return self.terms(self.model, 0, 0)

            return terms

        sizes = [tuple(value.shape) for value in self.target.values()]
        subject = f"morph {sizes} {config.function} {config.widths} {config.batch_size} {self.task.input_shape}"
        try:
            return choose(subject, {"precision": config.precision}, step_trial(make, self.model), self.device)
        finally:
            self.config = config

    def run(self, out: Path) -> WeightFunction:
        """Train all stages and return the function with the best weights; go on from the checkpoint in the folder `out`."""
        accelerator, _ = make_accelerator(self.device)
        Loop(self, accelerator, out / "metrics.jsonl", out / "last.pt").run()
        self.function.load_state_dict(self.best)
        return self.function


def weight_error(weights: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
    """Return the squared relative error of weights, each tensor in units of its own, weighted by |w| / max |w|.

    The mean over all weights, so that large tensors count by their size.
    """
    errors, count = [], 0
    for name, value in weights.items():
        expected = target[name]
        weight = expected.abs() / expected.abs().max().clamp_min(1e-12)
        scale = (weight * expected.square()).sum().clamp_min(1e-12)
        errors.append((weight * (value - expected).square()).sum() / scale * expected.numel())
        count += expected.numel()
    return torch.stack(errors).sum() / count


@torch.no_grad()
def fill(network: nn.Module, function: WeightFunction, widths: Sequence[int]) -> None:
    """Give a network of these widths (G,) the weights of a function there."""
    parameters = dict(network.named_parameters())
    for name, value in function(widths).items():
        parameters[name].copy_(value)
