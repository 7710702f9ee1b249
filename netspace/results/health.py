"""Result of `netspace health`: by layer the norms, spectra and dead units of a zoo's members, and members that look wrong."""

from __future__ import annotations

from typing import Literal

from netspace.results import Number, Part, Result

Relation = Literal["equal", "nearly equal", "equal up to permutation", "nearly equal up to permutation"]


class Spread(Part):
    """A figure over the sound members of an architecture; None where it is not known of any."""

    min: Number
    median: Number
    max: Number


class LayerHealth(Part):
    """The parameters of one layer."""

    layer: str
    values: int
    norm: Spread  # L2
    stable_rank: Spread | None = None  # squared Frobenius over squared spectral norm
    rank: int | None = None  # that it could have at most: the smaller side of the matrix
    tail_exponent: Spread | None = None  # of the eigenvalues' density, by the Hill estimator: smaller is heavier
    dead: Spread | None = None  # fraction of units whose activation is the same for all inputs
    zero: int = 0  # members all of whose values here are zero


class ArchHealth(Part):
    """The members of one architecture."""

    members: int
    sound: int  # neither diverged nor with values that are not finite: figures are of these
    diverged: int
    layers: list[LayerHealth]
    norm: Spread  # of all parameters
    dead_not_counted: str | None = None  # the reason


class Suspect(Part):
    """A member that looks damaged."""

    member: str
    problems: list[str]


class Copy(Part):
    """Two members with nearly the same weights, as they are or with their channels in another order."""

    first: str
    second: str
    relation: Relation
    distance: float  # relative to the first one's norm, after alignment if there is a permutation
    same_run: bool


class Health(Result):
    """`netspace health`."""

    path: str
    members: int
    archs: dict[str, ArchHealth]
    suspects: list[Suspect]
    copies: list[Copy]
    unchecked: int = 0  # pairs that may be permuted copies and were not aligned, as there are too many
    inputs: int | None = None  # on which dead units are counted
    z: float  # robust standard deviations from which a norm is an outlier
    tolerance: float  # relative distance up to which weights are nearly equal
    table: str | None = None  # the file with all members' figures
