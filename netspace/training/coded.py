"""Training a network's integers so that their file fits a number of bytes and the network still answers alike.

The loss is distillation from the original (of outputs that are no logits: their squared relative error), the task's own where labels
are known, and a price of each byte. The price is
controlled: it rises while the integers take more bytes than they should at that step, and falls while they take fewer. So the
size goes down to the budget over the first part of the steps and stays there, and which weights become zero, and how coarse each
tensor is, is learnt (entropy-constrained quantisation: Oktay et al. 2020; steps as in Esser et al. 2020).
Axes: B inputs, C outputs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from netspace import losses
from netspace.config import Seed, Settings
from netspace.hardware import send
from netspace.models.coded import Coded
from netspace.models.rounded_weights import RoundedWeights, Steps
from netspace.networks.kernels import Kernels, further_names
from netspace.networks.outputs import Outputs
from netspace.networks.rounding import Codes
from netspace.networks.state_dict import map_tensors, run_types, run_with_maps
from netspace.precision import Precision, choose
from netspace.streams import Stream
from netspace.training.batches import CACHE_BYTES, Images, RowCache, Shuffle, autocast
from netspace.training.fit import Original
from netspace.training.loop import Learner, Loop, Stage, Validation, make_accelerator, step_trial
from netspace.training.optimizers import OptimizerConfig

AIM = 0.985  # of the budget, which the size is controlled to
RAMP = 0.6  # of the steps, after which the size is that of the budget
INTEGRAL, PROPORTIONAL = 0.15, 4.0  # of the controller, in logarithms of the price and of the size
FIRST_PRICE = 0.06  # of the whole budget, in units of the loss
PRICES = 1e-4, 1e2  # between which the integral stays
OUTPUT_WEIGHT = 0.03  # of the logarithm of errors of outputs, so that their scale does not decide what bytes are worth
LEAST_ERROR = 1e-12  # squared and relative, which counts as none
TRIMS = 20  # files that are made to find how many of the smallest integers have to go
TRIAL_INPUTS = 32  # of a batch with which the precision is timed


class CodedConfig(Settings):
    """How a network's integers are trained."""

    steps: int = Field(800, ge=1)
    images: int = Field(128, ge=1)  # inputs of a batch
    # rates of weights in units of their root mean square, and of the logarithms of steps
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=0.03, elementwise_rate=0.03, schedule="cosine", warmup=20
    )
    temperature: float = Field(2.0, gt=0)  # of distillation
    labels: float = Field(0.3, ge=0)  # weight of the task's own loss, where labels are known
    features: float = Field(0.0, ge=0)  # weight of the distances of feature maps
    learnt_steps: Steps = "each"  # a step for each tensor, one factor for all, or one for each row
    bits: int | None = Field(None, ge=2, le=8)  # integers are clamped to these; none: their size is controlled
    sparse: bool = False  # integers that are zero at the start stay zero
    precision: Precision = "auto"  # in which networks are run
    seed: Seed = 0  # of the order of inputs


@dataclass(frozen=True)
class Start:
    """The network that training begins with, and what its file is to be."""

    original: Original
    codes: Mapping[str, Codes]  # of the tensors that are coded, all of them with more than one axis
    limit: int  # bytes of the file
    container: Callable[[Mapping[str, Codes], Mapping[str, Tensor]], Coded]  # the file of codes and a state dict
    score: Callable[[Mapping[str, Tensor]], tuple[float, ...]]  # of a state dict, by which the best one is chosen
    inputs: Tensor | None = None  # (N, ...) to learn from where there is no task
    outputs: Outputs = field(default_factory=Outputs)  # what is learnt of the original
    tensors: Mapping[str, Tensor] = field(default_factory=dict)  # that training begins with instead of the original's


class CodedLearner(Learner):
    """A network's integers in training. The best that fits is kept; if none does, the last, which `result` trims."""

    name = "coding"
    model: RoundedWeights

    def __init__(self, start: Start, config: CodedConfig, device: torch.device | str = "cpu") -> None:
        """Take a network that can be run, and its task or inputs."""
        original = start.original
        assert original.module is not None
        self.start, self.config, self.device = start, config, torch.device(device)
        self.module = copy.deepcopy(original.module).to(self.device).eval()
        self.state_dict = map_tensors(run_types(original.state, self.module), lambda value: value.to(self.device))
        self.tied = further_names(original.state)
        self.model = RoundedWeights(
            {
                name: start.tensors.get(name, value).to(value)
                for name, value in self.state_dict.items()
                if name not in self.tied
            },
            {name: codes for name, codes in start.codes.items() if name not in self.tied},
            self._vectors(),
            config.learnt_steps,
            config.bits,
            config.sparse,
        ).to(self.device)
        self.layers = Kernels.of(original.state, module=original.module).layers if config.features else ()
        task = original.task
        self.images = None if task is None else Images(task, config.seed)
        self.shuffle = None if start.inputs is None else Shuffle(len(start.inputs), config.seed, Stream.INPUTS)
        fixed = self.images is None or self.images.fixed is not None
        count = len(task.train) if task is not None else len(start.inputs if start.inputs is not None else [])
        self.cache = RowCache(count) if fixed and not config.features else None  # of few and small outputs
        self.count = count
        self.stages = [Stage(config.steps, config.optimizer)]
        self.log_every, self.validate_every = max(config.steps // 20, 1), max(config.steps // 5, 1)
        self.log_price, self.best = math.log(FIRST_PRICE), dict[str, Tensor]()
        self.offset = 0.0  # bytes of the file beyond those that are expected of its integers
        with torch.no_grad():
            self.first_size = float(self.model()[1])
        self.measure_size()

    def _vectors(self) -> list[str]:
        """Return the parameters of one axis that are learnt too."""
        assert self.start.original.module is not None
        parameters = {name for name, _ in self.module.named_parameters(remove_duplicate=False)}
        return [
            name
            for name, value in self.state_dict.items()
            if name in parameters and name not in self.tied and name not in self.start.codes and value.dim() == 1
        ]

    def measure_size(self) -> None:
        """Compare the expected bytes with those of the file that would be written now."""
        with torch.no_grad():
            expected = float(self.model()[1])
        self.offset = self.made().file_bytes() - expected

    def made(self, codes: Mapping[str, Codes] | None = None) -> Coded:
        """Return the file of the network as it is now, or with other codes."""
        return self.start.container(self.model.codes() if codes is None else codes, self.start.original.state)

    def goal(self, number: int) -> float:
        """Return the bytes that the file should have at a step: falling to the budget as a geometric sequence."""
        last = AIM * self.start.limit
        first = max(self.first_size + self.offset, last)
        return first * (last / first) ** min(1.0, number / (RAMP * self.config.steps))

    def terms(self, model: nn.Module, number: int, part: int) -> dict[str, Tensor]:
        """Return distillation, the task's loss and the price of the bytes."""
        inputs, labels, index = self.batch(number)
        with autocast(self.config.precision, self.device):
            target, maps = self.targets(inputs, index)
        state, size, penalty = model()
        state = {**state, **{name: state[first] for name, first in self.tied.items()}}
        with autocast(self.config.precision, self.device):
            given, own_maps = run_with_maps(self.module, state, inputs, self.layers)
        outputs = self.start.outputs.read(given)
        if self.start.outputs.logits:
            terms = {"distillation": losses.prediction_loss(outputs[0], target[0], self.config.temperature)}
            if labels is not None and self.config.labels:
                terms["labels"] = self.config.labels * F.cross_entropy(outputs[0].float(), labels)
        else:
            error = losses.output_loss(outputs, target)
            terms = {"distillation": OUTPUT_WEIGHT * (error + LEAST_ERROR).log()}
        if self.layers:
            terms["features"] = losses.feature_loss(own_maps, maps, self.config.features)
        if self.config.bits is None:
            terms["bytes"] = self.price(float(size), number) * penalty / self.start.limit
        return terms

    def price(self, size: float, number: int) -> float:
        """Return the price of the whole budget, given the bytes expected of the integers at a step."""
        error = math.log(max(size + self.offset, 1.0) / self.goal(number))
        low, high = (math.log(each) for each in PRICES)
        self.log_price = min(max(self.log_price + INTEGRAL * error, low), high)
        return math.exp(min(self.log_price + PROPORTIONAL * error, high))

    def batch(self, number: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return a step's inputs (B, ...), their labels (B,) if they are known, and their indices if they do not change."""
        count, task = self.config.images, self.start.original.task
        if self.images is not None and task is not None:
            inputs, index = self.images.take(number, count)
            labels = task.targets("train", index)
            index_cpu = self.images.indices(number, count) if self.images.fixed is not None else None
            return self._fast(inputs), labels, index_cpu
        assert self.start.inputs is not None and self.shuffle is not None
        index = self.shuffle.take(number * count, count)
        return self._fast(send(self.start.inputs[index], self.device)), None, index

    @torch.no_grad()
    def targets(self, inputs: Tensor, index: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        """Return the original's outputs, such as logits (B, C), and its feature maps if they are to be learnt."""

        def compute() -> tuple[list[Tensor], list[Tensor]]:
            given, maps = run_with_maps(self.module, self.state_dict, inputs, self.layers)
            return [each.float() for each in self.start.outputs.read(given)], maps

        if index is None or self.cache is None:
            return compute()
        first = None if self.cache.tables else compute()
        if first is not None and not self._cacheable(first[0], len(inputs)):
            self.cache = None
            return first
        tables, rows = self.cache.take(index, lambda: (first or compute())[0])
        return [table[rows] for table in tables], []

    def _cacheable(self, outputs: list[Tensor], count: int) -> bool:
        """Return whether outputs have a row for each of `count` inputs, and those of all inputs fit in memory."""
        rows = all(each.dim() and len(each) == count for each in outputs)
        return rows and 4 * sum(each[0].numel() for each in outputs) * self.count <= CACHE_BYTES

    def validate(self) -> Validation:
        """Measure the size and, once it may fit, the score."""
        self.measure_size()
        made = self.made()
        size = made.file_bytes()
        fits = size <= self.start.limit
        if not fits:
            return Validation({"bytes": size}, (0.0, -float(size)), f"{size:,} bytes")
        score = self.start.score(made.reconstruct())
        return Validation(
            {"bytes": size, "score": score[0 if self.start.outputs.logits else -1]}, (1.0, *score), f"{size:,} bytes"
        )

    def save_best(self, weights: dict[str, Tensor]) -> None:
        """Keep the weights; checkpoints have them."""
        self.best = {name: value.detach().clone() for name, value in weights.items()}

    def state(self) -> dict[str, Any]:
        """Return the controller's state and the weights that are kept."""
        return {"log_price": self.log_price, "offset": self.offset, "best": self.best}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.log_price, self.offset = float(state["log_price"]), float(state["offset"])
        self.best = {name: value.to(self.device) for name, value in state["best"].items()}

    def result(self) -> Coded:
        """Return the file of the best network; integers of +-1 are set to zero, the nearest to it first, until it fits."""
        if self.best:
            self.model.load_state_dict(self.best)
        made = self.made()
        if self.config.bits is not None or made.file_bytes() <= self.start.limit:
            return made
        return trimmed(self.model, self.made, self.start.limit)

    def _fast(self, inputs: Tensor) -> Tensor:
        """Return inputs in the memory format in which convolutions are fastest under autocast."""
        fast = self.config.precision == "bf16" and inputs.dim() == 4
        return inputs.contiguous(memory_format=torch.channels_last) if fast else inputs


@torch.no_grad()
def trimmed(model: RoundedWeights, make: Callable[[Mapping[str, Codes]], Coded], limit: int) -> Coded:
    """Return the largest file of at most `limit` bytes in which the smallest weights, in units of their steps, are zero.

    If even all zeros are too large, the file of those is returned.
    """
    codes = model.codes()
    exact = {name: model.integers(index)[1].abs().cpu() for index, name in enumerate(model.names)}
    low, high = (
        0.0,
        1.0 + max(float(value.max()) for value in exact.values()),
    )  # of the magnitude below which they are zero
    best = None
    for _ in range(TRIMS):
        middle = (low + high) / 2 if best is not None or low else min(1.0, high)
        fewer = {
            name: Codes(torch.where(exact[name] < middle, 0, each.values), each.steps) if name in exact else each
            for name, each in codes.items()
        }
        made = make(fewer)
        if made.file_bytes() <= limit:
            best, high = made, middle
        else:
            low = middle
    return best or make({name: Codes(torch.zeros_like(each.values), each.steps) for name, each in codes.items()})


def train_coded(start: Start, config: CodedConfig, folder: Path, device: torch.device | str = "cpu") -> Coded:
    """Train a network's integers, from the checkpoint in `folder` on if there is one; return the file of the best.

    The folder gets the checkpoint `last.pt` and the records `metrics.jsonl`. Raises as `Loop.run`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    accelerator, own = make_accelerator(torch.device(device))
    learner = CodedLearner(start, fastest(start, config, own), own)
    Loop(learner, accelerator, folder / "metrics.jsonl", folder / "last.pt").run()
    return learner.result()


def fastest(start: Start, config: CodedConfig, device: torch.device) -> CodedConfig:
    """Return the settings with the precision that is fastest for a step here, if it is 'auto'."""
    if config.precision != "auto":
        return config
    small = config.model_copy(update={"images": min(config.images, TRIAL_INPUTS)})
    shapes = sorted((name, tuple(value.shape)) for name, value in start.original.state.items())
    learner = CodedLearner(start, small.model_copy(update={"precision": "float32"}), device)

    def make(precision: dict[str, str]) -> Callable[[], dict[str, Tensor]]:
        each = CodedLearner(start, small.model_copy(update=precision), device)
        return lambda: each.terms(learner.model, 0, 0)

    asked: dict[str, Precision] = {"precision": "auto"}
    chosen = choose(f"coded {shapes} {small.images}", asked, step_trial(make, learner.model), device)
    return config.model_copy(update=chosen)
