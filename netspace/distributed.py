"""Several processes under `accelerate launch` or `torchrun`: who is this, and who does what.

Work on members is dealt out, every n-th to each process, and gathered on all; one process alone does everything."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

DAYS = timedelta(days=30)  # processes wait for each other as long as training takes


def begin() -> Any:
    """accelerate's state where several processes were started, else None; they can speak to each other then."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=DAYS)


def end() -> None:
    """Takes leave of the other processes."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def is_main() -> bool:
    """Whether this process is the one that writes and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def agreed(choose: Callable[[], str]) -> str:
    """The first process's choice, for all: every process calls this at the same place."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return choose()
    chosen: list[str | None] = [choose() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(chosen, src=0)
    return str(chosen[0])


def shared_out(work: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """work(*rows) for tensors (M, ...) -> (M, ...) on the CPU, with the rows dealt out over all processes.

    Every process calls this with the same rows and receives the whole result.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return work(*rows).cpu()
    place, count = dist.get_rank(), dist.get_world_size()
    mine = work(*(each[place::count] for each in rows)).cpu() if place < len(rows[0]) else None
    pieces: list[Tensor | None] = [None] * count
    dist.all_gather_object(pieces, mine)
    there = [piece for piece in pieces if piece is not None]
    whole = torch.empty(len(rows[0]), *there[0].shape[1:], dtype=there[0].dtype)
    for first, piece in enumerate(there):
        whole[first::count] = piece
    return whole
