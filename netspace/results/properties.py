"""What `netspace eval` tells of signals from the latents of their networks: properties, and which training members are near.

A value of `Sources` belongs to one way of describing a network: its latent, its weights, its outputs on shared inputs, or the
signal that it was fitted to (where all networks have the same inputs: a picture's pixels).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from netspace.results import Number, Part

Measure = Literal["r2", "accuracy"]


class Measured(Part):
    """Means of a further measure of a task, such as `psnr` in decibels."""

    target: Number = None
    predicted: Number = None


class Sources(Part):
    """One figure by what it was computed from; a source that there is none of is left out."""

    latent: Number = None
    weights: Number = None
    outputs: Number = None
    signal: Number = None


class Property(Sources):
    """How well a linear model, fitted to training members, tells one property of test members."""

    measure: Measure  # r2: of numbers, by ridge regression; accuracy: of classes, by logistic regression
    constant: Number = None  # the same of the training members' mean, or their commonest class


class Retrieval(Part):
    """How good the nearest training members of test members are, by each source's L2 distance."""

    neighbours: int  # number of nearest training members that `overlap` is of
    overlap: Sources  # mean fraction of them that are among as many nearest by outputs
    chance: Number = None  # the same of as many random ones
    # by the name of a property that is a class: the fraction of members whose nearest training member has the same
    same: dict[str, Sources] = Field(default_factory=dict)


class Properties(Part):
    """What is known of the signals of a split's members, told from their networks."""

    members: int
    training_members: int
    labels: dict[str, Property]
    retrieval: Retrieval
