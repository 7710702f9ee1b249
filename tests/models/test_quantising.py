"""Small integers for weights: bounds, least squares against plain rounding, packing there and back."""

from __future__ import annotations

import pytest
import torch

from netspace.errors import UsageError
from netspace.models.compressed import pack4, quantise, restore, unpack4


@pytest.mark.parametrize("bits", [4, 8])
def test_no_row_is_worse_than_with_its_largest_value_as_scale(bits: int) -> None:
    torch.manual_seed(0)
    weight, top = torch.randn(12, 65) * torch.logspace(-3, 3, 12)[:, None], 2 ** (bits - 1) - 1
    codes, scales = quantise(weight, bits)
    assert int(codes.abs().max()) <= top
    plain = weight.abs().amax(1, keepdim=True) / top
    worst = ((weight / plain).round() * plain - weight).norm(dim=1)
    found = (restore(codes, scales) - weight).norm(dim=1)
    assert bool((found <= worst * 1.0001).all())
    if bits == 4:
        assert bool((found < 0.95 * worst).any())


def test_a_row_of_zeros_stays() -> None:
    assert torch.equal(restore(*quantise(torch.zeros(2, 3), 4)), torch.zeros(2, 3))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 4)])
def test_packing_goes_there_and_back(shape: tuple[int, int]) -> None:
    codes = torch.randint(-8, 8, shape, generator=torch.Generator().manual_seed(1)).to(torch.int8)
    packed = pack4(codes)
    assert len(packed) == -(-codes.numel() // 2) and torch.equal(unpack4(packed, shape), codes)


def test_other_bits_are_told() -> None:
    with pytest.raises(UsageError, match="weights of 3 bits were asked for"):
        quantise(torch.ones(2, 2), 3)
