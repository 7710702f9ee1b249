"""Members of a zoo that are copies of each other: equal or nearly equal, as they are or with their channels permuted.

Candidates are pairs that are near in an embedding whose distances are at most those of the networks under any permutation
(`netspace.networks.statistics.order_embedding`), so none is missed; candidates are then read and compared.
Axes: M members, P parameters, F features of the embedding, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from netspace import archs
from netspace.errors import NetspaceError
from netspace.networks.alignment import align
from netspace.networks.channels import channel_groups
from netspace.networks.prep import unpack
from netspace.results.health import Copy, Relation
from netspace.zoo import ArchGroup, MemberRef

NEIGHBOURS = 4  # of each member that are compared with it
AXES = 16  # of the embedding, along which distances only shrink
MAX_ALIGNED = 256  # pairs whose channels are aligned
CHUNK = 256  # pairs that are read at once
ROUNDING = 1e-5  # relative distance of float32 weights below which two members are equal


@dataclass(frozen=True)
class Found:
    """The copies among the members of one architecture."""

    pairs: list[Copy]
    unchecked: int  # candidates whose channels were not aligned, as there are too many


@dataclass(frozen=True)
class Candidates:
    """Sound members of one architecture by what permutations of their channels do not change."""

    rows: np.ndarray  # (M,) in the zoo
    embedding: np.ndarray  # (M, F) float64
    norms: np.ndarray  # (M,) of all parameters

    def pairs(self, tolerance: float) -> np.ndarray:
        """Return pairs (K, 2) of positions that may differ by at most `tolerance` of their norm; at most M x `NEIGHBOURS`."""
        centred = self.embedding - self.embedding.mean(0)
        if centred.shape[1] > AXES:  # an orthogonal projection: distances only shrink
            _, axes = np.linalg.eigh(centred.T @ centred)
            centred = centred @ axes[:, -AXES:]
        _, first, group = np.unique(centred.round(9), axis=0, return_index=True, return_inverse=True)
        group = group.reshape(-1)
        same = np.flatnonzero(first[group] != np.arange(len(group)))
        found = [np.stack([first[group[same]], same], 1)]
        if len(first) > 1:
            limit = (tolerance + ROUNDING) * self.norms[first]
            nearest, index = cKDTree(centred[first]).query(
                centred[first], k=min(NEIGHBOURS + 1, len(first)), distance_upper_bound=float(limit.max()) * (1 + 1e-9)
            )
            near = (nearest <= limit[:, None]) & (index != np.arange(len(first))[:, None])
            one, column = np.nonzero(near)
            found.append(np.stack([first[one], first[index[one, column]]], 1))
        pairs = np.sort(np.concatenate(found), 1)
        return np.unique(pairs, axis=0)

    def verified(self, group: ArchGroup, tolerance: float) -> Found:
        """Return the pairs that are copies: read, compared as they are, and those that differ compared once aligned."""
        pairs = self.pairs(tolerance)
        runs = group.members["run"][self.rows]
        copies: list[Copy] = []
        unlike: list[np.ndarray] = []
        for start in range(0, len(pairs), CHUNK):
            chunk = pairs[start : start + CHUNK]
            one, other = (self._read(group, chunk[:, side]) for side in (0, 1))
            distance = ((other - one).norm(dim=1) / one.norm(dim=1).clamp_min(1e-30)).numpy()
            same_run = runs[chunk[:, 0]] == runs[chunk[:, 1]]
            equal = distance <= ROUNDING
            near = (distance <= tolerance) & ~equal & ~same_run
            for mask, relation in ((equal, "equal"), (near, "nearly equal")):
                copies += [
                    self._copy(group, chunk[row], relation, distance[row], same_run[row])  # type: ignore[arg-type]
                    for row in np.flatnonzero(mask)
                ]
            unlike.append(chunk[~equal & ~near & ~same_run])
        rest = np.concatenate(unlike) if unlike else np.empty((0, 2), np.int64)
        copies += self._permuted(group, rest[:MAX_ALIGNED], tolerance)
        copies.sort(key=lambda each: (each.first, each.second))
        return Found(copies, max(len(rest) - MAX_ALIGNED, 0))

    def _permuted(self, group: ArchGroup, pairs: np.ndarray, tolerance: float) -> list[Copy]:
        """Return the pairs (K, 2) that are copies once the channels of the second are aligned to the first's."""
        spec, copies = group.spec, []
        if not len(pairs):
            return []
        try:
            skeleton = archs.skeleton(spec.arch, spec.settings, spec.input_shape)
            groups = channel_groups(skeleton, torch.zeros(2, *spec.input_shape), repr(group.id))
        except NetspaceError:  # no channels that could be permuted are known
            return []
        for pair in pairs:
            one, other = self._read(group, pair)
            moved = align(one, other[None], spec, groups)[0]
            distance = float((moved - one).norm() / one.norm().clamp_min(1e-30))
            if distance <= tolerance:
                relation: Relation = (
                    "equal up to permutation" if distance <= ROUNDING else "nearly equal up to permutation"
                )
                copies.append(self._copy(group, pair, relation, distance, False))
        return copies

    def _read(self, group: ArchGroup, positions: np.ndarray) -> Tensor:
        return unpack(group.read(self.rows[positions]), group.spec.num_parameters).double()

    def _copy(self, group: ArchGroup, pair: np.ndarray, relation: Relation, distance: float, same_run: bool) -> Copy:
        first, second = (str(MemberRef(group.id, int(row))) for row in self.rows[pair])
        return Copy(first=first, second=second, relation=relation, distance=float(distance), same_run=bool(same_run))
