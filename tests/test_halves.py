"""bf16 rows as bits: decoded exactly, rounded as torch rounds, whatever threads share them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netspace import halves


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 9), width=st.integers(1, 70), seed=st.integers(0, 1000))
def test_distances_are_float64s(rows: int, width: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, rows, width, generator=random).bfloat16()
    exact = [each.double() / each.double().norm(dim=1, keepdim=True) for each in (a, b)]
    wanted = torch.stack([a.double().norm(dim=1), b.double().norm(dim=1), (exact[0] - exact[1]).norm(dim=1)], dim=1)
    torch.testing.assert_close(halves.unit_distances(a, b).double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 1 + 2**-9, -0.3, 3e30, 1e-30])
def test_mixed_rows_are_rounded_as_torch_rounds(factor: float) -> None:
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    a = every[every.isfinite() & ((every.float() * factor).isfinite())][None]
    for of_a, of_b in ((factor, 0.0), (0.0, factor)):
        scales = [torch.tensor([value], dtype=torch.float32) for value in (of_a, of_b)]
        found = halves.mixed(a, a, *scales)
        wanted = (a.float() * torch.tensor(factor, dtype=torch.float32)).bfloat16()
        assert torch.equal(found, wanted)


def test_what_is_not_half_or_not_in_rows_is_not_taken() -> None:
    rows = torch.zeros(4, 6, dtype=torch.bfloat16)
    assert halves.fits(rows, rows)
    assert not halves.fits(rows, rows.float())
    assert not halves.fits(rows, rows[:, ::2])
