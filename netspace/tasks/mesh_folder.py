"""Folders of meshes: which files are usable, and samples of their signed distances, by all cores and cached.

Axes: S shapes, N points of each.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from netspace.errors import NetspaceError, NetspaceWarning, UsageError
from netspace.tasks.base import DataConfig, Task
from netspace.tasks.computed import Entry, Job, compute, computed
from netspace.tasks.meshes import MAX_BYTES, Array, MeshShape, RefusedMesh, libigl, mesh_files, read_mesh, shape_name
from netspace.tasks.shapes import FIELDS, samples

SAMPLING = "sampling meshes"
VERSION = 2  # to be raised when the same files would give other shapes or samples
BYTES_A_SECOND = 2e6  # of a mesh that is read and judged, roughly
POINTS_A_SECOND = 3e4  # whose distances are computed, roughly
ARRAYS = ("vertices", "faces", "dividing")  # of a `MeshShape`, which are cached
MAX_REASONS = 3  # refused files that a warning names


@dataclass(frozen=True)
class MeshFolder:
    """The usable meshes of a folder as numbered shapes, and those that were refused.

    The order is random, so that the first shapes, which networks are trained on, are like the others. It depends on a seed and
    the content of the files alone: others may come and go.
    """

    folder: Path
    files: tuple[Path, ...]
    hashes: tuple[str, ...]  # SHA-256 of each file
    refused: Mapping[str, str]  # the reason, by the relative name of the file

    @property
    def count(self) -> int:
        """The number of shapes."""
        return len(self.files)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the shapes: the paths of their files in the folder, without suffix."""
        return tuple(shape_name(path, self.folder) for path in self.files)

    @property
    def content_hash(self) -> str:
        """A hash of all shapes, in order."""
        return hashlib.sha256(
            f"meshes {VERSION} {list(zip(self.names, self.hashes, strict=True))}".encode()
        ).hexdigest()

    def shape(self, number: int) -> MeshShape:
        """Return a shape. Raises `RefusedMesh` if its file was changed and is no longer usable, `UsageError` if there is none."""
        if number >= self.count:
            raise UsageError(
                f"shape {number} was asked for, but {self.folder} has {self.count} usable meshes: let a zoo have at most as many "
                "members (train, val and test together) of each architecture"
            )
        path = self.files[number]
        entry = compute(_mesh_job(path, self.folder, self.hashes[number]))
        if "refused" in entry.notes:
            raise RefusedMesh(path, entry.notes["refused"])
        vertices, faces, dividing = (entry.arrays[name] for name in ARRAYS)
        return MeshShape(shape_name(path, self.folder), vertices, faces, dividing)

    def samples(self, numbers: Sequence[int], split: str, count: int) -> Float32[Array, "S N 4"]:
        """Return points and their signed distances of these shapes for a split; those of a shape depend on its file alone.

        Raises as `shape`; `NetspaceError` if a process was ended.
        """
        found = np.empty((len(numbers), count, 4), np.float32)
        for row, entry in enumerate(computed(self._jobs(numbers, split, count), SAMPLING)):
            found[row] = entry.arrays["samples"]
        return found

    def prepare(self, numbers: Sequence[int], counts: Mapping[str, int]) -> None:
        """Compute the samples of these shapes that are not cached, `counts` of each split. Raises as `samples`."""
        for _ in computed([job for split in counts for job in self._jobs(numbers, split, counts[split])], SAMPLING):
            pass

    def _jobs(self, numbers: Sequence[int], split: str, count: int) -> list[Job]:
        if numbers and max(numbers) >= self.count:
            self.shape(max(numbers))
        return [
            Job(
                f"samples of a mesh {VERSION} {self.hashes[number]} {split} {count}",
                _samples,
                (self.files[number], self.folder, self.hashes[number], split, count),
                count / POINTS_A_SECOND,
            )
            for number in numbers
        ]

    def summary(self) -> str:
        """Return a sentence that counts the usable and the refused meshes, and says why the first few were refused."""
        total = self.count + len(self.refused)
        if not self.refused:
            return f"all {total} meshes in {self.folder} are usable"
        first = "; ".join(f"{name}: {reason}" for name, reason in list(self.refused.items())[:MAX_REASONS])
        more = f"; and {len(self.refused) - MAX_REASONS} more" if len(self.refused) > MAX_REASONS else ""
        return f"{len(self.refused)} of {total} meshes in {self.folder} cannot be used as shapes ({first}{more})"


def load_meshes(config: DataConfig, device: torch.device) -> Task:
    """Return the task of networks that are the meshes of the folder `root`; `split_seed` is the seed of their order.

    Raises `UsageError` if there is no such folder or no mesh in it, `NetspaceError` if none is usable.
    """
    if config.root is None:
        raise UsageError("data set 'meshes' reads the folder of meshes that the setting root names: set data.root.")
    return FIELDS[config.field or "sdf"](config, device, open_meshes(config.root.expanduser(), config.split_seed))


def open_meshes(folder: Path, seed: int = 0) -> MeshFolder:
    """Read and judge all meshes in a folder and below it; those that are refused are counted in a `NetspaceWarning`.

    Raises `UsageError` if there are none, `NetspaceError` if none is usable or a process was ended.
    """
    libigl()  # what is not installed is reported before files are read
    paths = mesh_files(folder)
    hashes = [_hash(path) for path in paths]
    jobs = [_mesh_job(path, folder, digest) for path, digest in zip(paths, hashes, strict=True)]
    reasons = [entry.notes.get("refused") for entry in computed(jobs, "reading meshes")]
    names = [path.relative_to(folder).as_posix() for path in paths]
    by_content, by_name = dict[str, int](), dict[str, int]()
    for index in range(len(paths)):
        first = by_content.setdefault(hashes[index], index)
        if reasons[index] is None and first != index:  # it could be in training, and its copy in the test split
            reasons[index] = f"it is the same file as {names[first]}"
        elif reasons[index] is None and by_name.setdefault(shape_name(paths[index], folder), index) != index:
            reasons[index] = "another file has its name with another suffix"
    refused = {name: reason for name, reason in zip(names, reasons, strict=True) if reason is not None}
    rows = sorted(by_name.values(), key=lambda row: hashlib.sha256(f"{seed} {hashes[row]}".encode()).digest())
    found = MeshFolder(folder, tuple(paths[row] for row in rows), tuple(hashes[row] for row in rows), refused)
    if not rows:
        raise NetspaceError(f"{found.summary()}: let data.root name a folder of closed surfaces")
    if refused:
        warnings.warn(f"{found.summary()}; the other {found.count} are used", NetspaceWarning, stacklevel=2)
    return found


def _hash(path: Path) -> str:
    """Return the SHA-256 of a file; for one that cannot be read, or is too large to be, what it is called instead."""
    try:
        if path.stat().st_size <= MAX_BYTES:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        return f"{path.absolute()} of {path.stat().st_size} bytes"
    except OSError as error:
        return f"{path.absolute()} {error.strerror}"


def _mesh_job(path: Path, folder: Path, digest: str) -> Job:
    seconds = path.stat().st_size / BYTES_A_SECOND
    return Job(f"mesh {VERSION} {path.suffix.lower()} {digest}", _mesh, (path, folder), seconds)


def _mesh(path: Path, folder: Path) -> Entry:
    """Return the vertices and faces of a mesh, or the reason why it is refused."""
    try:
        shape = read_mesh(path, folder)
    except RefusedMesh as error:
        return Entry({}, {"refused": error.reason})
    return Entry({name: getattr(shape, name) for name in ARRAYS}, {})


def _samples(path: Path, folder: Path, digest: str, split: str, count: int) -> Entry:
    """Return samples (N, 4) of a mesh."""
    shape = MeshFolder(folder, (path,), (digest,), {}).shape(0)
    seeds = np.frombuffer(hashlib.sha256(digest.encode()).digest(), np.uint32).tolist()
    return Entry({"samples": samples(shape, split, count, seeds)}, {})
