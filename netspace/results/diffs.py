"""Result of `netspace diff`: two networks compared by their weights, layer by layer, and by their answers.

Distances are L2 (Frobenius) norms. 'aligned' figures are of the second network with its channels permuted so that it is near
the first; None where channels could not be aligned.
"""

from __future__ import annotations

from netspace.results import Number, Part, Result, Score


class LayerDifference(Part):
    """The parameters of one layer in both networks."""

    layer: str
    values: int
    norm: float  # of the first network's
    distance: float
    relative: Number  # distance / norm; None for a norm of 0
    cosine: Number  # None if one of the two is 0
    aligned: Number = None  # distance after alignment
    aligned_relative: Number = None
    aligned_cosine: Number = None


class UnmatchedLayer(Part):
    """A layer that only one network has, or that has other shapes in both; a shape is of its largest tensor."""

    layer: str
    first: tuple[int, ...] | None
    second: tuple[int, ...] | None


class ClassDifference(Part):
    """The test inputs of one class."""

    name: str
    inputs: int
    accuracy_first: float
    accuracy_second: float
    changed: float  # fraction of its inputs with another answer
    most_changed: str | None = None  # the commonest change, such as '4 -> 9'


class ChangedAnswer(Part):
    """An input that the two networks answer differently, by the names of classes."""

    input: str  # the index in the split, or the file
    target: str | None
    first: str
    second: str


class Answers(Part):
    """The answers of both networks to the same inputs; scores are None where targets are not known."""

    inputs: int
    source: str  # 'test split of digits', or a folder
    agreement: float
    score_first: Number = None
    score_second: Number = None
    changed: int | None = None  # inputs with another class; the next three sum to it where targets are known
    lost: int | None = None  # right in the first network, wrong in the second
    gained: int | None = None  # wrong in the first network, right in the second
    both_wrong: int | None = None  # two different wrong answers
    classes: list[ClassDifference] | None = None
    examples: list[ChangedAnswer] | None = None  # the first ones


class Difference(Result):
    """`netspace diff`."""

    first: str
    second: str
    parameters_first: int
    parameters_second: int
    folded: bool  # whether batch norm was absorbed into its neighbours before weights were compared
    layers: list[LayerDifference]
    unmatched: list[UnmatchedLayer]
    distance: Number  # over all layers that both have
    relative: Number
    aligned: Number = None
    aligned_relative: Number = None
    groups: int | None = None  # groups of channels that may be permuted
    not_aligned: str | None = None  # why channels could not be aligned
    answers: Answers | None = None
    no_answers: str | None = None  # why answers could not be compared
    picture: str | None = None
    score: Score | None = None  # what the accuracies are, where they are none
