"""`netspace zoo import` of a zoo of another program: its networks as members of a new zoo file, streamed.

Axes: M members (networks), P parameters, V values of a row of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model_zoo.foreign import ACTIVATION, NO_SEED, ForeignZoo, open_foreign
from model_zoo.importer import check_seeds, drawn_splits, parameters
from model_zoo.recipe import ArchConfig
from model_zoo.work import Candidate, candidate, member_scores
from netspace.errors import NetspaceError, UsageError
from netspace.networks import prep
from netspace.networks.batch import NetBatch
from netspace.networks.spec import NetSpec
from netspace.progress import progress
from netspace.results.zoos import ZooImport
from netspace.tasks import DataConfig, Task, load
from netspace.zoo import MEMBER, SPLITS, Header, zoo_lock
from netspace.zoo.writer import worth_compressing, write

STATES = 64  # state dicts that are in memory at once
SCORES = tuple(f"accuracy_{split}" for split in SPLITS)


@dataclass(frozen=True)
class ForeignImport:
    """What is imported, and as what."""

    source: Path  # a file or folder of another program
    arch: str  # the new zoo's architecture
    format: str | None = None  # None: found from what is there
    data: DataConfig = field(default_factory=DataConfig)
    width: float | None = None
    kwargs: Mapping[str, Any] | None = None
    only: Mapping[str, str] | None = None  # values that columns of the source must have
    split: str | None = None  # of all networks; None: drawn
    prep_width: int | None = None
    folded: bool = False  # batch norm is folded already
    seed: int = 0  # of drawn splits


def import_foreign(path: Path, settings: ForeignImport) -> ZooImport:
    """Write the networks of another program's zoo to a new zoo at `path`, with memory for some of them.

    Accuracies that the source has are taken over; if it has none, networks are evaluated here, unless each of them has
    targets of its own. What is not known is NaN. Networks with values that are not finite have diverged.

    Raises:
        UsageError: the zoo exists, the arguments contradict each other, or networks that were each fitted to a signal of its own have
            no seed, which numbers it.
        NetspaceError: the source is not of its format, or does not fit the architecture.
    """
    _refuse_existing(path)
    if settings.split is not None and settings.split not in SPLITS:
        raise UsageError(f"split {settings.split!r} was asked for; there are: {', '.join(SPLITS)}")
    zoo = open_foreign(settings.source, settings.format)
    rows = zoo.select(settings.only or {})
    for column in (ACTIVATION, "architecture"):
        values = sorted({str(zoo.facts[column][row]) for row in rows}) if column in zoo.facts else []
        if len(values) > 1:
            raise UsageError(
                f"{zoo.path} holds networks of several kinds ({column} is {', '.join(values[:5])}), which are no one architecture: "
                f"choose one by --only {column}={values[0]}"
            )
    task = load(settings.data)
    config = ArchConfig(arch=settings.arch, width=settings.width, kwargs=dict(settings.kwargs or {}))
    name = settings.arch.replace("/", "-")
    chosen = candidate(name, config, task, settings.prep_width, check="imported")
    flats = _matrix(zoo, rows, chosen.spec) if zoo.rows else _states(zoo, rows, chosen, settings.folded)
    members = _table(zoo, rows, settings)
    check_seeds(task, int((members["seed"] == NO_SEED).sum()))
    members["seed"][members["seed"] == NO_SEED] = 0
    evaluate = not any(key in zoo.facts for key in SCORES) and not task.own_targets
    recipe = {"name": "import", "archs": {name: config.model_dump(mode="json", exclude_defaults=True)}}
    header = Header(settings.data.model_dump(mode="json"), task.split_hash, recipe, score=task.score_metadata())
    with zoo_lock(path), progress("import", len(rows), "networks") as bar:
        _refuse_existing(path)  # another import may have written it meanwhile
        first = next(flats)
        compress = worth_compressing(prep.pack(torch.from_numpy(first), chosen.size).numpy())

        def chunks(_: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            start = 0
            for flat in chain([first], flats):
                part = members[start : start + len(flat)]
                finite = np.isfinite(flat).all(axis=1)
                flat[~finite] = 0
                part["status"], part["split"] = (
                    np.where(finite, b"ok", b"diverged"),
                    np.where(finite, part["split"], b""),
                )
                if evaluate:
                    _evaluate(part, torch.from_numpy(flat), chosen, task)
                yield prep.pack(torch.from_numpy(flat), chosen.size).numpy(), part
                start += len(flat)
                bar.advance(len(flat))

        write(path, header, {name: chosen.spec}, {name: chosen.size}, {name: len(rows)}, chunks, compress=compress)
    splits = {split: int((members["split"] == split.encode()).sum()) for split in SPLITS}
    return ZooImport(
        path=str(path),
        arch=name,
        imported=len(rows),
        duplicates=0,
        runs=len(np.unique(members["run"])),
        splits=splits,
        format=zoo.format,
        diverged=int((members["status"] == b"diverged").sum()),
        **task.normalisation(),
        accuracy_test={},
    )


def _refuse_existing(path: Path) -> None:
    """Raise `UsageError` if there is a file at `path`."""
    if path.exists():
        raise UsageError(f"{path} exists already: import into a new zoo, and join both by `netspace zoo merge`")


def _matrix(zoo: ForeignZoo, rows: np.ndarray, spec: NetSpec) -> Iterator[np.ndarray]:
    """Yield float32 (m, P) of the rows of a matrix. Raises `NetspaceError` unless the layout is the architecture's."""
    assert zoo.rows is not None
    columns = [each.columns() for each in zoo.variables]
    theirs = [index.shape for index in columns]
    if theirs != list(spec.shapes):
        first = next((i for i, pair in enumerate(zip(theirs, spec.shapes, strict=False)) if pair[0] != pair[1]), None)
        if first is None:
            difference = f"it has {len(theirs)} tensors where {len(spec.shapes)} are expected"
        else:
            difference = (
                f"{zoo.variables[first].name} is {theirs[first]} where {spec.names[first]} has {spec.shapes[first]}"
            )
        raise NetspaceError(
            f"the layout of {zoo.path} ({sum(map(np.size, columns)):,} values) is not that of {spec.arch!r} "
            f"({spec.num_parameters:,} parameters): {difference}"
        )
    order = np.concatenate([index.ravel() for index in columns])
    return (np.take(values, order, axis=1) for values in zoo.rows(rows))


def _states(zoo: ForeignZoo, rows: np.ndarray, chosen: Candidate, folded: bool) -> Iterator[np.ndarray]:
    """Yield float32 (m, P) of state dicts."""
    assert zoo.state is not None
    for part in np.array_split(rows, -(-len(rows) // STATES)):
        flats = [parameters(zoo.state(int(row)), chosen, f"{zoo.path}/{zoo.facts['run'][row]}", folded) for row in part]
        yield torch.stack(flats).numpy()


def _table(zoo: ForeignZoo, rows: np.ndarray, settings: ForeignImport) -> np.ndarray:
    """Return the table rows (M,) from what the source says of its networks; a seed that is not known is `NO_SEED`."""
    members = np.zeros(len(rows), MEMBER)
    _, runs = np.unique(np.array([str(zoo.facts["run"][row]) for row in rows]), return_inverse=True)
    first = np.full(runs.max() + 1, len(rows))
    np.minimum.at(first, runs, np.arange(len(rows)))
    members["run"] = np.argsort(np.argsort(first))[runs]  # numbered as they come
    for column in ("learning_rate", *SCORES):
        members[column] = np.array(zoo.facts[column], float)[rows] if column in zoo.facts else np.nan
    for column, unknown in (("seed", NO_SEED), ("epochs", 0)):
        members[column] = np.array(zoo.facts[column], np.int64)[rows] if column in zoo.facts else unknown
    for column in SCORES:
        bad = np.flatnonzero(~np.isnan(members[column]) & ~((members[column] >= 0) & (members[column] <= 1)))
        if len(bad):
            raise NetspaceError(
                f"{column} of network {int(rows[bad[0]])} of {zoo.path} is {members[column][bad[0]]}, not within 0..1"
            )
    splits = drawn_splits(int(members["run"].max()) + 1, settings.seed, list(SPLITS))
    members["split"] = np.array(splits, "S5")[members["run"]] if settings.split is None else settings.split.encode()
    labels = [f"{zoo.facts['run'][row]}" for row in rows]
    members["source"] = [f"{zoo.path.name}/{label}".encode()[-160:] for label in labels]
    return members


def _evaluate(members: np.ndarray, flat: torch.Tensor, chosen: Candidate, task: Task) -> None:
    """Set the scores of table rows (m,) of networks (m, P) that are finite."""
    ok = members["status"] == b"ok"
    seeds = torch.from_numpy(members["seed"].astype(np.int64))
    for split, values in member_scores(NetBatch(chosen.skeleton, chosen.spec), flat, task, seeds).items():
        members[f"accuracy_{split}"] = np.where(ok, values, np.nan)
