"""Atomic writing of files, and locks.

A file is written under a temporary name in its folder and renamed. Its writer has a lock on the temporary file, so that
files of killed processes can be distinguished from files that another process is writing. Locks are the operating system's if it
has them, through `filelock`, so those of a killed process are released. The content of files: `netspace.io`.
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
ATTEMPTS = 20  # at a lock whose file is removed by its owner meanwhile


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`, to be written inside the block; rename it to `path` when the block ends.

    Of a link, the target is replaced. If the block raises, `path` stays as it was.

    Raises:
        NetspaceError: `path` is no file, the folder cannot be written, or the disk is full.
    """
    target = _target(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target.parent, target.name)
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
        why = os.strerror(error.errno) if error.errno else error  # HDF5's own text has several lines
        raise NetspaceError(
            f"{path} could not be written: {why}. Free space or choose another place; "
            "what was there before is untouched"
        ) from error


def _target(path: Path) -> Path:
    """Return the file that is replaced by writing to `path`: the target of a link. Raises `NetspaceError` if it is no file."""
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
    """Hold the lock of a temporary file, so that no process removes it as a leftover."""
    guard = _guard(temporary)
    while (lock := _lock_file(guard)) is None:
        time.sleep(POLL)  # another process checks whether it is a leftover
    try:
        yield
    finally:
        lock.release()
        if guard != temporary:
            guard.unlink(missing_ok=True)


def _guard(temporary: Path) -> Path:
    """Return the file whose lock protects a temporary file: itself, except on Windows, where locked files cannot be renamed."""
    return temporary.with_name(f"{temporary.name}.lock") if os.name == "nt" else temporary


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Delete the temporary files of `name`, by default of all files in a folder, that killed processes left."""
    pattern = name if name == "*" else glob.escape(name)
    for path in folder.glob(f".{pattern}.*.tmp"):
        with suppress(OSError):
            if (lock := _lock_file(_guard(path))) is not None:
                path.unlink()
                lock.release()


@contextmanager
def locked(file: Path, busy: str, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock on `file` inside the block.

    The file is made, and removed with those of its folders that were made for it and are empty: a block that fails before
    it writes leaves nothing.

    Raises:
        NetspaceError: another process still has the lock after `patience` seconds; the message begins with `busy`. Or the
            folder cannot be written.
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
                file.unlink()  # before it is released: a process that opened it meanwhile sees that it is gone
        lock.release()
        with suppress(OSError):
            for folder in made:
                folder.rmdir()  # fails on what is not empty


def _lock_file(file: Path) -> BaseFileLock | None:
    """Acquire a lock on `file`, which is made; return None if another process has it."""
    for _ in range(ATTEMPTS):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file, timeout=0)
        try:
            lock.acquire()
            return lock
        except FileNotFoundError:  # the owner of the lock removed the folder
            continue
        except Timeout:
            if file.exists():
                return None  # else the owner has removed it in between
    return None


def write_text(path: Path, text: str) -> None:
    """Write `text` as the whole content of `path`, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write `content` as that of `path`, atomically; Python reports a full disk, torch and safetensors do not."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
