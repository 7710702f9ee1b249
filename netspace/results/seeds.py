"""The result of `netspace compress fit --seeds N`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from netspace.results import Number, Part, Result


class Spread(Part):
    """A figure by seed, its mean, and the standard deviation of a sample; None for a single seed."""

    values: list[float] = Field(min_length=1)
    mean: float
    std: Number = None


class RoundFigures(Part):
    """The weights that a round of a stage kept, which are the next round's target; both are counted from 0."""

    stage: int
    round: int
    accuracy_val: Spread | None = None  # on validation images; None if networks are not run
    relative_error: Spread | None = None  # of the original's weights


class SeededFits(Result):
    """`netspace compress fit --seeds N` and its `seeds.json`: figures on test images, and by round on validation images."""

    command: ClassVar[str] = "compress fit"
    seeds: list[int] = Field(min_length=1)
    parameters_represented: int | None = None
    parameters_predictor: int | None = None
    accuracy_original: Number = None
    accuracy_reconstructed: Spread | None = None
    difference: Spread | None = None  # reconstructed minus original
    agreement: Spread | None = None
    relative_error: Spread | None = None
    rounds: list[RoundFigures] = Field(default_factory=list)
