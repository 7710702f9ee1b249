"""Kernels in order and orders in bits: nothing lost, filters kept where they should be, no larger than the paper counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netspace.errors import UsageError
from netspace.native.orders import KINDS, arrange, pack_order, paper_bits, unpack_order
from netspace.native.paths import path_length


def kernels(filters: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((filters * channels, 9)).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(filters=st.integers(1, 20), channels=st.integers(1, 20), kind=st.sampled_from(KINDS), seed=st.integers(0, 9))
def test_orders_come_back_from_their_bits(filters: int, channels: int, kind: str, seed: int) -> None:
    grid = (filters, channels)
    (order,) = arrange(kernels(filters, channels, seed), [grid], kind)
    assert sorted(order.tolist()) == list(range(filters * channels))
    packed = pack_order(order, grid, kind)
    assert np.array_equal(unpack_order(packed, grid, kind), order)


@pytest.mark.parametrize("kind", ["in-filter", "cross-filter"])
@pytest.mark.parametrize("grid", [(16, 3), (16, 16), (32, 16), (64, 64), (10, 7)])
def test_an_order_takes_no_more_than_the_paper_counts(grid: tuple[int, int], kind: str) -> None:
    (order,) = arrange(kernels(*grid), [grid], kind)
    assert 8 * len(pack_order(order, grid, kind)) <= paper_bits(grid, kind)


def test_the_papers_count_of_a_layer() -> None:
    assert paper_bits((64, 32), "cross-filter") == 64 * 32 * (6 + 5)
    assert paper_bits((64, 32), "in-filter") == 64 * 32 * 5 + 64 * 6
    assert paper_bits((64, 32), "none") == 0


def test_in_filter_orders_keep_kernels_with_their_filter() -> None:
    grid = (6, 5)
    (order,) = arrange(kernels(*grid), [grid], "in-filter")
    assert all(len({index // 5 for index in row}) == 1 for row in order.reshape(grid))


@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_any_size_are_put_in_order_each_by_itself(kind: str) -> None:
    grids = [(1, 1), (1, 2), (2, 1), (7, 1), (1, 7), (5, 2), (2, 70), (70, 2)]
    ends = np.cumsum([filters * channels for filters, channels in grids])
    points = kernels(int(ends[-1]), 1)
    for layer, grid, order in zip(np.split(points, ends[:-1]), grids, arrange(points, grids, kind), strict=True):
        assert sorted(order.tolist()) == list(range(len(layer)))
        assert np.array_equal(order, arrange(layer, [grid], kind)[0])


def test_orders_get_shorter_from_none_to_in_filter_to_cross_filter() -> None:
    points, grids = kernels(24, 16), [(8, 16), (16, 16)]
    lengths = []
    for kind in KINDS:
        orders = arrange(points, grids, kind)
        lengths.append(path_length(points[:128], orders[0]) + path_length(points[128:], orders[1]))
    assert lengths[0] > lengths[1] > lengths[2]


def test_an_unknown_order_is_named() -> None:
    with pytest.raises(UsageError, match="unknown order 'cross'"):
        arrange(kernels(2, 2), [(2, 2)], "cross")
