"""What it costs to rebuild a network from its compressed file, next to one inference of it: `compress eval --rebuild`.

A compressed network saves disk, not the memory and the work of running it: all weights are computed before the first
input is answered. Axes: B inputs of a batch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from netspace import archs
from netspace.archs import ArchConfig
from netspace.compression.originals import Pictures, find_original, run_module
from netspace.errors import UsageError
from netspace.hardware import PeakMemory
from netspace.models.coded_predictor import AnyCompressed, load_any
from netspace.networks.state_dict import run_types
from netspace.results.compressed import InferenceCost, RebuildCost, WorkCost
from netspace.streams import Stream, generator

RUNS = 5  # measured runs, of which the median counts; one before them sets up caches and threads
EVALUATED = 512  # inputs of a batch in which test images are evaluated
PICTURES = 32  # pictures of a batch, where no task is known


def rebuild_cost(
    path: Path,
    model: str | None = None,
    zoo_path: Path | None = None,
    arch: ArchConfig | None = None,
    pictures: Pictures | None = None,
    key: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    runs: int = RUNS,
) -> RebuildCost:
    """Measure what rebuilding the weights of a compressed file of any kind costs, and one inference of the rebuilt network.

    Rebuilding reads the file and computes all weights. The network is run by the architecture that the file names, or by that of
    the original `model`; where neither is known, nothing is said of its inference. Its inputs are noise; their shape is
    `input_shape`, or that of the task or of `pictures`. Batches are one input, and as many as evaluation takes at once.

    Raises:
        UsageError: The network is known, and the shape of its inputs is not.
        NetspaceError: `path` is no compressed file, or the network cannot be run; as `find_original`.

    >>> result = rebuild_cost(compressed, runs=1)  # the path of a compressed network
    >>> [each.batch for each in result.inference]
    [1, 32]
    """
    loaded = load_any(path)
    rebuilt = measured(partial(_rebuild, path), runs)
    module, shape, batch = _runner(loaded, model, zoo_path, arch, pictures, key)
    inferences: list[InferenceCost] = []
    if module is not None:
        shape = input_shape or shape
        if shape is None:
            raise UsageError(
                f"the cost of an inference depends on the shape of an input, which is not known of {model}: give --input-shape C,H,W"
            )
        module.load_state_dict(run_types(loaded.reconstruct(), module), strict=False)
        for count in sorted({1, batch}):
            noise = torch.randn(count, *shape, generator=generator(0, Stream.MEASURED_INPUTS))
            cost = measured(partial(run_module, module, noise, model or str(path)), runs)
            inferences.append(cost.extended(InferenceCost, batch=count))
    return RebuildCost(runs=runs, threads=torch.get_num_threads(), rebuild=rebuilt, inference=inferences)


def measured(work: Callable[[], Any], runs: int) -> WorkCost:
    """Return the median seconds of `runs` runs of `work`, its multiply-adds and the most memory that it takes at once.

    Multiply-adds are those of matrix products and convolutions that are really executed. Memory is that of tensors and arrays made
    by `work` (`PeakMemory`). Before what is timed, `work` runs three times.
    """
    work()
    with FlopCounterMode(display=False) as counter:
        work()
    with PeakMemory() as memory:
        work()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return WorkCost(
        seconds=statistics.median(seconds),
        multiply_adds=counter.get_total_flops() // 2,
        peak_bytes=memory.peak,
    )


def _rebuild(path: Path) -> dict[str, Tensor]:
    return load_any(path).reconstruct()


def _runner(
    loaded: AnyCompressed,
    model: str | None,
    zoo_path: Path | None,
    arch: ArchConfig | None,
    pictures: Pictures | None,
    key: str | None,
) -> tuple[nn.Module | None, tuple[int, ...] | None, int]:
    """Return the module that runs a compressed network, the shape of its inputs, and how many are evaluated at once."""
    shape: tuple[int, ...] | None = None if pictures is None else (3, pictures.size, pictures.size)
    module: nn.Module | None = None
    batch = PICTURES
    if model is not None:
        original, _ = find_original(model, zoo_path, arch=arch, key=key)
        module = original.module
        if original.task is not None and pictures is None:
            shape, batch = original.task.input_shape, min(EVALUATED, len(original.task.test))
        shape = shape or original.input_shape
    elif loaded.spec is not None:
        spec = loaded.spec
        module, shape = archs.skeleton(spec.arch, spec.settings, spec.input_shape), spec.input_shape
    return module, shape, batch
