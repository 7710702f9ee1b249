"""Gradients through the winners alone equal autograd's through everything."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from netspace.models.encoders import widest


def plainly(images: Tensor, first: nn.Conv2d, second: nn.Conv2d, slope: float) -> Tensor:
    return second(F.leaky_relu(first(images), slope)).amax(dim=3)


def convolutions(hidden: int, channels: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    torch.manual_seed(hidden + channels)
    settings = {"stride": (1, 2), "padding": (0, 1), "dtype": torch.float64}
    return nn.Conv2d(1, hidden, (1, 3), **settings), nn.Conv2d(hidden, channels, (1, 3), **settings)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 21), st.integers(1, 4), st.integers(1, 5))
def test_values_and_all_gradients_are_those_of_autograd(m: int, rows: int, width: int, h: int, channels: int) -> None:
    first, second = convolutions(h, channels)
    images = torch.randn(m, 1, rows, width, dtype=torch.float64, requires_grad=True)
    inputs = [images, *first.parameters(), *second.parameters()]
    ours, theirs = widest(images, first, second, 0.1), plainly(images, first, second, 0.1)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    coming = torch.randn_like(ours)
    expected = torch.autograd.grad(theirs, inputs, coming)
    for got, wanted in zip(torch.autograd.grad(ours, inputs, coming), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_of_equal_maxima_one_wins() -> None:
    first, second = convolutions(1, 1)
    for value in (*first.parameters(), *second.parameters()):
        nn.init.ones_(value)
    images = torch.ones(1, 1, 1, 16, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(widest(images, first, second, 0.1).sum(), images)
    (spread,) = torch.autograd.grad(plainly(images, first, second, 0.1).sum(), images)
    assert gradient.sum() == pytest.approx(float(spread.sum()))
    assert (gradient > 0).sum() <= 7 < (spread > 0).sum()  # what one winner sees


def test_bf16_is_near_float32() -> None:
    first, second = (layer.float() for layer in convolutions(8, 16))
    images = torch.randn(2, 1, 4, 64)
    exact = widest(images, first, second, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        rough = widest(images, first, second, 0.1)
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.1)
    assert torch.autograd.grad(rough.float().sum(), first.weight)[0].dtype == torch.float32
