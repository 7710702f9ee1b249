"""Reading a zoo file: the tables in memory, the PReps from the disk as they are asked for.

Axes: M members, H W of a PRep. Whatever is wrong with a file is a `NetspaceError` in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import h5py
import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from netspace.errors import NetspaceError, UsageError, first_line, unknown
from netspace.networks.prep import check_size
from netspace.networks.spec import NetSpec
from netspace.zoo.format import MEMBER, SPLITS, VERSION, Header, MemberRef, attribute, hash_table, inside, number, text


class ArchGroup:
    """The members of one architecture in an open zoo: the table in memory, the PReps on disk."""

    def __init__(self, name: str, archs: h5py.Group, path: Path, file_bytes: int) -> None:
        self.id = name
        self.class_id = -1
        self.higher_is_better = True  # of scores
        self._path = path
        try:
            group = inside(archs, name, h5py.Group, file_bytes)
            self.spec = NetSpec.from_json(text(group, "spec", file_bytes))
            self.preps = inside(group, "preps", h5py.Dataset, file_bytes)
            self.members: np.ndarray = inside(group, "members", h5py.Dataset, file_bytes)[:]
            stored_hash = text(group, "members_hash", file_bytes) if "members_hash" in group.attrs else None
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

    def merit(self, rows: np.ndarray) -> np.ndarray:
        """Scores (M,) of rows on validation inputs, 1 minus them where lower is better: the more the better."""
        scores: np.ndarray = self.members["accuracy_val"][rows]
        return scores if self.higher_is_better else 1 - scores

    def seeds(self, rows: np.ndarray) -> Int64[Tensor, " M"]:
        """Seeds (M,) of the runs of rows, int64: what names a network to its task."""
        return torch.from_numpy(self.members["seed"][rows].astype(np.int64))

    def read(self, rows: Sequence[int] | np.ndarray) -> Float32[Tensor, "M H W"]:
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


class ZooFile:
    """A zoo file opened for reading, as it lies there. Readers stream, nothing is loaded but tables."""

    def __init__(self, path: str | Path) -> None:
        """Raises `NetspaceError` for a file that is missing, truncated, corrupted or of another version."""
        self.path = Path(path)
        self.file = _open(self.path)
        size = self.path.stat().st_size
        try:
            self.header = Header.from_json(text(self.file, "header", size))
            self.complete = bool(number(self.file, "complete", 1, size))
            self.parts = number(self.file, "parts", 0, size)  # of how many an incomplete zoo was put together
            self.content_hash = text(self.file, "content_hash", size)
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

    def __enter__(self) -> Self:
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
                (float(merit), MemberRef(group.id, int(row)))
                for group in groups
                for row, merit in zip(group.rows("all"), group.merit(group.rows("all")), strict=True)
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
    if path.is_dir():
        raise NetspaceError(f"{path} is a folder: give the path of a zoo file, such as {path / 'zoo.h5'}")
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
        found = "no zoo at all" if version is None else f"version {version}"
        raise NetspaceError(f"{path} was expected to be a zoo of version {VERSION}, but is {found}")
    return file
