"""What an HDF5 file of a zoo may consist of, checked before any value is read.

Plain data sets and groups, with filters that are part of HDF5, no link that leads out of the file, and no claim of more
bytes than the file can hold.
"""

from __future__ import annotations

from math import prod
from typing import TypeVar

import h5py

DEFLATE = 1100  # bytes that one compressed byte stands for at most; zlib's own bound is 1032
FILTERS = {h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32}
LINKS = {h5py.h5l.TYPE_SOFT: "a soft link", h5py.h5l.TYPE_EXTERNAL: "a link to another file"}

Object = TypeVar("Object", h5py.Group, h5py.Dataset)


def inside(parent: h5py.Group, name: str, kind: type[Object], file_bytes: int) -> Object:
    """Return the group or data set `name` of `parent`. Raises `ValueError` unless it is stored in the file itself."""
    links, key = parent.id.links, name.encode()  # h5py's own methods would follow a link, and so open other files
    if not links.exists(key):
        raise ValueError(f"it has no {name!r}")
    if (link := links.get_info(key).type) != h5py.h5l.TYPE_HARD:
        raise ValueError(f"{name!r} is {LINKS.get(link, 'a link')}: a zoo stores everything in the file itself")
    node = parent[name]
    if not isinstance(node, kind):
        raise ValueError(f"{name!r} is a {type(node).__name__.lower()}, not a {kind.__name__.lower()}")
    if isinstance(node, h5py.Dataset):
        _check_storage(node, name, file_bytes)
    return node


def _check_storage(dataset: h5py.Dataset, name: str, file_bytes: int) -> None:
    """Refuse a data set by how it is stored, before its shape is read, which would open the files of a virtual one."""
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


def attribute(group: h5py.Group, name: str, file_bytes: int) -> object:
    """Return the value of an attribute or None. Raises `ValueError` if it claims more bytes than the file has."""
    if name not in group.attrs:
        return None
    size = h5py.h5a.open(group.id, name.encode()).get_storage_size()
    if size > file_bytes:
        raise ValueError(f"its {name!r} claims {size:,} bytes, more than the file has")
    return group.attrs[name]


def text(group: h5py.Group, name: str, file_bytes: int) -> str:
    """Return an attribute's text: of fixed length, or of variable length in older zoos. Raises `ValueError` if there is none."""
    value = attribute(group, name, file_bytes)
    if isinstance(value, bytes):
        return value.decode()
    if not isinstance(value, str):
        raise ValueError(f"it has no {name!r}" if value is None else f"its {name!r} is no text")
    return value


def number(group: h5py.Group, name: str, default: int, file_bytes: int) -> int:
    """Return an attribute's integer, `default` if there is none."""
    value = attribute(group, name, file_bytes)
    return default if value is None else int(value)  # type: ignore[call-overload]
