"""Weights as integers times a step: rounding by rows, clipped by least squares, and with one step for a whole tensor.

Axes: R rows (filters), C columns of a tensor as a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from netspace.errors import NetspaceError, UsageError

CLIPPINGS = 40  # that are tried, of a row's largest magnitude
BITS = range(2, 9)  # of codes of `round_rows`
MAX_GAIN = 2.0  # of a step after rounding
LARGEST = 2**31 - 1  # of a code
BLOCK = 32  # columns that are rounded before the others are changed for their errors


@dataclass(frozen=True)
class Codes:
    """A tensor as integers: `values * steps[:, None]` in float32 is the tensor, its rows being the first axis."""

    values: Tensor  # int32 (R, C)
    steps: Tensor  # float32 (1,) or (R,)

    def __post_init__(self) -> None:
        assert self.values.dtype == torch.int32 and self.values.dim() == 2
        assert self.steps.dtype == torch.float32 and self.steps.shape in ((1,), self.values.shape[:1])

    @property
    def bits(self) -> int:
        """Bits in which every value fits, at least 2."""
        if not self.values.numel():
            return 2
        low, high = (int(each) for each in self.values.aminmax())
        return max(2, (high if high > -low - 1 else -low - 1).bit_length() + 1)

    def restore(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the tensor of a shape and a floating-point type, in which it is clamped to finite values."""
        weight = (self.values.float() * self.steps[:, None]).view(tuple(shape))
        if dtype.is_floating_point and dtype.itemsize < weight.element_size():
            bounds = torch.finfo(dtype)
            weight = weight.clamp(bounds.min, bounds.max)
        return weight.to(dtype)


def as_rows(weight: Tensor) -> Tensor:
    """Return a tensor as a matrix float32 (R, C) of its filters; vectors (biases) and scalars are one row."""
    return weight.detach().float().reshape(1, -1) if weight.dim() < 2 else weight.detach().float().flatten(1)


def kernel_positions(shape: Sequence[int]) -> int:
    """Return the number of positions of a kernel of shape (F, C, ...): 9 of a convolution of 3 x 3, 1 of a matrix.

    >>> kernel_positions((16, 3, 3, 3)), kernel_positions((10, 64)), kernel_positions((10,))
    (9, 1, 1)
    """
    return max(1, math.prod(shape[2:]))


def round_rows(weight: Tensor, bits: int) -> Codes:
    """Round a tensor to codes of `bits` bits with a step for each row, which is clipped where that has the least squares.

    Steps are rounded to the upper 16 bits of a float32 before the weights are, so that a file stores them in two bytes.
    A vector has one step. Raises `UsageError` for other bits than 2 to 8, `NetspaceError` for values that are not finite.
    """
    if bits not in BITS:
        raise UsageError(f"weights of {bits} bits were asked for, but rows are rounded to {BITS[0]} to {BITS[-1]}")
    rows = _finite(as_rows(weight))
    return Codes(*clipped(rows, bits, 16))


def round_step(weight: Tensor, step: float) -> Codes:
    """Round a tensor to multiples of one step, in units of the weights.

    Raises `UsageError` for a step that is not positive or leads to integers beyond 32 bits, `NetspaceError` for values that
    are not finite.
    """
    exact = torch.tensor([step], dtype=torch.float32)
    if not (math.isfinite(float(exact)) and float(exact) > 0):
        raise UsageError(f"a step of {step} was asked for, but weights are rounded to multiples of a positive number")
    values = (_finite(as_rows(weight)).double() / exact.double()).round()
    if values.numel() and float(values.abs().max()) > LARGEST:
        raise UsageError(
            f"a step of {step} was asked for, but weights up to {float(weight.abs().max()):.3g} need a larger one"
        )
    return Codes(values.to(torch.int32), exact)


def unbiased(codes: Codes, weight: Tensor) -> Codes:
    """Return codes whose steps are multiplied by (w, w) / (w, q) of the weights w and the rounded ones q, at most by `MAX_GAIN`.

    Coarse rounding shrinks a layer: all its errors point to zero, which outputs notice more than independent ones.
    """
    exact, rounded = weight.detach().double().flatten(), codes.restore(weight.shape).double().flatten()
    power, common = float(exact @ exact), float(exact @ rounded)
    return Codes(codes.values, codes.steps * min(MAX_GAIN, power / common)) if common > 0 else codes


def round_compensated(weight: Tensor, squares: Tensor, step: float) -> Codes:
    """Round weights (G, R, C) to multiples of one step, column by column, so that the error of outputs stays small.

    `squares` (G, C, C), positive definite, is the mean of x x^T over the inputs x of a layer: an error e of a row costs
    e squares e^T. What rounding a column costs is made up for in the columns after it (Frantar et al. 2022, 'GPTQ', Eq. 2 and 3).
    Returns codes of G * R rows. Raises `UsageError` as `round_step`.
    """
    exact = float(torch.tensor(step, dtype=torch.float32))
    factor = torch.linalg.cholesky(torch.linalg.inv(squares.double()), upper=True)
    left, rounded = weight.double().clone(), torch.empty(weight.shape, dtype=torch.float64)
    columns = weight.shape[-1]
    for first in range(0, columns, BLOCK):
        last = min(first + BLOCK, columns)
        errors = left.new_empty(*weight.shape[:2], last - first)
        for column in range(first, last):
            own = (left[..., column] / exact).round()
            rounded[..., column] = own * exact
            error = (left[..., column] - own * exact) / factor[:, column, column, None]
            errors[..., column - first] = error
            left[..., column + 1 : last] -= error[..., None] * factor[:, None, column, column + 1 : last]
        left[..., last:] -= errors @ factor[:, first:last, last:]
    return round_step(rounded.flatten(0, 1), exact)


def _finite(rows: Tensor) -> Tensor:
    if not torch.isfinite(rows).all():
        raise NetspaceError("weights were to be rounded, but some of them are not finite")
    return rows


def clipped(rows: Tensor, bits: int, step_bits: int = 32) -> tuple[Tensor, Tensor]:
    """Return codes int32 and steps float32 (R,) of a matrix (R, C), the clipping of each row by least squares.

    Steps have the upper `step_bits`, 16 or 32, of a float32.
    """
    top = 2 ** (bits - 1) - 1
    peak = rows.abs().amax(dim=1) if rows.shape[1] else rows.new_zeros(len(rows))
    full = torch.where(peak > 0, peak, torch.ones_like(peak)) / top
    full = full.clamp_min(torch.finfo(torch.float32).tiny)  # of subnormal peaks
    steps, least = full, torch.full_like(full, float("inf"))
    for factor in torch.linspace(
        1.0, 0.4, CLIPPINGS
    ).tolist():  # one at a time, so that memory stays that of the matrix
        tried = full * factor
        tried = _short(tried) if step_bits == 16 else tried
        error = ((rows / tried[:, None]).round().clamp(-top, top) * tried[:, None] - rows).square().sum(dim=1)
        steps, least = torch.where(error < least, tried, steps), torch.minimum(error, least)
    steps = _short(steps) if step_bits == 16 else steps  # of rows whose squares are not finite
    return (rows / steps[:, None]).round().clamp(-top, top).to(torch.int32), steps


def _short(steps: Tensor) -> Tensor:
    """Return positive float32 numbers rounded up to their upper 16 bits: up, so that the largest value of a row stays in range."""
    return ((steps.view(torch.int32) + 0xFFFF) >> 16 << 16).view(torch.float32)
