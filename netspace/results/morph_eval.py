"""The result of `netspace morph eval`: networks of a morph at several widths, and networks of other methods at the same.

Axes: W widths, the widest first.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from netspace.results import Number, Numbers, Part, Result, Score, expect

Baseline = Literal["individual", "us_net", "pruned_l1", "pruned_taylor", "pruned_random", "resampled"]
Start = Literal["network", "fresh"]  # the trained network that the morph was fitted to, or fresh weights


class Baselines(Part):
    """A figure of each baseline at one width; one that was not run, or cannot be that wide, is None or left out."""

    individual: Number = None  # trained at this width alone
    us_net: Number = None  # universally slimmable
    pruned_l1: Number = None
    pruned_taylor: Number = None
    pruned_random: Number = None
    resampled: Number = None  # weights of the ordered network, interpolated


class Networks(Baselines):
    """A figure of the morph's network and of each baseline at one width."""

    morph: Number = None


class WidthFigures(Part):
    """Networks of one width, on test inputs: means over seeds, and standard deviations if there are several."""

    gamma: float  # compression rate of all groups of channels: 0 is the full width
    parameters: int
    trained: bool  # whether gamma is within the range that the morph was trained for
    accuracy: Number = None  # of the morph's network, whose weights are expectations
    sampled_accuracy: Number = None  # of the network whose weights are the mean of noisy draws (NeuMeta, Eq. 9)
    agreement: Number = None  # of the morph's network with the network that it was fitted to
    baselines: Baselines = Baselines()  # accuracies
    measures: dict[str, Networks] = Field(default_factory=dict)  # what else the task measures, by name
    accuracy_std: Number = None
    sampled_accuracy_std: Number = None
    agreement_std: Number = None
    baselines_std: Baselines = Baselines()


class TrainingSeconds(Part):
    """Seconds of training, means over seeds; None if it was stopped in between. Pruned and resampled networks need none."""

    morph: Number = None
    individual: Numbers = Field(default_factory=list)  # (W,) one network each
    us_net: Number = None  # for all widths


class MorphEvaluation(Result):
    """`netspace morph eval`, and `eval.json` in the folder of a `netspace morph fit`."""

    command: ClassVar[str] = "morph eval"
    run: str
    score: Score | None = None  # what the accuracies are, if they are none
    seeds: int = 1
    training: dict[str, Any]  # settings by which individual and slimmable networks were trained, with the first seed
    us_net_start: Start | None = None  # where the slimmable network's training began; left out if it was not compared
    draws: int  # of `sampled_accuracy`
    narrowest: float  # gamma of the narrowest network in the morph's training
    full_parameters: int  # of the network at full width
    stored_parameters: int  # of the morph
    full_accuracy: Number = None  # of the network that the morph was fitted to; left out if it was fitted to none
    widths: list[WidthFigures] = Field(min_length=1)
    inputs: int = 0  # test inputs of `cka` and `divergence`
    # linear CKA of the last layer's inputs at each width (W,) with those at the widest, for the networks of a method
    cka: dict[str, Numbers] = Field(default_factory=dict)
    # mean divergence of outputs (W, W): of networks of a method from its network of the row's width
    divergence: dict[str, list[Numbers]] = Field(default_factory=dict)
    seconds: TrainingSeconds = TrainingSeconds()

    @model_validator(mode="after")
    def _one_for_each_width(self) -> Self:
        count = len(self.widths)
        lengths = [len(each) for each in self.cka.values()]
        for rows in self.divergence.values():
            lengths += [len(rows), *map(len, rows)]
        lengths += [len(self.seconds.individual) or count]
        expect(set(lengths) <= {count}, f"one value for each of {count} widths was expected")
        return self
