"""Weights as integers times a step: bounds, errors against plain rounding, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from netspace.errors import NetspaceError, UsageError
from netspace.networks.rounding import (
    Codes,
    as_rows,
    kernel_positions,
    round_compensated,
    round_rows,
    round_step,
    unbiased,
)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(12, 5, 3, 3), (7, 20), (33,), (1, 1), ()])
def test_rows_are_at_least_as_near_as_by_their_largest_value(bits: int, shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    codes, top = round_rows(weight, bits), 2 ** (bits - 1) - 1
    rows = as_rows(weight).double()
    assert int(codes.values.abs().max()) <= top and codes.bits <= bits
    assert torch.equal(codes.steps, codes.steps.bfloat16().float())
    restored = codes.restore(shape)
    assert restored.shape == shape and restored.dtype == torch.float32
    plain = torch.tensor([[_rounded_up(float(row.abs().max()) / top)] for row in rows], dtype=torch.float64)
    worst = ((rows / plain).round() * plain - rows).square().sum(1)
    assert bool(((as_rows(restored).double() - rows).square().sum(1) <= worst * 1.0001).all())
    assert bool(((as_rows(restored).double() - rows).abs().mean(1) < plain[:, 0] * 0.51).all())


def _rounded_up(value: float) -> float:
    """Return the next number with 8 bits of mantissa."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(math.ceil(mantissa * 256) / 256, exponent)


def test_a_step_is_that_of_all_values() -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    codes = round_step(weight, 0.1)
    assert codes.steps.shape == (1,) and codes.values.shape == (6, 36)
    assert float((codes.restore(weight.shape) - weight).abs().max()) <= 0.05001
    assert torch.equal(codes.values, (weight.double() / codes.steps.double()).round().int().flatten(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_types_come_back_without_infinities(dtype: torch.dtype) -> None:
    codes = Codes(
        torch.tensor([[2, 3]], dtype=torch.int32),
        torch.tensor([float(torch.finfo(dtype).max) / 2.5 if dtype.itemsize < 4 else 1.0]),
    )
    restored = codes.restore((2,), dtype)
    assert restored.dtype == dtype and bool(torch.isfinite(restored.float()).all())


def test_zeros_and_nothing() -> None:
    assert torch.equal(round_rows(torch.zeros(2, 3), 4).restore((2, 3)), torch.zeros(2, 3))
    for shape in ((0, 3), (3, 0), (0,)):
        assert round_rows(torch.empty(shape), 3).restore(shape).shape == shape
        assert round_step(torch.empty(shape), 0.1).restore(shape).shape == shape


def test_bits_are_those_of_the_largest_value() -> None:
    for value, bits in ((0, 2), (1, 2), (-2, 2), (2, 3), (-4, 3), (127, 8), (-128, 8), (128, 9), (-(2**31), 32)):
        assert Codes(torch.tensor([[value]], dtype=torch.int32), torch.ones(1)).bits == bits


def test_mistakes_are_told() -> None:
    for bits in (1, 9):
        with pytest.raises(UsageError, match=f"weights of {bits} bits were asked for, but rows are rounded to 2 to 8"):
            round_rows(torch.ones(2, 2), bits)
    for step in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="multiples of a positive number"):
            round_step(torch.ones(2, 2), step)
    with pytest.raises(UsageError, match=r"weights up to 1 need a larger one"):
        round_step(torch.ones(2, 2), 1e-10)
    with pytest.raises(NetspaceError, match="not finite"):
        round_rows(torch.tensor([[1.0, float("nan")]]), 4)
    with pytest.raises(NetspaceError, match="not finite"):
        round_step(torch.tensor([float("inf")]), 1.0)


def test_positions_of_kernels() -> None:
    assert [kernel_positions(shape) for shape in ((4, 3, 5, 5), (4, 3, 7), (4, 3), (4,), ())] == [25, 7, 1, 1, 1]


def test_coarse_steps_grow_until_a_layer_does_not_shrink() -> None:
    weight = torch.randn(32, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    coarse = round_step(weight, 2.5)

    def projection(codes: Codes) -> float:
        exact = weight.double()
        return float((exact * codes.restore(weight.shape).double()).sum() / exact.square().sum())

    assert projection(coarse) < 0.95 and abs(projection(unbiased(coarse, weight)) - 1) < 1e-6
    assert torch.equal(unbiased(coarse, weight).values, coarse.values)
    empty = round_step(torch.zeros(3, 2), 1.0)
    assert torch.equal(unbiased(empty, torch.zeros(3, 2)).steps, empty.steps)


def slowly_compensated(weight: torch.Tensor, squares: torch.Tensor, step: float) -> torch.Tensor:
    """Round a row (C,) column by column, and fit those that are left anew each time, by least squares; return integers."""
    left, chosen = weight.clone(), []
    for column in range(len(weight)):
        chosen.append(float((left[column] / step).round()))
        error = chosen[-1] * step - left[column]
        rest = slice(column + 1, None)
        # those left minimise (e, d) squares (e, d)^T for the error e of this column and their own changes d
        moved = -torch.linalg.solve(squares[rest, rest], squares[rest, column] * error)
        left = torch.cat([left[: column + 1], left[rest] + moved])
    return torch.tensor(chosen)


@pytest.mark.parametrize("columns", [1, 7, 40])  # 40: more than a block
def test_compensated_columns_are_those_of_least_squares(columns: int) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(2, 100, columns, dtype=torch.float64).cumsum(2)
    squares = inputs.mT @ inputs / 100 + 0.01 * torch.eye(columns, dtype=torch.float64)
    weight = torch.randn(2, 3, columns, dtype=torch.float64)
    codes = round_compensated(weight, squares, 0.5)
    assert codes.steps.tolist() == [0.5] and codes.values.shape == (6, columns)
    for group in range(2):
        for row in range(3):
            expected = slowly_compensated(weight[group, row], squares[group], 0.5)
            assert codes.values[3 * group + row].tolist() == expected.int().tolist()


def test_compensated_integers_cost_less_than_the_nearest() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(500, 30, dtype=torch.float64) @ torch.randn(30, 30, dtype=torch.float64)
    squares, weight = inputs.mT @ inputs / 500, torch.randn(1, 20, 30, dtype=torch.float64)

    def cost(codes: Codes) -> float:
        error = codes.restore((20, 30)).double() - weight[0]
        return float((error @ squares * error).sum())

    assert cost(round_compensated(weight, squares[None], 1.0)) < 0.7 * cost(round_step(weight[0], 1.0))
    alone = torch.eye(30, dtype=torch.float64)[None]  # of inputs that are not alike nothing can be made up for
    assert torch.equal(round_compensated(weight, alone, 0.7).values, round_step(weight[0], 0.7).values)
    with pytest.raises(UsageError, match="multiples of a positive number"):
        round_compensated(weight, alone, -1.0)
