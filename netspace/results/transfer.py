"""The result of `netspace compress transfer`."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

from pydantic import Field

from netspace.results import Number, Part, Result

Start = Literal["original", "rebuilt", "random"]  # weights that a training begins with
Tuned = Literal["whole", "last"]  # what is trained: all layers, or the last one alone
STARTS: tuple[Start, ...] = get_args(Start)
TUNED: tuple[Tuned, ...] = get_args(Tuned)


class TransferMark(Result):
    """`setup.json`: the hash of networks, data and settings that trainings were begun with."""

    setup: str


class Trial(Result):
    """`trial.json`: one training, at its best epoch by validation."""

    command: ClassVar[str] = "compress transfer"
    accuracy_val: float
    accuracy_test: float


class TransferRow(Part):
    """One start, tuned in one way: accuracies by seed, at the learning rate that validation images chose."""

    start: Start
    tuned: Tuned
    rate: float
    accuracy_val: list[float]
    accuracy_test: list[float]
    mean: float  # of test accuracies over seeds
    std: Number  # of a sample of seeds; None for a single one
    difference: Number = None  # mean over seeds of the test accuracy minus the original's of the same tuning and seed
    difference_std: Number = None


class Transfer(Result):
    """`netspace compress transfer` and its `transfer.json`."""

    command: ClassVar[str] = "compress transfer"
    file: str = "?"
    data: str
    classes: int
    images_train: int
    images_val: int
    images_test: int
    seeds: int
    epochs: int
    last_layer: str
    new_last: bool  # whether the last layer was replaced by a fresh one
    rows: list[TransferRow] = Field(min_length=1)
