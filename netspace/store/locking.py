"""The lock of a zoo file: whoever replaces it holds it, so that no two do so from the same state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from netspace.errors import NetspaceError
from netspace.files import alone
from netspace.store.layout import parts_folder

PATIENCE = 600.0  # seconds to wait for another process: an import or a merge takes minutes at most


@contextmanager
def zoo_lock(path: Path, *, builder: bool = False, patience: float = PATIENCE) -> Iterator[None]:
    """Holds the lock of the zoo at `path` while it is read, changed and replaced; waits for whoever holds it.

    Only a `builder` writes a zoo that is being built. Raises `NetspaceError` for others then, and where the lock is not to
    be had within `patience` seconds.
    """
    target = path.resolve()
    busy = f"{path} is still being written by another process after {patience:.0f} s"
    with alone(target.with_name(f".{target.name}.lock"), busy, patience):
        if not builder and parts_folder(path).exists():
            raise NetspaceError(
                f"{path} is being built, or its builder was interrupted: let `netspace zoo build` finish it first"
            )
        yield
