"""bf16 rows as bits: decoded exactly, rounded as torch rounds, whatever threads share them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netspace.native import feature_distances


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 9),
    width=st.sampled_from([1, 2, 17, 70, 1024, 1025, 2500]),
    near=st.sampled_from([1.0, 0.1, 0.01]),
    seed=st.integers(0, 1000),
)
def test_distances_and_their_gradients_are_float64s(rows: int, width: int, near: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    b, other = torch.randn(2, rows, width, generator=random)
    a, b = (b + near * other).bfloat16(), b.bfloat16()
    exact = a.double().requires_grad_()
    units = [each / each.norm(dim=1, keepdim=True) for each in (exact, b.double())]
    expected = (units[0] - units[1]).norm(dim=1)
    (actual,), none = feature_distances.unit_distances([(a, b)])
    rtol = 1e-4 if near == 0.1 else 1e-5  # between: 2 - 2 u . v of products summed in pieces
    torch.testing.assert_close(actual.double(), expected.detach(), rtol=rtol, atol=1e-6)
    (again,), (gradient,) = feature_distances.unit_distances([(a, b)], [0.3])
    assert torch.equal(actual, again) and not none
    picked = torch.randperm(rows, generator=random)
    (same,), (alike,) = feature_distances.unit_distances([(a, b[picked])], [0.3], torch.argsort(picked))
    assert torch.equal(actual, same) and torch.equal(gradient, alike)
    far = expected.detach() > 1e-3
    expected[far].sum().backward()
    assert exact.grad is not None
    error = (gradient.double() - 0.3 * exact.grad)[far].norm(dim=1)
    assert bool((error <= 0.01 * 0.3 / a.double().norm(dim=1)[far]).all())  # of a gradient's length, at most 1 / |a|


@pytest.mark.parametrize("factor", [1.0, 1 + 2**-9, -0.3, 3e30, 1e-30])
def test_values_are_rounded_as_torch_rounds(factor: float) -> None:
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16).float() * factor
    values = every[every.isfinite() & every.bfloat16().isfinite()]
    bits = np.empty(len(values), dtype=np.uint16)
    feature_distances._round(values.view(torch.uint32).numpy(), bits)
    assert torch.equal(torch.from_numpy(bits).view(torch.bfloat16), values.bfloat16())


@pytest.mark.parametrize("scale", [1.0, 1 + 2**-9, -0.3, 3e30, 1e-30])
def test_gradients_are_rounded_as_torch_rounds(scale: float) -> None:
    """At right angles the gradient is -v / (|a| sqrt 2), whatever the values of v are."""
    torch.manual_seed(0)
    b = torch.zeros(1, 2001, dtype=torch.bfloat16)
    b[:, 1:] = torch.randn(1, 2000).bfloat16()
    a = torch.zeros_like(b)
    a[:, 0] = 2
    _, (gradient,) = feature_distances.unit_distances([(a, b)], [scale])
    falls = torch.tensor(-scale / (2 * float(b.double().norm()) * 2**0.5), dtype=torch.float32)
    expected = b.float() * falls
    near = (gradient[:, 1:].float() / expected[:, 1:] - 1).abs()
    assert float(near.max()) <= 2**-8 and float((gradient[:, 1:] == expected[:, 1:].bfloat16()).float().mean()) > 0.99


@pytest.mark.parametrize("row", [-1, 4])
def test_rows_that_are_not_there_are_not_read(row: int) -> None:
    rows = torch.ones(4, 6, dtype=torch.bfloat16)
    with pytest.raises(IndexError, match="not all among 4"):
        feature_distances.unit_distances([(rows[:2], rows)], None, torch.tensor([0, row]))


def test_rows_that_do_not_match_are_not_compared() -> None:
    rows = torch.ones(4, 6, dtype=torch.bfloat16)
    for a, b, places in ((rows, rows[:2], None), (rows[:2], rows, None), (rows, rows[:, :5].contiguous(), None)):
        with pytest.raises(ValueError, match="are compared with"):
            feature_distances.unit_distances([(a, b)], None, places)
    with pytest.raises(ValueError, match="1 rows of 6 values are compared with 4 of 6"):
        feature_distances.unit_distances([(rows, rows)], None, torch.tensor([0]))
    none = feature_distances.unit_distances([(rows[:0], rows)], [1.0], torch.tensor([], dtype=torch.int64))
    assert none[0][0].shape == (0,) and none[1][0].shape == (0, 6)


def test_what_is_not_half_or_not_in_rows_is_not_taken() -> None:
    rows = torch.zeros(4, 6, dtype=torch.bfloat16)
    assert feature_distances.fits(rows, rows)
    assert not feature_distances.fits(rows, rows.float())
    assert not feature_distances.fits(rows, rows[:, ::2])
