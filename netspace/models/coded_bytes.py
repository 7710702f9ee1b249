"""Bytes of a file: of tensors, of integers of a few bits, of parts that zlib compresses, and lists as run lengths."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

Bytes = bytes | memoryview


def bytes_of(value: Tensor) -> bytes:
    """Return the bytes of a tensor's values, in order."""
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""


def tensor_of(data: Bytes, dtype: torch.dtype) -> Tensor:
    """Return the values (N,) that `bytes_of` gave the bytes of."""
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


def pack(values: Tensor, bits: int) -> bytes:
    """Return integers in `bits` bits each."""
    shifted = (values.numpy().astype(np.int64) + (1 << (bits - 1))).ravel()
    return np.packbits(((shifted[:, None] >> np.arange(bits - 1, -1, -1)) & 1).astype(np.uint8)).tobytes()


def unpack(data: Bytes, bits: int, shape: tuple[int, int]) -> Tensor:
    """Return the integers int32 that `pack` packed. Raises `ValueError` if there are fewer."""
    if not 2 <= bits <= 32:
        raise ValueError(f"integers of {bits} bits are none of its ways")
    read = np.unpackbits(np.frombuffer(data, dtype=np.uint8))[: math.prod(shape) * bits].reshape(*shape, bits)
    values = (read.astype(np.int64) << np.arange(bits - 1, -1, -1)).sum(axis=2) - (1 << (bits - 1))
    return torch.from_numpy(values.astype(np.int32))


def deflated(data: bytes) -> bytes:
    """Return bytes compressed, if that is shorter, after a byte that says so."""
    short = zlib.compress(data, 9)
    return b"\1" + short if len(short) < len(data) else b"\0" + data if data else b""


def inflated(data: Bytes, limit: int) -> bytes:
    """Return what zlib compressed, in a section after a byte that says so. Raises `ValueError` if it is longer than `limit`."""
    if data[:1] == b"\0" or not data:
        return bytes(data[1:])
    reader = zlib.decompressobj()
    inflated = reader.decompress(data[1:] if data[:1] == b"\1" else data, limit + 1)
    if len(inflated) > limit or not reader.eof:
        raise ValueError("its compressed parts are longer than it says, or cut short")
    return inflated


def run_lengths(values: list[Any]) -> list[list[Any]]:
    """Return a list as pairs of a value and how often it follows itself.

    >>> run_lengths([1, 1, 1, 2])
    [[1, 3], [2, 1]]
    """
    runs: list[list[Any]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return runs


def expanded(runs: list[list[Any]], count: int) -> list[Any]:
    """Return the list of `run_lengths`. Raises `ValueError` if it has not `count` values."""
    if sum(int(length) for _, length in runs) != count or any(int(length) < 1 for _, length in runs):
        raise ValueError("its tensors are not those that it names")
    return [value for value, length in runs for _ in range(int(length))]
