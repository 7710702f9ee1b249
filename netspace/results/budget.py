"""Results of `netspace compress fit` with a size: the ways that were tried, and the one that was taken."""

from __future__ import annotations

from pydantic import Field

from netspace.results import Number, Part, Result
from netspace.results.compressed import FitResult


class Measured(Part):
    """A network compared with the original on one set of inputs."""

    accuracy: Number = None
    agreement: Number = None
    divergence: Number = None  # KL from the original's answers, nats
    output_error: Number = None  # relative, a mean over outputs; None: answers are compared
    relative_error: Number = None  # of the weights; None: not comparable


class Tried(Result):
    """A way to represent the network in a number of bytes, as one file of `candidates` keeps it."""

    way: str
    setting: str = ""  # what makes it fit, in words
    budget: int | None = None  # bytes
    bytes: int | None = None  # of its file; None: it cannot be so small
    rival: bool = False
    steps: int = 0  # of its training; 0: rounded or pruned alone
    file: str | None = None  # inside the folder
    note: str | None = None  # why there are no figures
    val: Measured = Measured()
    test: Measured | None = None


class WayRow(Part):
    """A row of the table: figures on test images, or on what is there to report on, and the accuracy that chose."""

    way: str
    bytes: int | None = None
    accuracy: Number = None
    agreement: Number = None
    relative_error: Number = None
    accuracy_val: Number = None
    agreement_val: Number = None
    output_error: Number = None
    output_error_val: Number = None
    setting: str = ""
    steps: int = 0
    rival: bool = False
    chosen: bool = False
    note: str | None = None


class BudgetFit(FitResult):
    """`netspace compress fit` with a size, and its `fit.json`."""

    way: str
    why: str = ""
    bytes_budget: int | None = None
    inputs: str = "weights"  # what networks were compared on: task, pictures, noise; weights: none
    output: str | None = None  # the one that was picked
    output_error: Number = None  # where outputs are not compared as answers
    accuracy_original_val: Number = None  # on validation images
    table: list[WayRow] = Field(default_factory=list)  # the best of each way, and rivals
    sizes: list[WayRow] = Field(
        default_factory=list
    )  # all else that was tried, also at other sizes; by validation alone
