"""The map on the server: when it is an image, when another is sent, and which member a click is on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from bokeh.document import Document

from netspace.commands import explore_map
from netspace.commands.explore_map import PICKED_WITHIN, MapPlot
from netspace.commands.map_image import Window

COUNT = 20_000


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    return (np.random.default_rng(0).standard_normal((COUNT, 2)) * [1.0, 30.0]).astype(np.float32)


@pytest.fixture
def plot(points: np.ndarray) -> Iterator[MapPlot]:
    plot = MapPlot(points, Document(), "points")
    plot.show(np.arange(COUNT), points[:, 0].astype(np.float64), [], -3.0, 3.0)
    yield plot


def look_at(plot: MapPlot, window: Window) -> None:
    plot.plot.x_range.update(start=window.left, end=window.right)
    plot.plot.y_range.update(start=window.bottom, end=window.top)
    plot.draw()


def test_a_click_picks_what_a_slow_search_on_the_screen_does(plot: MapPlot, points: np.ndarray) -> None:
    random = np.random.default_rng(1)
    for window in (plot.visible, Window(-0.5, 0.5, -3.0, 40.0), Window(0.0, 3.0, -1.0, 1.0)):
        look_at(plot, window)
        pixel = np.array(plot.pixel(plot.visible))
        for x, y in random.uniform((window.left, window.bottom), (window.right, window.top), (40, 2)).tolist():
            distances = np.linalg.norm((points.astype(np.float64) - [x, y]) / pixel, axis=1)
            expected = int(distances.argmin()) if distances.min() <= PICKED_WITHIN else None
            assert plot.nearest(x, y) == expected
    rows = np.flatnonzero(points[:, 0] > 2)
    plot.show(rows, points[rows, 0].astype(np.float64), [], -3.0, 3.0)
    assert plot.nearest(*points[rows[4]]) == rows[4] and plot.nearest(-1.0, 0.0) is None
    plot.show(rows[:0], np.zeros(0), [], 0.0, 1.0)
    assert plot.nearest(0.0, 0.0) is None


def test_one_image_is_sent_until_the_range_comes_near_its_edge_or_the_zoom_changes(plot: MapPlot) -> None:
    first = plot.image.data["image"][0]
    assert first.shape[0] <= 680 and first.any() and not len(plot.dots.data["x"])
    window = Window(-0.8, 0.8, -24.0, 24.0)
    look_at(plot, window)
    zoomed = plot.image.data["image"][0]
    assert zoomed is not first
    look_at(plot, Window(-0.3, 1.3, 0.0, 48.0))
    assert plot.image.data["image"][0] is zoomed
    look_at(plot, Window(0.6, 2.2, -12.0, 36.0))
    assert plot.image.data["image"][0] is not zoomed


def test_few_visible_members_are_glyphs_and_all_of_them(plot: MapPlot, points: np.ndarray) -> None:
    window = Window(-0.05, 0.05, -2.0, 2.0)
    look_at(plot, window)
    inside = points[window.inside(points)]
    assert 0 < len(inside) < explore_map.MAX_GLYPHS and not plot.image.data["image"]
    sent = set(zip(*(plot.dots.data[name].tolist() for name in ("x", "y")), strict=True))
    assert {tuple(each) for each in inside.tolist()} <= sent and len(sent) < COUNT / 10
    look_at(plot, window.scaled(20))
    assert len(plot.image.data["image"]) == 1 and not len(plot.dots.data["x"])


def test_a_filter_draws_again_and_keeps_a_range_that_the_user_chose(plot: MapPlot, points: np.ndarray) -> None:
    rows = np.flatnonzero(points[:, 0] > 0)
    plot.show(rows, np.zeros(len(rows)), ["one", "two"], 0.0, 1.0)
    assert plot.visible.left > -0.5 and plot.colours.categories
    window = Window(-1.0, 2.0, -9.0, 9.0)
    look_at(plot, window)
    before = plot.image.data["image"][0]
    plot.show(np.arange(COUNT), np.ones(COUNT), ["one", "two"], 0.0, 1.0)
    assert plot.visible == window and plot.image.data["image"][0] is not before
    alone = MapPlot(points[:1], Document(), "one")
    alone.show(np.arange(1), np.zeros(1), [], 0.0, 0.0)
    assert alone.visible.width > 0.9 and len(alone.dots.data["x"]) == 1
