"""The file that HDF5 writes to: no error of the disk reaches HDF5, which would crash on it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any


class Sink(io.FileIO):
    """A new file for HDF5 to write to, which never fails in its sight: HDF5 crashes on closing what it could not write.

    The first error is kept, nothing is written after it, and `check`, or the end of the block, raises it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+b")
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Writes all of `data`, or keeps the error."""
        left = memoryview(data).cast("B")
        try:
            while self.error is None and len(left):
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
        return memoryview(data).nbytes

    def truncate(self, size: int | None = None) -> int:
        """Sets the file's size, or keeps the error."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def check(self) -> None:
        """Raises the first error there was."""
        if self.error is not None:
            raise self.error

    def __exit__(self, kind: object, *rest: object) -> None:
        self.close()
        if kind is None:
            self.check()
