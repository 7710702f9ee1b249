"""Result of `netspace search`: the members of a zoo that are nearest to a network, or to a value of a column."""

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
