"""The zoo file: what lies where in it, what it may consist of, and what every member must fulfil.

What a file may consist of is checked when it is opened, before any value is read: plain datasets and groups, with
filters that HDF5 brings along, and no link that leads out of the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from netspace.io import parse_json
from netspace.networks.spec import NetSpec
from netspace.run_folder import package_version

VERSION = 1


SPLITS = ("train", "val", "test")


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
    """What all members of a zoo share; free of anything that could run."""

    data: Mapping[str, Any]  # settings of the data set (`netspace.tasks.DataConfig`)
    split_hash: str  # of the images and labels of its splits
    recipe: Mapping[str, Any]  # resolved
    versions: Mapping[str, str] = field(default_factory=dict)
    score: Mapping[str, Any] = field(default_factory=dict)  # 'name' and 'higher_is_better'; empty: accuracy

    def to_json(self) -> str:
        """The header as JSON text."""
        versions = {name: package_version(name) for name in ("netspace", "torch", "h5py", "numpy")}
        record = {"data": dict(self.data), "split_hash": self.split_hash, "recipe": dict(self.recipe)}
        score = {"score": dict(self.score)} if self.score else {}
        return json.dumps({**record, "versions": dict(self.versions) or versions, **score})

    @classmethod
    def from_json(cls, text: str) -> Header:
        """The header that `to_json` wrote. Raises `ValueError` or `TypeError` if the text is not one."""
        header = cls(**parse_json(text, "the header"))
        if not all(isinstance(part, dict) for part in (header.data, header.recipe, header.versions, header.score)):
            raise TypeError("the header's data, recipe, versions and score are not all groups of settings")
        if not isinstance(header.split_hash, str):
            raise TypeError("the header's split hash is not a text")
        return header

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher score, which lies in the columns `accuracy_*`, is a better one."""
        return bool(self.score.get("higher_is_better", True))

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


def parts_folder(path: Path) -> Path:
    """Where the builder of the zoo at `path` commits finished members."""
    return path.with_name(path.name + ".parts")


def teacher_path(path: Path) -> Path:
    """Where the teacher of the zoo at `path` lies: a zoo of its own, `zoo.teacher.h5` beside `zoo.h5`."""
    return path.with_name(f"{path.stem}.teacher{path.suffix}")


DEFLATE = 1100  # bytes that one compressed byte stands for at most; zlib's own bound is 1032


FILTERS = {h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32}


LINKS = {h5py.h5l.TYPE_SOFT: "a soft link", h5py.h5l.TYPE_EXTERNAL: "a link to another file"}


Object = TypeVar("Object", h5py.Group, h5py.Dataset)


def inside(parent: h5py.Group, name: str, kind: type[Object], file_bytes: int) -> Object:
    """The group or data set `name` of `parent`, which must lie in the file itself."""
    links, key = parent.id.links, name.encode()  # h5py's own methods would follow a link, and so open other files
    if not links.exists(key):
        raise ValueError(f"it has no {name!r}")
    if (link := links.get_info(key).type) != h5py.h5l.TYPE_HARD:
        raise ValueError(f"{name!r} is {LINKS.get(link, 'a link')}: a zoo stores everything in the file itself")
    found = parent[name]
    if not isinstance(found, kind):
        raise ValueError(f"{name!r} is a {type(found).__name__.lower()}, not a {kind.__name__.lower()}")
    if isinstance(found, h5py.Dataset):
        _check_storage(found, name, file_bytes)
    return found


def _check_storage(dataset: h5py.Dataset, name: str, file_bytes: int) -> None:
    """Looks at how a data set is stored, before even its shape is asked for, which opens the files of a virtual one."""
    storage = dataset.id.get_create_plist()
    if storage.get_layout() == h5py.h5d.VIRTUAL or storage.get_external_count():
        raise ValueError(f"{name!r} lies in other files: a zoo stores everything in the file itself")
    filters = [storage.get_filter(index)[0] for index in range(storage.get_nfilters())]
    if not set(filters) <= FILTERS or len(set(filters)) < len(filters):
        raise ValueError(f"{name!r} is stored by filters that zoos do not have ({filters})")
    if dataset.dtype.hasobject:
        raise ValueError(f"{name!r} holds references or texts of any length")
    claimed, chunks = dataset.size * dataset.dtype.itemsize, 0
    if storage.get_layout() == h5py.h5d.CHUNKED and claimed:
        sides = storage.get_chunk()
        chunks = prod(-(-length // side) for length, side in zip(dataset.shape, sides, strict=True))
        claimed = max(claimed, prod(sides) * dataset.dtype.itemsize)
        if chunks > file_bytes or dataset.id.get_num_chunks() != chunks:
            raise ValueError(f"{name!r} claims {claimed:,} bytes, of which the file does not store all")
    stored = min(dataset.id.get_storage_size(), file_bytes)
    if claimed > stored * (DEFLATE if h5py.h5z.FILTER_DEFLATE in filters else 1):
        raise ValueError(f"{name!r} claims {claimed:,} bytes, more than the {stored:,} that the file stores can hold")


def attribute(place: h5py.Group, name: str, file_bytes: int) -> object:
    """The value of an attribute; None where there is none."""
    if name not in place.attrs:
        return None
    size = h5py.h5a.open(place.id, name.encode()).get_storage_size()
    if size > file_bytes:
        raise ValueError(f"its {name!r} claims {size:,} bytes, more than the file has")
    return place.attrs[name]


def text(place: h5py.Group, name: str, file_bytes: int) -> str:
    """An attribute's text, be it of fixed length, as zoos are written, or of variable length, as they once were."""
    value = attribute(place, name, file_bytes)
    if isinstance(value, bytes):
        return value.decode()
    if not isinstance(value, str):
        raise ValueError(f"it has no {name!r}" if value is None else f"its {name!r} is no text")
    return value


def number(place: h5py.Group, name: str, default: int, file_bytes: int) -> int:
    """An attribute's whole number, `default` where there is none."""
    value = attribute(place, name, file_bytes)
    return default if value is None else int(value)  # type: ignore[call-overload]


def table_problems(arch: str, members: np.ndarray) -> list[str]:
    """What is wrong with a table of members."""
    found = []
    ok = members["status"] == b"ok"
    for name in ("accuracy_train", "accuracy_val", "accuracy_test"):
        bad = np.flatnonzero(ok & ~((members[name] >= 0) & (members[name] <= 1)))
        found += [f"{MemberRef(arch, int(row))}: {name} is {members[name][row]}, not within 0..1" for row in bad]
    unknown = np.flatnonzero(~np.isin(members["split"], [*(split.encode() for split in SPLITS), b""]))
    found += [f"{MemberRef(arch, int(row))}: split {members['split'][row]!r} is not known" for row in unknown]
    splits_of: dict[int, set[bytes]] = {}
    for member in members[ok]:
        splits_of.setdefault(int(member["run"]), set()).add(bytes(member["split"]))
    crossing = [run for run, splits in splits_of.items() if len(splits) > 1]
    if crossing:
        found.append(f"{arch}: {len(crossing)} runs have members in several splits (first: run {crossing[0]})")
    return found


def prep_problems(arch: str, spec: NetSpec, rows: Sequence[int], preps: np.ndarray) -> list[str]:
    """What is wrong with the PReps (M, H, W) of some rows."""
    flat = preps.reshape(len(preps), preps.shape[1] * preps.shape[2])
    finite, padded = np.isfinite(flat).all(1), (flat[:, spec.num_parameters :] == 0).all(1)
    found = [f"{MemberRef(arch, rows[i])}: some of its values are not finite" for i in np.flatnonzero(~finite).tolist()]
    found += [
        f"{MemberRef(arch, rows[i])}: the padding after its last parameter is not zero"
        for i in np.flatnonzero(~padded).tolist()
    ]
    return found


def hash_table(members: np.ndarray) -> str:
    """SHA-256 of a table of members, which lies beside it in the file."""
    return hashlib.sha256(members.tobytes()).hexdigest()


class ContentHash:
    """SHA-256 of all architectures and members of a zoo, in the order in which they are stored."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def begin(self, arch: str, spec: NetSpec) -> None:
        """Takes in an architecture; its members follow."""
        self._digest.update(f"{arch} {spec.to_json()}".encode())

    def add(self, preps: np.ndarray, members: np.ndarray) -> None:
        """Takes in some members: PReps (M, H, W) and rows of the table (M,)."""
        for prep, member in zip(preps, members, strict=True):
            self._digest.update(member.tobytes())
            self._digest.update(np.ascontiguousarray(prep).tobytes())

    def hexdigest(self) -> str:
        """The hash of what was taken in so far."""
        return self._digest.hexdigest()
