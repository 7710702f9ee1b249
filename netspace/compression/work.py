"""What the ways of `compress fit` share: the network and its judge, the settings, the folder; what a way returns.

Axes: B inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from netspace.compression import compensate
from netspace.compression.compensate import Compensation
from netspace.compression.correct import MAX_INPUTS
from netspace.compression.judging import Judge, likeness, merit
from netspace.config import Seed, Settings
from netspace.errors import unknown
from netspace.models.coded import Coded
from netspace.networks.outputs import Compare
from netspace.networks.spec import NetSpec
from netspace.precision import Precision
from netspace.streams import Stream, generator
from netspace.training.fit import Original

WAYS = ("rounded", "coded", "pruned", "coordinate", "mixed")


class Size(Settings):
    """How small the file is to be: one of the three."""

    bytes: int | None = Field(None, ge=1)  # of the file
    ratio: float | None = Field(None, gt=1)  # bytes of the original's weights over bytes of the file
    accuracy_drop: float | None = Field(None, ge=0, le=100)  # percentage points on validation images

    def limit(self, original: int) -> int | None:
        """Return the most bytes that the file of a network of `original` bytes may have; None if accuracy decides."""
        return int(original / self.ratio) if self.ratio is not None else self.bytes


class BudgetConfig(Settings):
    """How the best network in a number of bytes is looked for."""

    seed: Seed = 0  # of all random numbers
    budget: Size = Size()
    way: str | None = None  # the only way that is tried; none: all of them
    rivals: bool = False  # whether other codecs, plain rounding and a smaller student are in the table too
    pictures: str | None = None  # folder of pictures without labels
    picture_size: int = Field(224, ge=1)  # pixels
    normalise: str = "imagenet"  # of the pictures
    input_shape: tuple[Annotated[int, Field(ge=1)], ...] | None = None  # of one input of noise
    output: str | None = None  # which of several outputs is compared, by its path or index; none: all
    compare: Compare = (
        "auto"  # answers of logits, or values of outputs; auto: answers where one output (B, C) is compared
    )
    compensate: bool = (
        True  # let layers make up for errors of rounding, in `mixed` and where its training begins; networks are run
    )
    short_steps: int = Field(40, ge=0)  # of the training with which each way is tried; 0: none
    steps: int = Field(800, ge=0)  # of the training of the best way; 0: none
    predictor_steps: int = Field(150, ge=1)  # with which each order of a coordinate network is tried
    predictor_whole: int = Field(6000, ge=1)  # of its training, if it is the best
    images: int = Field(128, ge=1)  # inputs of a batch
    precision: Precision = "auto"  # in which networks are trained; auto: the faster one on this machine
    # other sizes that ways without training are measured at, in budgets
    curve: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = (0.5, 2.0)

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.way is not None and self.way not in WAYS:
            raise ValueError(str(unknown("way", self.way, WAYS)))
        return self


class CannotFit(Exception):
    """A way cannot be as small as asked, or cannot be gone at all: one sentence, and the fewest bytes if they are known."""

    def __init__(self, why: str, least: int | None = None) -> None:
        super().__init__(why)
        self.least = least


class NotInstalled(CannotFit):
    """A way needs a package that is not installed here: it may be, when the search is resumed."""


@dataclass(frozen=True)
class Made:
    """What a rival made of the network, whose file is not one of netspace's."""

    setting: str  # in words
    state: dict[str, Tensor]
    size: int  # bytes of the file
    module: nn.Module | None = None  # that runs the state, if the original's does not
    steps: int = 0  # of its training


@dataclass
class Work:
    """One search: the network, its judge, the settings and the folder."""

    model: str
    original: Original
    spec: NetSpec | None
    judge: Judge
    config: BudgetConfig
    folder: Path
    cache: dict[str, dict[str, float]] = field(default_factory=dict)  # of what several sizes share
    compensated: dict[int, tuple[Coded, str]] = field(
        default_factory=dict
    )  # files of so many bytes, and how they were made
    rounded_bytes: dict[int, int] = field(default_factory=dict)  # of files of rounded rows, by their bits
    _compensation: Compensation | None = None

    @property
    def student_steps(self) -> int:
        """The steps that a student is trained for: as many as the whole fit."""
        return max(self.config.steps, 1)

    def score(self, state: Mapping[str, Tensor]) -> tuple[float, float, float]:
        """Return how good a network is on what there is to choose by, more is better."""
        return merit(self.judge.measure(state))

    def likeness(self, state: Mapping[str, Tensor]) -> float:
        """Return how like the original's the answers of a network are on what there is to choose by, more is better."""
        return likeness(self.judge.measure(state))

    def correction_inputs(self, count: int = MAX_INPUTS) -> Tensor | None:
        """Return at most `count` inputs (B, ...) to correct a rounded network by; None if networks are not run."""
        task, inputs = self.original.task, self.judge.inputs
        if inputs.kind == "task" and task is not None:
            random = generator(self.config.seed, Stream.CORRECTION_IMAGES)
            chosen = torch.randperm(len(task.train), generator=random)[:count]
            return task.normalise(task.train.take(chosen).images)
        return None if inputs.train is None else inputs.train[:count].to(self.judge.device)

    def compensation(self) -> Compensation | None:
        """Return what rounds the network so that layers make up for errors; None if networks are not run, or it is not wanted."""
        if self._compensation is None and self.config.compensate and self.original.module is not None:
            inputs = self.correction_inputs(compensate.MAX_INPUTS)
            if inputs is not None:
                self._compensation = Compensation.of(self.original.module, self.original.state, inputs)
        return self._compensation

    def matrices(self) -> Mapping[str, Tensor]:
        """Return the weights with more than one axis: what is coded."""
        return {name: self.original.state[name] for name in self.judge.represented}


def short_types(state: Mapping[str, Tensor]) -> dict[str, Literal["half"]]:
    """Return the names of tensors that 16 bits hold to within a thousandth of each value."""
    names: dict[str, Literal["half"]] = {}
    for name, value in state.items():
        if value.is_floating_point() and value.element_size() > 2 and value.numel():
            short = value.half().to(value.dtype)
            if bool(((short - value).abs() <= 1e-3 * value.abs()).all()) and bool(torch.isfinite(short).all()):
                names[name] = "half"
    return names
