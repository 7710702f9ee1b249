"""Writing zoo files: atomic, streamed member by member, under a lock; merging them.

A zoo is merged on request, or recovered from the parts that an interrupted builder left.

Axes: M members (networks), H W of a PRep.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from netspace.errors import NetspaceError, UsageError
from netspace.files import locked, replacing
from netspace.networks.prep import check_size
from netspace.networks.spec import NetSpec
from netspace.results.zoos import Merge
from netspace.zoo.checks import ContentHash, hash_preps, prep_problems, table_problems
from netspace.zoo.columns import Columns, joined, write_columns
from netspace.zoo.file import (
    HASH_BYTES,
    MEMBER,
    VERSION,
    ArchGroup,
    Header,
    Population,
    Shard,
    ZooFile,
    hash_content,
    hash_table,
    parts_folder,
)
from netspace.zoo.members import MemberAccess
from netspace.zoo.shards import join_archs, open_shards

LOCK_TIMEOUT = 600.0  # seconds to wait for another process: an import or a merge takes minutes at most
COMPRESSION: dict[str, Any] = {"shuffle": True, "compression": "gzip", "compression_opts": 1, "fletcher32": True}
CHECKED: dict[str, Any] = {"fletcher32": True}  # without compression
LEAST_SAVING = 1 / 8  # of the bytes, for which compression is worth its time
MAX_TRIED = 16  # PReps that are compressed to see what it saves
# columns that identify the training of diverged members; not the run, whose number changes in a merged zoo
TRAINING = ("seed", "epochs", "learning_rate", "source")


@contextmanager
def zoo_lock(path: Path, *, builder: bool = False, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
    """Hold the lock of the zoo at `path` inside the block, in which it is read, changed and replaced.

    Only a `builder` may write a zoo that is being built. Raises `NetspaceError` for others, and if another process
    holds the lock for longer than `timeout` seconds.
    """
    target = path.resolve()
    busy = f"{path} is still being written by another process after {timeout:.0f} s"
    with locked(target.parent / f".{target.name}.lock", busy, timeout):
        if not builder and parts_folder(path).exists():
            raise NetspaceError(
                f"{path} is being built, or its builder was interrupted: let `netspace zoo build` finish it first"
            )
        yield


class Sink(io.FileIO):
    """A new file for HDF5 whose writes never fail: HDF5 crashes when it closes a file that it could not write.

    After the first error nothing more is written; `check`, or the end of the block, raises it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+b")
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of `data`, unless there was an error."""
        left = memoryview(data).cast("B")
        try:
            while self.error is None and len(left):
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
        return memoryview(data).nbytes

    def truncate(self, size: int | None = None) -> int:
        """Set the file's size."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def check(self) -> None:
        """Raises the first `OSError` of a write, if there was one."""
        if self.error is not None:
            raise self.error

    def __exit__(self, kind: object, *rest: object) -> None:
        self.close()
        if kind is None:
            self.check()


def write_zoo(path: Path, header: Header, populations: Mapping[str, Population], shard: Shard | None = None) -> None:
    """Write a zoo file, atomically. Raises `NetspaceError` for values that are not finite."""
    for name, population in populations.items():
        if not np.isfinite(population.preps).all():
            raise NetspaceError(f"the PReps of {name!r} hold values that are not finite: they are not written")

    def chunks(name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield populations[name].preps, populations[name].members

    specs = {name: population.spec for name, population in populations.items()}
    sizes = {name: population.preps.shape[1:] for name, population in populations.items()}
    counts = {name: len(population.members) for name, population in populations.items()}
    columns = {name: population.columns for name, population in populations.items()}
    write(path, header, specs, sizes, counts, chunks, shard=shard, columns=columns)


def write(
    path: Path,
    header: Header,
    specs: Mapping[str, NetSpec],
    sizes: Mapping[str, tuple[int, int]],
    counts: Mapping[str, int],
    chunks: Any,  # architecture id -> iterator of (preps (m, H, W), members (m,)), `counts` members in all
    parts: int = 0,  # number of parts that an incomplete zoo is made from; 0 for a complete one
    shard: Shard | None = None,
    columns: Mapping[str, Columns] | None = None,  # of each architecture, that only this zoo has
    compress: bool = True,  # PReps; see `worth_compressing`
) -> None:
    """Write a zoo file, atomically, from streamed members. Raises `NetspaceError` if they do not fit their PReps."""
    content = ContentHash()
    # HDF5 1.10 and later put checksums on a file's own structure, too: a flipped byte there is noticed
    with replacing(path) as temporary, Sink(temporary) as sink, h5py.File(sink, "w", libver="v110") as file:
        file.attrs.update({"netspace_zoo": VERSION, "complete": not parts, "parts": parts})
        _set_text(file, "header", header.to_json())
        if shard is not None:
            _set_text(file, "shard", str(shard))
        archs = file.create_group("archs")
        for name in sorted(specs, key=lambda name: (specs[name].num_parameters, name)):
            check_size(specs[name].num_parameters, sizes[name])
            group = archs.create_group(name)
            _set_text(group, "spec", specs[name].to_json())
            content.begin(name, specs[name])
            filters = COMPRESSION if compress else CHECKED
            storage = {**filters, "chunks": (1, *sizes[name])} if counts[name] else {}
            preps = group.create_dataset("preps", (counts[name], *sizes[name]), "f4", **storage)
            table = np.empty(counts[name], dtype=MEMBER)
            hashes = np.empty((counts[name], HASH_BYTES), np.uint8)
            start = 0
            for values, members in chunks(name):
                preps[start : start + len(values)] = values
                table[start : start + len(values)] = members
                end = start + len(values)
                hashes[start:end] = hash_preps(values)
                content.add(values, table[start:end], hashes[start:end])
                sink.check()
                start = end
            assert start == counts[name]
            _set_text(group, "members_hash", hash_table(table))
            checked = {"fletcher32": True, "chunks": True} if len(table) else {}
            group.create_dataset("members", data=table, **checked)
            group.create_dataset("prep_hashes", data=hashes, **checked)
            write_columns(group, (columns or {}).get(name, {}))
        _set_text(file, "content_hash", content.hexdigest())


def worth_compressing(preps: np.ndarray) -> bool:
    """Return whether compression saves an eighth of the bytes of PReps (M, H, W), of which a few are tried.

    Trained weights have nine tenths of their bytes afterwards, and writing takes three times as long; zeros, as of padding, vanish.
    """
    tried = np.ascontiguousarray(preps[:MAX_TRIED])
    shuffled = [each.reshape(-1, 1).view(np.uint8).T.tobytes() for each in tried]  # as HDF5 does, a chunk for each PRep
    small = sum(len(zlib.compress(each, COMPRESSION["compression_opts"])) for each in shuffled)
    return small <= (1 - LEAST_SAVING) * tried.nbytes


def _set_text(group: h5py.Group, name: str, text: str) -> None:
    """Write an attribute of fixed length, which has a checksum.

    One of variable length would be in HDF5's global heap, which has none: a flipped byte there is other text, or an
    endless loop of HDF5.
    """
    raw = text.encode()
    group.attrs.create(name, np.bytes_(raw), dtype=h5py.string_dtype("utf-8", len(raw)))


class Zoo(ZooFile, MemberAccess):
    """A zoo opened for reading: a file, or a folder of shards, which are read as one; use it as a context manager.

    If the builder of a file was killed, the file is recovered from the finished parts first. Of a folder, shards that are
    not there or not finished are refused, unless `partial` says to do without them.

    >>> with Zoo(zoo) as opened:  # the path of a zoo file
    ...     group = opened.only()
    ...     len(group.rows("test")), group.read(group.rows("test")).shape
    (6, torch.Size([6, 12, 128]))

    It is a sequence of its members, as `netspace.zoo.Members` says, and can be pickled: a copy opens the file again.

    >>> with Zoo(zoo) as opened:
    ...     best = opened.sort("accuracy", descending=True)[0]
    ...     [len(opened), best.split, opened["best"].arch]
    [36, 'train', 'lenetlike']
    """

    def __reduce__(self) -> tuple[type[Zoo], tuple[Any, ...]]:
        return type(self), self.arguments

    def __init__(self, path: str | Path, partial: bool = False) -> None:
        """Raises `NetspaceError` for a file that is missing, truncated, corrupted or of another version, and for a folder whose
        files are no shards of one zoo.
        """
        path = Path(path)
        self._shards: list[ZooFile] = []
        if path.is_dir():
            self.arguments = (path.absolute(), partial)
            self._shards = open_shards(path, partial)
            self._join(path)
            return
        if not path.exists():
            recover(path)
        super().__init__(path)
        if 0 < self.parts < len(finished_parts(path)):  # more members were finished since it was recovered
            self.close()
            recover(path)
            super().__init__(path)

    def _join(self, path: Path) -> None:
        """Set the attributes of a zoo whose members are in shards."""
        first = self._shards[0]
        self.path, self.file, self.header, self.shard = path, first.file, first.header, None
        self.num_bytes = sum(each.num_bytes for each in self._shards)
        self.complete = first.shard is None or len(self._shards) == first.shard.count
        self.parts, self.stored_hash = 0, None
        try:
            self.archs = join_archs(self._shards)
        except NetspaceError:
            self.close()
            raise
        self.content_hash = hash_content(self.archs.values()) or ""

    @property
    def files(self) -> Sequence[ZooFile]:
        """The zoo files that the members are in: this one, or its shards."""
        return self._shards or (self,)

    def close(self) -> None:
        """Close the file, or all shards."""
        for shard in self._shards:
            shard.close()
        super().close()


def merge(
    path: Path, sources: Sequence[Path], *, complete: bool = True, ordered: bool = False, partial: bool = False
) -> Merge:
    """Merge zoos into one, streamed and atomically; equal members of one architecture, to the last bit, are stored once.

    The caller holds the lock of `path` (`netspace.zoo.zoo_lock`) if others may write it. With `ordered`, members are
    sorted by (run, epochs, seed), so the result does not depend on which was finished first; shards of one build always
    are. Of a folder of shards `partial` takes the finished ones.

    Raises `NetspaceError` if data sets, specs or PRep sizes differ, or
    if `netspace zoo verify` would refuse a source; `UsageError` if there are no sources.

    >>> merge(folder / "both.h5", [zoo, zoo]).duplicates  # paths of zoo files; the same members twice
    36
    """
    if not sources:
        raise UsageError(f"{path} was to be merged from zoos, but none was given: name at least one zoo file")
    with ExitStack() as opened:
        zoos: list[ZooFile] = [opened.enter_context(Zoo(source, partial)) for source in sources]
        shards = {zoo.shard for zoo in zoos}
        one_build = None not in shards and len({shard.count for shard in shards if shard}) == 1
        ordered = ordered or one_build
        specs: dict[str, NetSpec] = {}
        sizes: dict[str, tuple[int, int]] = {}
        rows: dict[str, list[tuple[ArchGroup, int]]] = {}
        known_specs: dict[NetSpec, int] = {}  # numbered: equal values in another architecture are another network
        seen: set[tuple[int, bytes]] = set()
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
                spec_number = known_specs.setdefault(group.spec, len(known_specs))
                content.begin(name, group.spec)
                _refuse(zoo, table_problems(name, group.members))
                for row in range(len(group)):
                    prep = group.read([row]).numpy()
                    _refuse(zoo, prep_problems(name, group.spec, [row], prep))
                    content.add(prep, group.members[row : row + 1])
                    identity = (spec_number, _identity(group, row, prep))
                    if identity in seen:
                        duplicates += 1
                        continue
                    seen.add(identity)
                    rows.setdefault(name, []).append((group, row))
                offsets[id(group)] = 0 if ordered else runs_before
            if not content.matches(zoo):
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
        specs = {name: specs[name] for name in counts}
        parts, shard = 0 if complete else len(zoos), zoos[0].shard if len(shards) == 1 else None
        columns = {name: _columns_of(entries) for name, entries in rows.items()}
        write(path, zoos[0].header, specs, sizes, counts, chunks, parts, shard, columns)
        return Merge(members=sum(counts.values()), duplicates=duplicates)


def _columns_of(entries: Sequence[tuple[ArchGroup, int]]) -> Columns:
    """Return the zoos' own columns of members, each a group and a row of it."""
    groups = list({id(group): group for group, _ in entries}.values())
    whole = joined([group.columns for group in groups], [len(group) for group in groups])
    starts = dict(zip(map(id, groups), np.cumsum([0, *map(len, groups)]).tolist(), strict=False))
    order = np.array([starts[id(group)] + row for group, row in entries], dtype=np.int64)
    return {name: values[order] for name, values in whole.items()}


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


def _identity(group: ArchGroup, row: int, prep: np.ndarray) -> bytes:
    """Return a hash of a member's values and seed, or of its training if it diverged and has no values."""
    member = group.members[row]
    if member["status"] == b"ok":
        content = prep.tobytes() + member["seed"].tobytes()
    else:
        content = group.id.encode() + b"".join(member[key].tobytes() for key in TRAINING)
    return hashlib.sha256(content).digest()


def finished_parts(path: Path) -> list[Path]:
    """Return the files that builders of the zoo at `path` have committed so far."""
    return sorted(parts_folder(path).glob("part-*.h5"))


def recover(path: Path) -> None:
    """Merge the parts that an interrupted builder left, if there are any, into an incomplete zoo."""
    if finished_parts(path):
        with zoo_lock(path, builder=True):
            if parts := finished_parts(path):  # the builder may have finished meanwhile
                merge(path, parts, complete=False, ordered=True)
