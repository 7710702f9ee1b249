"""`netspace zoo import`: add networks that were trained elsewhere, state dicts in a folder or a CSV table, to a zoo."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from model_zoo.recipe import ArchConfig
from model_zoo.work import Candidate, candidate, member_scores
from netspace.config import Seed, Settings, validate
from netspace.errors import NetspaceError, UsageError, absent
from netspace.networks import prep
from netspace.networks.batch import NetBatch
from netspace.networks.spec import NetSpec
from netspace.networks.state_dict import flat_parameters
from netspace.results.zoos import ZooImport
from netspace.streams import Stream, generator
from netspace.tasks import DataConfig, Task, load
from netspace.zoo import MEMBER, SPLITS, Header, Population, Zoo, merge, write_zoo, zoo_lock
from netspace.zoo.columns import NAME, parse_column
from netspace.zoo.members import ALIASES, DERIVED

LEARNING_RATE = "learning_rate"  # of the zoo's columns the one that a table may give, besides `COLUMNS`
COLUMNS = ("file", "run", "seed", "epochs", "split")
FRACTIONS = {"train": 0.75, "val": 0.125, "test": 0.125}  # of runs whose split is drawn


class Entry(Settings):
    """A network of the table; all but the file may be left out. What else the table says of it is kept in `own`."""

    file: Path  # relative to the table's folder
    run: str = ""  # label of the training; empty: a training of its own
    seed: Seed | None = None  # of the training; the number of the signal, where each network has one of its own
    epochs: int = Field(0, ge=0, lt=2**31)  # 0 if not known
    split: Literal["train", "val", "test", ""] = ""  # empty: the run's, or drawn
    own: dict[str, str] = Field(default_factory=dict)  # column -> text

    @field_validator("run", "split", mode="before")
    @classmethod
    def _stripped(cls, value: object) -> object:
        return value.strip() if isinstance(value, str) else value


def read_table(path: Path) -> list[Entry]:
    """Read a CSV file with the column file, any of run, seed, epochs and split, and columns of its own, which are kept.

    Raises `UsageError` if the table is missing or empty, has columns twice or of unfit names, invalid values, or names a
    file twice or a run in several splits; `NetspaceError` if it does not parse.
    """
    if not path.is_file():
        raise UsageError(f"{absent(path)}: give a CSV file with the columns {', '.join(COLUMNS)}")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise NetspaceError(f"{path} was expected to be a CSV file, but does not parse: {error}") from None
    if len(columns) == 1 and (separator := next((each for each in ";\t" if each in columns[0]), None)):
        name = "tabs" if separator == "\t" else "semicolons"
        raise UsageError(f"{path} has {name} between its columns, but commas were expected: save it as CSV with commas")
    own = [name for name in columns if name not in COLUMNS]
    for name in own:
        _check_column(path, name)
    if repeated := next((name for name in columns if columns.count(name) > 1), None):
        raise UsageError(f"{path} has two columns {repeated!r}: leave one of them out")
    if "file" not in columns or not rows:
        raise UsageError(
            f"{path} was expected to name networks in a column 'file', but {'has none' if rows else 'is empty'}"
        )
    entries = []
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise UsageError(f"line {number} of {path} was expected to have {len(columns)} values, one for each column")
        given: dict[str, Any] = {name: value for name, value in row.items() if value.strip() and name in COLUMNS}
        given["own"] = {name: row[name].strip() for name in own}
        entries.append(validate(Entry, given, f"line {number} of {path}"))
    files = [entry.file for entry in entries]
    if twice := next((file for file in files if files.count(file) > 1), None):
        raise UsageError(f"{path} names {twice} twice: a network is one member")
    splits: dict[str, str] = {}
    for entry in entries:
        if entry.run and entry.split and splits.setdefault(entry.run, entry.split) != entry.split:
            raise UsageError(
                f"{path} puts networks of run {entry.run} into {splits[entry.run]} and {entry.split}: the networks of one "
                "training belong in one split"
            )
    return [entry.model_copy(update={"file": path.parent / entry.file}) for entry in entries]


def _check_column(path: Path, name: str) -> None:
    """Raise `UsageError` for a column that cannot be kept, or whose name is nearly one of `COLUMNS`."""
    if near := get_close_matches(name.lower(), COLUMNS, n=1, cutoff=0.8):
        raise UsageError(f"unknown column of {path} {name!r}: did you mean {near[0]!r}? Rename it to keep it as it is")
    if not NAME.fullmatch(name) or name in {*(MEMBER.names or ()), *DERIVED, *ALIASES} - {LEARNING_RATE}:
        raise UsageError(
            f"a column of {path} is called {name!r}, but a column to be kept has a name of letters, digits and _ that the zoo's "
            f"own columns do not have ({', '.join(MEMBER.names or ())}): rename it, or leave it out"
        )


class ImportSettings(Settings):
    """The settings of an import."""

    data: DataConfig = DataConfig()


def import_members(
    path: Path,
    states: Mapping[str, Mapping[str, Tensor]],
    arch: str,
    *,
    data: DataConfig | None = None,
    width: float | None = None,
    kwargs: Mapping[str, Any] | None = None,
    split: str | None = None,
    prep_width: int | None = None,
    seed: int = 0,
    folded: bool = False,
    table: Sequence[Entry] | None = None,
) -> ZooImport:
    """Add networks (name -> state dict) to the zoo at `path`, which is created if needed.

    All are checked and evaluated before anything is written.

    Args:
        arch: the id of an architecture of the zoo, or a new architecture.
        data: the data of a new zoo; an existing zoo has its own.
        split: of all networks; None: splits are drawn by `seed`.
        prep_width: None: the zoo's, in a new zoo the width at which a PRep has 8 rows.
        folded: state dicts whose names fit both are of the folded network, not of the one with batch norm.
        table: an entry for each network, with runs of several networks; None: each network is a run of its own.

    Raises:
        UsageError: arguments contradict each other or the zoo, another zoo is being built there, or networks that were each fitted to
            a signal of its own have no seed, which numbers it.
        NetspaceError: a state dict does not fit, or the data here are not the zoo's.

    >>> from netspace.archs import build
    >>> module = build("lenetlike", width=0.25, channels=1, image_size=8)
    >>> images = DataConfig(name="digits", limit=100)
    >>> result = import_members(folder / "zoo.h5", {"mine": module.state_dict()}, "lenetlike", data=images, width=0.25)
    >>> (folder / "zoo.h5").is_file()
    True
    """
    if not states:
        raise UsageError("no state dict was given to import")
    if split is not None and split not in SPLITS:
        raise UsageError(f"split {split!r} was asked for; there are: {', '.join(SPLITS)}")
    if split is not None and table is not None and any(entry.split for entry in table):
        raise UsageError("splits were given twice, by the table and as one for all: leave one of them out")
    entries = [Entry(file=Path(name)) for name in states] if table is None else list(table)
    if len(entries) != len(states):
        raise UsageError(
            f"a table of {len(entries)} networks was given for {len(states)} state dicts: one row for each"
        )
    known: NetSpec | None = None
    if path.is_dir():
        raise UsageError(
            f"{path} is a folder of shards, to which nothing is added: import into a zoo file, and join them (`netspace zoo merge`)"
        )
    if path.exists():
        with Zoo(path) as zoo:
            header = zoo.header
            config = validate(DataConfig, header.data, str(path))
            if data is not None and data != config:
                raise UsageError(f"{path} is a zoo of {header.dataset}: leave the data setting out")
            if arch in zoo.archs:
                known, prep_width = zoo.archs[arch].spec, zoo.archs[arch].size[1]
            elif prep_width is None:
                prep_width = next(iter(zoo.archs.values())).size[1]  # spaces need PReps of one width
    else:
        config = data or DataConfig()
        header = None
    if known is not None:
        for name, value in {**(kwargs or {}), **({} if width is None else {"width": width})}.items():
            if known.settings.get(name) != value:
                raise UsageError(
                    f"{arch} of {path} was made with {name}={known.settings.get(name)}, but {name}={value} was asked for: leave "
                    "it out"
                )
        arch_config = ArchConfig(arch=known.arch, kwargs=dict(known.kwargs))
    else:
        arch_config = ArchConfig(arch=arch, width=width, kwargs=dict(kwargs or {}))
    task = load(config)
    if header is None:
        recipe = {"name": "import", "archs": {arch: arch_config.model_dump(mode="json", exclude_defaults=True)}}
        header = Header(config.model_dump(mode="json"), task.split_hash, recipe, score=task.score_metadata())
    elif header.split_hash != task.split_hash:
        raise NetspaceError(f"the data here are not those that {path} was trained on: their split hash differs")
    chosen = candidate(arch.replace("/", "-"), arch_config, task, prep_width, check="imported")
    flat = torch.stack([parameters(state, chosen, name, folded) for name, state in states.items()])
    check_seeds(task, sum(entry.seed is None for entry in entries))
    seeds = torch.tensor([entry.seed or 0 for entry in entries])
    accuracies = member_scores(NetBatch(chosen.skeleton, chosen.spec), flat, task, seeds)
    runs = _runs(entries)
    members = np.zeros(len(flat), dtype=MEMBER)
    for index, (name, entry) in enumerate(zip(states, entries, strict=True)):
        row = members[index]
        row["run"], row["status"] = runs[index], b"ok"
        row["seed"], row["epochs"], row["source"] = seeds[index], entry.epochs, name.encode()[-160:]
        for part, values in accuracies.items():
            row[f"accuracy_{part}"] = values[index]
    names = dict.fromkeys(name for entry in entries for name in entry.own)
    columns = {name: parse_column([entry.own.get(name, "") for entry in entries]) for name in names}
    members[LEARNING_RATE] = _learning_rates(columns.pop(LEARNING_RATE, None), len(flat))
    with zoo_lock(path):
        splits = [split] * len(flat) if split else _splits(entries, runs, seed, _empty_splits(path, chosen.id))
        members["split"] = [each.encode() for each in splits]
        population = Population(chosen.spec, prep.pack(flat, chosen.size).numpy(), members, columns)
        duplicates = _write(path, header, chosen.id, population)
    return ZooImport(
        path=str(path),
        arch=chosen.id,
        imported=len(flat) - duplicates,
        duplicates=duplicates,
        runs=len(set(runs)),
        splits={name: splits.count(name) for name in SPLITS},
        **task.normalisation(),
        accuracy_test=dict(zip(states, accuracies["test"].tolist(), strict=True)),
    )


def check_seeds(task: Task, missing: int) -> None:
    """Raise `UsageError` if networks of `task` need seeds, and `missing` of them have none."""
    if task.own_targets and missing:
        raise UsageError(
            f"each network of {task.name} was fitted to a signal of its own, whose number is the network's seed, but "
            f"{missing:,} {'network has' if missing == 1 else 'networks have'} no seed: give state dicts by a --table with the columns "
            "file and seed"
        )


def _learning_rates(given: np.ndarray | None, count: int) -> np.ndarray:
    """Return learning rates (M,), NaN where none is known. Raises `UsageError` for texts."""
    if given is not None and given.dtype != np.float64:
        raise UsageError("the learning rates of a table were expected to be numbers, but one is a text")
    return np.full(count, np.nan) if given is None else given


def _write(path: Path, header: Header, arch: str, population: Population) -> int:
    """Add members to the zoo, whose lock the caller holds, or create it; return how many were there already."""
    if not path.exists():
        write_zoo(path, header, {arch: population})
        return 0
    new = path.with_name(f".{path.name}.import.h5")
    try:
        write_zoo(new, header, {arch: population})
        return merge(path, [path, new]).duplicates
    finally:
        new.unlink(missing_ok=True)


def parameters(state: Mapping[str, Tensor], chosen: Candidate, name: str, folded: bool = False) -> Tensor:
    """Return flat parameters (P,) of a state dict, folding batch norm. Raises `NetspaceError` naming the file."""
    try:
        return flat_parameters(state, chosen.spec, folded=folded)
    except NetspaceError as error:
        raise NetspaceError(f"{name} cannot be imported: {error}") from None


def _runs(entries: Sequence[Entry]) -> list[int]:
    """Return the number of each network's run: one for each label, and one for each network without a label."""
    numbers: dict[str | int, int] = {}
    return [numbers.setdefault(entry.run or index, len(numbers)) for index, entry in enumerate(entries)]


def _empty_splits(path: Path, arch: str) -> list[str]:
    """Return the splits in which an architecture has no members yet."""
    if not path.exists():
        return list(SPLITS)
    with Zoo(path) as zoo:
        return [name for name in SPLITS if arch not in zoo.archs or not len(zoo.archs[arch].rows(name))]


def _splits(entries: Sequence[Entry], runs: Sequence[int], seed: int, empty: Sequence[str]) -> list[str]:
    """Return the split of each network: its run's in the table, or one drawn for the run, `empty` splits first."""
    given = {run: entry.split for run, entry in zip(runs, entries, strict=True) if entry.split}
    free = [run for run in range(max(runs) + 1) if run not in given]
    drawn = drawn_splits(len(free), seed, [name for name in empty if name not in given.values()])
    chosen = {**given, **dict(zip(free, drawn, strict=True))}
    return [chosen[run] for run in runs]


def drawn_splits(count: int, seed: int, empty: Sequence[str]) -> list[str]:
    """Draw splits for `count` runs in the proportions of `FRACTIONS`; of few runs, `empty` splits get one each."""
    bounds = np.cumsum([FRACTIONS[name] for name in SPLITS])
    drawn = [SPLITS[int(np.searchsorted(bounds, (index + 0.5) / count))] for index in range(count)]
    for name in empty:
        spare = next((each for each in SPLITS if drawn.count(each) > (each in empty)), None)
        if name not in drawn and spare is not None:
            drawn[drawn.index(spare)] = name
    order = torch.randperm(count, generator=generator(seed, Stream.IMPORTED_SPLITS)).tolist()
    return [drawn[index] for index in order]
