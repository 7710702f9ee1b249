"""What lies where in a zoo file.

Axes: M members, H W of a PRep. `/` has the attributes `netspace_zoo` = 1, `header` (JSON: resolved recipe,
data set, split hash, software versions), `content_hash`, `complete` and `parts`; `/archs/<id>/` has the attributes
`spec` (JSON) and `members_hash` (of the table; zoos from before have none), and the data sets `preps` float32 (M, H, W)
(one member a chunk, shuffled, gzip, fletcher32) and `members`. ClassIds order the architectures by number of parameters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from netspace.records import parse_json
from netspace.runtime import package_version
from netspace.spec import NetSpec

VERSION = 1
SPLITS = ("train", "val", "test")
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

    @classmethod
    def from_json(cls, text: str) -> Header:
        """The header that `to_json` wrote. Raises `ValueError` or `TypeError` if the text is not one."""
        header = cls(**parse_json(text, "the header"))
        if not all(isinstance(part, dict) for part in (header.data, header.recipe, header.versions)):
            raise TypeError("the header's data, recipe and versions are not all groups of settings")
        if not isinstance(header.split_hash, str):
            raise TypeError("the header's split hash is not a text")
        return header

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
