"""Parts of results on networks that are shapes: how whole these are, alone and on lines between members.

Axes: S points of a line. A shape is valid if it is one body, apart from specks under 1 % of its surface's area, and has at least
a quarter of the area of its target or, on a line, of the smaller end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, TypeVar

from pydantic import Field

from netspace.results import Number, Part, Result

B = TypeVar("B")


SHAPE_NAMES = {"nearest_answers": "nearest_function", "average": "mean"}  # of baselines, in spaces of shapes


def listed(baselines: Mapping[str, B]) -> dict[str, B]:
    """Return baselines without those that are there under the name that they have in spaces of shapes, too."""
    return {name: each for name, each in baselines.items() if SHAPE_NAMES.get(name) not in baselines}


class Solidity(Part):
    """How whole a set of shapes is, as fractions of it."""

    valid: Number = None
    single_body: Number = None  # of one body and no speck
    empty: Number = None
    valid_lines: int | None = None  # lines of which every shape is valid


class ShapeLines(Part):
    """The shapes on lines between members, ends left out."""

    lines: int
    steps: int  # of each line
    latent: Solidity
    weights: Solidity
    aligned: Solidity | None = None  # of mixed weights, channels aligned


class Shapes(Part):
    """Figures of a space of shapes."""

    members: int | None = None  # measured, evenly among all; None in older files: all
    resolution: int  # grid points along each side
    target: Solidity
    lines: ShapeLines | None = None


class LineBodies(Part):
    """Numbers of bodies (S,) of the shapes on a line, specks under 1 % of the smaller end's area left out."""

    latent: list[int] = Field(default_factory=list)
    weights: list[int] | None = None
    aligned: list[int] | None = None


class Completions(Part):
    """Shapes of a split completed from a few points on their surfaces, against the true shapes; means over members."""

    points: int  # of each shape
    members: int
    resolution: int  # grid points along each side
    iou: Number = None  # of completed shapes
    iou_scratch: Number = None  # of networks fitted to the same points from scratch
    iou_nearest: Number = None  # of the training networks that are nearest to the points
    iou_target: Number = None  # of the members themselves, which were fitted to the whole shape
    iou_predicted: Number = None  # of what the space makes of them
    distance: Number = None  # of the points from completed surfaces, by their own networks
    distance_nearest: Number = None  # from the nearest training networks'
    scale: Number = None  # of the prior, chosen on validation members
    eikonal: Number = None  # weight of this term in fits from scratch, chosen on validation members


class Completion(Result):
    """`netspace optimize --points`: a latent, a network and a shape from points on a surface."""

    command: ClassVar[str] = "optimize"
    run: str
    cloud: str  # file
    points: int
    arch: str
    middle: list[float]  # of the points, which was moved to the origin
    factor: float  # by which they were scaled then
    scale: float  # of the prior
    loss: float
    distance: Number  # mean distance of the points from the surface, by the network itself, clamped
    distance_nearest: Number  # the same of the nearest training network
    bodies: int | None  # of the mesh, specks left out
    latent: str  # files
    network: str
    mesh: str | None
