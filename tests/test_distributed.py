"""Work that is dealt out over processes; two real ones are in `tests/cli`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from netspace import distributed as ranks
from netspace.distributed import distributed_map


class Dist:
    """torch.distributed as one of `count` processes sees it, whose others do the same work."""

    def __init__(self, place: int, count: int, rows: Tensor) -> None:
        self.place, self.count, self.rows = place, count, rows

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def get_rank(self) -> int:
        return self.place

    def get_world_size(self) -> int:
        return self.count

    def all_gather_object(self, pieces: list[Any], mine: Tensor | None) -> None:
        for index in range(self.count):
            pieces[index] = square(self.rows[index :: self.count]) if index < len(self.rows) else None
        given = pieces[self.place]
        assert (mine is None) is (given is None) and (mine is None or torch.equal(mine, given))


def square(rows: Tensor) -> Tensor:
    assert len(rows), "nobody is given nothing to do"
    return rows**2


@pytest.mark.parametrize("members", [1, 2, 5, 7])
@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_every_process_gets_all_results_even_where_there_are_more_processes_than_members(
    monkeypatch: pytest.MonkeyPatch, members: int, count: int
) -> None:
    rows = torch.randn(members, 3)
    for index in range(count):
        monkeypatch.setattr(ranks, "dist", Dist(index, count, rows))
        assert torch.equal(distributed_map(square, rows), rows**2)
