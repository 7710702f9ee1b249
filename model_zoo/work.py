"""The work of building a zoo: groups of runs, their training, their parts; `python -m model_zoo.work` is a worker.

Axes: M members (networks), P parameters.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from model_zoo.forward import Forward, Layout, Precision, Way
from model_zoo.recipe import ArchConfig, RunPlan, ZooRecipe, planned_runs
from model_zoo.trainer import Group, Snapshot
from netspace import archs
from netspace.archs.identity import check_identity, check_outputs
from netspace.config import validate
from netspace.errors import NetspaceError, printable
from netspace.hardware import pick_device
from netspace.io import Record, read_json, read_torch, resuming_from, write_json, write_torch
from netspace.networks import prep
from netspace.networks.batch import NetBatch
from netspace.networks.folding import Folder
from netspace.networks.spec import NetSpec
from netspace.process import keep_freed_memory
from netspace.tasks import Task, load
from netspace.zoo import MEMBER, SPLITS, Header, Population, Shard, parts_folder, write_zoo

MAX_TURNS = (
    4  # runs of a fused group, in multiples of the networks trained at once: finished runs are replaced by others
)
MIN_GROUPS = 8  # number of groups of an architecture below which groups do not grow so, for the workers to share
COMMIT_EVERY = 5.0  # seconds between commits of finished members
LAST = "-last"  # ends the name of a part with the last member of a group, or with several groups
PART = re.compile(rf"part-(\d+)(?:-to-(\d+)-by-(\d+)|-\d+){LAST}\.h5")
UNFINISHED = re.compile(r"part-\d+-(\d+)\.h5")  # a part with members of a group up to a round
CHECKPOINT_EVERY = 20.0  # seconds between checkpoints of a group
TRAIN_IMAGES = 10_000  # maximum number of training images that accuracy_train is measured on

Check = Literal["trained", "imported", ""]


@dataclass(frozen=True)
class Candidate:
    """An architecture of the recipe with its settings for the task."""

    id: str
    spec: NetSpec
    skeleton: torch.nn.Module
    size: tuple[int, int]  # of its PReps
    folder: Folder

    def make(self) -> torch.nn.Module:
        """Build a fresh module, batch norm not folded, initialised from torch's random state."""
        return archs.build(self.spec.arch, **self.spec.settings)


def candidate(name: str, config: ArchConfig, task: Task, prep_width: int | None, check: Check = "") -> Candidate:
    """Return the architecture `name` of a recipe for a task; without `prep_width` its PReps have 8 rows.

    With `check`, raise `NetspaceError` unless its networks are their parameters alone and fit the task: networks that
    are to be trained here, or were trained elsewhere. Once is enough.
    """
    settings = config.settings(task.input_shape, task.num_outputs, task.arch_settings)
    module = archs.build(config.arch, **settings)
    example = task.inputs("train", slice(4)).cpu()
    folder = Folder(module, example, name=config.arch, constants=True)
    if check:
        make = partial(archs.build, config.arch, **settings)
        nouns = task.input_noun, task.output_noun
        check_outputs(config.arch, make, example, task.output_shape, trained=check == "trained", nouns=nouns)
        check_identity(config.arch, make, task.input_shape)
    skeleton = archs.skeleton(config.arch, settings, task.input_shape)
    spec = NetSpec.from_module(skeleton, config.arch, settings, task.input_shape)
    width = prep.fitting_width(spec.num_parameters) if prep_width is None else prep_width
    size = (prep.height(spec.num_parameters, width), width)
    return Candidate(name, spec, skeleton.to(task.device), size, folder)


def candidates(recipe: ZooRecipe, task: Task, check: Check = "") -> dict[str, Candidate]:
    """Return all architectures of a recipe, with PReps of one width: without `prep_width` the smallest one's."""
    each = {name: candidate(name, config, task, recipe.prep_width, check) for name, config in recipe.archs.items()}
    width = min(one.size[1] for one in each.values())
    return {name: replace(one, size=(prep.height(one.spec.num_parameters, width), width)) for name, one in each.items()}


def runs_of(recipe: ZooRecipe, shard: Shard | None) -> list[RunPlan]:
    """Return the runs of a recipe, the longest first; of a shard every N-th, which no other shard has."""
    return planned_runs(recipe, shard)


class PlanRecord(Record):
    """The content of `plan.json`."""

    recipe: dict[str, Any]
    split_hash: str
    ways: dict[str, tuple[PositiveInt, Precision, Layout]]  # of each architecture, the fields of a `Way`
    shard: tuple[PositiveInt, PositiveInt] | None = None  # index and count


@dataclass(frozen=True)
class Plan:
    """What all workers on a zoo agree on: the file `plan.json` in the folder of the parts."""

    recipe: ZooRecipe
    split_hash: str
    ways: dict[str, Way]  # architecture id -> how its groups are trained
    shard: Shard | None = None  # of a zoo that is built in shards

    def groups(self) -> list[list[RunPlan]]:
        """Return all groups: runs of one architecture and of similar length."""
        groups = []
        for name, way in self.ways.items():
            runs = [run for run in runs_of(self.recipe, self.shard) if run.arch == name]
            turns = 1 if way.fused == 1 else max(1, min(MAX_TURNS, len(runs) // (way.fused * MIN_GROUPS)))
            size = way.fused * turns
            groups += [runs[start : start + size] for start in range(0, len(runs), size)]
        return groups

    def write(self, path: Path) -> None:
        """Write `plan.json` for the zoo at `path`."""
        ways = {name: [way.fused, way.precision, way.layout] for name, way in self.ways.items()}
        record: dict[str, Any] = {
            "recipe": self.recipe.model_dump(mode="json"),
            "split_hash": self.split_hash,
            "ways": ways,
        }
        if self.shard is not None:
            record["shard"] = [self.shard.index, self.shard.count]
        write_json(parts_folder(path) / "plan.json", record)

    @classmethod
    def read(cls, path: Path) -> Plan | None:
        """Read the plan of an interrupted build of the zoo at `path`; None if there is none.

        Raises `NetspaceError` if the file is broken.
        """
        file = parts_folder(path) / "plan.json"
        if not file.exists():
            return None
        record = read_json(file, PlanRecord)
        ways = {name: Way(*way) for name, way in record.ways.items()}
        recipe = validate(ZooRecipe, record.recipe, str(file), written=True)
        shard = Shard(*record.shard) if record.shard else None
        if ways.keys() != {run.arch for run in runs_of(recipe, shard)}:
            raise NetspaceError(
                f"{file} names other architectures than its own recipe: delete {file.parent} to begin anew"
            )
        return cls(recipe, record.split_hash, ways, shard)

    def header(self) -> Header:
        """Return the header of the zoo and of all its parts."""
        return Header(self.recipe.data.model_dump(mode="json"), self.split_hash, self.recipe.science())


class Worker:
    """Trains groups of a plan and commits their members as parts of the zoo at `path`."""

    def __init__(self, plan: Plan, path: Path, task: Task | None = None) -> None:
        self.plan, self.path = plan, path
        recipe = plan.recipe
        self.task = task or load(recipe.data, device=pick_device(recipe.device))
        self.header = replace(plan.header(), score=self.task.score_metadata())
        self.candidates = candidates(recipe, self.task)
        self.nets = {name: NetBatch(each.skeleton, each.spec) for name, each in self.candidates.items()}
        self.uncommitted: list[tuple[int, str, Population]] = []  # small finished groups: number, architecture, members
        self.committed, self.step = (
            time.monotonic(),
            1,
        )  # the time of the last such commit; the worker has every step-th group
        self.forwards: dict[str, Forward] = {}  # by architecture, used by its groups one after another
        self.widths: dict[
            str, int
        ] = {}  # by architecture: networks at once that fit into memory, if fewer than planned

    def run(self, rank: int, world_size: int, report: Callable[[int], None]) -> None:
        """Train every `world_size`-th group from `rank` on; call `report` with the number of images trained on."""
        done, self.step = finished_groups(self.path), world_size
        try:
            for number, runs in list(enumerate(self.plan.groups()))[rank::world_size]:
                if number in done:
                    report(sum(run.epochs[-1] for run in runs) * self.task.size("train"))
                else:
                    self.group(number, runs, report)
                    self._commit_small()
        except (KeyboardInterrupt, NetspaceError):
            self._commit_small(now=True)
            raise
        self._commit_small(now=True)

    def group(self, number: int, runs: Sequence[RunPlan], report: Callable[[int], None]) -> None:
        """Train one group to its end, from its checkpoint if there is one.

        Members of one that ends soon are left to be committed together with other groups.
        """
        images = self.task.size("train")
        chosen = self.candidates[runs[0].arch]
        way = self.plan.ways[runs[0].arch]
        known = self.widths.get(chosen.id), self.forwards.get(chosen.id)
        group = Group(self.task, chosen.make, runs, self.plan.recipe, way, *known)
        self.forwards[chosen.id] = group.forward
        checkpoint = parts_folder(self.path) / f"group-{number:05d}.pt"
        if checkpoint.exists():
            state = read_torch(checkpoint)
            with resuming_from(checkpoint):
                group.load(state)
            report(group.epochs_done * images)
        self._drop_since(number, group.round)
        waiting: list[Snapshot] = []
        whole = not checkpoint.exists()  # whether nothing of it is on disk
        committed = saved = time.monotonic()
        for seen, snapshot in group.epochs():
            self._note_width(chosen.id, way, group.width)
            if snapshot is not None:
                waiting.append(snapshot)
            now = time.monotonic()
            if waiting and not group.runs and whole and now - committed <= COMMIT_EVERY:
                self.uncommitted.append((number, chosen.id, self._population(chosen, waiting)))
                waiting = []
            if waiting and (now - committed > COMMIT_EVERY or not group.runs):
                report(0)  # ends this process if the builder is gone: another may have begun
                self._commit(number, group, chosen, waiting)
                waiting, committed, whole = [], now, False
            if group.runs and now - saved > CHECKPOINT_EVERY:
                if waiting:  # members that a checkpoint counts as done are on disk before it
                    self._commit(number, group, chosen, waiting)
                    waiting, committed = [], now
                report(0)  # as above
                write_torch(checkpoint, group.state())
                saved, whole = now, False
            self._commit_small()
            report(seen)
        checkpoint.unlink(missing_ok=True)

    def _note_width(self, name: str, way: Way, width: int) -> None:
        """Print once that memory was short, and start later groups with the width that fitted."""
        if width < self.widths.get(name, way.fused):
            self.widths[name] = width
            print(
                f"{printable(name)}: {way.fused} networks at once did not fit into memory; {width} do", file=sys.stderr
            )

    def _commit(self, number: int, group: Group, chosen: Candidate, snapshots: list[Snapshot]) -> None:
        end = "" if group.runs else LAST
        part = parts_folder(self.path) / f"part-{number:05d}-{group.round:06d}{end}.h5"
        write_zoo(part, self.header, {chosen.id: self._population(chosen, snapshots)}, self.plan.shard)

    def _drop_since(self, number: int, round: int) -> None:
        """Delete what a killed worker committed of a group after `round`: it is trained again, and may differ in the last bit."""
        for part in parts_folder(self.path).glob(f"part-{number:05d}-*.h5"):
            if (found := UNFINISHED.fullmatch(part.name)) and int(found[1]) > round:
                part.unlink()

    def _commit_small(self, now: bool = False) -> None:
        """Commit the groups that wait for it, if it is time."""
        if not self.uncommitted or not (now or time.monotonic() - self.committed > COMMIT_EVERY):
            return
        first, last = self.uncommitted[0][0], self.uncommitted[-1][0]
        by_arch: dict[str, list[Population]] = {}
        for _, name, population in self.uncommitted:
            by_arch.setdefault(name, []).append(population)
        joined = {
            name: Population(
                each[0].spec, np.concatenate([one.preps for one in each]), np.concatenate([one.members for one in each])
            )
            for name, each in by_arch.items()
        }
        part = parts_folder(self.path) / f"part-{first:05d}-to-{last:05d}-by-{self.step}{LAST}.h5"
        write_zoo(part, self.header, joined, self.plan.shard)
        self.uncommitted, self.committed = [], time.monotonic()

    def _population(self, chosen: Candidate, snapshots: Sequence[Snapshot]) -> Population:
        rows, tables = [], []
        for snapshot in snapshots:
            flat, table = self._members(chosen, snapshot)
            rows.append(prep.pack(flat, chosen.size))
            tables.append(table)
        return Population(chosen.spec, torch.cat(rows).cpu().numpy(), np.concatenate(tables))

    def _members(self, chosen: Candidate, snapshot: Snapshot) -> tuple[Tensor, np.ndarray]:
        """Return folded parameters (M, P) and table rows (M,) of a snapshot's members; zeros if they diverged."""
        finite = torch.stack(
            [value.isfinite().reshape(len(value), -1).all(1) for value in snapshot.state.values()]
        ).all(0)
        state = {
            name: torch.where(finite.view(-1, *[1] * (value.dim() - 1)), value, torch.ones_like(value))
            for name, value in snapshot.state.items()
        }
        flat = prep.flatten(chosen.folder(state), chosen.spec)
        seeds = torch.tensor([run.seed for run in snapshot.runs])
        scores = member_scores(self.nets[chosen.id], flat, self.task, seeds)
        table = np.zeros(len(flat), dtype=MEMBER)
        for index, run in enumerate(snapshot.runs):
            ok, row = bool(finite[index]), table[index]
            row["seed"], row["run"], row["epochs"] = run.seed, run.run, snapshot.epochs[index]
            row["learning_rate"] = run.learning_rate
            for split, values in scores.items():
                row[f"accuracy_{split}"] = values[index] if ok else np.nan
            row["split"] = run.split.encode() if ok else b""
            row["status"] = b"ok" if ok else b"diverged"
            row["source"] = (self.task.member_name(run.seed) or self.plan.recipe.name).encode()[:160]
        return torch.where(finite[:, None], flat, torch.zeros_like(flat)), table


def member_scores(nets: NetBatch, flat: Tensor, task: Task, seeds: Tensor) -> dict[str, np.ndarray]:
    """Return the scores (M,) of networks (M, P), of runs with `seeds` (M,), on each split of a task.

    At most `TRAIN_IMAGES` inputs of a split are used.
    """
    return {
        split: task.evaluate(lambda x: nets(flat, x, shared=not task.own_inputs), split, seeds, TRAIN_IMAGES)
        .cpu()
        .numpy()
        for split in SPLITS
    }


def finished_groups(path: Path) -> set[int]:
    """Return the numbers of the groups of the zoo at `path` that have committed their last member."""
    done: set[int] = set()
    for file in parts_folder(path).glob(f"part-*{LAST}.h5"):
        if found := PART.fullmatch(file.name):
            first, last, step = (int(each) if each else 0 for each in found.groups())
            done.update(range(first, last + 1, step) if step else [first])
    return done


def main(arguments: list[str]) -> int:
    """Run a worker: PATH, RANK, WORLD_SIZE and architectures to trust. Return 0 for done, 1 for failed.

    Its standard output is for the builder alone, a line for each report; what anything else prints there goes to standard error.

    Raises `SystemExit` once the builder that started it is gone.
    """
    path, rank, world_size = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a network prints is no report: it goes to the log
    archs.trust(*arguments[3:])
    parent = os.getppid()

    def report(images: int) -> None:
        if os.getppid() != parent:  # the builder was killed: another start will go on
            raise SystemExit(1)
        print(images, file=reports, flush=True)

    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        plan = Plan.read(path)
        if plan is None:
            raise NetspaceError(f"{path} is not being built: there is no plan for it")
        Worker(plan, path).run(rank, world_size, report)
    except NetspaceError as error:
        print(json.dumps({"error": str(error)}), file=reports, flush=True)
        return 1
    except (KeyboardInterrupt, BrokenPipeError):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
