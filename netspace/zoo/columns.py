"""Columns of an architecture's table that a zoo has of its own: numbers or texts that came with imported networks.

They are data sets in the group `columns` of an architecture, which a zoo without such columns does not have. Neither
training nor any hash depends on them.

Axes: M members (networks).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import h5py
import numpy as np

from netspace.zoo.storage import inside

GROUP = "columns"
NAME = re.compile(r"[A-Za-z]\w{0,62}", re.ASCII)  # of a column, so that conditions can name it
TEXT = np.dtype("S160")
NUMBER = np.dtype("f8")  # NaN if not known
Columns = Mapping[str, np.ndarray]  # name -> values (M,), numbers or texts


def parse_column(texts: Sequence[str]) -> np.ndarray:
    """Return the values of a column (M,) as numbers if all texts that are not empty are numbers, else as texts.

    >>> parse_column(["0.5", "", "3"]), parse_column(["adam", "1"])
    (array([0.5, nan, 3. ]), array([b'adam', b'1'], dtype='|S160'))
    """
    try:
        return np.array([float(each) if each.strip() else np.nan for each in texts], dtype=NUMBER)
    except ValueError:
        return np.array([each.strip().encode()[: TEXT.itemsize] for each in texts], dtype=TEXT)


def write_columns(group: h5py.Group, columns: Columns) -> None:
    """Write the columns of an architecture into its group of a zoo file."""
    if columns:
        inner = group.create_group(GROUP)
        for name, values in columns.items():
            inner.create_dataset(name, data=values, **({"fletcher32": True, "chunks": True} if len(values) else {}))


def read_columns(group: h5py.Group, count: int, file_bytes: int) -> dict[str, np.ndarray]:
    """Return the columns of an architecture of `count` members. Raises `ValueError` for what is no such column."""
    if GROUP not in group:
        return {}
    inner, columns = inside(group, GROUP, h5py.Group, file_bytes), {}
    for name in inner:
        values = inside(inner, name, h5py.Dataset, file_bytes)
        if not NAME.fullmatch(name) or values.shape != (count,) or values.dtype not in (TEXT, NUMBER):
            raise ValueError(f"its column {name!r} is no column of {count} numbers or texts")
        columns[name] = values[:]
    return columns


def joined(columns: Sequence[Columns], counts: Sequence[int]) -> dict[str, np.ndarray]:
    """Return the columns of several tables, one after the other; NaN or an empty text where a table has no such column.

    A column that holds numbers in one table and texts in another holds texts.
    """
    names = dict.fromkeys(name for each in columns for name in each)
    result = {}
    for name in names:
        kinds = {each[name].dtype for each in columns if name in each}
        kind = NUMBER if kinds == {NUMBER} else TEXT
        empty = np.nan if kind == NUMBER else b""
        pieces = [
            _as(each[name], kind) if name in each else np.full(count, empty, dtype=kind)
            for each, count in zip(columns, counts, strict=True)
        ]
        result[name] = np.concatenate(pieces)
    return result


def _as(values: np.ndarray, kind: np.dtype) -> np.ndarray:
    if values.dtype == kind:
        return values
    return np.array([b"" if np.isnan(each) else f"{each:g}".encode() for each in values.tolist()], dtype=kind)
