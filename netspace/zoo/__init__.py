"""The zoo file (version 1): HDF5 with the PReps and a table of members of each architecture.

    with Zoo("zoo.h5") as zoo:
        group = zoo.group("resnet8")
        preps = group.read(group.rows("test"))  # float32 (M, H, W)

Opening never executes anything: no pickle, no import named by the file. A zoo is never changed in place: every writer
makes a new file and renames it, so no reader sees half a zoo, and a killed writer leaves the old one. Builders commit
finished members as parts, small zoo files in `<zoo>.parts/`; a zoo whose builder was killed is recovered from them when
it is next opened. A folder of shards, zoo files built apart from each other, is read as one zoo. Which networks to train
is in `model_zoo`, what they compute in `netspace.networks.batch`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netspace.zoo.checks import ContentHash, prep_problems, table_problems
from netspace.zoo.file import (
    MEMBER,
    SPLITS,
    VERSION,
    ArchGroup,
    Header,
    MemberRef,
    Population,
    Shard,
    parts_folder,
    teacher_path,
)
from netspace.zoo.members import Member, Members
from netspace.zoo.writer import Zoo, merge, recover, write_zoo, zoo_lock

if TYPE_CHECKING:
    from netspace.zoo.dataset import PRepDataset

__all__ = [
    "MEMBER",
    "SPLITS",
    "VERSION",
    "ArchGroup",
    "ContentHash",
    "Header",
    "Member",
    "MemberRef",
    "Members",
    "PRepDataset",
    "Population",
    "Shard",
    "Zoo",
    "merge",
    "parts_folder",
    "prep_problems",
    "recover",
    "table_problems",
    "teacher_path",
    "write_zoo",
    "zoo_lock",
]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is used, so that tables are read without."""
    if name == "PRepDataset":
        from netspace.zoo.dataset import PRepDataset

        return PRepDataset
    raise AttributeError(f"module 'netspace.zoo' has no attribute {name!r}")
