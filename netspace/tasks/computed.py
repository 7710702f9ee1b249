"""Arrays that are computed once, by all cores, and cached on disk.

An entry is named by a key: a text with everything that it was computed from, versions included. A damaged entry is computed
again, and where the cache cannot be written everything is computed each time.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from netspace.errors import NetspaceError
from netspace.hardware import cache_folder
from netspace.io import read_tensors, write_tensors
from netspace.process import available_cores
from netspace.progress import progress

PARALLEL_SECONDS = 20.0  # of one core's work, from which processes are started: each imports torch first


class Entry(NamedTuple):
    """Arrays by name, and texts by name."""

    arrays: dict[str, np.ndarray]
    notes: dict[str, str]
    cached: bool = True  # False where it does not follow from the key alone


class Job(NamedTuple):
    """A call whose result is cached; it may run in another process, so the function is one of a module."""

    key: str
    function: Callable[..., Entry]
    arguments: tuple[Any, ...]
    seconds: float  # that it takes one core, roughly


def computed(jobs: Sequence[Job], what: str) -> Iterator[Entry]:
    """Yield the entry of each job, in order: from the cache, or computed and then cached.

    Those that are not in the cache are computed by as many processes as torch has threads, if that is worth their start: one
    in a process that shares its machine with others, as the workers that build a zoo do. `what` is the name of the work, for
    its progress.

    Raises `NetspaceError` if a process was ended from outside; what a job raises is raised here.
    """
    absent = {index for index, job in enumerate(jobs) if not _file(job.key).exists()}
    long = sum(jobs[index].seconds for index in absent) >= PARALLEL_SECONDS
    workers = min(available_cores(), torch.get_num_threads(), len(absent)) if long else 1
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin) if workers > 1 else None
    try:
        with progress(what, max(len(absent), 1), "shapes") as bar:
            futures = _submitted(pool, {index: jobs[index] for index in absent}) if pool else {}
            for index, job in enumerate(jobs):
                yield futures.pop(index).result() if index in futures else compute(job)
                bar.advance(float(index in absent))
    except BrokenProcessPool:
        raise NetspaceError(
            f"{what}: a process was ended, most likely because memory ran out; leave out the largest, or free memory and "
            "start again: what was done is cached"
        ) from None
    finally:
        if pool:
            pool.shutdown(wait=True, cancel_futures=True)


def compute(job: Job) -> Entry:
    """Return the entry of a job: from the cache, or computed and then cached, unless the entry is not to be."""
    file = _file(job.key)
    with suppress(NetspaceError):  # it is absent or damaged
        tensors, notes = read_tensors(file)
        return Entry({name: value.numpy() for name, value in tensors.items()}, notes)
    entry = job.function(*job.arguments)
    if not entry.cached:
        return entry
    with suppress(NetspaceError, OSError):
        write_tensors(file, {name: torch.from_numpy(value) for name, value in entry.arrays.items()}, **entry.notes)
    return entry


def _file(key: str) -> Path:
    name = hashlib.sha256(key.encode()).hexdigest()
    return (
        cache_folder() / "computed" / name[:2] / f"{name[2:]}.safetensors"
    )  # in parts: a folder lists its files when written


def _begin() -> None:
    """Set up a worker process: Ctrl-C is the parent's to handle, and one thread is enough."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["IGL_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def _submitted(pool: ProcessPoolExecutor, jobs: dict[int, Job]) -> dict[int, Future[Entry]]:
    """Submit jobs to new processes, which import the modules of the jobs' functions but do not run the user's script again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        return {index: pool.submit(compute, job) for index, job in jobs.items()}
    finally:
        sys.modules["__main__"] = main
