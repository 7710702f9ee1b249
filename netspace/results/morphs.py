"""Results of `netspace morph fit` and `netspace morph sample`. Axes: G groups of channels."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from netspace.results import Number, Part, Result, Score


class MorphWidth(Part):
    """The morph's network at one compression rate of all groups of channels."""

    gamma: float  # 0 is the full width
    parameters: int
    accuracy: Number = None


class TotalVariation(Part):
    """Sums of absolute differences between neighbouring channels of a network, in three orders (NeuMeta, Eq. 6)."""

    before: float
    after: float
    greedy: float  # going on to the nearest channel left


class MorphFit(Result):
    """`netspace morph fit`, and `fit.json` in its folder."""

    command: ClassVar[str] = "morph fit"
    run: str
    file: str
    arch: str
    groups: dict[str, int]  # channels of each group (G,) at full width, by its name
    narrowest: float  # gamma of the narrowest networks in training
    full_parameters: int  # of the network at full width
    stored_parameters: int  # of the morph
    full_accuracy: Number = None  # of the network that the morph was fitted to
    widths: list[MorphWidth] = Field(default_factory=list)  # those of validation
    total_variation: TotalVariation | None = None  # left out if channels kept their order
    precision: dict[str, str] = Field(default_factory=dict)  # in which networks were run in training
    score: Score | None = None  # what the accuracies are, if they are none
    seconds: Number = None


class MorphSample(Result):
    """`netspace morph sample`."""

    run: str
    file: str
    arch: str
    widths: dict[str, int]  # of each group of channels (G,), by its name
    trained: bool  # whether all widths are in the range of training
    parameters: int
    macs: int  # multiply-accumulates for one input
    draws: int | None = None  # of the weights; None: expectations
    depth: int | None = None  # layers, if blocks were left out or repeated
    blocks: list[list[int]] | None = None  # then: of each stage, which trained blocks its blocks are
    score: Score | None = None
    accuracy: Number = None  # None if the task is not known or not on this machine
