"""Several processes under `accelerate launch` or `torchrun`: their ranks, and work that they share.

Axes: M members. Each process works on every n-th member and all get the result; a single process does everything."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(days=30)  # processes wait for each other as long as training takes


def begin() -> Any:
    """Connect the processes and return accelerate's state; None for a single process."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)


def end() -> None:
    """Disconnect this process from the others."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def is_main() -> bool:
    """Return whether this is the process that writes files and prints."""
    return int(os.environ.get("RANK", "0")) == 0


def chosen_by_main(choose: Callable[[], str]) -> str:
    """Return what `choose` returns in the first process. Every process has to call this."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return choose()
    chosen: list[str | None] = [choose() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(chosen, src=0)
    return str(chosen[0])


def distributed_map(work: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """Return work(*rows) for tensors (M, ...) -> (M, ...) on the CPU, with the rows distributed over all processes.

    Every process has to call this with the same rows, and gets the whole result.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return work(*rows).cpu()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    own = work(*(each[rank::world_size] for each in rows)).cpu() if rank < len(rows[0]) else None
    gathered: list[Tensor | None] = [None] * world_size
    dist.all_gather_object(gathered, own)
    pieces = [piece for piece in gathered if piece is not None]
    whole = torch.empty(len(rows[0]), *pieces[0].shape[1:], dtype=pieces[0].dtype)
    for first, piece in enumerate(pieces):
        whole[first::world_size] = piece
    return whole
