"""Parts of results on networks that are shapes: how whole these are, alone and on lines between members.

Axes: S points of a line. A shape is valid if it is one body, apart from specks under 1 % of its surface's area, and has at least
a quarter of the area of its target or, on a line, of the smaller end.
"""

from __future__ import annotations

from pydantic import Field

from netspace.results import Number, Part


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

    members: int  # measured, evenly among all
    resolution: int  # grid points along each side
    target: Solidity
    lines: ShapeLines | None = None


class LineBodies(Part):
    """Numbers of bodies (S,) of the shapes on a line, specks under 1 % of the smaller end's area left out."""

    latent: list[int] = Field(default_factory=list)
    weights: list[int] | None = None
    aligned: list[int] | None = None
