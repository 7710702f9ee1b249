"""What every member of a zoo must fulfil, and the hash of them all.

Axes: M members (networks), H W of a PRep.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from netspace.networks.spec import NetSpec
from netspace.zoo.file import HASH_BYTES, SPLITS, MemberRef, ZooFile


def table_problems(arch: str, members: np.ndarray) -> list[str]:
    """Return what is wrong with a table of members (M,), a sentence each."""
    problems = []
    ok = members["status"] == b"ok"
    for name in ("accuracy_train", "accuracy_val", "accuracy_test"):
        known = ok & ~np.isnan(members[name])  # NaN: not known, of networks that were imported
        bad = np.flatnonzero(known & ~((members[name] >= 0) & (members[name] <= 1)))
        problems += [f"{MemberRef(arch, int(row))}: {name} is {members[name][row]}, not within 0..1" for row in bad]
    unknown = np.flatnonzero(~np.isin(members["split"], [*(split.encode() for split in SPLITS), b""]))
    problems += [f"{MemberRef(arch, int(row))}: split {members['split'][row]!r} is not known" for row in unknown]
    splits_of: dict[int, set[bytes]] = {}
    for member in members[ok]:
        splits_of.setdefault(int(member["run"]), set()).add(bytes(member["split"]))
    crossing = [run for run, splits in splits_of.items() if len(splits) > 1]
    if crossing:
        problems.append(f"{arch}: {len(crossing)} runs have members in several splits (first: run {crossing[0]})")
    return problems


def prep_problems(arch: str, spec: NetSpec, rows: Sequence[int], preps: np.ndarray) -> list[str]:
    """Return what is wrong with the PReps (M, H, W) of some rows, a sentence each."""
    flat = preps.reshape(len(preps), preps.shape[1] * preps.shape[2])
    wrong = {
        "some of its values are not finite": ~np.isfinite(flat).all(1),
        "the padding after its last parameter is not zero": (flat[:, spec.num_parameters :] != 0).any(1),
    }
    return [
        f"{MemberRef(arch, rows[index])}: {what}"
        for what, mask in wrong.items()
        for index in np.flatnonzero(mask).tolist()
    ]


def hash_preps(preps: np.ndarray) -> np.ndarray:
    """Return the SHA-256 (M, 32), as bytes, of each PRep of (M, H, W)."""
    digests = b"".join(hashlib.sha256(np.ascontiguousarray(prep).data).digest() for prep in preps)
    return np.frombuffer(digests, np.uint8).reshape(len(preps), HASH_BYTES)


class ContentHash:
    """SHA-256 of all architectures and members of a zoo, in the order in which they are stored.

    There are two: of all bytes one after the other, and of the hashes of PReps (`netspace.zoo.file.hash_content`).
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._of_hashes = hashlib.sha256()

    def begin(self, arch: str, spec: NetSpec) -> None:
        """Include an architecture, before its members."""
        for digest in (self._digest, self._of_hashes):
            digest.update(f"{arch} {spec.to_json()}".encode())

    def add(self, preps: np.ndarray, members: np.ndarray, hashes: np.ndarray | None = None) -> None:
        """Include members: PReps (M, H, W), rows of the table (M,), and the PReps' `hash_preps` (M, 32) if they are known."""
        known = hash_preps(preps) if hashes is None else hashes
        for prep, member, digest in zip(preps, members, known, strict=True):
            row = member.tobytes()
            self._digest.update(row)
            self._digest.update(np.ascontiguousarray(prep).data)
            self._of_hashes.update(row + digest.tobytes())

    def matches(self, zoo: ZooFile) -> bool:
        """Return whether all that was included is what the zoo says that it has."""
        known = (self.hexdigest(), self._of_hashes.hexdigest())
        return zoo.stored_hash in (None, known[0]) and zoo.content_hash in known

    def hexdigest(self) -> str:
        """Return the hash of what was included so far."""
        return self._digest.hexdigest()
