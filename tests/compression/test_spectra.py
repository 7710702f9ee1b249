"""Singular values and frequencies: against slow oracles, by what changes them and what does not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netspace.compression.analyse import low_pass, scale_small, singular_ratio

SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(size: int, seed: int = 1) -> torch.Tensor:
    return torch.linalg.qr(drawn(size, size, seed=seed))[0]


def test_singular_ratio_is_the_share_of_the_leading_half() -> None:
    values = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    weight = (orthogonal(5) * values @ orthogonal(5, seed=2)).reshape(5, 5, 1, 1)
    assert singular_ratio(weight) == pytest.approx(9.0 / 10.5, rel=1e-12)
    assert singular_ratio(weight, leading=0.2) == pytest.approx(4.0 / 10.5, rel=1e-12)
    assert singular_ratio(weight, leading=1.0) == 1.0
    assert math.isnan(singular_ratio(torch.zeros(3, 2, 3, 3)))


def test_a_rank_one_weight_is_as_smooth_as_can_be() -> None:
    weight = drawn(6, 1) @ drawn(1, 18, seed=3)
    assert singular_ratio(weight.reshape(6, 2, 3, 3)) == pytest.approx(1.0)
    assert singular_ratio(drawn(6, 2, 3, 3)) < 0.9


def slow_low_pass(matrix: np.ndarray, keep: float) -> np.ndarray:
    """The sum over waves, one by one."""
    height, width = matrix.shape
    actual = np.zeros_like(matrix, dtype=complex)
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    for u in range(height):
        for v in range(width):
            if max(min(u, height - u) / height, min(v, width - v) / width) <= keep / 2:
                wave = np.exp(2j * np.pi * (u * rows / height + v * columns / width))
                actual += (matrix * wave.conj()).sum() / (height * width) * wave
    assert np.abs(actual.imag).max() < 1e-12
    return np.asarray(actual.real)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("shape", [(5, 2, 3, 3), (4, 2, 1, 2), (6, 3)])
def test_low_pass_is_the_sum_of_the_waves_that_are_kept(shape: tuple[int, ...], keep: float) -> None:
    weight = drawn(*shape)
    expected = slow_low_pass(weight.flatten(1).numpy(), keep).reshape(shape)
    np.testing.assert_allclose(low_pass(weight, keep).numpy(), expected, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(SHAPES, st.floats(0, 1), st.floats(0, 1))
def test_low_pass_keeps_all_only_takes_away_and_ends_in_the_mean(
    shape: tuple[int, ...], keep: float, less: float
) -> None:
    weight = drawn(*shape)
    torch.testing.assert_close(low_pass(weight, 1.0), weight)
    torch.testing.assert_close(low_pass(weight, 0.0), weight.mean().expand_as(weight))
    once = low_pass(weight, keep)
    torch.testing.assert_close(low_pass(once, keep), once)
    assert low_pass(weight, keep * less).norm() <= once.norm() + 1e-9 <= weight.norm() + 2e-9


def test_low_pass_and_scale_small_keep_the_type() -> None:
    weight = drawn(4, 2, 3, 3).float()
    assert low_pass(weight, 0.5).dtype == scale_small(weight, 0.5).dtype == torch.float32


@pytest.mark.parametrize("shape", [(5, 2, 3, 3), (9, 2, 1, 1), (4, 6)])
def test_scale_small_scales_the_small_half(shape: tuple[int, ...]) -> None:
    weight = drawn(*shape)
    before = torch.linalg.svdvals(weight.flatten(1))
    leading = math.ceil(len(before) / 2)
    after = torch.linalg.svdvals(scale_small(weight, 0.25).flatten(1))
    torch.testing.assert_close(after, torch.cat([before[:leading], before[leading:] / 4]))
    torch.testing.assert_close(scale_small(weight, 1.0), weight)
    assert singular_ratio(scale_small(weight, 0.25)) > singular_ratio(weight)
    assert singular_ratio(scale_small(weight, 0.0)) == pytest.approx(1.0)
