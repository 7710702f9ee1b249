"""`netspace search`: the nearest members of a zoo, by brute force over an index that is built once and kept next to the zoo or run.

Axes: M members, F features, K candidates.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from netspace.commands.collection import ALIASES, MAX_FEATURES, Collection, One, opened
from netspace.errors import NetspaceError, UsageError, unknown
from netspace.files import replacing
from netspace.hardware import cache_folder
from netspace.io import hash_tensors
from netspace.results.members import Match, Search

WAYS = ("latents", "answers", "weights")
VERSION = 1  # of index files: another version has another name
CANDIDATES = 512  # members near by sketches of weights, whose exact distances are computed
ROWS = 1 << 14  # members whose distances are computed at once
MIN_SQUARE = 1e-30  # squared distances below this are computed again in float64


@dataclass(frozen=True, eq=False)
class Index:
    """Descriptions of members in a file, mapped into memory."""

    path: Path
    values: np.ndarray  # (M, F) float32
    built: bool

    def distances(self, query: np.ndarray, start: int = 0, end: int | None = None) -> np.ndarray:
        """Return L2 distances (m,) of members `start` to `end` to a query (F,), exact in float32."""
        values = self.values[start:end]
        out = np.empty(len(values), np.float32)
        for first in range(0, len(values), ROWS):
            part = values[first : first + ROWS] - query
            squares = np.einsum("mf,mf->m", part, part)
            out[first : first + ROWS] = np.sqrt(squares)
            extreme = np.flatnonzero(~(np.isfinite(squares) & (squares > MIN_SQUARE)))  # beyond float32, or lost below
            out[first + extreme] = np.linalg.norm(part[extreme].astype(np.float64), axis=1)
        return out


def search(
    path: Path,
    like: str | None = None,
    target: str | None = None,
    by: str | None = None,
    count: int = 10,
    zoo_path: Path | None = None,
    device: str = "cpu",
) -> Search:
    """Return the members that are nearest to a network (`like`), or to a value of a column (`target`: 'accuracy=0.9').

    `path` is the run of a space or a zoo. Networks are near by their latents (the default of a run), their answers to the same
    inputs (the default of a zoo), or their weights, which takes networks of one architecture. The first search of a kind
    describes all members in an index file, whose name has the hash of what it was made from. Distances of more than
    `MAX_FEATURES` weights are exact, but of the `CANDIDATES` members alone that are nearest by sketches.

    Raises:
        UsageError: Neither or both of `like` and `target` were given, or they name nothing.
        NetspaceError: The run or zoo cannot be read.

    >>> result = search(run, like="best", count=3)
    >>> [each.distance <= result.matches[-1].distance for each in result.matches]
    [True, True, True]
    """
    if (like is None) == (target is None):
        raise UsageError(
            "what is searched for is either --like A, a network, or --target COLUMN=VALUE: give one of them"
        )
    if count < 1:
        raise UsageError(f"--count was expected to be at least 1, found {count}")
    if target is not None and by is not None:
        raise UsageError("--by says how networks are compared with --like A: leave it out with --target")
    with opened(path, zoo_path, device) as members:
        if target is not None:
            column, value = parse_target(target)
            start = time.perf_counter()
            distances = np.abs(members.column(column) - value)
            order = _nearest(distances, count)
            found: dict[str, object] = {"target": ALIASES.get(column, column), "value": value}
        else:
            assert like is not None
            way = by or ("answers" if members.space is None else "latents")
            if way not in WAYS:
                raise unknown("way to compare networks", way, WAYS)
            query = members.one(like)
            index = indexed(members, way)
            start = time.perf_counter()
            order, distances = near(members, index, way, query, count)
            found = {"like": query.name, "by": way, "index": str(index.path), "built": index.built}
        seconds = time.perf_counter() - start
        task_score = members.zoo.header.score
        score = {"score": {**task_score}} if task_score else {}
        matches = [_match(members, int(row), float(distances[row])) for row in order]
        return Search(path=str(path), members=members.count, matches=matches, seconds=seconds, **found, **score)


def parse_target(text: str) -> tuple[str, float]:
    """Return the column and the value of 'accuracy=0.9'. Raises `UsageError` unless it is such a text."""
    column, sign, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not sign or not math.isfinite(value):
        raise UsageError(f"--target {text!r} was expected to be a column and a number, as in accuracy=0.9")
    return column.strip(), value


def _match(members: Collection, position: int, distance: float) -> Match:
    row = members.table[position]
    return Match(
        member=members.name(position),
        distance=distance,
        accuracy_test=_known(row["accuracy_test"]),
        accuracy_val=_known(row["accuracy_val"]),
        epochs=int(row["epochs"]),
        run=int(row["run"]),
        split=row["split"].decode(errors="replace"),
        source=row["source"].decode(errors="replace"),
    )


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _nearest(distances: np.ndarray, count: int) -> np.ndarray:
    """Return the positions of the least distances, ascending; unknown ones are left out."""
    known = np.flatnonzero(np.isfinite(distances))
    if len(known) > count:
        known = known[np.argpartition(distances[known], count - 1)[:count]]
    return known[np.lexsort((known, distances[known]))]


def near(members: Collection, index: Index, way: str, query: One, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the nearest members, ascending, and the distances (M,) of all, unknown ones infinite.

    A member is not its own neighbour.
    """
    distances = np.full(members.count, np.inf)
    described = members.describe(way, query)[0]
    described = np.pad(
        described, (0, index.values.shape[1] - len(described))
    )  # other architectures' weights may be longer
    if way != "weights":
        distances[:] = index.distances(described)
    else:
        start, rows = query.group.start, len(query.group.rows)
        distances[start : start + rows] = index.distances(described, start, start + rows)
        if query.flat.shape[1] > MAX_FEATURES:
            candidates = np.sort(_nearest(distances, max(CANDIDATES, 2 * count)))
            distances[:] = np.inf
            exact = [(flat - query.flat).double().norm(dim=1).cpu().numpy() for _, flat in members.chunks(candidates)]
            distances[candidates] = np.concatenate(exact)
    if query.position is not None:
        distances[query.position] = np.inf
    return _nearest(distances, count), distances


# --- the index ---


def indexed(members: Collection, way: str) -> Index:
    """Return the index of a kind of description, built if there is none of these members yet.

    Raises as `Collection.described`, and `NetspaceError` if no index can be written anywhere.
    """
    members.check(way)
    name = f"{way}-{_key(members, way)}.npy"
    folders = index_folders(members)
    for folder in folders:
        if (values := _read(folder / name, members.count)) is not None:
            return Index(folder / name, values, False)
    described = _described(members, way)
    for folder in folders:
        try:
            with replacing(folder / name) as temporary, open(temporary, "wb") as stream:
                np.save(stream, described, allow_pickle=False)
            return Index(folder / name, described, True)
        except NetspaceError:
            if folder == folders[-1]:
                raise
    raise AssertionError  # the last folder either returned or raised


def _described(members: Collection, way: str) -> np.ndarray:
    """Return the descriptions (M, F) of all members; those of weights are as wide as the widest architecture's."""
    if way != "weights":
        return members.described(way)
    parts = [
        members.described(way, each.start + np.arange(len(each.rows))) for each in members.groups if len(each.rows)
    ]
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts])


def index_folders(members: Collection) -> list[Path]:
    """Return where indices may lie: next to the run or the zoo, and in the cache, for those that cannot be written to."""
    own = members.path / "index" if members.path.is_dir() and members.space is not None else members.zoo.path.with_name(f"{members.zoo.path.name}.index")  # fmt: skip
    cache = cache_folder() / "index"
    parent = own.parent
    return [own, cache] if os.access(parent, os.W_OK) else [cache]


def _key(members: Collection, way: str) -> str:
    """Return a hash of what an index is made from: the zoo's content, and for latents the space's weights."""
    parts = [str(VERSION), way, members.zoo.content_hash]
    parts += [f"{each.id} {len(each.rows)}" for each in members.groups]
    if way == "latents" and members.space is not None:
        parts += [
            members.space.precision,
            hash_tensors(*(value.cpu() for value in members.space.model.state_dict().values())),
        ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _read(path: Path, count: int) -> np.ndarray | None:
    """Return the values (M, F) of an index file, mapped into memory; None if there is none, or it is damaged."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return values if values.dtype == np.float32 and values.ndim == 2 and len(values) == count else None
