"""The figures' arithmetic, against slow and obvious ways, and at the edges of their data."""

from __future__ import annotations

import numpy as np
import pytest

from netspace.report import drawing as numbers
from netspace.report.drawing import plain, shortened, styled, to_png
from netspace.report.figures_behaviour import draw_baselines, draw_members, draw_scatter
from netspace.report.figures_latents import as_image, draw_preps, principal
from netspace.report.figures_lines import draw_line
from netspace.report.figures_training import draw_training


@pytest.mark.parametrize("shape", [(40, 7), (12, 300), (3, 2), (5, 1)])
def test_principal_axes_are_those_of_the_decomposition(shape: tuple[int, int]) -> None:
    latents = np.random.default_rng(0).standard_normal(shape) + 5
    places, shares = principal(latents)
    centred = latents - latents.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    slow = (left * values)[:, :2]
    known = slow.shape[1]
    np.testing.assert_allclose(np.abs(places[:, :known]), np.abs(slow), atol=1e-9)
    np.testing.assert_allclose(shares[:known], (values**2 / (values**2).sum())[:2], atol=1e-12)


def test_principal_axes_of_equal_latents_are_zero() -> None:
    places, shares = principal(np.ones((4, 3)))
    assert not places.any() and shares == (0.0, 0.0)


@pytest.mark.parametrize("parameters", [1, 2, 7, 100, 4_810])
def test_an_image_holds_every_parameter_once(parameters: int) -> None:
    flat = np.arange(parameters, dtype=float)
    image = as_image(flat)
    np.testing.assert_array_equal(image[np.isfinite(image)], flat)
    assert image.shape[0] <= image.shape[1] and image.size - parameters < image.shape[1]


def test_odd_data_can_be_drawn() -> None:
    bad, zeros, half = np.array([np.nan, np.inf, 1.0, 0.0]), np.zeros(2, dtype=int), 2 * [np.full(2, 0.5)]
    records = [
        {"step": 1, "loss": 0.0},
        {"step": 2, "loss": float("nan"), "other": -1.0},
        {"step": 2, "val_r2": -1e9},
    ]
    with styled():
        drawn = [
            draw_preps([("a", bad, "b", np.zeros(4))]),
            draw_preps([("a", np.full(4, np.nan), "b", np.full(4, np.nan))]),
            draw_training(records),
            draw_training([{"step": 1}]),
            draw_members(*half, zeros, zeros, ["a"]),
            draw_scatter(*half, zeros, zeros, ["a"], "equal"),
            draw_line(np.array([0.0, 1.0]), np.array([np.nan, 0.5]), None, "a $ in a title", 0.1),
            draw_baselines([("space", {}), ("other", {"r2": -9.0, "mae": 0.0, "agreement": None})]),
        ]
        assert all(to_png(figure).startswith(b"\x89PNG") for figure in drawn)


def test_text_is_made_safe_to_draw() -> None:
    assert plain("$a$") == r"\$a\$"
    assert plain("网\n") == "??"
    assert shortened("abcdefghij", 5) == "ab…ij" and len(shortened("x" * 99, 20)) == 20


def test_numbers_read_as_people_write_them() -> None:
    assert numbers.number(-1234.5, 1) == "−1,234.5"
    assert numbers.number(-0.0001) == "0.00"
    assert numbers.percent(0.5) == "50.0 %" and numbers.points(0.012) == "1.2 points" and numbers.count(4810) == "4,810"
    for nothing in (None, float("nan"), float("inf")):
        assert numbers.number(nothing) == numbers.percent(nothing) == "–"
    assert [numbers.finite(each) for each in (3, True, "3", [1], float("nan"))] == [3.0, None, None, None, None]
    assert numbers.joined(["a"]) == "a" and numbers.joined(["a", "b", "c"]) == "a, b and c"
