"""The zoo file (version 1): HDF5 that holds, per architecture, the PReps and a table of members.

    with Zoo("zoo.h5") as zoo:
        group = zoo.group("resnet8")
        preps = group.read(group.rows("test"))  # float32 (M, H, W)

Opening never executes anything: no pickle, no import named by the file. A zoo is never changed in place: every
writer makes a new file beside the old one and renames it, so no reader sees half a zoo, and a killed writer
leaves the old one. Builders commit finished members as parts, small zoo files in `<zoo>.parts/`; a zoo whose
builder was killed is put together from them when it is next opened. What is left out: which networks to train
(`model_zoo`), what they compute (`netspace.networks.batch`)."""

from __future__ import annotations

from netspace.zoo.format import (
    MEMBER,
    SPLITS,
    VERSION,
    ContentHash,
    Header,
    MemberRef,
    Population,
    parts_folder,
    prep_problems,
    table_problems,
    teacher_path,
)
from netspace.zoo.reader import ArchGroup
from netspace.zoo.writer import Zoo, merge, recover, write_zoo, zoo_lock

__all__ = [
    "MEMBER",
    "SPLITS",
    "VERSION",
    "ArchGroup",
    "ContentHash",
    "Header",
    "MemberRef",
    "Population",
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
