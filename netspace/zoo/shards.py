"""A folder of shards, zoo files that are read as one zoo without being merged.

Shards of one recipe (`netspace zoo build --shard I/N`) are numbered as the zoo that is built in one piece: members in
the order of run, epochs and seed. Other zoo files of equal settings, apart from the seed, follow each other in the order
of their names, their runs kept apart, as `netspace zoo merge` would write them.

Axes: M members (networks), H W of a PRep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from netspace.config import changed
from netspace.errors import NetspaceError
from netspace.zoo.columns import joined
from netspace.zoo.file import ArchGroup, ZooFile

ORDER = ("run", "epochs", "seed")  # of members of a zoo that is built in one piece
MAX_NAMED = 5  # shards that a message names
PARTS = ".parts"  # ends the name of the folder in which a builder commits finished members


class ShardedGroup(ArchGroup):
    """The members of one architecture in several files, as one table; the PReps are read from each file."""

    def __init__(self, groups: Sequence[ArchGroup], members: np.ndarray, order: np.ndarray) -> None:
        """`members` (M,) are those of all `groups` one after the other, of which row i is `order[i]`."""
        first = groups[0]
        self.id, self.spec = first.id, first.spec
        self.class_id, self.higher_is_better = -1, first.higher_is_better
        self.members = members[order]
        self.prep_hashes = np.concatenate([group.prep_hashes for group in groups if group.prep_hashes is not None])[
            order
        ]
        columns = joined([group.columns for group in groups], [len(group) for group in groups])
        self.columns = {name: values[order] for name, values in columns.items()}
        self._size = first.size
        self._groups = list(groups)
        starts = np.cumsum([0, *(len(group) for group in groups)])
        self._shard = (np.searchsorted(starts, order, side="right") - 1).tolist()
        self._row = (order - starts[self._shard]).tolist()

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of this architecture's PReps."""
        return self._size

    def read_into(self, out: np.ndarray, index: int, row: int) -> None:
        """Write the PRep of a row to `out[index]` of float32 (M, H, W). Raises `NetspaceError` if its checksum does not match."""
        self._groups[self._shard[row]].read_into(out, index, self._row[row])


def open_shards(path: Path, partial: bool) -> list[ZooFile]:
    """Open the shards in a folder, in their order; with `partial` those that are finished, else all must be.

    Raises `NetspaceError` if there are none, if some are missing, unfinished or there twice, or are not of one zoo.
    """
    files = {file.name: file for file in path.glob("*.h5") if not file.name.startswith(".")}
    begun = {folder.name.removesuffix(PARTS) for folder in path.glob(f"*.h5{PARTS}")}
    with ExitStack() as opened:
        zoos = [opened.enter_context(ZooFile(file)) for _, file in sorted(files.items())]
        unfinished = sorted((begun - files.keys()) | {zoo.path.name for zoo in zoos if not zoo.complete})
        if unfinished and not partial:
            raise NetspaceError(
                f"{_listed(unfinished)} of {path} {_is(unfinished)} not finished: start the same `netspace zoo build` again, or "
                "take the finished ones alone (`netspace zoo merge --partial`)"
            )
        zoos = [zoo for zoo in zoos if zoo.complete]
        if not zoos:
            raise NetspaceError(
                f"{path} is a folder without finished shards (*.h5): give the path of a zoo file, such as {path / 'zoo.h5'}, or of "
                "a folder of shards"
            )
        for zoo in zoos[1:]:
            _check_alike(zoos[0], zoo)
        _check_indices(path, zoos, partial)
        zoos.sort(key=lambda zoo: 0 if zoo.shard is None else zoo.shard.index)
        opened.pop_all()
    return zoos


def _check_alike(first: ZooFile, zoo: ZooFile) -> None:
    """Raise `NetspaceError` unless two files are of one recipe and of the same data."""
    seeds = first.shard is None and zoo.shard is None  # may differ: trainings from different seeds are different ones
    difference = changed(_settings(first, seeds), _settings(zoo, seeds))
    if difference or first.header.split_hash != zoo.header.split_hash:
        difference = difference or f"split {first.header.split_hash[:12]} and {zoo.header.split_hash[:12]} of the data"
        raise NetspaceError(
            f"{zoo.path} and {first.path} are shards of different recipes ({difference}): move one of them elsewhere, or join "
            "them by `netspace zoo merge`"
        )
    if (first.shard is None) != (zoo.shard is None) or (
        first.shard and zoo.shard and first.shard.count != zoo.shard.count
    ):
        texts = [f"shard {each.shard}" if each.shard else "no shard of a build" for each in (first, zoo)]
        raise NetspaceError(
            f"{zoo.path} is {texts[1]} and {first.path} is {texts[0]}, so members may overlap: keep shards of one number in a folder"
        )
    for file in (first, zoo):
        if any(group.prep_hashes is None for group in file.archs.values()):
            raise NetspaceError(
                f"{file.path} was written by an earlier version, without hashes of its members: write it anew by `netspace zoo "
                f"merge NEW {file.path.name}`"
            )


def _settings(zoo: ZooFile, seeds: bool) -> Mapping[str, Any]:
    """Return the settings that all shards share: those of recipe and data but the folder of the data."""
    recipe = {key: value for key, value in zoo.header.recipe.items() if key != "data" and not (seeds and key == "seed")}
    return {**recipe, "data": {key: value for key, value in zoo.header.data.items() if key != "root"}}


def _check_indices(path: Path, zoos: Sequence[ZooFile], partial: bool) -> None:
    files: dict[int, ZooFile] = {}
    for zoo in zoos:
        if zoo.shard is None:
            return
        if (other := files.setdefault(zoo.shard.index, zoo)) is not zoo:
            raise NetspaceError(
                f"{zoo.path} and {other.path} overlap: both are shard {zoo.shard}; move one of them elsewhere"
            )
        count = zoo.shard.count
    missing = [f"{index}/{count}" for index in range(1, count + 1) if index not in files]
    if missing and not partial:
        raise NetspaceError(
            f"{_listed(missing)} of {path} {_is(missing)} not there: build {'it' if len(missing) == 1 else 'them'} (`netspace zoo "
            f"build RECIPE --shard {missing[0]} -o {path}`), or take the finished ones alone (`netspace zoo merge --partial`)"
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{'shard' if len(names) == 1 else 'shards'} {', '.join(names[:MAX_NAMED])}{more}"


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def join_archs(zoos: Sequence[ZooFile]) -> dict[str, ArchGroup]:
    """Return the architectures of shards by id, as one zoo would have them.

    Raises `NetspaceError` if specs or sizes of PReps differ, or a member is in two files.
    """
    offsets, runs = [], 0
    for zoo in zoos:
        offsets.append(runs)
        if zoo.shard is None:
            runs += 1 + max((int(group.members["run"].max(initial=0)) for group in zoo.archs.values()), default=0)
    first_of: dict[str, ZooFile] = {}
    for zoo in zoos:
        for name, group in zoo.archs.items():
            other = first_of.setdefault(name, zoo)
            if (known := other.archs[name]).spec != group.spec or known.size != group.size:
                raise NetspaceError(
                    f"{name!r} of {zoo.path} has another spec or PRep size than in {other.path}: they are no shards of one zoo"
                )
    joined = []
    for name in first_of:
        holders = [index for index, zoo in enumerate(zoos) if name in zoo.archs]
        tables = []
        for index in holders:
            table = zoos[index].archs[name].members.copy()
            table["run"] += offsets[index]
            tables.append(table)
        members = np.concatenate(tables)
        file_of = np.repeat(holders, [len(table) for table in tables])
        groups = [zoos[index].archs[name] for index in holders]
        if zoos[0].shard is None:
            order = np.arange(len(members))
            keys = np.concatenate([_contents(group) for group in groups])
        else:
            order = np.lexsort([members[key] for key in reversed(ORDER)])
            keys = np.stack([members[key].astype(np.int64) for key in ORDER], axis=1).view("V24")[:, 0]
        _check_overlap(name, zoos, file_of, keys)
        joined.append(ShardedGroup(groups, members, order))
    joined.sort(key=lambda group: (group.spec.num_parameters, group.id))
    for class_id, each in enumerate(joined):
        each.class_id = class_id
    return {each.id: each for each in joined}


def _contents(group: ArchGroup) -> np.ndarray:
    """Return what identifies members (M,) by their content: the hash of the PRep, and the training of one without values."""
    assert group.prep_hashes is not None
    training = np.stack([group.members[key].astype(np.int64) for key in ("seed", "epochs")], axis=1).view(np.uint8)
    return np.ascontiguousarray(np.concatenate([group.prep_hashes, training], axis=1)).view("V48")[:, 0]


def _check_overlap(name: str, zoos: Sequence[ZooFile], file_of: np.ndarray, keys: np.ndarray) -> None:
    """Raise `NetspaceError` if two files have a member of the same key; `file_of` (M,) is the file of each."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    other = file_of[first[inverse]] != file_of
    if other.any():
        row = int(np.flatnonzero(other)[0])
        one, two = zoos[file_of[first[inverse[row]]]].path, zoos[file_of[row]].path
        raise NetspaceError(
            f"{two} and {one} overlap: {int(other.sum())} networks of {name} are in both; move one of them elsewhere, or join them "
            "by `netspace zoo merge`, which keeps equal ones once"
        )
