"""Zoos made of other zoo files: merged on request, or put together from the parts an interrupted builder left.

Members are streamed, one at a time. The outcome appears whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from netspace.errors import NetspaceError, UsageError
from netspace.networks.spec import NetSpec
from netspace.zoo.format import ContentHash, parts_folder, prep_problems, table_problems
from netspace.zoo.reader import ArchGroup, ZooFile
from netspace.zoo.writer import write, zoo_lock

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
