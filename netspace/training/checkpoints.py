"""Checkpoints of a run: `last.pt` to go on exactly, `best.safetensors` to use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from netspace.errors import NetspaceError
from netspace.runtime import read_torch, write_tensors, write_torch
from netspace.states import read_safetensors


def save_last(run: Path, state: dict[str, Any]) -> None:
    """Everything that going on needs, atomically."""
    write_torch(run / "checkpoints" / "last.pt", state)


def load_last(run: Path) -> dict[str, Any] | None:
    """What `save_last` wrote; None if the run has no checkpoint yet."""
    path = run / "checkpoints" / "last.pt"
    return dict(read_torch(path)) if path.exists() else None


def save_best(run: Path, weights: dict[str, Tensor]) -> None:
    """The weights of the best validation, atomically."""
    write_tensors(run / "checkpoints" / "best.safetensors", weights)


def load_best(run: Path) -> dict[str, Tensor]:
    """What `save_best` wrote. Raises `NetspaceError` if there is none, or the file is broken."""
    path = run / "checkpoints" / "best.safetensors"
    if not path.exists():
        raise NetspaceError(f"{run} has no trained space yet ({path.name} is missing): let `netspace train` finish")
    return read_safetensors(path)
