"""`netspace health`: norms, spectra and dead units of a zoo's members by layer; members that look damaged or copied.

Axes: M members, P parameters, L layers, B inputs, U units.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from netspace import archs
from netspace.commands.copies import Candidates, Found
from netspace.errors import NetspaceError, UsageError, first_line
from netspace.files import replacing
from netspace.networks.activity import Activity
from netspace.networks.prep import unflatten, unpack
from netspace.networks.statistics import (
    eigenvalues,
    layer_norms,
    layers_of,
    matrix_of,
    order_embedding,
    robust_z,
    stable_ranks,
    tail_exponents,
)
from netspace.progress import progress
from netspace.results.health import ArchHealth, Health, LayerHealth, Spread, Suspect
from netspace.training.setup import task_of
from netspace.zoo import ArchGroup, MemberRef, Zoo

CHUNK = 256  # members at once
CHUNK_VALUES = 1 << 25  # parameters of them, so that memory stays bounded
INPUTS = 128  # on which dead units are counted
Z = 6.0  # robust standard deviations of log norms from which a member is an outlier
FACTOR = 2.0  # by which a norm differs from the median at least, to be an outlier: longer training alone is no damage
TOLERANCE = 0.01  # relative distance up to which two members are nearly equal
COLUMNS = ("member", "layer", "norm", "stable_rank", "tail_exponent", "dead")  # of the table


@dataclass
class _Figures:
    """What was measured of one architecture; rows are sound members alone."""

    group: ArchGroup
    finite: list[np.ndarray] = field(default_factory=list)  # (m,) of all members that did not diverge
    rows: list[np.ndarray] = field(default_factory=list)  # (m,) of those, read so far
    norms: list[Tensor] = field(default_factory=list)  # (m, L)
    ranks: dict[str, list[Tensor]] = field(default_factory=dict)  # (m,) by layer
    exponents: dict[str, list[Tensor]] = field(default_factory=dict)
    dead: dict[str, list[Tensor]] = field(default_factory=dict)  # fraction of units (m,) by layer
    embeddings: list[Tensor] = field(default_factory=list)  # (m, F)
    unreadable: list[int] = field(default_factory=list)  # rows
    reason: str | None = None  # why dead units are not counted

    @cached_property
    def layers(self) -> dict[str, list[str]]:
        return layers_of(self.group.spec)

    @cached_property
    def all_rows(self) -> np.ndarray:
        return np.concatenate(self.rows) if self.rows else np.empty(0, np.int64)

    @cached_property
    def sound(self) -> np.ndarray:
        """Whether the members of `all_rows` have finite values alone."""
        return np.concatenate(self.finite) if self.finite else np.empty(0, bool)

    def add(self, rows: np.ndarray, flat: Tensor, activity: Activity | None, inputs: Tensor | None) -> None:
        """Measure members (m, P)."""
        finite = flat.isfinite().all(1)
        self.rows.append(rows)
        self.finite.append(finite.numpy())
        flat = flat[finite]
        if not len(flat):
            return
        spec = self.group.spec
        self.norms.append(layer_norms(flat, spec))
        self.embeddings.append(order_embedding(flat, spec))
        tensors = unflatten(flat, spec)
        for layer, names in self.layers.items():
            if (name := matrix_of(names, spec)) is not None:
                values = eigenvalues(tensors[name])
                self.ranks.setdefault(layer, []).append(stable_ranks(values))
                self.exponents.setdefault(layer, []).append(tail_exponents(values))
        if activity is not None and inputs is not None:
            for layer, units in zip(activity.names, activity.dead(flat, inputs), strict=True):
                self.dead.setdefault(layer, []).append(units.double().mean(1))


def health(
    path: Path,
    inputs: int = INPUTS,
    z: float = Z,
    tolerance: float = TOLERANCE,
    output: Path | None = None,
    device: str = "cpu",
) -> Health:
    """Measure the members of a zoo by layer, and find those that look damaged or copied.

    A member is suspect if it diverged or has values that are not finite, if a layer is zero or all its units are dead, or if the
    log of a layer's norm is `z` robust standard deviations from the median of its architecture, and a factor of `FACTOR`. Two members are copies if
    their weights differ by at most `tolerance` of their norm, as they are or with their channels permuted; snapshots of one
    run are copies only if they are equal. Units are dead whose activation is the same for all of `inputs` validation inputs
    (0: they are not counted). `output` is a CSV file for the figures of all members and layers.

    Raises:
        UsageError: A limit is negative, or `output` is no CSV.
        NetspaceError: The zoo cannot be read.

    >>> result = health(zoo, inputs=16)
    >>> len(result.archs["lenetlike"].layers), result.copies
    (5, [])
    """
    if inputs < 0 or not z > 0 or not 0 <= tolerance < 1:
        raise UsageError(
            f"--inputs was expected to be at least 0, --z above 0 and --tolerance from 0 to 1, found {inputs}, {z:g} and {tolerance:g}"
        )
    if output is not None and output.suffix.lower() != ".csv":
        raise UsageError(
            f"the table is written as CSV, not as {output.suffix or 'a file without suffix'}: name it *.csv"
        )
    with Zoo(path) as zoo:
        batch, reason = _inputs(zoo, inputs, device)
        figures = {}
        with progress("health", len(zoo), "members") as bar:
            for name, group in zoo.archs.items():
                figures[name] = _measured(group, batch, reason, bar.advance)
        copies: list[Found] = [_copies(each, tolerance) for each in figures.values()]
    if output is not None:
        _write_table(output, list(figures.values()))
    return Health(
        path=str(path),
        members=sum(len(each.group) for each in figures.values()),
        archs={name: _summary(each) for name, each in figures.items()},
        suspects=[suspect for each in figures.values() for suspect in _suspects(each, z)],
        copies=[pair for found in copies for pair in found.pairs],
        unchecked=sum(found.unchecked for found in copies),
        inputs=None if batch is None else len(batch),
        z=z,
        tolerance=tolerance,
        **({} if output is None else {"table": str(output)}),
    )


def _inputs(zoo: Zoo, count: int, device: str) -> tuple[Tensor | None, str | None]:
    """Return validation inputs (B, ...) that all networks share, or why there are none."""
    if not count:
        return None, None
    try:
        task = task_of(zoo, device)
        return task.inputs("val", slice(0, min(count, task.size("val")))).float(), None
    except NetspaceError as error:
        return None, first_line(error)


def _measured(group: ArchGroup, inputs: Tensor | None, reason: str | None, advance: object) -> _Figures:
    """Read the members of an architecture in chunks and measure them."""
    figures, spec = _Figures(group, reason=reason), group.spec
    rows = np.flatnonzero(group.members["status"] == b"ok")
    activity = None
    if inputs is not None:
        try:
            skeleton = archs.skeleton(spec.arch, spec.settings, spec.input_shape)
            activity = Activity(skeleton.to(inputs.device), spec)
        except NetspaceError as error:
            figures.reason = first_line(error)
    at_once = max(min(CHUNK, CHUNK_VALUES // spec.num_parameters), 1)
    for start in range(0, len(rows), at_once):
        chunk = rows[start : start + at_once]
        chunk, flat = _read(figures, chunk)
        try:
            figures.add(chunk, flat, activity, inputs)
        except RuntimeError as error:
            if activity is None:
                raise
            figures.reason, activity = f"{spec.arch} cannot be run on many members at once ({first_line(error)})", None
            figures.dead.clear()
        advance(len(chunk))  # type: ignore[operator]
    return figures


def _read(figures: _Figures, rows: np.ndarray) -> tuple[np.ndarray, Tensor]:
    """Return rows (m,) and their parameters (m, P), without those that cannot be read, which are noted."""
    group, parameters = figures.group, figures.group.spec.num_parameters
    try:
        return rows, unpack(group.read(rows), parameters)
    except NetspaceError:  # some row's checksum does not match: read them one by one
        read: dict[int, Tensor] = {}
        for row in rows.tolist():
            try:
                read[row] = unpack(group.read([row]), parameters)
            except NetspaceError:
                figures.unreadable.append(row)
        flat = torch.cat([torch.empty(0, parameters), *read.values()])
        return np.array(list(read), dtype=np.int64), flat


def _summary(figures: _Figures) -> ArchHealth:
    """Return the spread of all figures over sound members."""
    spec, group = figures.group.spec, figures.group
    shapes, sizes = dict(zip(spec.names, spec.shapes, strict=True)), dict(zip(spec.names, spec.sizes, strict=True))
    norms = torch.cat(figures.norms) if figures.norms else torch.empty(0, len(figures.layers))
    layers = []
    for index, (layer, names) in enumerate(figures.layers.items()):
        matrix = matrix_of(names, spec)
        rank = None if matrix is None else min(shapes[matrix][0], sizes[matrix] // max(shapes[matrix][0], 1))
        measured = {
            name: _spread(torch.cat(of_layers[layer]))
            for name, of_layers in (
                ("stable_rank", figures.ranks),
                ("tail_exponent", figures.exponents),
                ("dead", figures.dead),
            )
            if layer in of_layers
        }
        layers.append(
            LayerHealth(
                layer=layer,
                values=sum(sizes[name] for name in names),
                norm=_spread(norms[:, index]),
                rank=rank,
                zero=int((norms[:, index] == 0).sum()),
                **measured,
            )
        )
    diverged = int((group.members["status"] != b"ok").sum())
    return ArchHealth(
        members=len(group),
        sound=int(figures.sound.sum()),
        diverged=diverged,
        layers=layers,
        norm=_spread(norms.square().sum(1).sqrt()),
        dead_not_counted=figures.reason,
    )


def _spread(values: Tensor) -> Spread:
    known = values[values.isfinite()]
    if not len(known):
        return Spread(min=None, median=None, max=None)
    return Spread(min=float(known.min()), median=float(known.median()), max=float(known.max()))


def _suspects(figures: _Figures, z: float) -> list[Suspect]:
    """Return the members of an architecture that look damaged, in their order."""
    problems: dict[int, list[str]] = {}

    def note(rows: np.ndarray | Sequence[int], sentence: str) -> None:
        for row in rows:
            problems.setdefault(int(row), []).append(sentence)

    group = figures.group
    note(np.flatnonzero(group.members["status"] != b"ok"), "its training diverged")
    note(figures.unreadable, "cannot be read: its checksum does not match")
    note(figures.all_rows[~figures.sound], "has values that are not finite")
    rows = figures.all_rows[figures.sound]
    if len(rows):
        norms = torch.cat(figures.norms)
        scores = robust_z(norms.log(), floor=math.log(FACTOR) / z)
        medians = norms.median(0).values
        for index, layer in enumerate(figures.layers):
            note(rows[(norms[:, index] == 0).numpy()], f"{layer} is zero")
            for row in (scores[:, index].abs() > z).nonzero()[:, 0].tolist():
                note(
                    rows[[row]],
                    f"the norm of {layer} is {float(norms[row, index]):.3g}, the median {float(medians[index]):.3g} "
                    f"({float(scores[row, index]):+.1f} robust deviations of its log)",
                )
        for layer, parts in figures.dead.items():
            note(rows[(torch.cat(parts) == 1).numpy()], f"all units after {layer} are dead")
    return [Suspect(member=str(MemberRef(group.id, row)), problems=problems[row]) for row in sorted(problems)]


def _copies(figures: _Figures, tolerance: float) -> Found:
    """Return the members of an architecture that are copies of each other."""
    rows = figures.all_rows[figures.sound]
    if len(rows) < 2:
        return Found([], 0)
    norms = torch.cat(figures.norms).square().sum(1).sqrt().numpy()
    candidates = Candidates(rows, torch.cat(figures.embeddings).numpy(), norms)
    return candidates.verified(figures.group, tolerance)


def _write_table(path: Path, figures: Sequence[_Figures]) -> None:
    """Write one row for each sound member and layer, with the columns `COLUMNS`."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for each in figures:
            if not each.norms:
                continue
            members = [str(MemberRef(each.group.id, int(row))) for row in each.all_rows[each.sound]]
            norms = torch.cat(each.norms).T.tolist()
            for layer, values in zip(each.layers, norms, strict=True):
                columns = [
                    torch.cat(of_layers[layer]).tolist() if layer in of_layers else [""] * len(members)
                    for of_layers in (each.ranks, each.exponents, each.dead)
                ]
                writer.writerows(zip(members, [layer] * len(members), values, *columns, strict=True))
