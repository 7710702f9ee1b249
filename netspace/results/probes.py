"""Result of `netspace probe`: how well a column of a zoo's table is predicted from members' latents, weights and answers."""

from __future__ import annotations

from netspace.results import Number, Part, Result


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
