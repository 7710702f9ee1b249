"""The weights that a run is used by, `best.safetensors`; `last.pt` beside it, to go on exactly, is the loop's."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from netspace.errors import NetspaceError
from netspace.records import read_tensors, write_tensors


def save_best(run: Path, weights: dict[str, Tensor]) -> None:
    """The weights of the best validation, atomically."""
    write_tensors(run / "checkpoints" / "best.safetensors", weights)


def load_best(run: Path) -> dict[str, Tensor]:
    """What `save_best` wrote. Raises `NetspaceError` if there is none, or the file is broken."""
    path = run / "checkpoints" / "best.safetensors"
    if not path.exists():
        raise NetspaceError(f"{run} has no trained space yet ({path.name} is missing): let `netspace train` finish")
    return read_tensors(path)[0]
