"""Latents refined by descent on what the networks that they were encoded from answer, and the same descent on weights.

Axes: M members, P parameters, B inputs, C outputs, E latent size, H W of a PRep.

An encoder reads a latent from a network in one pass, and a general one: it errs for each by a little. Descent on the latent, with the
decoder frozen, takes most of that away. It sees training inputs and the networks' answers to them, and no labels. Of shapes it is the
descent by which an auto-decoder finds its latents (DeepSDF, Park et al. 2019), on the same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from netspace.commands.convert import Named
from netspace.commands.sample import known_latents
from netspace.errors import UsageError
from netspace.losses import class_loss
from netspace.networks.batch import NetBatch
from netspace.networks.family import Networks
from netspace.progress import progress
from netspace.space import Space
from netspace.tasks import Task
from netspace.training.batches import CACHE_BYTES
from netspace.training.deepsdf import DeepSdfConfig
from netspace.training.descent import (
    SHARED_INPUTS,
    DescentConfig,
    OwnSamples,
    Samples,
    SharedSamples,
    descend,
    spread_over,
)
from netspace.training.validation import slices
from netspace.zoo import Zoo

WEIGHTS_RATE = 0.01  # of Adam on weights


def check_refine(steps: int) -> None:
    """Raise `UsageError` for no step."""
    if steps < 1:
        raise UsageError(f"--refine {steps} was asked for, but latents are refined by 1 step or more")


def descent(task: Task, steps: int, of_shapes: DeepSdfConfig | None = None) -> DescentConfig:
    """Return how latents are refined by so many steps: those of shapes as an auto-decoder's are found."""
    return (of_shapes or DeepSdfConfig()).refining(steps) if task.surfaces else DescentConfig(steps=steps)


class Answers:
    """Training inputs and what networks (M,) of `seeds` (M,) answer to them, for a descent on a part of the networks at a time.

    Answers that fit 1 GiB are asked for once, so that two descents on what the same networks answer share them.
    """

    def __init__(self, target: Networks, seeds: Tensor, task: Task, config: DescentConfig) -> None:
        self.target, self.seeds, self.task, self.config = target, seeds, task, config
        self._cache: dict[tuple[int, int], Samples] = {}
        self._bytes = 0

    def of(self, part: slice) -> Samples:
        """Return the inputs, of each network's own where the task has such, and the answers of a part of the networks."""
        if (key := (part.start, part.stop)) in self._cache:
            return self._cache[key]
        samples = self._asked(part)
        self._bytes += samples.values.nbytes
        if self._bytes <= CACHE_BYTES:
            self._cache[key] = samples
        return samples

    def _asked(self, part: slice) -> SharedSamples | OwnSamples:
        target, task = self.target[part], self.task
        if task.own_inputs:
            return OwnSamples.of_networks(target, self.seeds[part], task, "train")
        return SharedSamples.of_networks(target, task, "train", self.config)


def refine(
    space: Space,
    zoo: Zoo,
    target: Networks,
    seeds: Tensor,
    latents: Tensor,
    task: Task,
    config: DescentConfig,
    answers: Answers | None = None,
) -> Tensor:
    """Return the latents (M, E) of networks (M,) of `seeds` (M,) after `config.steps` steps from `latents` (M, E).

    The loss is the space's behaviour loss (NetSpace, Eq. 1) between answers of the networks and of those that latents decode
    to, for training inputs; of shapes the mean absolute difference (DeepSDF, Eq. 4). Rates are in units of the spread of
    training latents. There is no prior: the start is near already. Each stays a network of its own architecture, with the
    loss of the ClassId head (Eq. 6) where there are several. `answers` are those of the networks, if they were asked before.
    """
    spreads = {name: spread_over(known_latents(space, zoo, space.arch_class(name))) for name in set(target.archs)}
    spread, loss, found = torch.stack([spreads[name] for name in target.archs]), _loss(space, task), []
    answers, parts = answers or Answers(target, seeds, task, config), _parts(space, task, len(target), config)
    with progress("latents", len(parts) * config.steps, "steps") as bar:
        for part in parts:
            class_ids = target.class_ids[part]

            def of_latents(moved: Tensor, inputs: Tensor, values: Tensor, class_ids: Tensor = class_ids) -> Tensor:
                total = loss(space.decode_all(moved, class_ids), inputs, values)
                if space.model.head is None:
                    return total
                return total + class_loss(space.model.head(moved), class_ids.to(moved.device)).sum()

            found.append(descend(of_latents, latents[part], spread[part], answers.of(part), config, bar.advance))
    return torch.cat(found)


def refine_weights(
    space: Space,
    target: Networks,
    seeds: Tensor,
    start: Networks,
    task: Task,
    config: DescentConfig,
    answers: Answers | None = None,
) -> Networks:
    """Return networks (M,) after the same descent on weights instead of latents, from networks `start` (M,).

    Same inputs, loss, steps and schedule as `refine`, with a rate of `WEIGHTS_RATE`; `answers` as there.
    """
    loss, rate, found = _loss(space, task), config.model_copy(update={"rate": WEIGHTS_RATE}), []
    answers, parts = answers or Answers(target, seeds, task, config), _parts(space, task, len(target), config)
    with progress("weights", len(parts) * config.steps, "steps") as bar:
        for part in parts:
            first = start[part]

            def of_weights(flat: Tensor, inputs: Tensor, values: Tensor, first: Networks = first) -> Tensor:
                return loss(Networks(first.family, flat.view_as(first.preps), first.class_ids), inputs, values)

            flat = first.preps.flatten(1)
            moved = descend(of_weights, flat, torch.ones_like(flat), answers.of(part), rate, bar.advance)
            found.append(moved.view_as(first.preps))
    return Networks(start.family, torch.cat(found), start.class_ids)


def _parts(space: Space, task: Task, count: int, config: DescentConfig) -> list[slice]:
    """Return which of `count` networks are refined at once: so many as take the memory of a training step.

    Which they are changes nothing, as each depends on itself alone. All at once where each has inputs of its own, which are drawn for
    all together.
    """
    recipe = space.recipe
    at_once = recipe.networks * recipe.images // (config.inputs or SHARED_INPUTS)
    return slices(count, count if task.own_inputs else max(at_once, 1))


def _loss(space: Space, task: Task) -> Callable[[Networks, Tensor, Tensor], Tensor]:
    """Return the loss of networks (M,) for inputs and wanted answers (M, B, C): a scalar, the sum over networks."""
    terms = space.recipe.loss

    def loss(networks: Networks, inputs: Tensor, values: Tensor) -> Tensor:
        def run(nets: NetBatch, flat: Tensor, *rows: Tensor) -> Tensor:
            own = inputs if not task.own_inputs else inputs[rows[0].to(inputs.device)]
            return nets(flat, own, shared=not task.own_inputs)

        outputs = networks.each(run, torch.arange(len(networks)))
        if task.surfaces:
            return (outputs - values).abs().mean((1, 2)).sum()
        return len(networks) * task.behaviour_loss(outputs, values, terms.temperature, terms.relative)

    return loss


def refined(space: Space, zoo: Zoo, named: Sequence[Named], task: Task, steps: int) -> list[Named]:
    """Return networks that a user named with refined latents; those of latent files stay as they are.

    Raises `UsageError` for no step, and if none of them has weights.
    """
    check_refine(steps)
    known = [each for each in named if each.flat is not None]
    if not known:
        files = " and ".join(each.name for each in named)
        raise UsageError(
            f"--refine {steps} was asked for, but latents are refined by what networks answer, and {files} holds a latent "
            "alone: name a member or the state dict of a network, or leave --refine out"
        )
    target = Networks.concatenate(
        [Networks.of_class(space.family, each.class_id, each.flat[None]) for each in known if each.flat is not None]
    )
    seeds, latents = torch.tensor([each.seed for each in known]), torch.stack([each.latent for each in known])
    found = iter(refine(space, zoo, target, seeds, latents, task, descent(task, steps)))
    return [each if each.flat is None else replace(each, latent=next(found)) for each in named]
