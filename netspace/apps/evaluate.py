"""`netspace eval`: how well a space gives back the networks of a zoo, beside honest baselines.

Axes: M members, P parameters, E latent size. Accuracies are measured on the task's test images, fractions. Whatever
has to be chosen is chosen on validation members; test members are only reported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netspace import ranks
from netspace.apps.networks import zoo_of
from netspace.data import TaskData
from netspace.errors import NetspaceError
from netspace.metrics import diversity, nearest, spearman
from netspace.models.autoencoder import layer_spread
from netspace.prep import unpack
from netspace.runtime import generator, package_version, write_json, write_tensors
from netspace.space import Space
from netspace.store import ArchGroup, MemberRef, Zoo
from netspace.training.loop import task_of
from netspace.training.validation import Comparison, accuracies, answers, compare_answers

BANK = 4096  # training members that baselines and distances draw on, at most
NOISE_MEMBERS = 16  # validation members that choose among them
NOISES = (0.01, 0.03, 0.1, 0.3)  # in units of each layer's spread; the baseline's best on validation members is used
PAIRS = 8  # lines that the interpolation figure is averaged over
PICTURES = 4  # members whose PReps are kept for the report


def evaluate(run: Path, split: str = "test", zoo_path: Path | None = None, device: str = "cpu") -> dict[str, Any]:
    """The figures of `netspace eval --json`; with per-member detail they are kept in the run folder.

    Under `accelerate launch` the processes share the networks that are run, and all return the figures.
    """
    ranks.begin()
    space = Space.load(run, device)
    with zoo_of(run, zoo_path) as zoo:
        group = zoo.group(space.arch)
        task = task_of(zoo, space.device)
        rows = group.rows(split)
        if not len(rows):
            raise NetspaceError(f"{zoo.path} has no members in its {split} split: there is nothing to evaluate")
        preps = group.read(rows).to(space.device)
        latents, decoded = space.through(preps)
        count = space.spec.num_parameters
        target, predicted = unpack(preps, count), unpack(decoded, count)
        wanted = answers(space.nets, target, task, "test")
        comparison = compare_answers(wanted, answers(space.nets, predicted, task, "test"), task.test.labels)
        figures: dict[str, Any] = {
            "run": str(run),
            "decoder": type(space.model.decoder).__name__,
            "encoder": type(space.model.encoder).__name__,
            "split": split,
            "members": len(rows),
            **comparison.summary(),
            "classid_accuracy": None,
            "diversity": diversity(predicted),
            "zoo_diversity": diversity(target),
            "compression": space.latent / count,
            "latent": space.latent,
            "parameters": count,
        }
        figures["per_class"] = {group.id: {"members": len(rows), **comparison.summary()}}
        figures["baselines"] = Baselines(space, zoo, group).measure(target, latents, wanted, task)
        figures["interpolation"] = lines(space, group, rows, target, latents, task)
        figures["versions"] = {name: package_version(name) for name in ("netspace", "torch")}
    if ranks.is_main():
        names = [str(MemberRef(group.id, int(row))) for row in rows]
        _keep(run, split, figures, comparison, names, latents, preps, decoded)
    return figures


class Baselines:
    """What anyone could do without a decoder: answer with networks of the training split."""

    def __init__(self, space: Space, zoo: Zoo, group: ArchGroup) -> None:
        rows = group.rows("train")[:BANK]
        self.space, self.group = space, group
        preps = group.read(rows).to(space.device)
        self.bank = unpack(preps, space.spec.num_parameters)
        self.latents = space.encode_preps(preps)
        spread = layer_spread(preps, space.spec)
        self.spread = unpack(spread, space.spec.num_parameters)

    def measure(self, target: Tensor, latents: Tensor, wanted: Tensor, task: TaskData) -> dict[str, Any]:
        """Figures of each baseline for networks (M, P) with latents (M, E) and test logits `wanted` (M, N, C).

        nearest: the training network with the nearest weights; nearest_latent: the one with the nearest latent;
        noise: the former plus Gaussian noise; average: the mean of all training networks.
        """
        nets, labels = self.space.nets, task.test.labels
        by_weights, by_latent = nearest(target, self.bank), nearest(latents, self.latents)
        used, places = torch.cat([by_weights, by_latent]).unique(return_inverse=True)  # each runs once
        logits = answers(nets, self.bank[used], task, "test")
        first, second = places.cpu().split(len(target))
        scale = self._noise_scale(task)
        average = answers(nets, self.bank.mean(0, keepdim=True), task, "test")
        found = {
            "nearest": logits[first],
            "nearest_latent": logits[second],
            "average": average.expand_as(wanted),
            "noise": answers(nets, self._noisy(self.bank[by_weights], scale), task, "test"),
        }
        told: dict[str, Any] = {name: compare_answers(wanted, each, labels).summary() for name, each in found.items()}
        told["noise"]["scale"] = scale
        return told

    def _noise_scale(self, task: TaskData) -> float:
        """The noise that does best (mean |difference| of accuracy) on validation members and images."""
        rows = self.group.rows("val")[:NOISE_MEMBERS]
        if not len(rows):
            return NOISES[0]
        target = unpack(self.group.read(rows).to(self.bank.device), self.space.spec.num_parameters)
        near = self.bank[nearest(target, self.bank)]
        own = accuracies(self.space.nets, target, task, "val")
        noisy = [accuracies(self.space.nets, self._noisy(near, scale), task, "val") for scale in NOISES]
        return NOISES[int(np.argmin([np.abs(found - own).mean() for found in noisy]))]

    def _noisy(self, flat: Tensor, scale: float) -> Tensor:
        noise = torch.randn(flat.shape, generator=generator(0, 11)).to(flat.device)
        return flat + scale * self.spread * noise


def lines(
    space: Space, group: ArchGroup, rows: np.ndarray, target: Tensor, latents: Tensor, task: TaskData, steps: int = 11
) -> dict[str, Any]:
    """Accuracy along lines to the best member from others of the lower half, in the latent space and in the weights.

    Best and lower half go by accuracy on validation images; starts are spread evenly over the lower half.
    """
    order = np.argsort(group.members["accuracy_val"][rows], kind="stable")
    if len(order) < 4:
        return {"pairs": 0, "spearman_latent": None, "spearman_weights": None}
    best = int(order[-1])
    lower = order[: len(order) // 2]
    starts = np.unique(np.linspace(0, len(lower) - 1, min(PAIRS, len(lower))).round().astype(int))
    gamma = torch.linspace(0, 1, steps, device=latents.device)[:, None]
    curves: dict[str, list[list[float]]] = {"latent": [], "weights": []}
    for start in (int(lower[place]) for place in starts):
        between = torch.lerp(latents[start], latents[best], gamma)
        curves["latent"].append(accuracies(space.nets, space.decode_flat(between), task, "test").tolist())
        mixed = torch.lerp(target[start], target[best], gamma)
        curves["weights"].append(accuracies(space.nets, mixed, task, "test").tolist())
    factors = gamma[:, 0].cpu().numpy()
    ranks = {name: [spearman(factors, np.array(curve)) for curve in found] for name, found in curves.items()}
    return {
        "pairs": len(starts),
        "gamma": factors.tolist(),
        "spearman_latent": _mean(ranks["latent"]),
        "spearman_weights": _mean(ranks["weights"]),
        "latent_accuracy": np.mean(curves["latent"], 0).tolist(),
        "weight_accuracy": np.mean(curves["weights"], 0).tolist(),
    }


def _mean(ranks: list[float]) -> float | None:
    """The mean over lines on which accuracy varies; None if there are none."""
    known = [rank for rank in ranks if not np.isnan(rank)]
    return float(np.mean(known)) if known else None


def _keep(
    run: Path,
    split: str,
    figures: dict[str, Any],
    comparison: Comparison,
    names: list[str],
    latents: Tensor,
    preps: Tensor,
    decoded: Tensor,
) -> None:
    detail = {
        "member": names,
        "accuracy_target": comparison.accuracy_target.tolist(),
        "accuracy_predicted": comparison.accuracy_predicted.tolist(),
        "agreement": comparison.agreement.tolist(),
        "kl": comparison.kl.tolist(),
    }
    write_json(run / f"eval-{split}.json", {**figures, "detail": detail})
    order = np.argsort(comparison.accuracy_target)
    shown = torch.from_numpy(
        order[np.linspace(0, len(order) - 1, min(PICTURES, len(order))).round().astype(int)].copy()
    )
    tensors = {"latents": latents, "shown": shown, "preps": preps[shown], "decoded": decoded[shown]}
    write_tensors(run / f"eval-{split}.safetensors", tensors)
