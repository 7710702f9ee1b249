"""Target and predicted networks side by side, on every image of a split.

Axes: M members, P parameters, B images, C classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from netspace.distributed import shared_out
from netspace.metrics import accuracy, agreement, divergence, mean_absolute_error, r2
from netspace.models.autoencoder import AutoEncoder
from netspace.networks.batch import NetBatch
from netspace.networks.family import Family, Networks
from netspace.tasks import TaskData

MEMBERS = 256  # networks that are read, decoded and compared at once


CHUNK = 256  # images at once: few enough for a CPU's caches


@dataclass(frozen=True)
class Comparison:
    """Per member, over one split of images."""

    accuracy_target: np.ndarray  # (M,) fractions
    accuracy_predicted: np.ndarray  # (M,)
    agreement: np.ndarray  # (M,) share of images given the same class by both
    kl: np.ndarray  # (M,) KL(target || predicted), nats

    @classmethod
    def together(cls, parts: Sequence[Comparison]) -> Comparison:
        """Of the members of all parts, in their order."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def of(self, rows: np.ndarray) -> Comparison:
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
def answers(networks: Networks, task: TaskData, split: str) -> Tensor:
    """Logits (M, N, C) of networks for all N images of a split, float32 on the CPU; shared by all processes."""

    def of(nets: NetBatch, flat: Tensor) -> Tensor:
        batches = task.batches(task.split(split), CHUNK)
        return torch.cat([nets(flat, task.normalise(pixels)).float().cpu() for pixels, _ in batches], dim=1)

    return networks.each(lambda nets, flat: shared_out(lambda rows: of(nets, rows), flat))


def compare_answers(target: Tensor, predicted: Tensor, labels: Tensor) -> Comparison:
    """Compares the logits (M, N, C) of networks and of their predictions, for images with labels (N,)."""
    labels = labels.to(target.device)
    rows = [
        torch.stack([accuracy(t, labels), accuracy(p, labels), agreement(t, p), divergence(p, t)], dim=0)
        for t, p in zip(target.split(64), predicted.split(64), strict=True)
    ]
    return Comparison(*torch.cat(rows, dim=1).cpu().numpy())


def compare(target: Networks, predicted: Networks, task: TaskData, split: str) -> Comparison:
    """Compares networks with their predictions on all images of a split."""
    both = answers(target, task, split), answers(predicted, task, split)
    return compare_answers(*both, task.split(split).labels)


@torch.no_grad()
def accuracies(networks: Networks, task: TaskData, split: str) -> np.ndarray:
    """Accuracies (M,) of networks on all images of a split; shared by all processes."""
    images = task.split(split)

    def of(nets: NetBatch, flat: Tensor) -> Tensor:
        right = torch.zeros(len(flat), dtype=torch.float64, device=flat.device)
        for pixels, labels in task.batches(images, CHUNK):
            right += accuracy(nets(flat, task.normalise(pixels)), labels) * len(labels)
        return right / len(images)

    return networks.each(lambda nets, flat: shared_out(lambda rows: of(nets, rows), flat)).numpy()


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
