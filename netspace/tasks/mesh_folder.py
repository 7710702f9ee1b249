"""Folders of meshes: which files are usable, and samples of their signed distances, by all cores and cached.

Axes: S shapes, N points of each.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from netspace.errors import NetspaceError, NetspaceWarning, UsageError
from netspace.tasks.base import DataConfig, Task
from netspace.tasks.computed import Entry, Job, compute, computed
from netspace.tasks.meshes import (
    MAX_BYTES,
    Array,
    MeshShape,
    RefusedMesh,
    UnreadMesh,
    libigl,
    mesh_files,
    read_mesh,
    shape_name,
)
from netspace.tasks.shapes import FIELDS, samples

SAMPLING = "sampling meshes"
VERSION = 2  # to be raised when the same files would give other shapes or samples
BYTES_A_SECOND = 2e6  # of a mesh that is read and judged, roughly
POINTS_A_SECOND = 3e4  # whose distances are computed, roughly
ARRAYS = ("vertices", "faces", "dividing")  # of a `MeshShape`, which are cached
STRETCH = 1.3  # of a variant's axes: at most by this, or by one over it
MAX_REASONS = 3  # refused files that a warning names


@dataclass(frozen=True)
class MeshFolder:
    """The usable meshes of a folder as numbered shapes, and those that were refused.

    The order is random, so that the first shapes, which networks are trained on, are like the others. It depends on a seed and
    the content of the files alone: others may come and go. Of each mesh there are `variants` in a row: the mesh as it is, and
    others with their axes stretched by random factors between 1 / `STRETCH` and `STRETCH`, which depend on the file alone.
    """

    folder: Path
    files: tuple[Path, ...]
    hashes: tuple[str, ...]  # SHA-256 of each file
    refused: Mapping[str, str]  # the reason, by the relative name of the file
    variants: int = 1  # of each mesh

    @property
    def count(self) -> int:
        """The number of shapes."""
        return len(self.files) * self.variants

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all shapes, as `name` gives them."""
        return tuple(self.name(number) for number in range(self.count))

    @property
    def content_hash(self) -> str:
        """A hash of all shapes, in order."""
        meshes = zip((shape_name(path, self.folder) for path in self.files), self.hashes, strict=True)
        stretched = f" {self.variants} up to {STRETCH}" if self.variants > 1 else ""
        return hashlib.sha256(f"meshes {VERSION} {list(meshes)}{stretched}".encode()).hexdigest()

    @cached_property
    def folders(self) -> tuple[str, ...]:
        """The folders in the folder that meshes lie in, sorted; '' for the folder itself."""
        return tuple(sorted({_folder(path, self.folder) for path in self.files}))

    def name(self, number: int) -> str:
        """Return the name of a shape: the path of its file in the folder, without suffix, and '~' and its number if it is stretched."""
        mesh, variant = divmod(self._checked(number), self.variants)
        return shape_name(self.files[mesh], self.folder) + (f"~{variant}" if variant else "")

    def labels(self, number: int) -> dict[str, str]:
        """Return `folder`, in which the shape's file lies, if files lie in several."""
        path = self.files[self._checked(number) // self.variants]
        return {"folder": _folder(path, self.folder)} if len(self.folders) > 1 else {}

    def _checked(self, number: int) -> int:
        if number >= self.count:
            variants = f", {self.variants} shapes of each" if self.variants > 1 else ""
            raise UsageError(
                f"shape {number} was asked for, but {self.folder} has {len(self.files)} usable meshes{variants}: let a zoo have at "
                f"most {self.count} members (train, val and test together, each of the architecture with the most)"
            )
        return number

    def shape(self, number: int) -> MeshShape:
        """Return a shape. Raises `RefusedMesh` if its file was changed and is no longer usable, `UsageError` if there is none."""
        mesh, variant = divmod(self._checked(number), self.variants)
        path = self.files[mesh]
        entry = compute(_mesh_job(path, self.folder, self.hashes[mesh]))
        if "refused" in entry.notes:
            raise RefusedMesh(path, entry.notes["refused"])
        vertices, faces, dividing = (entry.arrays[name] for name in ARRAYS)
        shape = MeshShape(self.name(number), vertices, faces, dividing)
        return shape.stretched(_factors(self.hashes[mesh], variant), shape.name) if variant else shape

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
        self._checked(max(numbers, default=0))
        jobs = []
        for mesh, variant in (divmod(number, self.variants) for number in numbers):
            path, digest = self.files[mesh], self.hashes[mesh]
            stretched = f" stretched {variant} up to {STRETCH}" if variant else ""
            key = f"samples of a mesh {VERSION} {digest} {split} {count}{stretched}"
            jobs.append(Job(key, _samples, (path, self.folder, digest, variant, split, count), count / POINTS_A_SECOND))
        return jobs

    def summary(self) -> str:
        """Return a sentence that counts the usable and the refused meshes, and says why the first few were refused."""
        total = len(self.files) + len(self.refused)
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
    meshes = open_meshes(config.root.expanduser(), config.split_seed, config.variants or 1)
    return FIELDS[config.field or "sdf"](config, device, meshes)


def open_meshes(folder: Path, seed: int = 0, variants: int = 1) -> MeshFolder:
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
        elif reasons[index] is None and variants > 1 and re.search(r"~\d+$", paths[index].stem):
            reasons[index] = "its name ends as those of stretched meshes do: rename it"
        elif reasons[index] is None and by_name.setdefault(shape_name(paths[index], folder), index) != index:
            reasons[index] = "another file has its name with another suffix"
    refused = {name: reason for name, reason in zip(names, reasons, strict=True) if reason is not None}
    rows = sorted(by_name.values(), key=lambda row: hashlib.sha256(f"{seed} {hashes[row]}".encode()).digest())
    files, kept = tuple(paths[row] for row in rows), tuple(hashes[row] for row in rows)
    found = MeshFolder(folder, files, kept, refused, variants)
    if not rows:
        raise NetspaceError(f"{found.summary()}: let data.root name a folder of closed surfaces")
    if refused:
        warnings.warn(f"{found.summary()}; the other {len(rows)} are used", NetspaceWarning, stacklevel=2)
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
        return Entry({}, {"refused": error.reason}, cached=not isinstance(error, UnreadMesh))
    return Entry({name: getattr(shape, name) for name in ARRAYS}, {})


def _samples(path: Path, folder: Path, digest: str, variant: int, split: str, count: int) -> Entry:
    """Return samples (N, 4) of a variant of a mesh."""
    shape = MeshFolder(folder, (path,), (digest,), {}, variant + 1).shape(variant)
    return Entry({"samples": samples(shape, split, count, _numbers(_named(digest, variant)))}, {})


def _factors(digest: str, variant: int) -> np.ndarray:
    """Return the factors (3,) by which a variant's axes are stretched, uniform in their logarithms."""
    random = np.random.RandomState(_numbers(f"{_named(digest, variant)} stretch"))
    return np.asarray(STRETCH ** (2 * random.random_sample(3) - 1))


def _named(digest: str, variant: int) -> str:
    return f"{digest} {variant}" if variant else digest


def _numbers(text: str) -> list[int]:
    """Return eight numbers that follow from a text."""
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32).tolist()


def _folder(path: Path, folder: Path) -> str:
    """Return the folder in `folder` that a mesh lies in, '' if it lies in `folder` itself."""
    parts = path.relative_to(folder).parts
    return parts[0] if len(parts) > 1 else ""
