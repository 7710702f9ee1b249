"""Writing whole zoo files, atomically, streamed member by member."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from netspace.errors import NetspaceError
from netspace.prep import check_size
from netspace.runtime import replacing
from netspace.spec import NetSpec
from netspace.store.checks import ContentHash, hash_table
from netspace.store.layout import MEMBER, VERSION, Header, Population
from netspace.store.sink import Sink

STORED = {"shuffle": True, "compression": "gzip", "compression_opts": 1, "fletcher32": True}


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
    write(path, header, specs, sizes, counts, chunks)


def write(
    path: Path,
    header: Header,
    specs: Mapping[str, NetSpec],
    sizes: Mapping[str, tuple[int, int]],
    counts: Mapping[str, int],
    chunks: Any,  # architecture id -> iterator of (preps (m, H, W), members (m,)), `counts` members in all
    parts: int = 0,  # of how many an incomplete zoo was put together; 0 for a complete one
) -> None:
    """A whole zoo file at `path`, atomically, from members that come one after the other."""
    content = ContentHash()
    # HDF5 1.10 and later put checksums on a file's own tables, too: a flipped byte there is noticed
    with replacing(path) as temporary, Sink(temporary) as sink, h5py.File(sink, "w", libver="v110") as file:
        file.attrs.update({"netspace_zoo": VERSION, "complete": not parts, "parts": parts})
        _set_text(file, "header", header.to_json())
        archs = file.create_group("archs")
        for name in sorted(specs, key=lambda name: (specs[name].num_parameters, name)):
            check_size(specs[name].num_parameters, sizes[name])
            group = archs.create_group(name)
            _set_text(group, "spec", specs[name].to_json())
            content.begin(name, specs[name])
            how = {**STORED, "chunks": (1, *sizes[name])} if counts[name] else {}
            preps = group.create_dataset("preps", (counts[name], *sizes[name]), "f4", **how)
            table = np.empty(counts[name], dtype=MEMBER)
            start = 0
            for values, members in chunks(name):
                preps[start : start + len(values)] = values
                table[start : start + len(values)] = members
                content.add(values, table[start : start + len(values)])
                sink.check()
                start += len(values)
            assert start == counts[name]
            _set_text(group, "members_hash", hash_table(table))
            group.create_dataset("members", data=table, **({"fletcher32": True, "chunks": True} if len(table) else {}))
        _set_text(file, "content_hash", content.hexdigest())


def _set_text(place: h5py.Group, name: str, text: str) -> None:
    """An attribute of fixed length, which has a checksum. Of variable length it would lie in HDF5's global heap.

    That heap has no checksum: a flipped byte there is other text, or a loop of HDF5 without end.
    """
    raw = text.encode()
    place.attrs.create(name, np.bytes_(raw), dtype=h5py.string_dtype("utf-8", len(raw)))
