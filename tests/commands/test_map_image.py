"""The image of a large map: each pixel as a slow loop over points says it."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from netspace.commands.map_image import DOT, OPACITY, UNKNOWN, Colours, Window, image_of, palette_of

PALETTE = palette_of([f"#{index:02x}{255 - index:02x}10" for index in range(0, 256, 8)])
WINDOW = Window(-2.0, 3.0, -1.0, 2.0)
PIXEL = (0.1, 0.075)


def slow(points: np.ndarray, values: np.ndarray, colours: Colours) -> dict[tuple[int, int], tuple[int, ...]]:
    """The colour of each pixel that is covered, by column and row counted from the window's corner."""
    covered = defaultdict(list)
    for (x, y), value in zip(points.tolist(), values.tolist(), strict=True):
        if not (WINDOW.left <= x <= WINDOW.right and WINDOW.bottom <= y <= WINDOW.top):
            continue
        column, row = int((x - WINDOW.left) // PIXEL[0]), int((y - WINDOW.bottom) // PIXEL[1])
        for up in (-1, 0, 1):
            for right in (-1, 0, 1):
                covered[column + right, row + up].append((DOT[up + 1, right + 1], value))
    pixels = {}
    for position, entries in covered.items():
        known = [(weight, value) for weight, value in entries if np.isfinite(value)]
        if not known:
            colour = UNKNOWN
        elif colours.categories:
            votes: dict[float, float] = defaultdict(float)
            for weight, value in known:
                votes[value] += weight
            winner = min(votes, key=lambda value: (-votes[value], value))
            colour = colours.palette[int((winner - colours.low) / (colours.high - colours.low) * len(colours.palette))]
        else:
            mean = sum(weight * value for weight, value in known) / sum(weight for weight, _ in known)
            step = int((mean - colours.low) / (colours.high - colours.low) * len(colours.palette))
            colour = colours.palette[min(step, len(colours.palette) - 1)]
        alpha = round(255 * (1 - (1 - OPACITY) ** sum(weight for weight, _ in entries)))
        pixels[position] = (*(int(part) for part in colour), alpha)
    return pixels


@pytest.mark.parametrize("categories", [False, True])
def test_each_pixel_is_that_of_a_slow_loop(categories: bool) -> None:
    random = np.random.default_rng(0)
    points = (random.standard_normal((600, 2)) * 0.8).astype(np.float32) + 0.001
    values = random.integers(4, size=600).astype(np.float64) if categories else random.random(600)
    if not categories:
        values[::7] = np.nan
    colours = Colours(PALETTE[:4], -0.5, 3.5, True) if categories else Colours(PALETTE, 0.0, 1.0, False)
    image, extent = image_of(points, values, colours, WINDOW, PIXEL)
    assert image.dtype == np.uint32
    left, bottom = (extent.left - WINDOW.left) / PIXEL[0], (extent.bottom - WINDOW.bottom) / PIXEL[1]
    assert left == pytest.approx(round(left), abs=1e-6) and bottom == pytest.approx(round(bottom), abs=1e-6)
    assert (extent.width / PIXEL[0], extent.height / PIXEL[1]) == pytest.approx(image.shape[::-1])
    rgba = image[..., None].view(np.uint8)
    rows, columns = np.nonzero(rgba[..., 3])
    found = {
        (column + round(left), row + round(bottom)): tuple(rgba[row, column].tolist())
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
    }
    expected = slow(points, values, colours)
    assert len(expected) > 500 and found.keys() == expected.keys()
    different = [position for position in expected if found[position] != expected[position]]
    assert not different, [(found[position], expected[position]) for position in different[:5]]


def test_nothing_visible_is_an_empty_image() -> None:
    image, extent = image_of(np.full((3, 2), 99.0), np.zeros(3), Colours(PALETTE, 0, 1, False), WINDOW, PIXEL)
    assert not image.any() and extent == WINDOW
    nan = image_of(np.full((3, 2), np.nan), np.zeros(3), Colours(PALETTE, 0, 1, False), WINDOW, PIXEL)[0]
    assert not nan.any()


def test_windows() -> None:
    assert WINDOW.scaled(3.0) == Window(-7.0, 8.0, -4.0, 5.0)
    assert WINDOW.scaled(1.2).covers(WINDOW) and not WINDOW.covers(WINDOW.scaled(1.2)) and WINDOW.covers(WINDOW)
    assert WINDOW.inside(np.array([[3.0, 2.0], [3.1, 0.0], [0.0, -1.5]])).tolist() == [True, False, False]
