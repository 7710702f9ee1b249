"""Target and predicted networks side by side, on every image of a split.

Axes: M members, P parameters, B images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from netspace.data import TaskData
from netspace.functional import NetBatch
from netspace.metrics import accuracy, agreement, divergence, mean_absolute_error, r2
from netspace.ranks import shared_out

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

    def summary(self) -> dict[str, float]:
        """The figures that speak for all members; spreads of accuracy are told by R2 and mean |difference|."""
        return {
            "accuracy_target": float(self.accuracy_target.mean()),
            "accuracy_predicted": float(self.accuracy_predicted.mean()),
            "r2": r2(self.accuracy_predicted, self.accuracy_target),
            "mae": mean_absolute_error(self.accuracy_predicted, self.accuracy_target),
            "agreement": float(self.agreement.mean()),
            "kl": float(self.kl.mean()),
        }


@torch.no_grad()
def answers(nets: NetBatch, flat: Tensor, task: TaskData, split: str) -> Tensor:
    """Logits (M, N, C) of networks (M, P) for all N images of a split, float32 on the CPU; shared by all processes."""

    def of(rows: Tensor) -> Tensor:
        batches = task.batches(task.split(split), CHUNK)
        return torch.cat([nets(rows, task.normalise(pixels)).float().cpu() for pixels, _ in batches], dim=1)

    return shared_out(of, flat)


def compare_answers(target: Tensor, predicted: Tensor, labels: Tensor) -> Comparison:
    """Compares the logits (M, N, C) of networks and of their predictions, for images with labels (N,)."""
    labels = labels.to(target.device)
    rows = [
        torch.stack([accuracy(t, labels), accuracy(p, labels), agreement(t, p), divergence(p, t)], dim=0)
        for t, p in zip(target.split(64), predicted.split(64), strict=True)
    ]
    return Comparison(*torch.cat(rows, dim=1).cpu().numpy())


def compare(nets: NetBatch, target: Tensor, predicted: Tensor, task: TaskData, split: str) -> Comparison:
    """Compares networks (M, P) with their predictions (M, P) on all images of a split."""
    both = answers(nets, target, task, split), answers(nets, predicted, task, split)
    return compare_answers(*both, task.split(split).labels)


@torch.no_grad()
def accuracies(nets: NetBatch, flat: Tensor, task: TaskData, split: str) -> np.ndarray:
    """Accuracies (M,) of networks (M, P) on all images of a split; shared by all processes."""
    images = task.split(split)

    def of(rows: Tensor) -> Tensor:
        right = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        for pixels, labels in task.batches(images, CHUNK):
            right += accuracy(nets(rows, task.normalise(pixels)), labels) * len(labels)
        return right / len(images)

    return shared_out(of, flat).numpy()


@torch.no_grad()
def through(model: Callable[[Tensor], tuple[Tensor, Tensor]], preps: Tensor, chunk: int = 64) -> tuple[Tensor, Tensor]:
    """Latents (M, E) and decoded PReps (M, H, W) of PReps (M, H, W), a chunk at a time."""
    pairs = [model(piece) for piece in preps.split(chunk)]
    return torch.cat([latents for latents, _ in pairs]).float(), torch.cat([decoded for _, decoded in pairs]).float()
