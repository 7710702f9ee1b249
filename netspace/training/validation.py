"""Target and predicted networks side by side, on every image of a split.

Axes: M members, P parameters, B images, C classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from netspace.distributed import shared_out
from netspace.metrics import mean_absolute_error, r2
from netspace.models.autoencoder import AutoEncoder
from netspace.networks.batch import NetBatch
from netspace.networks.family import Family, Networks
from netspace.tasks import Task

MEMBERS = 256  # networks that are read, decoded and compared at once


CHUNK = 256  # images at once: few enough for a CPU's caches


@dataclass(frozen=True)
class Comparison:
    """Per member, over one split of images."""

    accuracy_target: np.ndarray  # (M,) the task's score, 0 to 1
    accuracy_predicted: np.ndarray  # (M,)
    agreement: np.ndarray  # (M,) of both, 0 to 1: for classification the fraction of images given the same class
    kl: np.ndarray  # (M,) the task's divergence: for classification KL(target || predicted), nats

    @classmethod
    def concatenate(cls, parts: Sequence[Comparison]) -> Comparison:
        """Of the members of all parts, in their order."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def select(self, rows: np.ndarray) -> Comparison:
        """Of some of the members."""
        return Comparison(*(getattr(self, field.name)[rows] for field in fields(self)))

    def summary(self) -> dict[str, float]:
        """The figures that speak for all members; spreads of accuracy are told by R2 and mean |difference|."""
        return {
            "accuracy_target": float(self.accuracy_target.mean()),
            "accuracy_predicted": float(self.accuracy_predicted.mean()),
            "r2": r2(self.accuracy_predicted, self.accuracy_target),
            "mae": mean_absolute_error(self.accuracy_predicted, self.accuracy_target),
            "bias": float(
                (self.accuracy_predicted - self.accuracy_target).mean()
            ),  # above 0: predicted ones are better
            "agreement": float(self.agreement.mean()),
            "kl": float(self.kl.mean()),
        }


@torch.no_grad()
def network_outputs(
    networks: Networks, task: Task, split: str, seeds: Tensor | None = None, limit: int | None = None
) -> Tensor:
    """Outputs (M, N, C) of networks for all N inputs of a split, or the first `limit`, float32 on the CPU; shared by all processes.

    `seeds` (M,) say whose inputs they are, for a task whose networks have inputs of their own.
    """

    def of(nets: NetBatch, flat: Tensor, own: Tensor) -> Tensor:
        batches = (task.inputs(split, part, own) for part in slices(limit or task.size(split)))
        return torch.cat([nets(flat, each, shared=not task.own_inputs).float().cpu() for each in batches], dim=1)

    return networks.each(lambda nets, *rows: shared_out(lambda *mine: of(nets, *mine), *rows), _seeds(networks, seeds))


def compare_outputs(
    target: Tensor, predicted: Tensor, task: Task, split: str, seeds: Tensor | None = None
) -> Comparison:
    """Compares outputs (M, N, C) of networks and of their predictions on a split; `seeds` (M,) name the networks."""
    truth = task.targets(split, slice(None), _seeds(target, seeds)).to(target.device)
    rows = []
    for start in range(0, len(target), 64):
        part = slice(start, start + 64)
        t, p, y = target[part], predicted[part], truth[part] if task.own_targets else truth
        rows.append(torch.stack([task.score(t, y), task.score(p, y), task.agreement(t, p), task.divergence(p, t)]))
    return Comparison(*torch.cat(rows, dim=1).cpu().numpy())


def compare(target: Networks, predicted: Networks, task: Task, split: str, seeds: Tensor | None = None) -> Comparison:
    """Compares networks of `seeds` (M,) with their predictions on all inputs of a split."""
    both = network_outputs(target, task, split, seeds), network_outputs(predicted, task, split, seeds)
    return compare_outputs(*both, task, split, seeds)


@torch.no_grad()
def accuracies(
    networks: Networks, task: Task, split: str, seeds: Tensor | None = None, targets: Tensor | None = None
) -> np.ndarray:
    """Scores (M,) of networks on all inputs of a split; shared by all processes.

    `seeds` (M,) name the networks, and `targets` (M, N, ...) are theirs where no seed says so, for a task that has such.
    """

    def of(nets: NetBatch, flat: Tensor, own: Tensor, given: Tensor | None = None) -> Tensor:
        total = torch.zeros(len(flat), dtype=torch.float64, device=flat.device)
        for part in slices(task.size(split)):
            truth = task.targets(split, part, own) if given is None else given[:, part].to(flat.device)
            outputs = nets(flat, task.inputs(split, part, own), shared=not task.own_inputs)
            total += task.score(outputs, truth) * (part.stop - part.start)
        return total / task.size(split)

    others = (_seeds(networks, seeds),) if targets is None else (_seeds(networks, seeds), targets)
    return networks.each(lambda nets, *rows: shared_out(lambda *mine: of(nets, *mine), *rows), *others).numpy()


def slices(count: int, size: int = CHUNK) -> list[slice]:
    """Consecutive slices of `size`, the last one smaller, that cover `count`."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _seeds(networks: Networks | Tensor, seeds: Tensor | None) -> Tensor:
    return torch.full((len(networks),), -1) if seeds is None else seeds


@torch.no_grad()
def encode(model: AutoEncoder, preps: Tensor, class_id: int, chunk: int = 64) -> Tensor:
    """Latents (M, E) of PReps (M, H, W) of one architecture, a chunk at a time."""
    return torch.cat([model.encoder(piece, class_id) for piece in preps.split(chunk)]).float()


def decode(
    model: AutoEncoder, family: Family, latents: Tensor, class_ids: Tensor | None = None, chunk: int = 64
) -> Networks:
    """The networks of latents (M, E): of the architectures that the latents say, or of given ClassIds (M,).

    Gradients pass through where the latents require them.
    """
    preps, ids = [], []
    given = [None] * -(-len(latents) // chunk) if class_ids is None else class_ids.split(chunk)
    with torch.set_grad_enabled(torch.is_grad_enabled() and latents.requires_grad):
        for piece, told in zip(latents.split(chunk), given, strict=True):
            each = model.class_ids(piece) if told is None else told.to(piece.device)
            preps.append(model.decoder(piece, each).float())
            ids.append(each.cpu())
    return Networks(family, torch.cat(preps), torch.cat(ids))


def between_ends(latents: Mapping[int, Tensor], family: Family, class_id: int, pairs: int | None = None) -> Tensor:
    """The points (S, E) where networks of a ClassId lie by Eq. 12: between smallest and largest networks' latents.

    `latents` (M, E) by ClassId; the i-th of one end is paired with the i-th of the other.
    """
    first, last = latents[0], latents[len(family) - 1]
    count = min(len(first), len(last), pairs or len(first))
    return torch.lerp(first[:count], last[:count], family.factor(class_id))
