"""Writing whole zoo files, atomically, streamed member by member, under a lock."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from netspace.errors import NetspaceError
from netspace.files import alone, replacing
from netspace.networks.prep import check_size
from netspace.networks.spec import NetSpec
from netspace.zoo.format import MEMBER, VERSION, ContentHash, Header, Population, hash_table, parts_folder

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


STORED = {"shuffle": True, "compression": "gzip", "compression_opts": 1, "fletcher32": True}


def write_zoo(path: Path, header: Header, populations: Mapping[str, Population]) -> None:
    """A whole zoo file at `path`, atomically. Raises `NetspaceError` for values that are not finite."""
    for name, population in populations.items():
        if not np.isfinite(population.preps).all():
            raise NetspaceError(f"the PReps of {name!r} hold values that are not finite: they are not written")

    def chunks(name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield populations[name].preps, populations[name].members

    specs = {name: population.spec for name, population in populations.items()}
    sizes = {name: (population.preps.shape[1], population.preps.shape[2]) for name, population in populations.items()}
    counts = {name: len(population.members) for name, population in populations.items()}
    write(path, header, specs, sizes, counts, chunks)


def write(
    path: Path,
    header: Header,
    specs: Mapping[str, NetSpec],
    sizes: Mapping[str, tuple[int, int]],
    counts: Mapping[str, int],
    chunks: Any,  # architecture id -> iterator of (preps (m, H, W), members (m,)), `counts` members in all
    parts: int = 0,  # of how many an incomplete zoo was put together; 0 for a complete one
) -> None:
    """A whole zoo file at `path`, atomically, from members that come one after the other."""
    content = ContentHash()
    # HDF5 1.10 and later put checksums on a file's own tables, too: a flipped byte there is noticed
    with replacing(path) as temporary, Sink(temporary) as sink, h5py.File(sink, "w", libver="v110") as file:
        file.attrs.update({"netspace_zoo": VERSION, "complete": not parts, "parts": parts})
        _set_text(file, "header", header.to_json())
        archs = file.create_group("archs")
        for name in sorted(specs, key=lambda name: (specs[name].num_parameters, name)):
            check_size(specs[name].num_parameters, sizes[name])
            group = archs.create_group(name)
            _set_text(group, "spec", specs[name].to_json())
            content.begin(name, specs[name])
            how = {**STORED, "chunks": (1, *sizes[name])} if counts[name] else {}
            preps = group.create_dataset("preps", (counts[name], *sizes[name]), "f4", **how)
            table = np.empty(counts[name], dtype=MEMBER)
            start = 0
            for values, members in chunks(name):
                preps[start : start + len(values)] = values
                table[start : start + len(values)] = members
                content.add(values, table[start : start + len(values)])
                sink.check()
                start += len(values)
            assert start == counts[name]
            _set_text(group, "members_hash", hash_table(table))
            group.create_dataset("members", data=table, **({"fletcher32": True, "chunks": True} if len(table) else {}))
        _set_text(file, "content_hash", content.hexdigest())


def _set_text(place: h5py.Group, name: str, text: str) -> None:
    """An attribute of fixed length, which has a checksum. Of variable length it would lie in HDF5's global heap.

    That heap has no checksum: a flipped byte there is other text, or a loop of HDF5 without end.
    """
    raw = text.encode()
    place.attrs.create(name, np.bytes_(raw), dtype=h5py.string_dtype("utf-8", len(raw)))
