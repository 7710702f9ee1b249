"""Files appear whole or not at all, and locks.

A file is written under a temporary name in its folder and renamed. Its writer holds a lock on the temporary file, which
tells what a killed process left from what another process is writing. Locks are the operating system's where it has them,
through `filelock`, so a killed process holds none. What files hold: `netspace.io`.
"""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from netspace.errors import NetspaceError

POLL = 0.05  # seconds between two attempts at a lock that another process holds
ATTEMPTS = 20  # at a lock whose file its holder removes meanwhile


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, to be written inside the block; renamed onto `path` when it ends well.

    A link is written through: its target is replaced. Raises `NetspaceError` where `path` is no file, the folder cannot be
    written or the disk is full; `path` is then as before.
    """
    target = _target(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_remains(target.parent, target.name)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        with _claim(temporary):
            try:
                yield temporary
                with open(temporary, "rb") as written:
                    os.fsync(written.fileno())
                os.replace(temporary, target)
            finally:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else error  # HDF5's own text goes over many lines
        raise NetspaceError(
            f"{path} could not be written: {why}. Free space or choose another place; "
            "what was there before is untouched"
        ) from error


def _target(path: Path) -> Path:
    """The file that is replaced by writing to `path`: where a link points, and nothing but a file."""
    try:
        target = path.resolve() if path.is_symlink() else path
        kind = None if not target.exists() or target.is_file() else "a folder" if target.is_dir() else "a device"
    except RuntimeError:  # what pathlib raises for links that go in a circle
        kind = "a link to itself"
    except OSError:
        return path  # writing says what is wrong
    if kind is not None:
        raise NetspaceError(f"{path} could not be written: it is {kind}, not a file; choose another place")
    return target


@contextmanager
def _claim(temporary: Path) -> Iterator[None]:
    """Hold the lock of a temporary file: nobody takes it for what a killed process left."""
    guard = _guard(temporary)
    while (lock := _lock_file(guard)) is None:
        time.sleep(POLL)  # somebody looks whether it is a remain
    try:
        yield
    finally:
        lock.release()
        if guard != temporary:
            guard.unlink(missing_ok=True)


def _guard(temporary: Path) -> Path:
    """The file whose lock says that a temporary file is being written: itself, but on Windows, which renames no locked one."""
    return temporary.with_name(f"{temporary.name}.lock") if os.name == "nt" else temporary


def remove_remains(folder: Path, name: str = "*") -> None:
    """Deletes the temporary files of `name`, by default of all files in a folder, that killed processes left."""
    pattern = name if name == "*" else glob.escape(name)
    for path in folder.glob(f".{pattern}.*.tmp"):
        with suppress(OSError):
            if (lock := _lock_file(_guard(path))) is not None:
                path.unlink()
                lock.release()


@contextmanager
def alone(file: Path, busy: str, patience: float = 0.0) -> Iterator[None]:
    """Holds a lock on `file` for the length of the block; a killed process holds none.

    The file is made, and removed with those of its folders that were made for it and are empty: a block that fails before
    it writes leaves nothing. Raises `NetspaceError` with `busy` and what to do if another process still holds the lock after
    `patience` seconds, or if the folder cannot be written.
    """
    made = [folder for folder in file.parents if not folder.exists()]  # the innermost first
    deadline = time.monotonic() + patience
    try:
        while (lock := _lock_file(file)) is None and time.monotonic() < deadline:
            time.sleep(POLL)
    except OSError as error:
        raise NetspaceError(f"{file.parent} cannot be written: {error.strerror}; choose another --out") from None
    if lock is None:
        raise NetspaceError(f"{busy}: wait for it, or choose another --out")
    own = file.stat()
    try:
        yield
    finally:
        with suppress(OSError):
            if os.path.samestat(own, file.stat()):  # and was not moved away, with its folder, by the block
                file.unlink()  # before it is released: who opened it meanwhile sees that it is gone
        lock.release()
        with suppress(OSError):
            for folder in made:
                folder.rmdir()  # fails on what is not empty


def _lock_file(file: Path) -> BaseFileLock | None:
    """A lock on `file`, which is made; None where another process holds it."""
    for _ in range(ATTEMPTS):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file, timeout=0)
        try:
            lock.acquire()
            return lock
        except FileNotFoundError:  # the folder was removed by who held it
            continue
        except Timeout:
            if file.exists():
                return None  # else who held it has removed it in between
    return None


def write_text(path: Path, text: str) -> None:
    """`text` as the whole content of `path`, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """`content` as that of `path`, atomically, by Python's own file: it tells of a full disk, torch and safetensors do not."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
