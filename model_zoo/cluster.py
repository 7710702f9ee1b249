"""Shards of a zoo, built on a cluster by Ray or Slurm: the engine deals them out, starts them again, and knows nothing else.

A task is `netspace zoo build RECIPE --shard I/N`: whatever is killed goes on where it stopped, so tasks may be started any
number of times. All machines see one folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_zoo.builder import build
from model_zoo.recipe import ZooRecipe, num_runs
from netspace import archs
from netspace.errors import NetspaceError, UsageError, first_line
from netspace.progress import progress
from netspace.zoo import Shard, Zoo

RETRIES = 20  # starts of a shard whose worker was killed, before the build fails
SHARDS_EACH = 4  # shards for each processor or GPU, so that none waits long for the last
POLL = 2.0  # seconds between two looks at what has finished
MINUTES = 24 * 60  # of a Slurm job, which is started again when they are over


def build_shard(settings: Mapping[str, Any], folder: str, shard: str, trusted: Sequence[str] = ()) -> str:
    """Build one shard of a recipe, given by its settings, and return the path of its file. Raises as `build`."""
    archs.trust(*trusted)
    return str(build(ZooRecipe.model_validate(settings), Path(folder), 1, Shard.parse(shard)))


def _tasks(recipe: ZooRecipe, folder: Path, count: int) -> list[tuple[dict[str, Any], str, str, list[str]]]:
    """Return the arguments of `build_shard` of all shards."""
    if count > (runs := num_runs(recipe)):
        raise UsageError(f"{count} shards were asked for of a zoo of {runs} training runs: ask for at most {runs}")
    for config in recipe.archs.values():
        archs.resolve(config.arch)  # refuses code that is not trusted before anything is started
    trusted = sorted({config.arch for config in recipe.archs.values() if ":" in config.arch})
    settings = recipe.model_dump(mode="json")
    return [(settings, str(folder.absolute()), f"{index}/{count}", trusted) for index in range(1, count + 1)]


def build_by_ray(recipe: ZooRecipe, folder: Path, address: str, count: int | None = None) -> Path:
    """Build a zoo as `count` shards in `folder`, as tasks of Ray, and return the folder.

    `address` is that of a running cluster, 'auto' for the one of this machine, or 'local' to start one here. A task has one
    processor, and a GPU if the cluster has some; a task whose worker is killed is started again.

    Raises `UsageError` if Ray is not installed or there are more shards than runs, `NetspaceError` if a cluster cannot be
    reached or a shard cannot be built.
    """
    try:
        import ray
    except ImportError:
        raise UsageError('--ray needs Ray: pip install "netspace[ray]"') from None
    try:
        where = {} if address == "local" else {"address": address}
        ray.init(**where, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray raises connection, value and runtime errors alike
        raise NetspaceError(f"no cluster of Ray answers at {address}: {first_line(error)}") from None
    try:
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if recipe.device != "cpu" else 0
        runs = num_runs(recipe)
        tasks = _tasks(recipe, folder, count or min(runs, SHARDS_EACH * (gpus or int(resources.get("CPU", 1)))))
        task = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_retries=RETRIES)(build_shard)
        pending = [task.remote(*arguments) for arguments in tasks]

        def finished() -> Iterator[int]:
            nonlocal pending
            while pending:
                done, pending = ray.wait(pending, num_returns=len(pending), timeout=POLL)
                for each in done:
                    with _one_sentence():
                        ray.get(each)
                yield len(done)

        _wait(finished(), len(tasks))
    finally:
        ray.shutdown()
    return _complete(folder)


def build_by_slurm(
    recipe: ZooRecipe, folder: Path, cluster: str, count: int, parameters: Mapping[str, str | int] | None = None
) -> Path:
    """Build a zoo as `count` shards in `folder`, as a job array of Slurm by submitit, and return the folder.

    `cluster` is 'slurm', or 'local' for processes of this machine, or 'debug' for this process, which stops at errors. `parameters` are
    submitit's, such as slurm_partition. Logs are in `FOLDER.jobs`.

    Raises `UsageError` if submitit is not installed, `NetspaceError` if jobs cannot be submitted or a shard cannot be built.
    """
    try:
        import submitit
    except ImportError:
        raise UsageError('--slurm needs submitit: pip install "netspace[slurm]"') from None
    tasks = _tasks(recipe, folder, count)
    with _one_sentence():
        logs = folder.absolute().parent / f"{folder.absolute().name}.jobs"
        executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
        executor.update_parameters(**{"timeout_min": MINUTES, "name": recipe.name, **(parameters or {})})
        jobs = executor.map_array(build_shard, *zip(*tasks, strict=True))

    def finished() -> Iterator[int]:
        for job in jobs:
            with _one_sentence():
                job.result()
            yield 1

    _wait(finished(), len(tasks))
    return _complete(folder)


def _wait(finished: Iterable[int], count: int) -> None:
    with progress("zoo", count, "shards") as bar:
        for number in finished:
            bar.advance(number)


def _complete(folder: Path) -> Path:
    """Return the folder. Raises `NetspaceError` if it is not a zoo of all shards."""
    with Zoo(folder):
        return folder


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Turn an error of a task, which the engines wrap in their own, into a sentence."""
    try:
        yield
    except NetspaceError:
        raise
    except Exception as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, NetspaceError):
            raise NetspaceError(str(cause)) from None
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise NetspaceError(f"a shard was not built: {lines[-1].strip()}") from None
