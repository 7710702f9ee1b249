"""An image of the points of a large map, which a browser moves at the speed of one picture.

Axes: N points, K pixels that a point covers, H W of the image; row 0 of an image is its lower edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DOT = np.array([[0.5, 1, 0.5], [1, 1, 1], [0.5, 1, 0.5]])  # how much of each pixel a point covers, around its own
OPACITY = 0.75  # of one point; several cover more
UNKNOWN = np.array([128, 128, 128], np.uint8)  # colour of points without a value


@dataclass(frozen=True)
class Window:
    """A rectangle of the map, in its coordinates."""

    left: float
    right: float
    bottom: float
    top: float

    @property
    def width(self) -> float:
        """Width in coordinates of the map."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """Height in coordinates of the map."""
        return self.top - self.bottom

    def scaled(self, factor: float) -> Window:
        """Return the window of `factor` times the width and height around the same centre."""
        x, y = (self.left + self.right) / 2, (self.bottom + self.top) / 2
        half_width, half_height = factor * self.width / 2, factor * self.height / 2
        return Window(x - half_width, x + half_width, y - half_height, y + half_height)

    def covers(self, other: Window) -> bool:
        """Whether another window lies in this one."""
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.bottom <= other.bottom
            and other.top <= self.top
        )

    def inside(self, points: np.ndarray) -> np.ndarray:
        """Return which of the points (N, 2) lie in the window, as booleans (N,)."""
        x, y = points[:, 0], points[:, 1]
        return (x >= self.left) & (x <= self.right) & (y >= self.bottom) & (y <= self.top)


@dataclass(frozen=True)
class Colours:
    """How values become colours: equal steps of a palette between two values."""

    palette: np.ndarray  # (colours, 3) uint8
    low: float
    high: float
    categories: bool  # whether values are the indices of names, which have no mean

    def of(self, values: np.ndarray) -> np.ndarray:
        """Return the colours (N, 3) of values (N,); those of values that are not finite are `UNKNOWN`."""
        known = np.isfinite(values)
        span = self.high - self.low if self.high > self.low else 1.0
        steps = np.where(known, (values - self.low) / span, 0) * len(self.palette)
        colours = self.palette[np.clip(np.floor(steps), 0, len(self.palette) - 1).astype(np.int64)]
        return np.where(known[:, None], colours, UNKNOWN)


def palette_of(names: list[str]) -> np.ndarray:
    """Return the colours (n, 3) uint8 of a palette that is written as '#rrggbb'."""
    return np.array([list(bytes.fromhex(name[1:7])) for name in names], np.uint8)


def image_of(
    points: np.ndarray, values: np.ndarray, colours: Colours, window: Window, pixel: tuple[float, float]
) -> tuple[np.ndarray, Window]:
    """Draw the points of a window; return RGBA (H, W) uint32, as Bokeh expects it, and the window of the image.

    A pixel has the colour of the mean of the values of the points that cover it, or of their most frequent category (the
    first of several), and is the more opaque the more points cover it. The image ends where there are no points, and lies
    on the grid of pixels that begins at the window's lower left corner.

    Args:
        points: Positions (N, 2).
        values: Values (N,); NaN where there is none.
        colours: What becomes of values.
        window: What is drawn.
        pixel: Width and height of a pixel in coordinates of the map.
    """
    inside = window.inside(points)
    points, values = points[inside].astype(np.float64), values[inside].astype(np.float64)
    if not len(points):
        return np.zeros((1, 1), np.uint32), window
    origin = np.array([window.left, window.bottom])
    cells = np.floor((points - origin) / pixel).astype(np.int64)
    border = len(DOT) // 2
    first = cells.min(0) - border
    width, height = (int(size) for size in cells.max(0) - first + 1 + border)
    cells -= first
    rows, columns = np.indices(DOT.shape)
    offsets = ((rows - border) * width + columns - border).ravel()
    pixels = ((cells[:, 1] * width + cells[:, 0])[:, None] + offsets).ravel()  # (N K,)
    weights = np.tile(DOT.ravel(), len(points))
    cover = np.bincount(pixels, weights, width * height)
    drawn = np.flatnonzero(cover)
    combine = _most_frequent if colours.categories else _mean
    combined = combine(pixels, np.repeat(values, DOT.size), weights, drawn, width * height)
    rgba = np.zeros((width * height, 4), np.uint8)
    rgba[drawn, :3] = colours.of(combined)
    rgba[drawn, 3] = np.round(255 * (1 - (1 - OPACITY) ** cover[drawn]))
    left, bottom = origin + first * pixel
    extent = Window(left, left + width * pixel[0], bottom, bottom + height * pixel[1])
    return rgba.view(np.uint32).reshape(height, width), extent


def _mean(pixels: np.ndarray, values: np.ndarray, weights: np.ndarray, drawn: np.ndarray, size: int) -> np.ndarray:
    """Return the weighted means of finite values in the pixels that are drawn; NaN where there are none."""
    known = np.isfinite(values)
    pixels, values, weights = pixels[known], values[known], weights[known]
    total = np.bincount(pixels, weights, size)[drawn]
    sums = np.bincount(pixels, weights * values, size)[drawn]
    return np.where(total > 0, sums / np.where(total > 0, total, 1), np.nan)


def _most_frequent(
    pixels: np.ndarray, values: np.ndarray, weights: np.ndarray, drawn: np.ndarray, size: int
) -> np.ndarray:
    """Return the categories of the largest total weight in the pixels that are drawn."""
    count = int(values.max()) + 1
    pairs, inverse = np.unique(pixels * count + values.astype(np.int64), return_inverse=True)
    totals = np.bincount(inverse.reshape(-1), weights)
    order = np.lexsort((pairs % count, -totals, pairs // count))
    _, first = np.unique(pairs[order] // count, return_index=True)
    return (pairs[order][first] % count).astype(np.float64)
