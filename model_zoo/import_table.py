"""The table of networks to import: a CSV file that says which file belongs to which training run, and to which split.

Checkpoints of one training are nearly one network: they must lie in one split, or the space is tested on what it has seen.
State-dict files do not say which training they come from; a table does.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from netspace.config import Seed, Settings, validate
from netspace.errors import NetspaceError, UsageError, unknown

COLUMNS = ("file", "run", "seed", "epochs", "split")


class Entry(Settings):
    """One network of the table; all but the file may be left out."""

    file: Path  # relative to the table's folder
    run: str = ""  # files of one label are of one training; empty: a training of its own
    seed: Seed = 0
    epochs: int = Field(0, ge=0, lt=2**31)  # trained for; 0 where it is not known
    split: Literal["train", "val", "test", ""] = ""  # empty: the run's, or drawn

    @field_validator("run", "split", mode="before")
    @classmethod
    def _stripped(cls, value: object) -> object:
        return value.strip() if isinstance(value, str) else value


def read_table(path: Path) -> list[Entry]:
    """The rows of a CSV file with the columns file, and any of run, seed, epochs and split.

    Raises `UsageError` for a table that is not there, is empty, has other columns, values that none of them takes, a file
    twice, or runs that lie in several splits.
    """
    if not path.is_file():
        raise UsageError(f"{path} does not exist: give a CSV file with the columns {', '.join(COLUMNS)}")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise NetspaceError(f"{path} was expected to be a CSV file, but does not parse: {error}") from None
    for name in columns:
        if name not in COLUMNS:
            raise unknown(f"column of {path}", name, COLUMNS)
    if "file" not in columns or not rows:
        raise UsageError(
            f"{path} was expected to name networks in a column 'file', but {'has none' if rows else 'is empty'}"
        )
    entries = []
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise UsageError(f"line {number} of {path} was expected to have {len(columns)} values, one for each column")
        given = {name: value for name, value in row.items() if value.strip()}
        entries.append(validate(Entry, given, f"line {number} of {path}"))
    files = [entry.file for entry in entries]
    if twice := next((file for file in files if files.count(file) > 1), None):
        raise UsageError(f"{path} names {twice} twice: a network is one member")
    _run_splits(entries, path)
    return [entry.model_copy(update={"file": path.parent / entry.file}) for entry in entries]


def _run_splits(entries: list[Entry], path: Path) -> None:
    splits: dict[str, str] = {}
    for entry in entries:
        if entry.run and entry.split and splits.setdefault(entry.run, entry.split) != entry.split:
            raise UsageError(
                f"{path} puts networks of run {entry.run} into {splits[entry.run]} and {entry.split}: the networks of one "
                "training belong in one split"
            )
