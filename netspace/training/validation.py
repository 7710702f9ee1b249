"""Target and predicted networks compared on all inputs of a split; latents and the networks that they decode to.

Axes: M members, P parameters, N inputs of a split, C outputs, S points, E latent size, H W of a PRep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from netspace.distributed import distributed_map
from netspace.metrics import mean_absolute_error, r2
from netspace.models.autoencoder import AutoEncoder
from netspace.networks.batch import NetBatch
from netspace.networks.family import Family, Networks
from netspace.tasks import Task
from netspace.tasks.base import CHUNK

MEMBERS = 256  # networks that are read, decoded and compared at once


@dataclass(frozen=True)
class Comparison:
    """Scores of target and predicted networks on one split, for each member."""

    accuracy_target: np.ndarray  # (M,) the task's score, 0 to 1
    accuracy_predicted: np.ndarray  # (M,)
    agreement: np.ndarray  # (M,) of both, 0 to 1: for classification the fraction of images given the same class
    kl: np.ndarray  # (M,) the task's divergence: for classification KL(target || predicted), nats

    @classmethod
    def concatenate(cls, parts: Sequence[Comparison]) -> Comparison:
        """Return one comparison of the members of all parts, in their order."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def select(self, rows: np.ndarray) -> Comparison:
        """Return the comparison of the members in rows (N,)."""
        return Comparison(*(getattr(self, field.name)[rows] for field in fields(self)))

    def summary(self) -> dict[str, float]:
        """Return means over members; R2 and mean |difference| say how well single accuracies are predicted."""
        return {
            "accuracy_target": float(self.accuracy_target.mean()),
            "accuracy_predicted": float(self.accuracy_predicted.mean()),
            "r2": r2(self.accuracy_predicted, self.accuracy_target),
            "mae": mean_absolute_error(self.accuracy_predicted, self.accuracy_target),
            # above 0: predicted networks are better
            "bias": float((self.accuracy_predicted - self.accuracy_target).mean()),
            "agreement": float(self.agreement.mean()),
            "kl": float(self.kl.mean()),
        }


@torch.no_grad()
def network_outputs(
    networks: Networks,
    task: Task,
    split: str,
    seeds: Tensor | None = None,
    limit: int | None = None,
    index: Tensor | None = None,
) -> Float[Tensor, "M N C"]:
    """Return outputs for all inputs of a split, float32 on the CPU; processes share the work.

    With `limit` they are the first ones, with `index` (N,) those.

    `seeds` (M,) identify the networks, for a task whose networks have inputs of their own.
    """

    def run(nets: NetBatch, flat: Tensor, own: Tensor) -> Tensor:
        parts = slices(limit or task.size(split) if index is None else len(index))
        batches = (task.inputs(split, part if index is None else index[part], own) for part in parts)
        return torch.cat([nets(flat, each, shared=not task.own_inputs).float().cpu() for each in batches], dim=1)

    return networks.each(
        lambda nets, *rows: distributed_map(lambda *mine: run(nets, *mine), *rows), _seeds(networks, seeds)
    )


def compare_outputs(
    target: Float[Tensor, "M N C"],
    predicted: Float[Tensor, "M N C"],
    task: Task,
    split: str,
    seeds: Tensor | None = None,
) -> Comparison:
    """Compare the outputs of networks and of their predictions on a split; `seeds` (M,) identify the networks."""
    truth = task.targets(split, slice(None), _seeds(target, seeds)).to(target.device)
    rows = []
    for part in slices(len(target), 64):
        t, p, y = target[part], predicted[part], truth[part] if task.own_targets else truth
        rows.append(torch.stack([task.score(t, y), task.score(p, y), task.agreement(t, p), task.divergence(p, t)]))
    return Comparison(*torch.cat(rows, dim=1).cpu().numpy())


def compare(target: Networks, predicted: Networks, task: Task, split: str, seeds: Tensor | None = None) -> Comparison:
    """Compare networks, identified by `seeds` (M,), with their predictions on all inputs of a split."""
    outputs, predictions = (network_outputs(each, task, split, seeds) for each in (target, predicted))
    return compare_outputs(outputs, predictions, task, split, seeds)


def accuracies(
    networks: Networks,
    task: Task,
    split: str,
    seeds: Tensor | None = None,
    targets: Tensor | None = None,
    inputs: Tensor | None = None,
) -> np.ndarray:
    """Return the scores (M,) of networks on all inputs of a split; processes share the work.

    `seeds` (M,) identify the networks. `targets` and `inputs` (M, N, ...) are theirs where no seed has them, for a task
    whose networks have some of their own.
    """
    given = {name: each for name, each in (("targets", targets), ("inputs", inputs)) if each is not None}

    def run(nets: NetBatch, flat: Tensor, own: Tensor, *rows: Tensor) -> Tensor:
        own_targets, own_inputs = map(dict(zip(given, rows, strict=True)).get, ("targets", "inputs"))
        return task.evaluate(
            lambda x: nets(flat, x, shared=not task.own_inputs), split, own, targets=own_targets, inputs=own_inputs
        )

    others = (_seeds(networks, seeds), *given.values())
    return networks.each(lambda nets, *rows: distributed_map(lambda *mine: run(nets, *mine), *rows), *others).numpy()


def accuracies_between(
    networks: Networks, task: Task, split: str, first: Tensor, second: Tensor, gamma: Tensor
) -> np.ndarray:
    """Return the scores (M,) of networks between others of seeds `first` and `second` (M,), at `gamma` (M,)."""
    own = {
        "targets": task.targets_between(split, first, second, gamma),
        "inputs": task.inputs_between(split, first, second, gamma),
    }
    return accuracies(networks, task, split, **own)


def slices(count: int, size: int = CHUNK) -> list[slice]:
    """Return consecutive slices of `size` that cover `count`; the last one may be smaller."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _seeds(networks: Networks | Tensor, seeds: Tensor | None) -> Tensor:
    return torch.full((len(networks),), -1) if seeds is None else seeds


@torch.no_grad()
def encode(model: AutoEncoder, preps: Float[Tensor, "M H W"], class_id: int, chunk: int = 64) -> Float[Tensor, "M E"]:
    """Return latents of PReps of one architecture, computed a chunk at a time."""
    return torch.cat([model.encoder(piece, class_id) for piece in preps.split(chunk)]).float()


def decode(
    model: AutoEncoder,
    family: Family,
    latents: Float[Tensor, "M E"],
    class_ids: Tensor | None = None,
    chunk: int = 64,
) -> Networks:
    """Return the networks of latents, as the architectures `class_ids` (M,) or those that the ClassId head predicts.

    Gradients pass through if the latents require them.
    """
    if not len(latents):
        return Networks(family, latents.new_zeros(0, *family.size), torch.zeros(0, dtype=torch.int64))
    preps, ids = [], []
    given = [None] * -(-len(latents) // chunk) if class_ids is None else class_ids.split(chunk)
    with torch.set_grad_enabled(torch.is_grad_enabled() and latents.requires_grad):
        for piece, of_piece in zip(latents.split(chunk), given, strict=True):
            each = model.class_ids(piece) if of_piece is None else of_piece.to(piece.device)
            preps.append(model.decoder(piece, each).float())
            ids.append(each.cpu())
    return Networks(family, torch.cat(preps), torch.cat(ids))


def between_ends(
    latents: Mapping[int, Tensor], family: Family, class_id: int, pairs: int | None = None
) -> Float[Tensor, "S E"]:
    """Return the points where networks of a ClassId lie between smallest and largest networks (NetSpace, Eq. 12).

    `latents` (M, E) are those of networks by ClassId; the i-th of one end is paired with the i-th of the other.
    """
    first, last = latents[0], latents[len(family) - 1]
    count = min(len(first), len(last), pairs or len(first))
    return torch.lerp(first[:count], last[:count], family.factor(class_id))
