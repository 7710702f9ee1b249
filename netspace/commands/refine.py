"""Latents of a space of shapes refined on samples of the networks that they were encoded from, as DeepSDF's are found.

Axes: M members, B points, C outputs, E latent size.

An encoder reads a latent from a network in one pass; an auto-decoder finds it by descent. For a fair comparison encoded latents go
on by the same descent, on the same samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from netspace.commands.sample import known_latents
from netspace.errors import UsageError
from netspace.networks.batch import NetBatch
from netspace.networks.family import Networks
from netspace.space import Space
from netspace.tasks import Task
from netspace.training.deepsdf import DeepSdfConfig, FieldSamples, descend
from netspace.zoo import Zoo


def check_refine(task: Task, steps: int) -> None:
    """Raise `UsageError` for a task whose networks are no shapes, or for no step."""
    if not task.surfaces:
        raise UsageError(
            f"--refine {steps} was asked for, but networks of {task.name} are no shapes: leave it out (`netspace optimize` "
            "improves latents of other networks)"
        )
    if steps < 1:
        raise UsageError(f"--refine {steps} was asked for, but latents are refined by 1 step or more")


def refine(
    space: Space, zoo: Zoo, target: Networks, seeds: Tensor, latents: Tensor, task: Task, config: DeepSdfConfig
) -> Tensor:
    """Return the latents (M, E) of networks (M,) of `seeds` (M,) after `config.fit_steps` steps from `latents` (M, E).

    The samples, their order, the loss and Adam are those by which DeepSDF's latents are found (`netspace.training.deepsdf`), rates
    in units of the spread of training latents. There is no prior: the start is near already. Each stays a network of its own
    architecture.
    """
    samples = FieldSamples.of_networks(target, seeds, task, "train")
    known = torch.cat([known_latents(space, zoo, arch) for arch in space.family if arch.trained])

    def run(nets: NetBatch, flat: Tensor, points: Tensor) -> Tensor:
        return nets(flat, points, shared=False)

    def fields(moved: Tensor, points: Tensor) -> Tensor:
        return space.decode_all(moved, target.class_ids).each(run, points)

    return descend(fields, latents, known.std(0), samples, config.model_copy(update={"prior": 0.0}))
