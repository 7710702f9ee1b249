"""Loops over networks in threads: every network once, whatever fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from netspace.networks.threads import in_threads, to_numpy


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_network_is_in_one_range(threads: int, count: int) -> None:
    ranges, workers = [], set()

    def loop(name: str, first: int, last: int) -> None:
        ranges.append((first, last))
        workers.add(threading.get_ident())
        assert name == "a"

    in_threads(loop, count, "a")
    assert len(ranges) == min(threads, count)
    assert sorted(number for first, last in ranges for number in range(first, last)) == list(range(count))
    assert threading.get_ident() in workers  # the caller works, too


@pytest.mark.parametrize("number", [0, 3])  # in the caller's range, and in another thread's
def test_a_failure_reaches_the_caller(number: int) -> None:
    def loop(first: int, last: int) -> None:
        if first <= number < last:
            raise ValueError("no")

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="no"):
            in_threads(loop, 4)
    finally:
        torch.set_num_threads(before)


def test_contiguous_tensors_share_their_memory() -> None:
    plain = torch.zeros(2, 3)
    same, copied = to_numpy((plain, plain.T))
    same[0, 0] = 5
    assert plain[0, 0] == 5
    assert copied.flags.c_contiguous and copied[0, 0] == 0
