"""Pictures in rows and columns: shapes, such as lines between two of them (NetSpace, Fig. 4), and images.

Axes: S columns, each a cell of one shape or image; h w pixels of a cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from netspace.rendering import View, render
from netspace.report.drawing import DOTS, GREY, plain
from netspace.surfaces import Surface

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INCHES = 1.55  # of a side of a cell in the picture
LABEL, HEAD = 0.62, 0.3  # inches on the left, for names of rows, and above, for captions
ROWS = {"latent": "latents", "weights": "weights", "aligned": "weights,\naligned"}  # names of lines in pictures


def strip(
    rows: Mapping[str, Sequence[Surface]],
    captions: Sequence[str],
    view: View | None = None,
    inches: float = INCHES,
    least: float = 0.0,
) -> Figure:
    """Return a figure of rows of surfaces (S,) by name, with a caption (S,) over each column; cells of empty surfaces are marked.

    `inches` is the side of a cell; the figure is at least `least` inches wide.
    """
    from matplotlib.patches import Rectangle

    pixels = round(inches * DOTS)
    cells = {name: np.stack([render(each, pixels, view) for each in shapes]) for name, shapes in rows.items()}
    figure = image_strip(cells, captions, inches, least, interpolation="antialiased")
    for axes, shapes in zip(figure.axes, rows.values(), strict=True):
        for column, each in enumerate(shapes):
            if each.empty:
                style: dict[str, Any] = {"fill": False, "edgecolor": GREY, "linewidth": 0.8, "linestyle": (0, (4, 3))}
                axes.add_patch(Rectangle((column + 0.14, 0.14), 0.72, 0.72, **style))
                axes.text(column + 0.5, 0.5, "empty", ha="center", va="center", color=GREY)
    return figure


def image_strip(
    rows: Mapping[str, UInt8[np.ndarray, "S h w _"]],
    captions: Sequence[str],
    inches: float = INCHES,
    least: float = 0.0,
    interpolation: str = "nearest",
) -> Figure:
    """Return a figure of rows of images by name, red, green, blue and perhaps opacity, with a caption (S,) over each column.

    `rows` may be what `Task.pictures` returns; `inches` and `least` are as for `strip`, `interpolation` is matplotlib's.
    """
    from matplotlib.figure import Figure

    columns = len(captions)
    width, height = max(columns * inches + LABEL, least), len(rows) * inches + HEAD
    figure = Figure(figsize=(width, height))
    for row, (name, images) in enumerate(rows.items()):
        bottom = (len(rows) - 1 - row) * inches / height
        cells = np.concatenate(list(images), axis=1)
        axes = figure.add_axes((LABEL / width, bottom, columns * inches / width, inches / height))
        axes.imshow(cells, extent=(0, columns, 0, 1), aspect="auto", interpolation=interpolation)
        axes.set(xlim=(0, columns), ylim=(0, 1))
        axes.axis("off")
        axes.text(-0.06, 0.5, name, ha="right", va="center", rotation=90, multialignment="center")
        if row == 0:
            for column, caption in enumerate(captions):
                axes.text(column + 0.5, 1.02, plain(caption, 24), ha="center", va="bottom")
    return figure
