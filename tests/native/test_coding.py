"""Entropy coding of integers: there and back, near or below the entropy of the values, the same bytes everywhere."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from netspace.errors import NetspaceError
from netspace.native.coding import decode, decode_all, encode, encode_all

ANY = st.one_of(st.integers(-3, 3), st.integers(-(2**31), 2**31 - 1), st.just(0))
STORED = bytes.fromhex("acdd862c1db453bb7fcaae79ffcfa5a32b64f3008f0f52")
VALUES = [[0, 1, -1, 2, 0, 0], [7, -30, 1000, 0, 0, -(2**31)], [2**31 - 1, 3, 3, 3, -3, -4]]


def entropy_bytes(values: np.ndarray) -> float:
    """Return the bytes of values by the frequency of each, without the table of frequencies."""
    _, counts = np.unique(values, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def laplace(rows: int, columns: int, scale: float, structure: float = 0.0) -> np.ndarray:
    """Return Laplace-distributed integers whose scale varies by row and by channel of 9."""
    rng = np.random.default_rng(0)
    scales = (
        scale
        * np.exp(structure * rng.normal(size=(rows, 1)))
        * np.exp(structure * rng.normal(size=columns // 9)).repeat(9)
    )
    return np.round(rng.laplace(size=(rows, columns)) * scales).astype(np.int32)


@settings(max_examples=60, deadline=None)
@given(arrays(np.int32, array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9), elements=ANY), st.integers(1, 9))
def test_any_integers_come_back(values: np.ndarray, period: int) -> None:
    columns = values.shape[1] // period * period or values.shape[1]
    values = np.ascontiguousarray(values[:, :columns])
    period = period if columns % period == 0 else 1
    assert np.array_equal(decode(encode(values, period), values.shape, period), values)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(arrays(np.int32, array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=4), elements=ANY), max_size=4)
)
def test_several_matrices_are_one_stream(matrices: list[np.ndarray]) -> None:
    ones = [1] * len(matrices)
    decoded = decode_all(encode_all(matrices, ones), [each.shape for each in matrices], ones)
    assert len(decoded) == len(matrices)
    assert all(np.array_equal(one, two) for one, two in zip(decoded, matrices, strict=True))


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_nothing_takes_no_bytes(shape: tuple[int, int]) -> None:
    assert encode(np.empty(shape, np.int32)) == b"" and decode(b"", shape).shape == shape


def test_zeros_take_hardly_any() -> None:
    assert len(encode(np.zeros((300, 300), np.int32))) < 20


def test_loops_stay_inside_their_tables() -> None:
    """Interpreted, an index past the end of an array is an error; compiled, it reads whatever lies there."""
    values = [np.array(VALUES, np.int32), np.full((3, 7), 2**31 - 1, np.int32), np.full((2, 9), -(2**31), np.int32)]
    code = (
        "import numpy as np\nfrom netspace.native.coding import decode_all, encode_all\n"
        f"values = [np.array(each, np.int32) for each in {[each.tolist() for each in values]}]\n"
        "data = encode_all(values, [3, 1, 9])\n"
        "back = decode_all(data, [each.shape for each in values], [3, 1, 9])\n"
        "assert all(map(np.array_equal, back, values))\nprint(data.hex())"
    )
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert bytes.fromhex(done.stdout) == encode_all(values, [3, 1, 9])


def test_bytes_are_the_same_on_every_machine() -> None:
    assert encode(np.array(VALUES, np.int32), 3) == STORED
    assert decode(STORED, (3, 6), 3).tolist() == VALUES


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_values_without_structure_take_their_entropy(scale: float) -> None:
    values = laplace(96, 1152, scale)
    assert 0.99 < len(encode(values, 9)) / entropy_bytes(values) < 1.01


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_scales_of_rows_and_channels_are_learnt(scale: float) -> None:
    values = laplace(64, 576, scale, 0.7)
    assert len(encode(values, 9)) < 0.95 * entropy_bytes(values)


def test_other_bytes_are_told_or_give_integers_of_the_shape() -> None:
    data = encode(laplace(20, 90, 2.0), 9)
    for other in (data[: len(data) // 2], data + b"12345", b""):
        with pytest.raises(NetspaceError, match=r"[\d,]+ bytes of entropy-coded integers .* cut short or altered"):
            decode(other, (20, 90), 9)
    rng = np.random.default_rng(1)
    for _ in range(20):
        noise = rng.integers(256, size=len(data), dtype=np.uint8).tobytes()
        try:
            assert decode(noise, (20, 90), 9).shape == (20, 90)
        except NetspaceError:
            pass
