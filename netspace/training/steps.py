"""Steps: a batch becomes named terms of a loss. One class for each setting of the science.

Axes: M members, B images, C classes, H W of a PRep.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from netspace import losses
from netspace.data import TaskData
from netspace.functional import NetBatch
from netspace.prep import unpack
from netspace.runtime import generator, send
from netspace.training.recipe import SpaceRecipe
from netspace.training.sources import Images, PRepSource, Shuffle, Targets


class SingleStep:
    """The single-architecture setting (NetSpace, Sec. III): predicted networks behave like their targets, Eq. 1."""

    def __init__(
        self, recipe: SpaceRecipe, nets: NetBatch, source: PRepSource, task: TaskData, place: int = 0, shares: int = 1
    ) -> None:
        self.recipe, self.nets, self.source, self.task = recipe, nets, source, task
        self.place, self.shares = place, shares
        self.members = Shuffle(len(source), recipe.seed, stream=1)
        self.images = Images(task, recipe.seed)
        remember = recipe.remember_targets and self.images.fixed is not None and not recipe.noise
        with half(recipe.networks_precision, task.device):
            pool = self.images.fixed if remember else task.normalise(task.train.images[:1])
            assert pool is not None
            self.targets = Targets(nets, source, pool, remember)

    def __call__(self, model: nn.Module, number: int, part: int = 0) -> dict[str, Tensor]:
        """The terms of a part of step `number`, for this process's share of the networks; their sum is minimised.

        There are `recipe.accumulate` parts; the mean over parts and processes is the whole batch's.
        """
        recipe = self.recipe
        place, apart = dealt(recipe, part, self.place, self.shares)
        members = self._members(number, part)
        preps = self.source.take(members)
        if recipe.noise:
            preps = self._disturbed(preps, unwrapped(model).spread, number, place, apart)
        self.source.expect(self._members(*divmod(number * recipe.accumulate + part + 1, recipe.accumulate)))
        lines = recipe.loss.lines > 0 and len(members) > 1
        pairs = len(members) // 2 if lines else 0
        shares = torch.rand(recipe.networks // 2, generator=generator(recipe.seed, 5, number))
        share = send(shares[place::apart][:pairs], preps.device)  # the pairs of one process, dealt out
        with half(recipe.precision, self.task.device):
            predicted, between = model(preps, share)
        predicted = torch.cat([predicted, between]).float()
        terms = {}
        count = self.nets.spec.num_parameters
        if recipe.loss.behaviour or lines:
            images, places = self.images.take(number, recipe.images)
            with half(recipe.networks_precision, self.task.device):
                target = self.targets.take(None if recipe.noise else members, places, preps, images)
                answer = self.nets(unpack(predicted, count), images)
            settings = recipe.loss.temperature, recipe.loss.relative
            own, mixed = answer.split([len(preps), pairs])
            terms["behaviour"] = recipe.loss.behaviour * losses.prediction_loss(own, target, *settings)
            if lines:
                wanted = losses.blend(target[:pairs], target[pairs : 2 * pairs], share)
                terms["lines"] = recipe.loss.lines * losses.prediction_loss(mixed, wanted, *settings)
        if recipe.loss.weights:
            spread = unwrapped(model).spread
            own_preps = predicted[: len(preps)]
            difference = losses.weight_loss(unpack(own_preps / spread, count), unpack(preps / spread, count))
            terms["weights"] = recipe.loss.weights * difference
        return terms

    def _disturbed(self, preps: Tensor, spread: Tensor, number: int, place: int, apart: int) -> Tensor:
        """PReps (M, H, W) as networks of their own, near those of the zoo: every second one with noise of a random size."""
        count, random = (
            self.recipe.networks,
            generator(self.recipe.seed, 47, number),
        )  # of the whole batch, then its part
        sizes = self.recipe.noise * torch.rand(count, generator=random)
        sizes[::2] = 0
        noise = sizes.view(-1, 1, 1) * torch.randn(count, *preps.shape[1:], generator=random)
        return preps + send(noise[place::apart], preps.device) * spread

    def _members(self, number: int, part: int) -> Tensor:
        place, apart = dealt(self.recipe, part, self.place, self.shares)
        return self.members.take(number * self.recipe.networks, self.recipe.networks)[place::apart]


def dealt(recipe: SpaceRecipe, part: int, place: int, shares: int) -> tuple[int, int]:
    """The first place of a batch's networks that is this process's in this part, and how far apart its places are."""
    return place + shares * part, shares * recipe.accumulate


def half(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The block computes in bf16 where `precision` says so."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def unwrapped(model: nn.Module) -> Any:
    """The model inside a data-parallel wrapper, or the model itself."""
    return model.module if hasattr(model, "module") else model
