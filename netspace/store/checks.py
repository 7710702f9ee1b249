"""What every member of a zoo must fulfil: checked by who merges and verifies zoos.

Axes: M members, H W of a PRep. Each check returns its findings, a sentence each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from netspace.spec import NetSpec
from netspace.store.layout import SPLITS, MemberRef


def table_problems(arch: str, members: np.ndarray) -> list[str]:
    """What is wrong with a table of members."""
    found = []
    ok = members["status"] == b"ok"
    for name in ("accuracy_train", "accuracy_val", "accuracy_test"):
        bad = np.flatnonzero(ok & ~((members[name] >= 0) & (members[name] <= 1)))
        found += [f"{MemberRef(arch, int(row))}: {name} is {members[name][row]}, not within 0..1" for row in bad]
    unknown = np.flatnonzero(~np.isin(members["split"], [*(split.encode() for split in SPLITS), b""]))
    found += [f"{MemberRef(arch, int(row))}: split {members['split'][row]!r} is not known" for row in unknown]
    splits_of: dict[int, set[bytes]] = {}
    for member in members[ok]:
        splits_of.setdefault(int(member["run"]), set()).add(bytes(member["split"]))
    crossing = [run for run, splits in splits_of.items() if len(splits) > 1]
    if crossing:
        found.append(f"{arch}: {len(crossing)} runs have members in several splits (first: run {crossing[0]})")
    return found


def prep_problems(arch: str, spec: NetSpec, rows: Sequence[int], preps: np.ndarray) -> list[str]:
    """What is wrong with the PReps (M, H, W) of some rows."""
    flat = preps.reshape(len(preps), preps.shape[1] * preps.shape[2])
    finite, padded = np.isfinite(flat).all(1), (flat[:, spec.num_parameters :] == 0).all(1)
    found = [f"{MemberRef(arch, rows[i])}: some of its values are not finite" for i in np.flatnonzero(~finite).tolist()]
    found += [
        f"{MemberRef(arch, rows[i])}: the padding after its last parameter is not zero"
        for i in np.flatnonzero(~padded).tolist()
    ]
    return found


def hash_table(members: np.ndarray) -> str:
    """SHA-256 of a table of members, which lies beside it in the file."""
    return hashlib.sha256(members.tobytes()).hexdigest()


class ContentHash:
    """SHA-256 of all architectures and members of a zoo, in the order in which they are stored."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def begin(self, arch: str, spec: NetSpec) -> None:
        """Takes in an architecture; its members follow."""
        self._digest.update(f"{arch} {spec.to_json()}".encode())

    def add(self, preps: np.ndarray, members: np.ndarray) -> None:
        """Takes in some members: PReps (M, H, W) and rows of the table (M,)."""
        for prep, member in zip(preps, members, strict=True):
            self._digest.update(member.tobytes())
            self._digest.update(np.ascontiguousarray(prep).tobytes())

    def hexdigest(self) -> str:
        """The hash of what was taken in so far."""
        return self._digest.hexdigest()
