"""The zoo file (version 1): HDF5 that holds, per architecture, the PReps and a table of members.

Axes: M members, H W of a PRep. `/` has the attributes `netspace_zoo` = 1, `header` (JSON: resolved recipe,
data set, split hash, software versions) and `complete`; `/archs/<id>/` has the attribute `spec` (JSON) and
the data sets `preps` float32 (M, H, W) (one member a chunk, shuffled, gzip, fletcher32) and `members`.
ClassIds order the architectures by number of parameters.

Opening never executes anything: no pickle, no import named by the file. A zoo is never changed in place: every
writer makes a new file beside the old one and renames it, so no reader sees half a zoo, and a killed writer
leaves the old one. Builders commit finished members as parts, small zoo files in `<zoo>.parts/`; a zoo whose
builder was killed is put together from them when it is next opened. What is left out: which networks to train
(`model_zoo`), what they compute (`netspace.functional`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from netspace.errors import NetspaceError, UsageError, unknown
from netspace.prep import check_size
from netspace.runtime import Sink, package_version, replacing
from netspace.spec import NetSpec

VERSION = 1
SPLITS = ("train", "val", "test")
STORED = {"shuffle": True, "compression": "gzip", "compression_opts": 1, "fletcher32": True}
MEMBER = np.dtype(
    [
        ("seed", "i8"),  # of the initialisation and the data order
        ("run", "i8"),  # members of one run are snapshots of one training; a run lies in one split
        ("epochs", "i4"),  # trained for, 0 if not known
        ("learning_rate", "f8"),  # peak, NaN if not known
        ("accuracy_train", "f8"),  # fractions
        ("accuracy_val", "f8"),
        ("accuracy_test", "f8"),
        ("split", "S5"),  # 'train', 'val', 'test'; '' for a member of none
        ("status", "S8"),  # 'ok', or 'diverged': its PRep is zero and it belongs to no split
        ("source", "S160"),  # the recipe's name, or the file it was imported from
    ]
)


@dataclass(frozen=True)
class Header:
    """What all members of a zoo share; free of anything that could run."""

    data: Mapping[str, Any]  # settings of the data set (`netspace.data.DataConfig`)
    split_hash: str  # of the images and labels of its splits
    recipe: Mapping[str, Any]  # resolved
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The header as JSON text."""
        versions = {name: package_version(name) for name in ("netspace", "torch", "h5py", "numpy")}
        told = {"data": dict(self.data), "split_hash": self.split_hash, "recipe": dict(self.recipe)}
        return json.dumps({**told, "versions": dict(self.versions) or versions})

    @property
    def dataset(self) -> str:
        """The data set's name."""
        return str(self.data.get("name", "?"))


@dataclass(frozen=True)
class Population:
    """The members of one architecture, in memory: what writers take."""

    spec: NetSpec
    preps: np.ndarray  # float32 (M, H, W)
    members: np.ndarray  # MEMBER (M,)


@dataclass(frozen=True)
class MemberRef:
    """One member of a zoo by architecture id and row; as text 'resnet8/0007'."""

    arch: str
    index: int

    def __str__(self) -> str:
        return f"{self.arch}/{self.index:04d}"


class ArchGroup:
    """The members of one architecture in an open zoo: the table in memory, the PReps on disk."""

    def __init__(self, name: str, archs: h5py.Group, path: Path) -> None:
        self.id = name
        self.class_id = -1
        self._path = path
        try:
            group = archs[name]
            self.spec = NetSpec.from_json(str(group.attrs["spec"]))
            self.preps: h5py.Dataset = group["preps"]
            self.members: np.ndarray = group["members"][:]
        except (KeyError, OSError, RuntimeError, TypeError, ValueError, NetspaceError) as error:
            raise NetspaceError(f"{path}: architecture {name!r} cannot be read: {error}") from None
        if self.members.dtype.names is None or not set(MEMBER.names or ()) <= set(self.members.dtype.names):
            raise NetspaceError(
                f"{path}: the table of members of {name!r} does not have the columns of version {VERSION}"
            )
        if self.preps.ndim != 3 or len(self.preps) != len(self.members):
            raise NetspaceError(
                f"{path}: {name!r} has PReps of shape {self.preps.shape} for {len(self.members)} members"
            )
        check_size(self.spec.num_parameters, self.size)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of this architecture's PReps."""
        return int(self.preps.shape[1]), int(self.preps.shape[2])

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of the members of a split ('train', 'val', 'test', or 'all' that are in one)."""
        if split == "all":
            return np.flatnonzero(self.members["split"] != b"")
        if split not in SPLITS:
            raise unknown("split", split, (*SPLITS, "all"))
        return np.flatnonzero(self.members["split"] == split.encode())

    def read(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        """PReps (M, H, W) of rows, in the order given. Raises `NetspaceError` if a checksum does not match."""
        out = np.empty((len(rows), *self.size), dtype=np.float32)
        for place, row in enumerate(rows):
            try:
                self.preps.read_direct(out, np.s_[int(row)], np.s_[place])
            except OSError as error:
                raise NetspaceError(
                    f"{self._path}: member {MemberRef(self.id, int(row))} is corrupted ({error}); "
                    "`netspace zoo verify` lists every such member"
                ) from None
        return torch.from_numpy(out)


class Zoo:
    """A zoo file opened for reading; use it as a context manager. Readers stream, nothing is loaded but tables."""

    def __init__(self, path: str | Path) -> None:
        """Raises `NetspaceError` for a file that is missing, truncated, corrupted or of another version."""
        self.path = Path(path)
        if not self.path.exists():
            recover(self.path)
        self.file = _open(self.path)
        try:
            header = json.loads(str(self.file.attrs["header"]))
            self.header = Header(**header)
            self.complete = bool(self.file.attrs.get("complete", True))
            self.content_hash = str(self.file.attrs["content_hash"])
            names = list(self.file["archs"])
        except (KeyError, TypeError, ValueError, OSError, RuntimeError) as error:
            self.file.close()
            raise NetspaceError(f"{path} is not whole: {error}") from None
        groups = [ArchGroup(name, self.file["archs"], self.path) for name in names]
        groups.sort(key=lambda group: (group.spec.num_parameters, group.id))
        self.archs: dict[str, ArchGroup] = {}
        for class_id, group in enumerate(groups):
            group.class_id = class_id
            self.archs[group.id] = group

    def __enter__(self) -> Zoo:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self.file.close()

    def __len__(self) -> int:
        return sum(len(group) for group in self.archs.values())

    def group(self, arch: str) -> ArchGroup:
        """The members of an architecture. Raises `UsageError` naming those there are."""
        if arch not in self.archs:
            raise unknown("architecture", arch, self.archs, f"(in {self.path})")
        return self.archs[arch]

    def only(self) -> ArchGroup:
        """The one architecture of a single-architecture zoo."""
        if len(self.archs) != 1:
            raise UsageError(
                f"{self.path} holds {len(self.archs)} architectures ({', '.join(self.archs)}), "
                "but one is needed here: name it"
            )
        return next(iter(self.archs.values()))

    def find(self, text: str) -> MemberRef:
        """The member that `text` names: 'resnet8/0007', 'best', 'worst', 'best:resnet8'.

        'best' and 'worst' go by accuracy on the validation images, among all members of a split. Raises `UsageError`
        for a name that is not there.
        """
        kind, _, arch = text.partition(":")
        if kind in ("best", "worst"):
            groups = [self.group(arch)] if arch else list(self.archs.values())
            ranked = [
                (float(group.members["accuracy_val"][row]), MemberRef(group.id, int(row)))
                for group in groups
                for row in group.rows("all")
            ]
            ranked = [entry for entry in ranked if np.isfinite(entry[0])]
            if not ranked:
                raise NetspaceError(f"{self.path} has no member with a known validation accuracy to be the {kind}")
            return (max if kind == "best" else min)(ranked, key=lambda entry: entry[0])[1]
        name, slash, number = text.rpartition("/")
        if not slash or not number.isdecimal():
            raise UsageError(
                f"{text!r} names no network: expected a member such as {next(iter(self.archs), 'resnet8')}/0000, "
                "'best', 'worst', 'best:ARCH', or a file that exists"
            )
        group = self.group(name)
        if int(number) >= len(group):
            raise UsageError(f"member {text!r} does not exist: {name} has members 0000 to {len(group) - 1:04d}")
        return MemberRef(name, int(number))


def _open(path: Path) -> h5py.File:
    if not path.is_file():
        raise NetspaceError(f"{path} does not exist: build a zoo (`netspace zoo build`) or give the path of one")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise NetspaceError(
            f"{path} was expected to be a zoo (HDF5), but it cannot be opened; it may be truncated or corrupted "
            f"({str(error).splitlines()[0]})"
        ) from None
    try:
        version = file.attrs.get("netspace_zoo")
        known = version is not None and int(version) == VERSION
        outdated = 0 < file.attrs.get("parts", 0) < len(list(parts_folder(path).glob("part-*.h5")))
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        file.close()
        raise NetspaceError(f"{path} is not whole: {error}") from None
    if not known:
        file.close()
        found = "no zoo at all" if version is None else f"version {version}"
        raise NetspaceError(f"{path} was expected to be a zoo of version {VERSION}, but is {found}")
    if outdated:  # more members were finished since this incomplete zoo was put together
        file.close()
        recover(path)
        return _open(path)
    return file


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
    _write(path, header, specs, sizes, counts, chunks)


def _write(
    path: Path,
    header: Header,
    specs: Mapping[str, NetSpec],
    sizes: Mapping[str, tuple[int, int]],
    counts: Mapping[str, int],
    chunks: Any,  # architecture id -> iterator of (preps (m, H, W), members (m,)), `counts` members in all
    parts: int = 0,  # of how many an incomplete zoo was put together; 0 for a complete one
) -> None:
    digest = hashlib.sha256()
    # HDF5 1.10 and later put checksums on a file's own tables, too: a flipped byte there is noticed
    with replacing(path) as temporary, Sink(temporary) as sink, h5py.File(sink, "w", libver="v110") as file:
        file.attrs.update({"netspace_zoo": VERSION, "header": header.to_json(), "complete": not parts, "parts": parts})
        archs = file.create_group("archs")
        for name in sorted(specs, key=lambda name: (specs[name].num_parameters, name)):
            check_size(specs[name].num_parameters, sizes[name])
            group = archs.create_group(name)
            group.attrs["spec"] = specs[name].to_json()
            digest.update(f"{name} {specs[name].to_json()}".encode())
            how = {**STORED, "chunks": (1, *sizes[name])} if counts[name] else {}
            preps = group.create_dataset("preps", (counts[name], *sizes[name]), "f4", **how)
            table = np.empty(counts[name], dtype=MEMBER)
            start = 0
            for values, members in chunks(name):
                preps[start : start + len(values)] = values
                table[start : start + len(values)] = members
                for row, member in zip(values, members, strict=True):
                    digest.update(member.tobytes())
                    digest.update(np.ascontiguousarray(row).tobytes())
                sink.check()
                start += len(values)
            assert start == counts[name]
            group.create_dataset("members", data=table, **({"fletcher32": True, "chunks": True} if len(table) else {}))
        file.attrs["content_hash"] = digest.hexdigest()


def merge(path: Path, sources: Sequence[Path], *, complete: bool = True, ordered: bool = False) -> dict[str, int]:
    """One zoo from several, streamed, atomically; members that are the same to the last bit are kept once.

    With `ordered`, members are sorted by (run, epochs, seed), so the outcome does not depend on who finished first.
    Returns the counts 'members' and 'duplicates'. Raises `NetspaceError` if data sets, specs or PRep sizes differ.
    """
    zoos = [Zoo(source) for source in sources]
    try:
        first = zoos[0]
        specs: dict[str, NetSpec] = {}
        sizes: dict[str, tuple[int, int]] = {}
        rows: dict[str, list[tuple[ArchGroup, int]]] = {}
        seen: set[bytes] = set()
        duplicates = 0
        runs_before = 0
        offsets: dict[int, int] = {}
        for zoo in zoos:
            if zoo.header.split_hash != first.header.split_hash:
                raise NetspaceError(
                    f"{zoo.path} was trained on other data ({zoo.header.dataset}, split {zoo.header.split_hash[:12]}) than "
                    f"{first.path} ({first.header.dataset}, split {first.header.split_hash[:12]}): they cannot be merged"
                )
            for name, group in zoo.archs.items():
                if specs.setdefault(name, group.spec) != group.spec or sizes.setdefault(name, group.size) != group.size:
                    raise NetspaceError(
                        f"{name!r} of {zoo.path} has another spec or PRep size than in the zoos before it"
                    )
                for row in range(len(group)):
                    held = group.read([row]).numpy().tobytes() + group.members["seed"][row].tobytes()
                    mark = hashlib.sha256(held).digest()
                    if mark in seen and group.members["status"][row] == b"ok":
                        duplicates += 1
                        continue
                    seen.add(mark)
                    rows.setdefault(name, []).append((group, row))
                offsets[id(group)] = 0 if ordered else runs_before
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
        _write(path, first.header, kept, sizes, counts, chunks, parts=0 if complete else len(zoos))
        return {"members": sum(counts.values()), "duplicates": duplicates}
    finally:
        for zoo in zoos:
            zoo.close()


def parts_folder(path: Path) -> Path:
    """Where the builder of the zoo at `path` commits finished members."""
    return path.with_name(path.name + ".parts")


def recover(path: Path) -> None:
    """Puts a zoo together from the parts that an interrupted builder left, if there are any."""
    if parts := sorted(parts_folder(path).glob("part-*.h5")):
        merge(path, parts, complete=False, ordered=True)
