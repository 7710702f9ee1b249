"""Results of commands on latent spaces: train, eval, interpolate, optimize, sample, encode, decode, quickstart, report.

Axes: M members, A architectures, S points of a line.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field, FiniteFloat, model_validator

from netspace.results import Number, Numbers, Part, Result, Score, expect
from netspace.results.lines import Between, ClassLine, Interpolation, MeanLine
from netspace.results.properties import Measured, Properties
from netspace.results.shapes import Completions, Shapes, listed


class Measures(Part):
    """Predicted networks compared with their targets, means over members."""

    accuracy_target: Number = None
    accuracy_predicted: Number = None
    r2: Number = None  # of predicted accuracies
    mae: Number = None  # mean |predicted - target accuracy|
    bias: Number = None  # mean of predicted minus target accuracy
    agreement: Number = None  # fraction of images to which both give the same class
    kl: Number = None  # KL(target || predicted), nats
    iou: Number = None  # of shapes: intersection over union of the insides; this and the next four of shapes alone
    chamfer: Number = None  # distance of surfaces, not squared, in units of the cube [-1, 1]^3; over those not empty
    valid: Number = None  # fraction of predicted shapes that are valid (`netspace.results.shapes`)
    single_body: Number = None  # fraction of those of one body and no speck
    empty: Number = None  # fraction of those that are empty
    score_target: Number = None  # of shapes: the same as accuracy_target, accuracy_predicted and agreement
    score_predicted: Number = None
    within: Number = None  # fraction of points where both give the same: distances to 0.01, or the same side


class Baseline(Measures):
    """A baseline compared with the same targets."""

    scale: float | list[float] | None = None  # of the noise that is added; a list has one for each architecture
    parameters: int | None = None  # of a decoder that is shared by all shapes, without their latents
    steps: int | None = None  # of its training


class IdentitySummary(Part):
    """Means over the members that have peers: others of their split within a point of their accuracy."""

    own_minus_peers: Number = None
    agreement_own: Number = None
    agreement_peers: Number = None
    jaccard_own: Number = None
    jaccard_peers: Number = None
    members: int | None = None
    without_peers: int | None = None


class Behaviour(Measures):
    """Measures of a set of members, and of how predicted networks differ from each other."""

    identity: IdentitySummary = Field(default_factory=IdentitySummary)
    classid_accuracy: Number = None  # fraction decoded as their own architecture; None for spaces of one
    diversity: Number = None  # mean L2 distance between pairs of predicted networks
    zoo_diversity: Number = None  # the same of targets
    diversity_ratio: Number = None
    members: int | None = None
    parameters: int | None = None
    compression: Number = None  # latent size over parameters


class ClassFigures(Behaviour):
    """The members of one architecture."""

    class_id: int | None = None


class Refined(Behaviour):
    """Predictions whose latents went on by descent on what their networks answer (`netspace.commands.refine`)."""

    steps: int | None = None
    interpolation: MeanLine | None = None  # between such latents, in spaces of one architecture; of shapes none


class Evaluation(Behaviour, Result):
    """`netspace eval`."""

    command: ClassVar[str] = "eval"
    run: str = ""
    decoder: str | None = None
    encoder: str | None = None
    precision: str | None = None
    split: str = "test"
    images: int | None = None  # of validation and test images, that networks are compared on; None: all
    latent: int | None = None
    per_class: dict[str, ClassFigures] = Field(default_factory=dict)
    baselines: dict[str, Baseline | None] = Field(default_factory=dict)  # None: not implemented
    archs: list[str] = Field(default_factory=list)  # by ClassId; empty for spaces of one architecture
    confusion: list[list[int]] = Field(default_factory=list)  # (A, A) members of each architecture decoded as each
    between: dict[str, Between] = Field(default_factory=dict)
    line: ClassLine | None = None
    interpolation: MeanLine = Field(default_factory=MeanLine)  # of spaces of one architecture
    score: Score | None = None  # what the keys accuracy_* mean, if it is not accuracy
    shapes: Shapes | None = None  # of spaces of shapes
    properties: Properties | None = None  # of spaces of networks that hold signals
    measures: dict[str, Measured] = Field(default_factory=dict)  # further ones of the task, by name
    completion: Completions | None = None  # of shapes from points on their surfaces
    refined: Refined | None = None  # the space's after descent on the latents of its predictions
    versions: dict[str, str] = Field(default_factory=dict)

    @property
    def of_signals(self) -> bool:
        """Whether each network was fitted to a signal of its own: scores say how well, hardly differ, and have no R2."""
        return self.score is not None and bool(self.score.own_targets or self.shapes or self.properties)

    @property
    def listed_baselines(self) -> dict[str, Baseline | None]:
        """Baselines, each under one name."""
        return listed(self.baselines)

    @model_validator(mode="after")
    def _confusion_fits(self) -> Self:
        count = len(self.archs)
        square = [len(row) for row in self.confusion] == [count] * count and min(
            map(min, self.confusion), default=0
        ) >= 0
        expect(count < 2 or square, f"'confusion' was expected to hold {count} x {count} counts")
        factors = len(self.line.factors) if self.line else 0
        expect(factors in (0, count - 2), "'line' was expected to have a factor for each architecture between the ends")
        return self


class MemberFigures(Part):
    """Figures by member, in the order of the zoo's rows (M,)."""

    member: list[str] = Field(min_length=1)
    signal: list[str] = Field(default_factory=list)  # what each was fitted to, such as 'chair/0003'; empty: not known
    arch: list[str] = Field(default_factory=list)
    arch_predicted: list[str] = Field(default_factory=list)
    accuracy_target: list[FiniteFloat]
    accuracy_predicted: list[FiniteFloat]
    agreement: Numbers = Field(default_factory=list)
    kl: Numbers = Field(default_factory=list)
    iou: Numbers = Field(default_factory=list)  # of shapes
    chamfer: Numbers = Field(default_factory=list)

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        same = len(self.member) == len(self.accuracy_target) == len(self.accuracy_predicted)
        others = (self.signal, self.agreement, self.kl, self.iou, self.chamfer)
        more = {len(each) for each in others} <= {0, len(self.member)}
        expect(same and more, "every member's name and accuracies were expected")
        return self


class SavedEvaluation(Evaluation):
    """`eval-SPLIT.json`: an evaluation with its figures by member."""

    detail: MemberFigures

    @model_validator(mode="after")
    def _archs_are_known(self) -> Self:
        if len(self.archs) > 1:
            for name, archs in (("arch", self.detail.arch), ("arch_predicted", self.detail.arch_predicted)):
                expect(
                    len(archs) == len(self.detail.member) and set(archs) <= set(self.archs),
                    f"{name!r} was expected to have every member's architecture, one of {', '.join(self.archs)}",
                )
        return self


class SearchRecord(Part):
    """One validation of a latent-space optimisation, by start."""

    step: int
    loss: Number = None
    accuracy_val: Numbers  # on validation images
    cross_entropy_val: Numbers = Field(default_factory=list)
    better: list[bool] = Field(default_factory=list)


class Optimization(Result):
    """`netspace optimize`, by start."""

    command: ClassVar[str] = "optimize"
    run: str = ""
    starts: list[str] = Field(alias="from", min_length=1)
    arch: list[str] = Field(default_factory=list)
    teacher: str = "?"
    precision: str | None = None
    steps: int | None = None
    accuracy_network: Numbers = Field(default_factory=list)  # of the networks that the starts were encoded from
    accuracy_before: Numbers
    accuracy_after: Numbers
    best: int | None = Field(None, ge=0)  # the start that is best on validation images
    curve: list[SearchRecord] = Field(min_length=1)
    latent: str = ""
    network: str = ""
    score: Score | None = None  # what the accuracies are, where they are none
    networks: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        count = len(self.starts)
        lengths = {
            len(self.accuracy_before),
            len(self.accuracy_after),
            *(len(each.accuracy_val) for each in self.curve),
        }
        expect(lengths == {count} and (self.best or 0) < count, "every start's accuracies were expected")
        expect(
            len(self.arch) == len(self.accuracy_network) and len(self.arch) in (0, count),
            "every start's architecture and its own network's accuracy were expected, or neither",
        )
        return self


class SampleFigures(Part):
    """Means over a set of networks."""

    accuracy: Number = None
    novelty: Number = None  # fraction of images to which the nearest training network gives another class
    distance: Number = None  # L2 to it
    pairwise_agreement: Number = None
    diversity: Number = None  # L2 between pairs


class Sampling(Result):
    """`netspace sample`."""

    command: ClassVar[str] = "sample"
    run: str = ""
    arch: str = "?"
    shown: bool | None = None  # whether the space was trained on networks of it; None in older files
    factor: Number = None
    fit: str = "?"
    count: int
    seed: int | None = None
    accuracy: Numbers = Field(default_factory=list)
    novelty: Numbers = Field(default_factory=list)
    classid_accuracy: Number = None
    zoo_accuracy: Number = None  # of the zoo's training members
    # controls for an architecture that was not seen in training: the same draws with the decoder's learnt part off, and the
    # trained architecture with the nearest number of parameters: its members' mean, and the average of its best, aligned
    accuracy_scale_zero: Number = None
    neighbour: str | None = None
    neighbour_accuracy: Number = None
    neighbour_average: Number = None
    sampled: SampleFigures
    nearest: SampleFigures | None = None
    noise: SampleFigures | None = None
    average: SampleFigures | None = None
    score: Score | None = None  # what the accuracies are, where they are none
    networks: list[str] = Field(default_factory=list)


class Encoding(Result):
    """`netspace encode`."""

    run: str
    network: str
    arch: str
    latent: int
    refined: int | None = None  # steps of descent on the latent
    file: str


class Decoding(Result):
    """`netspace decode`."""

    run: str
    arch: str
    settings: dict[str, Any]
    parameters: int
    accuracy_test: Number
    file: str
    score: Score | None = None  # what the accuracies are, where they are none
    bodies: int | None = None  # of a mesh, specks under 1 % of the area left out


class Training(Result):
    """`netspace train`; `best` is the record of the best validation in metrics.jsonl."""

    run: str
    steps: int
    best: dict[str, Any]


class Quickstart(Result):
    """`netspace quickstart`."""

    command: ClassVar[str] = "quickstart"
    run: str
    zoo: str
    report: str
    precision: dict[str, str]
    machine: dict[str, Any]
    seconds: dict[str, float]
    eval: Evaluation
    interpolate: Interpolation

    @property
    def score(self) -> Score | None:
        """How the task judges outputs; None for accuracy."""
        return self.eval.score


class ReportFiles(Result):
    """`netspace report`: what was written, and a sentence for each part that is missing."""

    run: str
    report: str
    figures: list[str]
    missing: list[str]
    splits: list[str] = Field(default_factory=list)  # neither these
    interpolations: list[str] = Field(default_factory=list)  # nor these of a compressed network
