"""`netspace zoo align`: the same networks, with their channels in the order of a reference of the architecture.

Axes: M members (networks), H W of a PRep.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from netspace import archs
from netspace.errors import NetspaceError, UsageError
from netspace.networks.alignment import align, check_same_function
from netspace.networks.channels import channel_groups
from netspace.networks.prep import pack, unpack
from netspace.progress import progress
from netspace.results.zoos import ArchAlignment, ZooAlignment
from netspace.streams import generator
from netspace.zoo import ArchGroup, MemberRef, Zoo, zoo_lock
from netspace.zoo.writer import write

CHUNK = 128  # members aligned at once
INPUTS = 4  # inputs of noise for which every network must return the same outputs as before


def align_zoo(path: str | Path, out: str | Path) -> ZooAlignment:
    """Write the zoo at `path` to `out` with the channels of every member permuted to those of a reference.

    The reference of an architecture is its best training member on validation images. Order, tables and accuracies stay
    as they are, and so do the networks' functions, which is checked in float64. An architecture whose graph cannot be
    traced is copied unchanged, and the result says why.

    This is `netspace.align`.

    Raises `UsageError` if `out` exists or nothing could be aligned, `NetspaceError` for a zoo that is not complete.

    >>> from netspace import Zoo, align
    >>> result = align(zoo, folder / "aligned.h5")  # the path of a zoo file
    >>> all(each.distance_after < each.distance_before for each in result.archs.values())
    True
    >>> Zoo(folder / "aligned.h5").complete
    True
    """
    path, out = Path(path), Path(out)
    with zoo_lock(out):
        if out.exists():
            raise UsageError(f"{out} exists already: choose another name, so that nothing is lost")
        return write_aligned(path, out)


def write_aligned(path: Path, out: Path) -> ZooAlignment:
    """Align as `align_zoo`, for a caller that holds the lock of `out`. Raises as it, and `NetspaceError` for half a zoo."""
    with Zoo(path) as zoo:
        if not zoo.complete:
            raise NetspaceError(f"{path} is not complete: its builder was interrupted; start it again to finish it")
        aligned = {name: _Aligned(group) for name, group in zoo.archs.items()}
        reasons = {name: each.skipped for name, each in aligned.items() if each.skipped}
        if len(reasons) == len(aligned):
            raise UsageError(f"no network of {path} could be aligned: {next(iter(reasons.values()), 'it is empty')}")
        with progress("align", len(zoo), "members") as bar:

            def chunks(name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
                for values, members in aligned[name].chunks():
                    yield values, members
                    bar.advance(len(members))

            specs = {name: group.spec for name, group in zoo.archs.items()}
            sizes = {name: group.size for name, group in zoo.archs.items()}
            counts = {name: len(group) for name, group in zoo.archs.items()}
            columns = {name: group.columns for name, group in zoo.archs.items()}
            write(out, zoo.header, specs, sizes, counts, chunks, columns=columns)
    return ZooAlignment(path=str(out), archs={name: each.figures() for name, each in aligned.items()})


class _Aligned:
    """The members of one architecture, aligned as they are read."""

    def __init__(self, group: ArchGroup) -> None:
        self.group, self.skipped = group, ""
        self.before: list[float] = []
        self.after: list[float] = []
        spec = group.spec
        rows = group.rows("train") if len(group.rows("train")) else group.rows("all")
        rows = rows[group.members["status"][rows] == b"ok"]
        if not len(rows):
            self.skipped = f"{group.id} has no network to align to"
            return
        self.row = int(rows[np.argmax(group.merit(rows))])
        try:
            self.module = archs.skeleton(spec.arch, spec.settings, spec.input_shape)
            self.groups = channel_groups(self.module, torch.zeros(2, *spec.input_shape), repr(group.id))
        except NetspaceError as error:
            self.skipped = str(error)
            return
        self.reference = unpack(group.read([self.row]), spec.num_parameters)[0]
        self.inputs = torch.randn(INPUTS, *spec.input_shape, generator=generator(0))

    def chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the PReps (m, H, W) and table rows (m,) of all members in their order."""
        group, spec = self.group, self.group.spec
        for rows in np.array_split(np.arange(len(group)), max(-(-len(group) // CHUNK), 1)):
            preps, members = group.read(rows), group.members[rows]
            sound = torch.from_numpy(np.flatnonzero(members["status"] == b"ok"))
            if not self.skipped and len(sound):
                flat = unpack(preps[sound], spec.num_parameters)
                moved = align(self.reference, flat, spec, self.groups)
                check_same_function(self.module, spec, flat, moved, self.inputs)
                preps[sound] = pack(moved, group.size)
                others = torch.from_numpy(rows[sound.numpy()] != self.row)
                for distances, values in ((self.before, flat), (self.after, moved)):
                    distances += (values - self.reference)[others].norm(dim=1).tolist()
            yield preps.numpy(), members

    def figures(self) -> ArchAlignment:
        """Return the architecture's part of the result."""
        if self.skipped:
            return ArchAlignment(skipped=self.skipped)
        return ArchAlignment(
            reference=str(MemberRef(self.group.id, self.row)),
            groups=len(self.groups),
            distance_before=float(np.mean(self.before)) if self.before else None,
            distance_after=float(np.mean(self.after)) if self.after else None,
        )
