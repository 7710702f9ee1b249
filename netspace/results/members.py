"""Results of commands that look at the members of a zoo: `netspace search`, `probe` and `open`."""

from __future__ import annotations

from netspace.results import Number, Part, Result, Score


class Match(Part):
    """One member, the nearest first."""

    member: str
    distance: float  # L2, of latents, weights, or answers; the difference of a column's values
    accuracy_test: Number
    accuracy_val: Number
    epochs: int
    run: int
    split: str
    source: str


class Search(Result):
    """`netspace search`."""

    path: str
    like: str | None = None
    by: str | None = None  # latents, weights or answers
    target: str | None = None  # a column
    value: float | None = None
    members: int  # that were searched
    matches: list[Match]
    index: str | None = None  # the file
    built: bool | None = None  # whether the index was built now
    seconds: float  # of the search itself, without opening the zoo or building the index
    score: Score | None = None


class Interval(Part):
    """A mean over splits with its 95 % interval: percentiles of a bootstrap over training runs and splits."""

    mean: Number
    low: Number
    high: Number


class Probe(Part):
    """One model on one description of members."""

    source: str  # latents, statistics or answers
    model: str  # ridge or boosting
    features: int
    r2: Interval
    kendall: Interval  # tau-b
    # tau minus that of boosting on statistics, over the same splits; left out for that one itself
    kendall_difference: Interval | None = None


class Prediction(Part):
    """What models predict for one network of a file, by source and model as in 'latents + ridge'."""

    file: str
    arch: str
    best: float  # of the model with the highest mean tau
    all: dict[str, float]


class Probing(Result):
    """`netspace probe`."""

    path: str
    target: str
    members: int
    runs: int  # training runs, none of which is on both sides of a split
    splits: int
    seen: int  # of the members: those that the space was trained on, without their targets
    target_mean: float
    target_std: float
    probes: list[Probe]
    best: str  # source and model with the highest mean tau
    left_out: dict[str, str]  # sources that could not be computed, and why
    predictions: list[Prediction] | None = None


class OpenPage(Result):
    """`netspace open`."""

    url: str
    members: int
    by: str  # latents, answers or statistics: what the map is of
    map: str  # principal axes or umap
