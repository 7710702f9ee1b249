"""Weights as small integers: symmetric, one scale for each output row, 4 bits packed two in a byte.

Axes: R rows, C columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from netspace.errors import UsageError

SHARES = 40  # clippings that are tried, of a row's largest magnitude


def check_bits(bits: int) -> None:
    """Raises `UsageError` for bits other than 4 and 8."""
    if bits not in (4, 8):
        raise UsageError(f"weights of {bits} bits were asked for, but they are packed in 8 or 4: give --bits 8 or 4")


def quantise(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes int8 (R, C) and scales float32 (R,) of a matrix (R, C), the clipping of each row by least squares.

    Raises `UsageError` for bits other than 4 and 8.
    """
    check_bits(bits)
    rows, top = weight.detach().float(), 2 ** (bits - 1) - 1
    peak = rows.abs().amax(dim=1)
    full = torch.where(peak > 0, peak, torch.ones_like(peak)) / top
    scales, least = full, torch.full_like(full, float("inf"))
    for share in torch.linspace(1.0, 0.4, SHARES).tolist():  # few, so that memory stays that of the matrix
        tried = full * share
        away = ((rows / tried[:, None]).round().clamp(-top, top) * tried[:, None] - rows).square().sum(dim=1)
        scales, least = torch.where(away < least, tried, scales), torch.minimum(away, least)
    return (rows / scales[:, None]).round().clamp(-top, top).to(torch.int8), scales


def restore(codes: Tensor, scales: Tensor) -> Tensor:
    """The matrix (R, C), float32, of codes and scales."""
    return codes.float() * scales[:, None]


def pack4(codes: Tensor) -> Tensor:
    """Codes of -8 to 7, any shape, as uint8 (ceil(n / 2),): the first of two in the lower half."""
    flat = codes.flatten().to(torch.int16).bitwise_and(15)
    pairs = torch.nn.functional.pad(flat, (0, len(flat) % 2)).view(-1, 2)
    return (pairs[:, 0] + 16 * pairs[:, 1]).to(torch.uint8)


def unpack4(packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """What `pack4` packed, int8 of the shape."""
    wide = packed.to(torch.int16)
    codes = torch.stack([wide % 16, wide // 16], dim=1).flatten()[: shape[0] * shape[1]]
    return torch.where(codes > 7, codes - 16, codes).to(torch.int8).view(shape)


def pack(tensors: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
    """Named tensors with each matrix as NAME.codes, of 4 bits packed, and NAME.scales; all others as they are."""
    packed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if value.dim() != 2:
            packed[name] = value
            continue
        codes, packed[f"{name}.scales"] = quantise(value, bits)
        packed[f"{name}.codes"] = pack4(codes) if bits == 4 else codes
    return packed


def unpack(packed: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """What `pack` packed, float32, for tensors of these shapes. Raises `KeyError` for one that is not there."""
    found: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if f"{name}.codes" not in packed:
            found[name] = packed[name]
            continue
        codes = packed[f"{name}.codes"]
        codes = unpack4(codes, (shape[0], shape[1])) if codes.dtype == torch.uint8 else codes
        found[name] = restore(codes, packed[f"{name}.scales"])
    return found
