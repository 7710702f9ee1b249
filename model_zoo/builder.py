"""`build`: from a recipe to a zoo file, by one process or several, resumed where it was interrupted.

On CPUs every core gets a worker process with one thread, which is faster than one process with several threads. Under
`accelerate launch` the processes divide the groups among them instead, and the main one writes the file at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, Literal

import torch

from model_zoo.align import write_aligned
from model_zoo.forward import Precision, Way
from model_zoo.recipe import RunPlan, ZooRecipe, num_runs, planned_runs
from model_zoo.trainer import Group
from model_zoo.work import Candidate, Plan, Worker, candidate, candidates, finished_groups, runs_of
from netspace import archs
from netspace.config import validate
from netspace.distributed import begin
from netspace.errors import NetspaceError, NetspaceWarning, UsageError, first_line, printable
from netspace.files import locked, remove_leftovers
from netspace.hardware import pick_device
from netspace.networks.graph import reason
from netspace.precision import calibration_file, fastest
from netspace.process import available_cores
from netspace.progress import progress
from netspace.streams import generator
from netspace.tasks import Task, load
from netspace.zoo import Shard, Zoo, merge, parts_folder, teacher_path, zoo_lock

FUSED = (8, 32, 128)  # group sizes that calibration tries in addition to 1
WORKER = (  # a worker's program: it imports our `model_zoo`, even if the current folder has one
    "import sys; from netspace.process import import_model_zoo; import_model_zoo(); "
    "from model_zoo.work import main; sys.exit(main(sys.argv[1:]))"
)
TAIL = 4096  # bytes at the end of a failed worker's log, whose last line is the error
PRECISIONS: tuple[Precision, ...] = ("float32", "bf16")


def build(recipe: ZooRecipe, path: Path, workers: int | None = None, shard: Shard | None = None) -> Path:
    """Build the zoo of `recipe` at `path` and return the path; continue an interrupted build of the same recipe.

    The teacher, if the recipe has one, becomes a zoo of its own next to it (`netspace.zoo.teacher_path`). `workers` is
    the number of processes on a CPU, by default one for each core. A `shard` is a zoo file in the folder `path`, whose
    path is returned; it needs and knows none of the others. The first shard builds the teacher.

    Raises `UsageError` if `path` has a zoo of another recipe, or the beginning of one, or if there are more shards than
    runs; `NetspaceError` if another builder is at work.

    >>> recipe = ZooRecipe.model_validate({
    ...     "data": {"name": "digits", "limit": 100}, "archs": {"lenetlike": {"arch": "lenetlike", "width": 0.25}},
    ...     "members": {"train": 2, "val": 0, "test": 0}, "epochs": {"first": 1, "last": 2}, "fused": 2,
    ... })
    >>> build(recipe, folder / "zoo.h5", workers=1).name
    'zoo.h5'
    """
    file = path if shard is None else _shard_file(recipe, path, shard)
    teacher = recipe.teacher_recipe() if shard is None or shard.index == 1 else None
    folder = path.resolve()  # of shards, which may be called '.'
    teacher_file = folder.parent / f"{folder.name}.teacher.h5" if shard else teacher_path(path)
    if teacher is not None:  # mistakes in its recipe are reported before other networks are trained
        for config in teacher.archs.values():
            archs.resolve(config.arch)
        planned_runs(teacher)
        if teacher_file.exists() and not parts_folder(teacher_file).exists():
            _check_recipe(teacher, teacher_file)
    _build(recipe, file, workers, shard)
    if teacher is not None:
        _build(teacher, teacher_file, workers)
    return file


def _shard_file(recipe: ZooRecipe, folder: Path, shard: Shard) -> Path:
    """Return the path of a shard's file. Raises `UsageError` if the folder is a file, or the recipe cannot be divided so."""
    if folder.is_file():
        raise UsageError(f"{folder} is a file, but a shard is written into a folder: choose another --out")
    if recipe.align:
        raise UsageError(
            "a shard of a recipe with align=true was asked for, but only a whole zoo can be aligned: set align=false, and align "
            "the folder of all shards (`netspace zoo align`)"
        )
    if shard.count > (runs := num_runs(recipe)):
        raise UsageError(
            f"{shard.count} shards were asked for of a zoo of {runs} training runs: ask for at most {runs}"
        )
    planned_runs(recipe, shard)  # mistakes in the recipe are reported before anything is written
    return folder / shard.file_name


def begun(path: Path) -> tuple[ZooRecipe, Shard | None]:
    """Return the recipe of a zoo whose build, or whose teacher's, was interrupted, and which shard of it `path` is.

    Raises `UsageError` if there is none at `path`, or nothing of it is left to build, and `NetspaceError` for a damaged one.
    """
    if (plan := Plan.read(path)) is not None:
        return plan.recipe, plan.shard
    if path.exists() and parts_folder(teacher_path(path)).exists():
        with Zoo(path) as zoo:
            return validate(ZooRecipe, zoo.header.recipe, str(path), written=True), None
    what = "is complete" if path.exists() else "does not exist, and no members of it are finished"
    raise UsageError(
        f"{path} {what}: there is nothing to resume (`netspace zoo build RECIPE --out {path}` begins a zoo)"
    )


def _build(recipe: ZooRecipe, path: Path, workers: int | None, shard: Shard | None = None) -> None:
    ranks = begin()
    if path.exists() and not parts_folder(path).exists():
        _check_recipe(recipe, path)
        _tidy(path)
        return
    if ranks is not None and ranks.num_processes > 1:
        _build_ranked(recipe, path, ranks, shard)
    else:
        with _lock(path):
            _tidy(path)
            task, plan = _prepare(recipe, path, shard)
            _train(plan, path, task, workers)
            _finish(path)


def _prepare(recipe: ZooRecipe, path: Path, shard: Shard | None) -> tuple[Task, Plan]:
    for config in recipe.archs.values():
        archs.resolve(config.arch)  # refuses code that is not trusted
    device = pick_device(recipe.device)
    task = load(recipe.data, device=device)
    runs = runs_of(recipe, shard)
    task.prepare(torch.tensor([run.seed for run in runs]))
    teacher = recipe.teacher_recipe()  # trained after the zoo; mistakes are reported before
    for name, config in teacher.archs.items() if teacher else ():
        candidate(name, config, task, recipe.prep_width, check="trained")
    before = Plan.read(path)
    if before is not None:
        difference = recipe.changed_since(before.recipe.science())
        if difference:
            raise UsageError(
                f"{path} was begun with another recipe: {difference}; start it with the recipe it was begun with, "
                f"or choose another --out (or delete {parts_folder(path)})"
            )
        if before.shard != shard:
            raise UsageError(f"{path} was begun as another shard ({before.shard}): delete {parts_folder(path)}")
        if before.split_hash != task.split_hash:
            raise NetspaceError(
                f"{path} was begun with other data: the images or labels of {task.name} have changed since"
            )
        return task, before
    with _threads(1 if device.type == "cpu" else torch.get_num_threads()):
        chosen = candidates(recipe, task, check="trained")
        present = {run.arch for run in runs}
        ways = {name: choose_way(each, recipe, task, runs) for name, each in chosen.items() if name in present}
    plan = Plan(recipe, task.split_hash, ways, shard)
    plan.write(path)
    return task, plan


def choose_way(chosen: Candidate, recipe: ZooRecipe, task: Task, planned: Sequence[RunPlan] | None = None) -> Way:
    """Return how the `planned` runs of an architecture, else all, are trained fastest here; it takes seconds, once.

    Each way trains its group for a few steps on real images; the shortest time for an image and member wins. Raises
    `NetspaceError` if a network cannot be trained.
    """
    runs = [run for run in planned or planned_runs(recipe) if run.arch == chosen.id]
    sizes = [1, *(size for size in FUSED if size <= len(runs))] if recipe.fused is None else [recipe.fused]
    batch = min(recipe.batch_size, task.size("train"))
    plain = recipe.model_copy(update={"compile": False})  # the fastest uncompiled way is taken for compiled ones too

    def trial(way: Way) -> Callable[[], object]:
        group = Group(task, chosen.make, runs[: way.fused], plain, way)
        count = len(group.runs)
        index = torch.randint(task.size("train"), (count, batch), generator=generator(0)).to(task.device)
        seeds = torch.tensor([run.seed for run in group.runs])
        images, labels = task.inputs("train", index, seeds), task.targets("train", index, seeds)
        rates = torch.zeros(count, 1, device=task.device)
        return lambda: [group.step(images, labels, rates) for _ in range(2)]

    subject = f"zoo 4 {chosen.spec.to_json()} batch {batch} {recipe.optimizer.name} {task.device.type}"
    ours = any(len(shape) == 4 for shape in chosen.spec.shapes) and not recipe.compile
    best: Way | None = None
    for size in sizes:  # larger groups are tried only as long as they win
        ways = _ways(size, recipe.precision, task.device.type == "cpu", ours) + ([best] if best else [])
        try:
            if len(ways) == 1:
                if size > 1:
                    trial(ways[0])()
                return ways[0]
            trials = {str(way): trial(way) for way in ways}
            choice = fastest(subject, trials, repeats=2, work={str(way): way.fused for way in ways})
        except NetspaceError:
            raise
        except Exception as error:  # whatever the forward or the backward pass raises
            how = f"{size} at once" if size > 1 else "at all"
            what = "set fused to 1, or leave it out" if size > 1 else "mend its forward pass"
            raise NetspaceError(f"{chosen.spec.arch} cannot be trained {how} ({reason(error)}): {what}") from error
        winner = next(way for way in ways if str(way) == choice)
        if winner == best:
            break
        best = winner
    assert best is not None
    return best


def _ways(size: int, precision: Precision | Literal["auto"], cpu: bool, ours: bool) -> list[Way]:
    """Return what may be fastest for groups of a size; on CPUs plain layouts never are for bf16 and stacked networks.

    `ours` is whether our own loops can run their convolutions, which no compiled pass can have.
    """
    ways = []
    for kind in PRECISIONS if precision == "auto" else (precision,):
        if cpu and size > 1 and kind == "bf16" and precision == "auto":
            continue  # slow
        if not cpu or (size == 1 and kind == "float32"):
            ways.append(Way(size, kind))
        ways.append(Way(size, kind, "channels last"))
        if cpu and size > 1 and kind == "float32" and ours:
            ways.append(Way(size, kind, "batch last"))
    return ways


def _train(plan: Plan, path: Path, task: Task, workers: int | None) -> None:
    groups = plan.groups()
    total = sum(run.epochs[-1] for runs in groups for run in runs) * task.size("train")
    ways = ", ".join(f"{name} {way}" for name, way in plan.ways.items())
    timed = "" if plan.recipe.fused else f"; as timed here once, delete {calibration_file()} to time again"
    print(printable(f"training {sum(map(len, groups))} runs ({ways}{timed})", lines=False), file=sys.stderr)
    with progress("zoo", total, "images") as bar:
        if task.device.type == "cpu":
            count = min(workers or available_cores(), len(groups))
            if count > 1:
                _run_workers(plan, path, count, bar.advance)
                return
        alone = len(groups) == 1 or task.device.type != "cpu"  # no other worker needs the cores
        with _threads(torch.get_num_threads() if alone else 1):
            Worker(plan, path, task).run(0, 1, bar.advance)


def _run_workers(plan: Plan, path: Path, count: int, report: Callable[[float], None]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    # architectures that this process trusts and has built already: a worker trusts no names in files
    trusted = sorted({config.arch for config in plan.recipe.archs.values() if ":" in config.arch})
    worker = [sys.executable, "-c", WORKER, str(path)]
    commands = [[*worker, str(rank), str(count), *trusted] for rank in range(count)]
    logs = [tempfile.TemporaryFile() for _ in commands]  # noqa: SIM115 - a pipe that is not read would block its writer
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        for command, log in zip(commands, logs, strict=True)
    ]
    errors: list[str] = []

    def listen(process: subprocess.Popen[str], log: IO[bytes]) -> None:
        assert process.stdout is not None
        with process, log:  # closes them
            try:
                for line in process.stdout:
                    if line.startswith("{"):
                        errors.append(str(json.loads(line)["error"]))
                    elif line.strip().isdecimal():
                        report(int(line))
                    else:  # of a module that was imported before the worker began
                        sys.stderr.write(printable(line))
            except Exception as error:  # it would end this thread alone
                errors.append(f"the reports of a worker process cannot be read: {first_line(error)}")
                process.terminate()
            if process.wait() and not errors:
                log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL))
                tail = log.read().decode(errors="replace").strip().splitlines()
                errors.append(
                    f"a worker process ended with code {process.returncode}: {tail[-1] if tail else 'no message'}"
                )

    listeners = [threading.Thread(target=listen, args=pair, daemon=True) for pair in zip(processes, logs, strict=True)]
    try:
        for listener in listeners:
            listener.start()
        while any(listener.is_alive() for listener in listeners) and not errors:
            for listener in listeners:
                listener.join(timeout=0.1)
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for listener in listeners:
            if listener.ident is not None:
                listener.join()
    if errors:
        raise NetspaceError(errors[0])


def _build_ranked(recipe: ZooRecipe, path: Path, ranks: Any, shard: Shard | None) -> None:
    runs = len(runs_of(recipe, shard))
    if ranks.num_processes > runs:
        raise UsageError(
            f"{ranks.num_processes} processes were started for a zoo of {runs} training runs: start at most {runs}"
        )
    main = ranks.is_main_process
    with _lock(path) if main else nullcontext():
        if main:
            _tidy(path)
            _prepare(recipe, path, shard)
        ranks.wait_for_everyone()
        _train_rank(recipe, path, ranks)
        ranks.wait_for_everyone()
        if main:
            _finish(path)
    ranks.wait_for_everyone()


def _train_rank(recipe: ZooRecipe, path: Path, ranks: Any) -> None:
    plan = Plan.read(path)
    assert plan is not None
    task = load(recipe.data, device=ranks.device if recipe.device == "auto" else pick_device(recipe.device))
    groups = plan.groups()[ranks.process_index :: ranks.num_processes]
    total = sum(run.epochs[-1] for runs in groups for run in runs) * task.size("train")
    with _threads(1 if task.device.type == "cpu" else torch.get_num_threads()):
        with progress(f"zoo, process {ranks.process_index}", total, "images") as bar:
            Worker(plan, path, task).run(ranks.process_index, ranks.num_processes, bar.advance)


def _finish(path: Path) -> None:
    """Merge the parts into the zoo. Raise `NetspaceError` if a group of the plan has not committed its last member."""
    with zoo_lock(path, builder=True):
        plan = Plan.read(path)
        assert plan is not None
        count = len(plan.groups())
        if missing := set(range(count)) - finished_groups(path):
            raise NetspaceError(
                f"{path} was to be finished, but {len(missing)} of its {count} groups of networks are not trained yet: build it "
                "again to train them"
            )
        parts = sorted(parts_folder(path).glob("part-*.h5"))
        if plan.recipe.align:
            unaligned = parts_folder(path) / "unaligned.h5"  # goes with the folder
            unaligned.unlink(missing_ok=True)
            merge(unaligned, parts, ordered=True)
            try:
                write_aligned(unaligned, path)
            except UsageError as error:  # of graphs that cannot be traced: the networks are as good unaligned
                warnings.warn(f"{path} is not aligned: {error}", NetspaceWarning, stacklevel=2)
                unaligned.rename(path)
        else:
            merge(path, parts, ordered=True)
        done = _done(path)
        parts_folder(path).rename(done)  # at once: what is left of it must not look like an interrupted build
    shutil.rmtree(done)


def _done(path: Path) -> Path:
    return path.with_name(f".{path.name}.done")


def _tidy(path: Path) -> None:
    """Delete what killed builders left of a finished zoo, or of one whose lock the caller holds."""
    if _done(path).exists():
        shutil.rmtree(_done(path))
    remove_leftovers(path.parent, path.name)


def _check_recipe(recipe: ZooRecipe, path: Path) -> None:
    with Zoo(path) as zoo:
        difference = recipe.changed_since(zoo.header.recipe)
    if difference:
        raise UsageError(
            f"{path} exists and was built with another recipe: {difference}; choose another --out or delete it"
        )


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Make this builder the only writer of the zoo at `path`, from the beginning of a build on."""
    begun = parts_folder(path).exists()
    with locked(parts_folder(path) / "lock", f"{path} is being built by another process"):
        with zoo_lock(path, builder=True):
            if path.exists() and not begun:
                raise NetspaceError(f"{path} was written by another process just now: start the build again")
        yield


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
