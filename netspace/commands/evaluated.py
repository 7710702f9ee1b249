"""The members of a split that `netspace eval` reconstructs, by architecture, and how predicted networks differ from others.

Axes: M members, E latent size, B inputs, C outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from netspace.commands.baselines import bank_rows, trained_latents
from netspace.errors import NetspaceError
from netspace.metrics import Identity, diversity, identity_of
from netspace.networks.family import Networks
from netspace.space import Space
from netspace.tasks import Task
from netspace.zoo import ArchGroup, MemberRef, Zoo

DIVERSITIES = ("diversity", "zoo_diversity", "diversity_ratio")


@dataclass(frozen=True)
class Part:
    """The members of one architecture that are evaluated."""

    class_id: int
    group: ArchGroup
    rows: np.ndarray  # (M,)
    target: Networks
    latents: Tensor  # (M, E)

    @property
    def seeds(self) -> Tensor:
        """The seeds (M,) of the members' trainings, by which a task with inputs or targets of their own knows them."""
        return self.group.seeds(self.rows)

    @property
    def names(self) -> list[str]:
        """The members' names, such as 'resnet8/0007'."""
        return [str(MemberRef(self.group.id, int(row))) for row in self.rows]


def parts_of(space: Space, zoo: Zoo, split: str) -> list[Part]:
    """Return the members of a split by architecture. Raises `NetspaceError` if there are none."""
    parts = []
    for class_id, arch in enumerate(space.family):
        if not arch.trained:
            continue
        group = zoo.group(arch.id)
        rows = group.rows(split)
        if len(rows):
            preps = group.read(rows).to(space.device)
            networks = space.networks(preps, arch.id)
            known = split == "train" and np.array_equal(rows, bank_rows(space, zoo, arch))
            latents = trained_latents(space, zoo, arch) if known else space.encode_preps(preps, arch.id)
            parts.append(Part(class_id, group, rows, networks, latents))
    if not parts:
        raise NetspaceError(f"{zoo.path} has no members in its {split} split: there is nothing to evaluate")
    return parts


def identities(
    parts: list[Part], own_logits: Tensor, logits: Tensor, target_logits: Tensor, task: Task
) -> list[Identity]:
    """Return identity by architecture; peers are members of the same split and architecture.

    Networks agree on `logits` and `target_logits` (M, B, C); `own_logits` are the targets' for inputs of their own.
    """
    counts, found = [len(part.rows) for part in parts], []
    pieces = zip(parts, *(each.split(counts) for each in (own_logits, logits, target_logits)), strict=True)
    for part, own, predicted, target in pieces:
        truth = task.targets("test", slice(None), part.seeds).cpu()
        if task.own_inputs:
            found.append(identity_of(task.agreements(predicted, target), task.score(own, truth)))
        else:
            found.append(task.identity(predicted, target, truth))
    return found


def diversities(part: Part, target: Networks, predicted: Networks) -> dict[str, float]:
    """Return the mean distance of pairs of predicted networks of a part, of their targets, and the ratio; NaN where there is none.

    `target` and `predicted` (M,) are of all parts; those that were decoded as another architecture do not count.
    """
    mine = target.class_ids == part.class_id
    right = mine & (predicted.class_ids == part.class_id)
    parameters = target.family[part.class_id].parameters
    distance, of_zoo = (
        diversity(networks.preps.flatten(1)[:, :parameters]) for networks in (predicted[right], target[mine])
    )
    return dict(zip(DIVERSITIES, (distance, of_zoo, distance / of_zoo if of_zoo else float("nan")), strict=True))
