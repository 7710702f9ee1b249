"""The contestants of `tools/bench.py multi`: steps of spaces of several architectures, ours and plain ones.

Axes: M members, S points between, B images, H W of a PRep.
"""

from __future__ import annotations

from dataclasses import dataclass

import reference
import torch
from bench_cases import ADAM, CIFAR, Case, PlainSteps, plain_coders, setup_of

from model_zoo.recipe import ZooRecipe
from netspace.config import load as load_recipe
from netspace.tasks import DataConfig
from netspace.training.batches import Points
from netspace.training.recipe import LossConfig, SpaceRecipe
from netspace.training.step import Step


@dataclass(frozen=True)
class MultiCase(Case):
    """A training step of a space of several architectures, on random PReps."""

    kind = "multi"
    recipe: SpaceRecipe
    zoo: ZooRecipe
    data: DataConfig
    steps: int  # timed together

    @property
    def members(self) -> int:
        counts = self.recipe.multi.counts if self.recipe.multi else {}
        return 1 + max([self.recipe.networks, *counts.values()])


def multi_cases(quick: bool) -> list[MultiCase]:
    """Return the paper's setting with a smallest and a largest network in every batch, and that of digits by Adam."""
    paper = load_recipe(SpaceRecipe, "space/paper-cifar10-unseen").model_copy(update={"optimizer": ADAM})
    zoo = load_recipe(ZooRecipe, "zoo/paper-cifar10-multi")
    paper = few_members(paper)
    digits = load_recipe(SpaceRecipe, "space/multi-digits")
    small = load_recipe(ZooRecipe, "zoo/multi-digits")
    assert paper.multi is not None and digits.multi is not None
    if quick:
        tiny = paper.model_copy(
            update={"latent": 64, "images": 4, "multi": paper.multi.model_copy(update={"counts": {}, "rows": None})}
        )
        two = small.model_copy(update={"archs": {name: small.archs[name] for name in ("lenetlike", "resnet8")}})
        return [MultiCase("paper, tiny", tiny, two, small.data, 1)]
    terms = digits.multi.model_copy(update={"distillation": 1.0, "interpolation": 1.0})
    digits = digits.model_copy(update={"optimizer": ADAM, "loss": LossConfig(behaviour=0.0), "multi": terms})
    return [
        MultiCase("paper, CIFAR-10, 88 x 10,000", paper, zoo, CIFAR, 1),
        MultiCase("digits, by Adam", digits, small, small.data, 10),
    ]


def few_members(recipe: SpaceRecipe) -> SpaceRecipe:
    """Return a recipe that trains on two networks of each architecture that it trains on: for small files."""
    assert recipe.multi is not None
    counts = {name: min(count, 2) for name, count in recipe.multi.counts.items()}
    return recipe.model_copy(update={"multi": recipe.multi.model_copy(update={"counts": counts})})


class ReferenceMultiStep(PlainSteps):
    """The same step, plain: every network and every point by itself, the teacher run again for each."""

    def __init__(self, case: MultiCase, device: torch.device) -> None:
        self.case, self.setup = case, setup_of(case, device)
        self.networks = [each.nets.skeleton for each in self.setup.family]
        self.ours = Step(self.setup)  # for its batches alone
        self.encoder, self.decoder = plain_coders(self.setup, device)
        torch.nn.init.normal_(self.decoder.scale, std=1e-3)
        self.head = self.setup.model.get_submodule("head").requires_grad_()
        parameters = [each for part in (self.encoder, self.decoder, self.head) for each in part.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=case.recipe.optimizer.learning_rate)
        self.count()

    def loss(self) -> torch.Tensor:
        ours, case, multi = self.ours, self.case, self.case.recipe.multi
        assert multi is not None
        chosen = ours.batches.take(self.number)
        between = Points.between_ends({class_id: len(rows) for class_id, rows in chosen}, self.setup.family, multi)
        preps = [
            (class_id, torch.nn.functional.pad(prep, (0, 0, 0, self.setup.family.size[0] - len(prep))))
            for class_id, rows in chosen
            for prep in ours.sources[class_id].take(rows)
        ]
        points = [
            (int(class_id), int(first), int(second), float(gamma))
            for class_id, (first, second), gamma in zip(between.class_ids, between.pairs.T, between.gamma, strict=True)
        ]
        images, rows = ours.images.take(self.number, case.recipe.images)
        return reference.multi_loss(
            self.encoder,
            self.decoder,
            self.head,
            self.networks,
            ours.teacher,
            preps,
            points,
            images,
            ours.task.train.labels[rows],
            multi.temperature,
            multi.alpha,
        )
