"""The zoo file: its records, where they are stored, and how they are read, without ever running code.

What a file may consist of is checked when it is opened, before any value is read (`netspace.zoo.storage`). Tables are
read at once, PReps when they are used. Whatever is wrong with a file is a `NetspaceError` in one sentence.

Axes: M members (networks), H W of a PRep.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np
from jaxtyping import Float32, Int64

from netspace.errors import NetspaceError, UsageError, first_line, unknown
from netspace.io import parse_json
from netspace.networks.prep import check_size
from netspace.networks.spec import NetSpec
from netspace.run_folder import package_version
from netspace.zoo.columns import Columns, read_columns
from netspace.zoo.storage import attribute, inside, number, text

if TYPE_CHECKING:
    from torch import Tensor  # imported by methods that return tensors: tables are read without

VERSION = 1
SPLITS = ("train", "val", "test")
HASH_BYTES = 32  # of a SHA-256

MEMBER = np.dtype(
    [
        ("seed", "i8"),  # of the initialisation and the data order
        ("run", "i8"),  # members of one run are snapshots of one training; a run lies in one split
        ("epochs", "i4"),  # trained for, 0 if not known
        ("learning_rate", "f8"),  # peak, NaN if not known
        ("accuracy_train", "f8"),  # the task's score, 0 to 1: accuracy, or what the header's 'score' names
        ("accuracy_val", "f8"),
        ("accuracy_test", "f8"),
        ("split", "S5"),  # 'train', 'val', 'test'; '' for a member of none
        ("status", "S8"),  # 'ok', or 'diverged': its PRep is zero and it belongs to no split
        ("source", "S160"),  # the recipe's name, or the file it was imported from
    ]
)


@dataclass(frozen=True)
class Header:
    """What all members of a zoo share. It contains nothing that could run."""

    data: Mapping[str, Any]  # settings of the data set (`netspace.tasks.DataConfig`)
    split_hash: str  # of the images and labels of its splits
    recipe: Mapping[str, Any]  # with all settings
    versions: Mapping[str, str] = field(default_factory=dict)
    score: Mapping[str, Any] = field(default_factory=dict)  # 'name' and 'higher_is_better'; empty: accuracy

    def to_json(self) -> str:
        """Return the header as JSON text."""
        versions = {name: package_version(name) for name in ("netspace", "torch", "h5py", "numpy")}
        record = {"data": dict(self.data), "split_hash": self.split_hash, "recipe": dict(self.recipe)}
        score = {"score": dict(self.score)} if self.score else {}
        return json.dumps({**record, "versions": dict(self.versions) or versions, **score})

    @classmethod
    def from_json(cls, text: str) -> Header:
        """Return the header that `to_json` wrote. Raises `ValueError` or `TypeError` if the text is not one."""
        header = cls(**parse_json(text, "the header"))
        if not all(isinstance(part, dict) for part in (header.data, header.recipe, header.versions, header.score)):
            raise TypeError("the header's data, recipe, versions and score are not all groups of settings")
        if not isinstance(header.split_hash, str):
            raise TypeError("the header's split hash is not a text")
        return header

    @property
    def higher_is_better(self) -> bool:
        """Whether higher scores, the columns `accuracy_*`, are better."""
        return bool(self.score.get("higher_is_better", True))

    @property
    def dataset(self) -> str:
        """The data set's name."""
        return str(self.data.get("name", "?"))


@dataclass(frozen=True)
class Population:
    """The members of one architecture in memory, as they are written."""

    spec: NetSpec
    preps: np.ndarray  # float32 (M, H, W)
    members: np.ndarray  # MEMBER (M,)
    columns: Columns = field(default_factory=dict)  # further ones of this zoo


@dataclass(frozen=True)
class MemberRef:
    """A member of a zoo by architecture id and row; as text 'resnet8/0007'."""

    arch: str
    index: int

    def __str__(self) -> str:
        return f"{self.arch}/{self.index:04d}"


@dataclass(frozen=True)
class Shard:
    """Which part of a zoo a file is: shard `index` of `count`, from 1 on; as text '3/10'."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard that a text names. Raises `ValueError` if it names none.

        >>> Shard.parse("3/10")
        Shard(index=3, count=10)
        """
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise ValueError(f"a shard is I/N, from 1/N to N/N, such as 3/10; found {text!r}")
        return cls(int(index), int(count))

    @property
    def file_name(self) -> str:
        """The name of its file in the folder: 'shard-03-of-10.h5'."""
        return f"shard-{self.index:0{len(str(self.count))}d}-of-{self.count}.h5"


def parts_folder(path: Path) -> Path:
    """Return the folder in which the builder of the zoo at `path` commits finished members."""
    return path.parent / f"{path.name}.parts"  # not with_name, which raises for '.' and '/'


def teacher_path(path: Path) -> Path:
    """Return the path of the zoo's teacher, a zoo of its own: `zoo.teacher.h5` next to `zoo.h5`, or next to the folder `zoo`."""
    if path.is_dir():
        return path.resolve().parent / f"{path.resolve().name}.teacher.h5"
    return path.with_name(f"{path.stem}.teacher{path.suffix}")


def hash_content(groups: Iterable[ArchGroup]) -> str | None:
    """Return the SHA-256 of the content of a zoo, from tables alone; None if a group lacks the hashes of its PReps.

    It covers specs, table rows and the hashes of PReps, in the order of `groups` and of their members: one file and a
    folder of shards with the same members have the same.
    """
    digest = hashlib.sha256()
    for group in groups:
        if group.prep_hashes is None:
            return None
        digest.update(f"{group.id} {group.spec.to_json()}".encode())
        table = np.ascontiguousarray(group.members).view(np.uint8).reshape(len(group), MEMBER.itemsize)
        digest.update(np.concatenate([table, group.prep_hashes], axis=1).tobytes())
    return digest.hexdigest()


def hash_table(members: np.ndarray) -> str:
    """Return the SHA-256 of a table of members (M,); the file stores it with the table."""
    return hashlib.sha256(members.tobytes()).hexdigest()


class ArchGroup:
    """The members of one architecture in an open zoo: the table in memory, the PReps on disk."""

    def __init__(self, name: str, archs: h5py.Group, path: Path, file_bytes: int) -> None:
        """Raises `NetspaceError` if the architecture cannot be read or is corrupted."""
        self.id = name
        self.class_id = -1
        self.higher_is_better = True  # of scores
        self._path = path
        try:
            group = inside(archs, name, h5py.Group, file_bytes)
            self.spec = NetSpec.from_json(text(group, "spec", file_bytes))
            self.preps = inside(group, "preps", h5py.Dataset, file_bytes)
            self.members: np.ndarray = inside(group, "members", h5py.Dataset, file_bytes)[:]
            self.columns = read_columns(group, len(self.members), file_bytes)  # those that only this zoo has
            stored_hash = text(group, "members_hash", file_bytes) if "members_hash" in group.attrs else None
            self.prep_hashes: np.ndarray | None = None  # uint8 (M, 32); older zoos have none
            if "prep_hashes" in group:
                self.prep_hashes = inside(group, "prep_hashes", h5py.Dataset, file_bytes)[:]
        except (KeyError, OSError, RuntimeError, TypeError, ValueError, NetspaceError) as error:
            raise NetspaceError(f"{path}: architecture {name!r} cannot be read: {first_line(error)}") from None
        if self.members.dtype != MEMBER:
            raise NetspaceError(
                f"{path}: the table of members of {name!r} does not have the columns of version {VERSION}"
            )
        if stored_hash is not None and stored_hash != hash_table(self.members):  # zoos from before have none
            raise NetspaceError(f"{path}: the table of members of {name!r} is not as it was written: it is corrupted")
        if self.preps.ndim != 3 or len(self.preps) != len(self.members) or self.preps.dtype != np.float32:
            raise NetspaceError(
                f"{path}: {name!r} has PReps of shape {self.preps.shape} and type {self.preps.dtype} for "
                f"{len(self.members)} members"
            )
        if self.prep_hashes is not None and (
            self.prep_hashes.shape != (len(self.members), HASH_BYTES) or self.prep_hashes.dtype != np.uint8
        ):
            raise NetspaceError(
                f"{path}: {name!r} was expected to have a hash of {HASH_BYTES} bytes for each of {len(self.members)} members, but "
                f"has {self.prep_hashes.shape} of type {self.prep_hashes.dtype}"
            )
        check_size(self.spec.num_parameters, self.size)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of this architecture's PReps."""
        return int(self.preps.shape[1]), int(self.preps.shape[2])

    def rows(self, split: str) -> np.ndarray:
        """Return the rows (M,) of the members of a split: 'train', 'val', 'test', or 'all' for those in any.

        Raises `UsageError` for another split.
        """
        if split == "all":
            return np.flatnonzero(self.members["split"] != b"")
        if split not in SPLITS:
            raise unknown("split", split, (*SPLITS, "all"))
        return np.flatnonzero(self.members["split"] == split.encode())

    def merit(self, rows: np.ndarray) -> np.ndarray:
        """Return validation scores (M,) of rows, 1 minus them if lower is better, -inf if not known: higher is always better."""
        scores: np.ndarray = self.members["accuracy_val"][rows]
        return np.where(np.isnan(scores), -np.inf, scores if self.higher_is_better else 1 - scores)

    def seeds(self, rows: np.ndarray) -> Int64[Tensor, " M"]:
        """Return the seeds of the runs of rows, which identify networks to their task."""
        import torch

        return torch.from_numpy(self.members["seed"][rows].astype(np.int64))

    def read(self, rows: Sequence[int] | np.ndarray) -> Float32[Tensor, "M H W"]:
        """Return the PReps of rows, in their order. Raises `NetspaceError` if a checksum does not match."""
        import torch

        out = np.empty((len(rows), *self.size), dtype=np.float32)
        for index, row in enumerate(rows):
            self.read_into(out, index, int(row))
        return torch.from_numpy(out)

    def read_into(self, out: np.ndarray, index: int, row: int) -> None:
        """Write the PRep of a row to `out[index]` of float32 (M, H, W). Raises `NetspaceError` if its checksum does not match."""
        try:
            self.preps.read_direct(out, np.s_[row], np.s_[index])
        except OSError as error:
            raise NetspaceError(
                f"{self._path}: member {MemberRef(self.id, row)} is corrupted ({error}); "
                "`netspace zoo verify` lists every such member"
            ) from None


class ZooFile:
    """A zoo file opened for reading, as it is. Only tables are loaded."""

    def __init__(self, path: str | Path) -> None:
        """Raises `NetspaceError` for a file that is missing, truncated, corrupted or of another version."""
        self.path = Path(path)
        self.arguments: tuple[Any, ...] = (self.path.absolute(),)  # with which its class opens it again
        self.file = _open(self.path)
        self.num_bytes = size = self.path.stat().st_size
        try:
            self.header = Header.from_json(text(self.file, "header", size))
            self.complete = bool(number(self.file, "complete", 1, size))
            self.parts = number(self.file, "parts", 0, size)  # number of parts that an incomplete zoo was made from
            # of the file's own bytes in their order, which only reading them all can check
            self.stored_hash: str | None = text(self.file, "content_hash", size)
            self.shard = Shard.parse(text(self.file, "shard", size)) if "shard" in self.file.attrs else None
            archs = inside(self.file, "archs", h5py.Group, size)
            names = list(archs)
        except (KeyError, TypeError, ValueError, OSError, RuntimeError) as error:
            self.file.close()
            raise NetspaceError(f"{path} is not whole: {first_line(error)}") from None
        try:
            groups = [ArchGroup(name, archs, self.path, size) for name in names]
        except NetspaceError:
            self.file.close()
            raise
        groups.sort(key=lambda group: (group.spec.num_parameters, group.id))
        self.archs: dict[str, ArchGroup] = {}
        for class_id, group in enumerate(groups):
            group.class_id, group.higher_is_better = class_id, self.header.higher_is_better
            self.archs[group.id] = group
        self.content_hash = hash_content(groups) or self.stored_hash or ""

    @property
    def files(self) -> Sequence[ZooFile]:
        """The zoo files that the members are in: this one."""
        return (self,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def __len__(self) -> int:
        return sum(len(group) for group in self.archs.values())

    def group(self, arch: str) -> ArchGroup:
        """Return the members of an architecture. Raises `UsageError`, which lists those of the zoo."""
        if arch not in self.archs:
            raise unknown("architecture", arch, self.archs, f"(in {self.path})")
        return self.archs[arch]

    def only(self) -> ArchGroup:
        """Return the only architecture of the zoo. Raises `UsageError` if there are several."""
        if len(self.archs) != 1:
            raise UsageError(
                f"{self.path} holds {len(self.archs)} architectures ({', '.join(self.archs)}), "
                "but one is needed here: name it"
            )
        return next(iter(self.archs.values()))

    def find(self, text: str) -> MemberRef:
        """Return the member called `text`: 'resnet8/0007', 'best', 'worst', 'best:resnet8', or by its signal 'chair/0003'.

        'best' and 'worst' are by accuracy on validation images, among the members of all splits. Raises `UsageError` if
        there is no such member, `NetspaceError` if no accuracy is known.
        """
        kind, _, arch = text.partition(":")
        if kind in ("best", "worst"):
            groups = [self.group(arch)] if arch else list(self.archs.values())
            ranked = [
                (float(merit), MemberRef(group.id, int(row)))
                for group in groups
                for row, merit in zip(group.rows("all"), group.merit(group.rows("all")), strict=True)
                if np.isfinite(merit)
            ]
            if not ranked:
                raise NetspaceError(f"{self.path} has no member with a known validation accuracy to be the {kind}")
            return (max if kind == "best" else min)(ranked, key=lambda entry: entry[0])[1]
        name, slash, number = text.rpartition("/")
        if name not in self.archs and (named := self._of_signal(text)):
            return named
        if not slash or not number.isdecimal():
            raise UsageError(
                f"{text!r} names no network: expected a member such as {next(iter(self.archs), 'resnet8')}/0000, "
                "'best', 'worst', 'best:ARCH', or a file that exists"
            )
        group = self.group(name)
        if int(number) >= len(group):
            raise UsageError(f"member {text!r} does not exist: {name} has members 0000 to {len(group) - 1:04d}")
        return MemberRef(name, int(number))

    def _of_signal(self, text: str) -> MemberRef | None:
        """Return the first member that was fitted to the signal called `text`, None if there is none."""
        for group in self.archs.values():
            rows = np.flatnonzero(group.members["source"] == text.encode())
            if len(rows):
                return MemberRef(group.id, int(rows[0]))
        kind = text.rpartition("/")[0].encode() + b"/"
        signals = [
            source for group in self.archs.values() for source in group.members["source"] if source.startswith(kind)
        ]
        if signals:
            first, last = (each.decode(errors="replace") for each in (min(signals), max(signals)))
            raise UsageError(f"no network of {text!r} is in {self.path}: its networks are of {first} to {last}")
        return None


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
        version = attribute(file, "netspace_zoo", path.stat().st_size)
        known = version is not None and int(version) == VERSION  # type: ignore[call-overload]
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        file.close()
        raise NetspaceError(f"{path} is not whole: {first_line(error)}") from None
    if not known:
        file.close()
        actual = "no zoo at all" if version is None else f"version {version}"
        raise NetspaceError(f"{path} was expected to be a zoo of version {VERSION}, but is {actual}")
    return file
