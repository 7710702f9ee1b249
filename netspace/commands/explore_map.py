"""The map on the page of `netspace open`: few points as glyphs, more as one image that the server draws.

Dragging a map of many points moves one picture in the browser. It reaches beyond what is visible, and the server sends
another only when the visible range comes near its edge or the zoom changes. Axes: M members, N members on the map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial import cKDTree

from netspace.commands.map_image import Colours, Window, image_of, palette_of

if TYPE_CHECKING:
    from bokeh.document import Document

MAX_GLYPHS = 2_000  # visible points that are glyphs; more are an image
COVER = 3.0  # width and height of what is drawn at once, in those of the visible range
EDGE = 1.4  # another image is drawn when this many times the visible range is no longer covered
HYSTERESIS = 1.25  # glyphs stay until there are this many times MAX_GLYPHS, so that dragging does not alternate
PAUSE = 80  # ms between a change of the range and what is drawn for it
MARGIN = 1.05  # of the whole map, in the extent of its points
PICKED_WITHIN = 12.0  # pixels between a click and the member it picks
GLYPH = 6  # diameter of a glyph in pixels
SIZE = {"inner_width": 760, "inner_height": 660}  # pixels of the map until the browser reports its own
MAX_NAMES = 10  # architectures or splits that have a colour of their own


class MapPlot:
    """A plot of points (M, 2), some of which are left out by a filter."""

    def __init__(self, points: np.ndarray, document: Document, title: str) -> None:
        from bokeh.models import ColorBar, ColumnDataSource, LinearColorMapper, Range1d
        from bokeh.plotting import figure

        self.points, self.document = points, document
        self.rows = np.arange(len(points))  # (N,) members on the map
        self.values = np.zeros(len(points))  # (N,) what they are coloured by
        self.colours = Colours(palette_of(["#000000"]), 0.0, 1.0, False)
        self.fitted: Window | None = None  # the range as the server set it
        self.drawn: tuple[Window, Window] | None = None  # what is covered, and the visible range it was drawn for
        self.glyphs = True  # whether points are drawn as glyphs
        self.size = dict(SIZE)
        self._waiting = False
        self._tree: tuple[float, cKDTree] | None = None
        self.mapper = LinearColorMapper("Viridis256")
        self.dots = ColumnDataSource({"x": [], "y": [], "c": []})
        self.image = ColumnDataSource({"image": [], "x": [], "y": [], "dw": [], "dh": []})
        self.marks = ColumnDataSource({"x": [], "y": [], "label": []})
        self.path = ColumnDataSource({"x": [], "y": []})
        self.star = ColumnDataSource({"x": [], "y": []})
        self.plot: Any = figure(
            name="map", height=720, sizing_mode="stretch_width", min_width=340, lod_threshold=None, title=title,
            x_range=Range1d(0, 1), y_range=Range1d(0, 1),
            tools="pan,wheel_zoom,box_zoom,reset,save", active_scroll="wheel_zoom",
        )  # fmt: skip
        self.plot.image_rgba("image", "x", "y", "dw", "dh", source=self.image, name="image")
        self.plot.scatter(
            "x", "y", source=self.dots, size=GLYPH, line_color=None, fill_alpha=0.75,
            fill_color={"field": "c", "transform": self.mapper}, name="dots",
        )  # fmt: skip
        self.plot.line("x", "y", source=self.path, color="#D55E00", line_width=1.5)
        self.plot.scatter("x", "y", source=self.marks, size=13, fill_color=None, line_color="#222222", line_width=2)
        self.plot.text("x", "y", text="label", source=self.marks, x_offset=8, y_offset=-6, text_font_size="13px")
        self.plot.scatter("x", "y", source=self.star, size=15, marker="star", color="#D55E00", line_color="#222222")
        self.plot.toolbar.logo = None
        self.plot.add_layout(ColorBar(color_mapper=self.mapper), "right")
        for side in (self.plot.x_range, self.plot.y_range):
            for end in ("start", "end"):
                side.on_change(end, self._range_changed)
        for size in ("inner_width", "inner_height"):
            self.plot.on_change(size, self._range_changed)

    def on_tap(self, picked: Callable[[int | None, float, float], None]) -> None:
        """Call a function with the member at a click, None where there is none, and with the click's coordinates."""
        from bokeh.events import Tap

        self.plot.on_event(Tap, lambda event: picked(self.nearest(event.x, event.y), float(event.x), float(event.y)))

    def on_double_tap(self, clicked: Callable[[float, float], None]) -> None:
        """Call a function with the coordinates of a double click."""
        from bokeh.events import DoubleTap

        self.plot.on_event(DoubleTap, lambda event: clicked(float(event.x), float(event.y)))

    def show(self, rows: np.ndarray, values: np.ndarray, names: list[str], low: float, high: float) -> None:
        """Draw some members.

        Args:
            rows: Their positions (N,).
            values: What they are coloured by (N,); NaN where it is not known.
            names: The names that values are the indices of; empty for numbers.
            low: The least value that has a colour, where they are numbers or too many names.
            high: The largest.
        """
        from bokeh.palettes import Category10, Viridis256

        few = 0 < len(names) <= MAX_NAMES
        palette = list(Category10[10])[: len(names)] if few else list(Viridis256)
        low, high = (-0.5, len(names) - 0.5) if few else (low, high)
        self.mapper.update(palette=palette, low=low, high=high)
        self.colours = Colours(palette_of(palette), low, high, bool(names))
        self.rows, self.values = rows, values
        self._tree = self.drawn = None
        if self.fitted is None or self.visible == self.fitted:
            self._fit()
        self.draw()

    @property
    def visible(self) -> Window:
        """The visible range."""
        x, y = self.plot.x_range, self.plot.y_range
        return Window(*sorted((float(x.start), float(x.end))), *sorted((float(y.start), float(y.end))))

    def pixel(self, window: Window) -> tuple[float, float]:
        """Return the width and height of a pixel if a window is the visible range."""
        return window.width / self.size["inner_width"], window.height / self.size["inner_height"]

    def nearest(self, x: float, y: float) -> int | None:
        """Return the member on the map that is nearest on the screen; None if none is within `PICKED_WITHIN` pixels."""
        if not len(self.rows):
            return None
        width, height = self.pixel(self.visible)
        if self._tree is None or not np.isclose(self._tree[0], width / height):
            self._tree = width / height, cKDTree(self.points[self.rows] * [1, width / height])
        ratio, tree = self._tree
        distance, index = tree.query([x, y * ratio])
        return int(self.rows[index]) if distance <= PICKED_WITHIN * width else None

    def draw(self) -> None:
        """Send what the visible range needs, unless the browser has it."""
        visible = self.visible
        points = self.points[self.rows]
        count = int(visible.inside(points).sum())
        glyphs = count <= MAX_GLYPHS * (HYSTERESIS if self.glyphs and self.drawn else 1)
        if glyphs == self.glyphs and self.drawn is not None:
            cover, before = self.drawn
            zoomed = not (glyphs or self._same_zoom(visible, before))
            if cover.covers(visible.scaled(EDGE)) and not zoomed:
                return
        cover = visible.scaled(COVER)
        if len(points) <= MAX_GLYPHS:
            cover = Window(-np.inf, np.inf, -np.inf, np.inf)
        self.glyphs, self.drawn = glyphs, (cover, visible)
        if glyphs:
            inside = cover.inside(points)
            x, y = points[inside].T.copy()
            self.dots.data = {"x": x, "y": y, "c": self.values[inside].astype(np.float32)}
            self.image.data = {name: [] for name in self.image.column_names}
            return
        image, extent = image_of(points, self.values, self.colours, cover, self.pixel(visible))
        self.image.data = {
            "image": [image], "x": [extent.left], "y": [extent.bottom], "dw": [extent.width], "dh": [extent.height]
        }  # fmt: skip
        self.dots.data = {"x": [], "y": [], "c": []}

    def _same_zoom(self, visible: Window, before: Window) -> bool:
        return bool(np.allclose([visible.width, visible.height], [before.width, before.height], rtol=1e-3, atol=0))

    def _fit(self) -> None:
        """Show all members on the map."""
        points = self.points[self.rows]
        points = points[np.isfinite(points).all(1)]
        low, high = (points.min(0), points.max(0)) if len(points) else (np.zeros(2), np.ones(2))
        low, high = low.astype(np.float64), high.astype(np.float64)
        single = high <= low
        low, high = np.where(single, low - 0.5, low), np.where(single, high + 0.5, high)
        window = Window(low[0], high[0], low[1], high[1]).scaled(MARGIN)
        self.fitted = window
        for side, start, end in (
            (self.plot.x_range, window.left, window.right),
            (self.plot.y_range, window.bottom, window.top),
        ):
            side.update(start=float(start), end=float(end), reset_start=float(start), reset_end=float(end))

    def _range_changed(self, attr: str, old: Any, new: Any) -> None:
        if attr in self.size:
            self.size[attr] = max(int(new), 1)
            self.drawn = None
        if not self._waiting and self.document.session_context is not None:
            self._waiting = True
            self.document.add_timeout_callback(self._draw_late, PAUSE)

    def _draw_late(self) -> None:
        self._waiting = False
        self.draw()
