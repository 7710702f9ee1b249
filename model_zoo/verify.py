"""`netspace zoo verify`: check every member, and evaluate a sample of them again.

Axes: M members, H W of a PRep.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from model_zoo.work import member_scores
from netspace import archs
from netspace.archs.identity import check_identity
from netspace.config import validate
from netspace.errors import NetspaceError, UsageError
from netspace.hardware import pick_device
from netspace.networks.batch import NetBatch
from netspace.networks.prep import unpack
from netspace.progress import progress
from netspace.results.zoos import Verification
from netspace.streams import generator
from netspace.tasks import DataConfig, Task, load
from netspace.zoo import ArchGroup, ContentHash, MemberRef, Zoo, prep_problems, table_problems

CHUNK = 256  # members read at once
TOLERANCE_IMAGES = 2  # by which an accuracy may differ: devices and thread counts round differently


def verify(path: Path, sample: int = 16, seed: int = 0, device: str = "auto") -> Verification:
    """Check a zoo; each problem is a sentence of the result.

    The file must match its content hash. Every member needs a correct checksum, finite values, zero padding, accuracies
    within 0..1 and a known split, the same for all members of a run. Networks must be their parameters alone. A sample
    of each architecture, drawn by `seed`, is evaluated again on the zoo's data, with the stored accuracies as the
    result.

    Raises `NetspaceError` only if the file cannot be opened at all.

    >>> result = verify(zoo, sample=1)  # the path of a zoo file
    """
    problems: list[str] = []
    checked = evaluated = 0
    with Zoo(path) as zoo:
        if not zoo.complete:
            problems.append("the zoo is not complete: its builder was interrupted; start it again to finish")
        with progress("verify", len(zoo), "members") as bar:
            for file in zoo.files:
                content, before = ContentHash(), len(problems)
                for group in file.archs.values():
                    problems += table_problems(group.id, group.members)
                    content.begin(group.id, group.spec)
                    for start in range(0, len(group), CHUNK):
                        rows = range(start, min(start + CHUNK, len(group)))
                        problems += read_problems(group, rows, content)
                        checked += len(rows)
                        bar.advance(len(rows))
                if len(problems) == before and not content.matches(file):
                    problems.append(
                        "the members are not the ones that were written: the content hash of the file does not match"
                    )
                if file is not zoo:
                    problems[before:] = [f"{file.path.name}: {problem}" for problem in problems[before:]]
        try:
            task = load(validate(DataConfig, zoo.header.data, str(path)), device=pick_device(device))
            if task.split_hash != zoo.header.split_hash:
                raise NetspaceError("the data here are not those of the zoo (their split hash differs)")
        except NetspaceError as error:
            problems.append(f"no member was re-evaluated: {error}")
        else:
            for group in zoo.archs.values():
                more = identity_problems(group) if sample else []
                if not more:  # else the same members would score differently every time
                    count, more = accuracy_problems(group, task, sample, seed)
                    evaluated += count
                problems += more
    return Verification(path=str(path), ok=not problems, checked=checked, re_evaluated=evaluated, problems=problems)


def read_problems(group: ArchGroup, rows: range, content: ContentHash) -> list[str]:
    """Return what is wrong with the PReps of some rows, which are read one by one if they cannot be read at once.

    Those that can be read are added to `content`.
    """
    try:
        preps = group.read(list(rows)).numpy()
    except NetspaceError as error:
        if len(rows) == 1:
            return [str(error)]
        return [problem for row in rows for problem in read_problems(group, range(row, row + 1), content)]
    content.add(preps, group.members[rows.start : rows.stop])
    return prep_problems(group.id, group.spec, rows, preps)


def identity_problems(group: ArchGroup) -> list[str]:
    """Return whether the architecture is more than its parameters: older zoos were not checked when they were built."""
    spec = group.spec
    try:
        check_identity(spec.arch, partial(archs.build, spec.arch, **spec.settings), spec.input_shape)
    except UsageError:  # the architecture is not trusted; the message says what to do
        raise
    except NetspaceError as error:
        return [f"{group.id}: {error}"]
    return []


def accuracy_problems(group: ArchGroup, task: Task, sample: int, seed: int) -> tuple[int, list[str]]:
    """Evaluate a sample of members again; return their number, and a sentence for each score that differs."""
    rows = np.flatnonzero(group.members["status"] == b"ok")
    order = torch.randperm(len(rows), generator=generator(seed, group.class_id))[:sample].numpy()
    rows = np.sort(rows[order])
    if not len(rows):
        return 0, []
    try:
        preps = group.read(rows)
    except NetspaceError:
        return 0, []  # `read_problems` has named each member
    spec = group.spec
    skeleton = archs.skeleton(spec.arch, spec.settings, spec.input_shape).to(task.device)
    flat = unpack(preps.to(task.device), spec.num_parameters)
    problems = []
    for split, values in member_scores(NetBatch(skeleton, spec), flat, task, group.seeds(rows)).items():
        tolerance = TOLERANCE_IMAGES / task.size(split) + 1e-9
        for row, value in zip(rows, values, strict=True):
            stored = float(group.members[f"accuracy_{split}"][row])
            if not np.isnan(stored) and not abs(stored - value) <= tolerance:
                member = MemberRef(group.id, int(row))
                problems.append(f"{member}: {task.score_name} on {split} is stored as {stored:.4f}, but is {value:.4f}")
    return len(rows), problems
