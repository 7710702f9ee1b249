"""What the page of `netspace open` shows: the map of members, their figures, neighbours and runs, lines, and decoded points.

Axes: M members, F features, S points of a line.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from netspace.commands.collection import Collection
from netspace.commands.search import Index, indexed
from netspace.errors import NetspaceError, UsageError, unknown
from netspace.networks.family import ArchClass, Family, Networks
from netspace.training.validation import accuracies, accuracies_between

MAPS = ("principal axes", "umap")
STEPS = 11  # points of a line
NEIGHBOURS = 8  # that are listed
UMAP_SEED = 0
ARCHITECTURE, SPLIT = "architecture", "split"  # columns that are no numbers
COLUMNS = ("accuracy_test", "accuracy_val", "accuracy_train", "epochs", "learning_rate", "run", SPLIT, ARCHITECTURE)


@dataclass(frozen=True)
class LinePoint:
    """One point of a line between two members, with the scores of the networks there; None where there is no such network."""

    gamma: float
    latent: float | None
    weights: float | None


@dataclass(frozen=True)
class Moved:
    """The network that a point of the map decodes to."""

    arch: str
    score: float  # on test inputs; NaN where each network has targets of its own
    nearest: int  # position of the member whose latent the point was moved from


class Explorer:
    """The members of a zoo or run on a map, and what can be asked of them.

    By latents in a run, by answers in a zoo, and by statistics of weights where the data are not on this machine.
    """

    def __init__(self, members: Collection, kind: str = MAPS[0]) -> None:
        """Raises `UsageError` for an unknown map, and for umap if it is not installed or there is nothing that it could show."""
        if kind not in MAPS:
            raise unknown("map", kind, MAPS)
        if kind == "umap" and importlib.util.find_spec("umap") is None:
            raise UsageError("umap is not installed: `pip install umap-learn`, or leave --map out (principal axes)")
        self.members, self.kind = members, kind
        self.index: Index | None = None
        self.by = "answers" if members.space is None else "latents"
        try:
            self.index = indexed(members, self.by)
            values = np.asarray(self.index.values)
        except NetspaceError:
            if members.space is not None:
                raise
            self.by, values = "statistics", _scaled(members.described("statistics"))
        self.values = values
        self.mean = values.mean(0, dtype=np.float64).astype(np.float32)
        self.axes = principal_axes(values, self.mean)
        self.map = (values - self.mean) @ self.axes if kind == MAPS[0] else _umap(values)

    @property
    def can_decode(self) -> bool:
        """Whether a point of the map is a latent: on the principal axes of a space."""
        return self.members.space is not None and self.kind == MAPS[0]

    def column(self, name: str) -> np.ndarray:
        """Return a column (M,) as float64; of architectures and splits the indices of their names in `names`."""
        if name == ARCHITECTURE:
            return self.members.arch_ids.astype(np.float64)
        if name == SPLIT:
            return np.unique(self.members.table["split"], return_inverse=True)[1].astype(np.float64)
        return self.members.column(name)

    def names(self, column: str) -> list[str]:
        """Return the names that a column's numbers stand for; empty for a column of numbers."""
        if column == ARCHITECTURE:
            return [each.id for each in self.members.groups]
        if column == SPLIT:
            return [each.decode(errors="replace") or "none" for each in np.unique(self.members.table["split"])]
        return []

    def figures(self, position: int) -> dict[str, str]:
        """Return what the table says of a member, as text by name."""
        row = self.members.table[position]
        split, source = (row[name].decode(errors="replace") for name in ("split", "source"))
        numbers = {
            name: f"{float(row[name]):.4g}"
            for name in ("accuracy_test", "accuracy_val", "accuracy_train", "learning_rate")
        }
        group = self.members.groups[self.members.arch_ids[position]]
        return {
            "member": self.members.name(position),
            **numbers,
            "run": str(row["run"]),
            "epoch": str(row["epochs"]),
            "seed": str(row["seed"]),
            "split": split or "none",
            "source": source,
            "parameters": f"{group.group.spec.num_parameters:,}",
        }

    def nearest(self, position: int, count: int = NEIGHBOURS) -> list[tuple[int, float]]:
        """Return the positions of the nearest members and their distances, the nearest first."""
        query = self.values[position]
        distances = (
            np.sqrt(np.square(self.values - query).sum(1)) if self.index is None else self.index.distances(query)
        )
        distances[position] = np.inf
        order = np.argsort(distances, kind="stable")[:count]
        return [(int(row), float(distances[row])) for row in order if np.isfinite(distances[row])]

    def lineage(self, position: int) -> np.ndarray:
        """Return the positions of the members of the same training run, by their epochs."""
        rows = np.flatnonzero(self.members.runs == self.members.runs[position])
        return rows[np.argsort(self.members.table["epochs"][rows], kind="stable")]

    def line(self, first: int, second: int, steps: int = STEPS) -> Iterator[LinePoint]:
        """Yield the points of the line between two members, each as soon as its networks were run on the test inputs.

        Raises `UsageError` without a space, for members of different architectures, whose weights cannot be mixed.
        """
        ends = [self._network(position) for position in (first, second)]
        same = ends[0][0] == ends[1][0]
        space = self.members.space
        if space is None and not same:
            raise UsageError("members of different architectures are joined in the latent space alone: open a run")
        seeds = [torch.tensor([int(self.members.table["seed"][position])]) for position in (first, second)]
        latents = None
        if space is not None:
            latents = [
                torch.from_numpy(np.array(self.values[position]))[None].to(space.device) for position in (first, second)
            ]
        for gamma in torch.linspace(0, 1, steps):
            mixed = gamma[None].to(self.members.device)

            def score(networks: Networks, mixed: Tensor = mixed) -> float:
                return float(accuracies_between(networks, self.members.task, "test", seeds[0], seeds[1], mixed)[0])

            decoded = weights = None
            if latents is not None and space is not None:
                decoded = score(space.decode_all(torch.lerp(latents[0], latents[1], mixed[:, None])))
            if same:
                family = self._family(ends[0][0])
                weights = score(Networks.of_class(family, 0, torch.lerp(ends[0][1], ends[1][1], mixed[:, None])))
            yield LinePoint(float(gamma), decoded, weights)

    def moved(self, x: float, y: float) -> Moved:
        """Return what the latent at a point of the map decodes to.

        The point gives two coordinates of a latent; the others are those of the nearest member on the map. Raises
        `UsageError` unless `can_decode`.
        """
        space = self.members.space
        if space is None or not self.can_decode:
            raise UsageError("a point of this map is no latent: open the run of a space, with its principal axes")
        point = np.array([x, y], np.float32)
        nearest = int(np.argmin(np.square(self.map - point).sum(1)))
        latent = self.values[nearest] + self.axes @ (point - self.map[nearest])
        networks = space.decode_all(torch.from_numpy(latent.astype(np.float32))[None])
        score = float(accuracies(networks, self.members.task, "test", torch.tensor([-1]))[0])
        return Moved(networks.archs[0], score, nearest)

    @cached_property
    def score_name(self) -> str:
        """What the columns `accuracy_*` are."""
        return str(self.members.zoo.header.score.get("name", "accuracy"))

    def _network(self, position: int) -> tuple[int, Tensor]:
        ((_, flat),) = self.members.chunks(np.array([position]))
        return int(self.members.arch_ids[position]), flat

    def _family(self, index: int) -> Family:
        group = self.members.groups[index]
        return Family([ArchClass(group.id, group.nets, group.group.size)])


def principal_axes(values: np.ndarray, mean: np.ndarray, chunk: int = 1 << 14) -> np.ndarray:
    """Return the two principal axes (F, 2) of values (M, F), the one of the largest variance first; signs are fixed.

    The largest entry of an axis is positive, so that the same members always have the same map.
    """
    features = values.shape[1]
    covariance = np.zeros((features, features))
    for start in range(0, len(values), chunk):
        part = (values[start : start + chunk] - mean).astype(np.float64)
        covariance += part.T @ part
    _, vectors = np.linalg.eigh(covariance)
    axes = np.zeros((features, 2))
    axes[:, : min(features, 2)] = vectors[:, ::-1][:, :2]
    signs = np.sign(axes[np.abs(axes).argmax(0), [0, 1]])
    return (axes * np.where(signs == 0, 1, signs)).astype(np.float32)


def _scaled(values: np.ndarray) -> np.ndarray:
    spread = values.std(0)
    return (values - values.mean(0)) / np.where(spread > 0, spread, 1).astype(np.float32)


def _umap(values: np.ndarray) -> np.ndarray:
    import umap  # type: ignore[import-not-found, unused-ignore]

    return np.asarray(umap.UMAP(random_state=UMAP_SEED, n_jobs=1).fit_transform(values), np.float32)
