"""Small zoo files of random members, which the tests of the store write, look into and damage."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from netspace.networks.spec import NetSpec
from netspace.zoo import MEMBER, Header, Population, Zoo, parts_folder, write_zoo

TINY = NetSpec("tiny", (("width", 1.0),), (1, 2, 2), ("w", "b"), ((3, 4), (3,)))
SMALL = NetSpec("a_small", (), (1, 2, 2), ("w",), ((5, 5),))
LARGE = NetSpec("large", (), (1, 2, 2), ("w",), ((40, 2),))
HEADER = Header({"name": "generated", "classes": 3}, "ab" * 32, {"name": "test", "seed": 0})


def population(spec: NetSpec = TINY, count: int = 6, seed: int = 0, size: tuple[int, int] = (4, 24)) -> Population:
    random = np.random.default_rng(seed)
    members = np.zeros(count, MEMBER)
    members["seed"] = seed * 1000 + np.arange(count)
    members["run"] = np.arange(count)
    members["epochs"] = 3 + np.arange(count)
    members["split"] = np.resize([b"train", b"train", b"val", b"test"], count)
    members["status"], members["source"] = b"ok", b"test"
    for key in ("accuracy_train", "accuracy_val", "accuracy_test", "learning_rate"):
        members[key] = random.random(count)
    preps = np.zeros((count, *size), np.float32)
    preps.reshape(count, size[0] * size[1])[:, : spec.num_parameters] = random.standard_normal(
        (count, spec.num_parameters)
    )
    return Population(spec, preps, members)


def zoo_at(path: Path, header: Header = HEADER, **populations: Population) -> Path:
    write_zoo(path, header, populations or {"tiny": population()})
    return path


def contents(path: Path) -> dict[str, tuple[list[bytes], list[bytes]]]:
    with Zoo(path) as zoo:
        return {
            name: (
                [row.numpy().tobytes() for row in group.read(range(len(group)))],
                [m.tobytes() for m in group.members],
            )
            for name, group in zoo.archs.items()
        }


def chunk_place(path: Path, row: int) -> tuple[int, int]:
    """Where the chunk of a member lies in the file: (first byte, bytes)."""
    with h5py.File(path) as file:
        info = file["archs/tiny/preps"].id.get_chunk_info(row)
        assert info.chunk_offset == (row, 0, 0)
        return int(info.byte_offset), int(info.size)


def flip(path: Path, place: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 0x10
    path.write_bytes(raw)


def in_parts(path: Path, held: Population) -> list[Path]:
    """A zoo's members as the parts that workers would leave, two a part."""
    parts = []
    for number, start in enumerate(range(0, len(held.members), 2)):
        rows = slice(start, start + 2)
        part = parts_folder(path) / f"part-{number}.h5"
        parts.append(zoo_at(part, tiny=Population(held.spec, held.preps[rows], held.members[rows])))
    return parts
