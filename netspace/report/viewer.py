"""Shapes that can be turned in the page: surfaces as text that `templates/shapes.js` draws, without a network or a GPU.

Axes: S frames, of which one is shown at a time, V vertices, F faces.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from netspace.rendering import View
from netspace.surfaces import STEPS, Surface, axes_of

MAX_NARROW = 1 << 16  # vertices that 16 bits tell apart


@dataclass(frozen=True)
class Stored:
    """A surface as text: little-endian numbers in base64."""

    vertices: str  # right, up, front; int16, of which 32,767 is 1
    faces: str  # uint16, or uint32 if `wide`
    wide: bool


@dataclass(frozen=True)
class Viewer:
    """Canvases side by side, which turn together, and a slider over what they show."""

    panes: Mapping[str, Sequence[Surface]]  # surfaces (S,) by the caption of their canvas
    frames: Sequence[str]  # (S,) what is shown
    noun: str  # what the slider moves over
    start: int  # the frame that is shown first
    view: View

    @property
    def stored(self) -> dict[str, list[Stored]]:
        """The panes' surfaces as text."""
        axes = axes_of(self.view.up, self.view.front)
        return {name: [stored(each, axes) for each in shapes] for name, shapes in self.panes.items()}

    @property
    def texts(self) -> str:
        """The texts of frames as JSON."""
        return json.dumps(list(self.frames), ensure_ascii=False)

    @property
    def turn(self) -> float:
        """The azimuth in radians, with few digits."""
        return round(math.radians(self.view.azimuth), 4)

    @property
    def tilt(self) -> float:
        """The elevation in radians, with few digits."""
        return round(math.radians(self.view.elevation), 4)


def stored(shape: Surface, axes: np.ndarray) -> Stored:
    """Return a surface as text, its coordinates turned to right, up and front: the rows of `axes` (3, 3)."""
    wide = len(shape.vertices) > MAX_NARROW
    vertices, faces = (
        np.rint(shape.vertices @ axes.T * STEPS).astype("<i2"),
        shape.faces.astype("<u4" if wide else "<u2"),
    )
    return Stored(_text(vertices), _text(faces), wide)


def _text(numbers: np.ndarray) -> str:
    return b64encode(numbers.tobytes()).decode("ascii")
