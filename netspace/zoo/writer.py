"""Writing zoo files, whole and atomically, streamed member by member, under a lock; and zoos made of other zoo files.

A zoo is merged on request, or put together from the parts that an interrupted builder left."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from netspace.errors import NetspaceError, UsageError
from netspace.files import alone, replacing
from netspace.networks.prep import check_size
from netspace.networks.spec import NetSpec
from netspace.zoo.format import (
    MEMBER,
    VERSION,
    ContentHash,
    Header,
    Population,
    hash_table,
    parts_folder,
    prep_problems,
    table_problems,
)
from netspace.zoo.reader import ArchGroup, ZooFile

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


# what tells diverged members of an architecture apart; not their runs, which are counted on in a merged zoo
TRAINING = ("seed", "epochs", "learning_rate", "source")


class Zoo(ZooFile):
    """A zoo file opened for reading; use it as a context manager.

    Where a builder was killed, it is put together from the finished parts first.

    >>> with Zoo(zoo) as opened:  # the path of a zoo file
    ...     group = opened.only()
    ...     len(group.rows("test")), group.read(group.rows("test")).shape
    (6, torch.Size([6, 12, 128]))
    """

    def __init__(self, path: str | Path) -> None:
        """Raises `NetspaceError` for a file that is missing, truncated, corrupted or of another version."""
        path = Path(path)
        if not path.exists():
            recover(path)
        super().__init__(path)
        if 0 < self.parts < len(finished_parts(path)):  # more members were finished since it was put together
            self.close()
            recover(path)
            super().__init__(path)


def merge(path: Path, sources: Sequence[Path], *, complete: bool = True, ordered: bool = False) -> dict[str, int]:
    """One zoo from several, streamed, atomically; members that are the same to the last bit are kept once.

    The caller holds the lock of `path` (`netspace.zoo.zoo_lock`) where others may write it.

    With `ordered`, members are sorted by (run, epochs, seed), so the outcome does not depend on who finished first.
    Returns the counts 'members' and 'duplicates'. Raises `NetspaceError` if data sets, specs or PRep sizes differ, or if
    `netspace zoo verify` would refuse a source; `UsageError` if there are no sources.

    >>> merge(folder / "both.h5", [zoo, zoo])["duplicates"]  # paths of zoo files; the same members twice
    36
    """
    if not sources:
        raise UsageError(f"{path} was to be merged from zoos, but none was given: name at least one zoo file")
    with ExitStack() as opened:
        zoos: list[ZooFile] = [opened.enter_context(Zoo(source)) for source in sources]
        specs: dict[str, NetSpec] = {}
        sizes: dict[str, tuple[int, int]] = {}
        rows: dict[str, list[tuple[ArchGroup, int]]] = {}
        seen: set[bytes] = set()
        duplicates = 0
        runs_before = 0
        offsets: dict[int, int] = {}
        for zoo in zoos:
            _same_data(zoos[0], zoo)
            content = ContentHash()
            for name, group in zoo.archs.items():
                if specs.setdefault(name, group.spec) != group.spec or sizes.setdefault(name, group.size) != group.size:
                    raise NetspaceError(
                        f"{name!r} of {zoo.path} has another spec or PRep size than in the zoos before it"
                    )
                content.begin(name, group.spec)
                _refuse(zoo, table_problems(name, group.members))
                for row in range(len(group)):
                    prep = group.read([row]).numpy()
                    _refuse(zoo, prep_problems(name, group.spec, [row], prep))
                    content.add(prep, group.members[row : row + 1])
                    mark = _mark(group, row, prep)
                    if mark in seen:
                        duplicates += 1
                        continue
                    seen.add(mark)
                    rows.setdefault(name, []).append((group, row))
                offsets[id(group)] = 0 if ordered else runs_before
            if content.hexdigest() != zoo.content_hash:
                _refuse(zoo, ["the members are not the ones that were written: its content hash does not match"])
            if not ordered:
                runs_before += 1 + max(
                    (int(group.members["run"].max(initial=0)) for group in zoo.archs.values()), default=0
                )
        if ordered:
            for entries in rows.values():
                entries.sort(
                    key=lambda entry: tuple(int(entry[0].members[entry[1]][key]) for key in ("run", "epochs", "seed"))
                )

        def chunks(name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for group, row in rows[name]:
                member = group.members[row : row + 1].copy()
                member["run"] += offsets[id(group)]  # runs of different zoos stay apart
                yield group.read([row]).numpy(), member

        counts = {name: len(entries) for name, entries in rows.items()}
        kept = {name: specs[name] for name in counts}
        write(path, zoos[0].header, kept, sizes, counts, chunks, parts=0 if complete else len(zoos))
        return {"members": sum(counts.values()), "duplicates": duplicates}


def _same_data(first: ZooFile, zoo: ZooFile) -> None:
    if zoo.header.split_hash != first.header.split_hash:
        raise NetspaceError(
            f"{zoo.path} was trained on other data ({zoo.header.dataset}, split {zoo.header.split_hash[:12]}) than "
            f"{first.path} ({first.header.dataset}, split {first.header.split_hash[:12]}): they cannot be merged"
        )
    for name in ("mean", "std"):
        if zoo.header.data.get(name) != first.header.data.get(name):
            raise NetspaceError(
                f"networks of {zoo.path} take images of another normalisation (data.{name}) than those of {first.path}: they "
                "cannot be merged"
            )


def _refuse(zoo: ZooFile, problems: list[str]) -> None:
    if problems:
        raise NetspaceError(
            f"{zoo.path} is not merged: {problems[0]}; `netspace zoo verify` lists all that is wrong with it"
        )


def _mark(group: ArchGroup, row: int, prep: np.ndarray) -> bytes:
    """Equal for members that are the same: by values and seed; by their training if they diverged and have no values."""
    member = group.members[row]
    if member["status"] == b"ok":
        held = prep.tobytes() + member["seed"].tobytes()
    else:
        held = group.id.encode() + b"".join(member[key].tobytes() for key in TRAINING)
    return hashlib.sha256(held).digest()


def finished_parts(path: Path) -> list[Path]:
    """What builders of the zoo at `path` have committed so far."""
    return sorted(parts_folder(path).glob("part-*.h5"))


def recover(path: Path) -> None:
    """Puts a zoo together from the parts that an interrupted builder left, if there are any."""
    if finished_parts(path):
        with zoo_lock(path, builder=True):
            if parts := finished_parts(path):  # the builder may have finished meanwhile
                merge(path, parts, complete=False, ordered=True)
