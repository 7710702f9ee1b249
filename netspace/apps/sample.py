"""`netspace sample`: new networks, drawn from the distribution of a class's latents (beyond the paper).

Axes: S samples, N training members, E latent size, P parameters, B test images, C classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from netspace.apps.networks import write_network, zoo_of
from netspace.data import TaskData
from netspace.errors import UsageError, unknown
from netspace.metrics import accuracy, agreement, diversity, nearest
from netspace.models.autoencoder import layer_spread
from netspace.prep import unpack
from netspace.runtime import generator, write_json
from netspace.space import Space
from netspace.training.loop import task_of
from netspace.training.validation import answers

BANK = 4096  # training members that are drawn from and compared with, at most
NOISE = 0.1  # of the baseline 'nearest + noise', in units of each layer's spread
FITS = ("gaussian", "kde")
Fit = Literal["gaussian", "kde"]


def sample(
    run: Path,
    count: int = 16,
    arch: str | None = None,
    fit: str = "gaussian",
    bandwidth: float = 0.3,
    seed: int = 0,
    save: Path | None = None,
    zoo_path: Path | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Draws `count` networks and tells how accurate, how new and how different they are, beside baselines.

    `fit` is what is drawn from: one Gaussian over the training members' latents, or one around each of them ('kde'),
    `bandwidth` of the former's width. `save` is a folder for the networks, as safetensors. The figures are kept in
    the run's `samples/`. Raises `UsageError` for an architecture that the space does not hold.
    """
    if count < 2:
        raise UsageError(f"at least 2 networks are drawn, to tell how they differ; {count} were asked for")
    if fit not in FITS:
        raise unknown("fit", fit, FITS)
    space = Space.load(run, device)
    if arch not in (None, space.arch):
        raise UsageError(
            f"networks of {arch} were asked for, but this space holds {space.arch} alone: it has no head that tells "
            "architectures apart"
        )
    with zoo_of(run, zoo_path) as zoo:
        group, task = zoo.group(space.arch), task_of(zoo, space.device)
        preps = group.read(group.rows("train")[:BANK]).to(space.device)
    bank, known = unpack(preps, space.spec.num_parameters), space.encode_preps(preps)
    latents = draw(known, count, fit, bandwidth, seed)  # type: ignore[arg-type]
    flat = space.decode_flat(latents)
    near = bank[nearest(flat, bank)]
    spread = unpack(layer_spread(preps, space.spec), space.spec.num_parameters)
    noise = torch.randn(near.shape, generator=generator(seed, 19)).to(near.device)
    found = {
        "sampled": flat,
        "nearest": near,
        "noise": near + NOISE * spread * noise,
        "average": bank.mean(0, keepdim=True),
    }
    logits = {name: answers(space.nets, rows, task, "test") for name, rows in found.items()}
    told = {name: _measure(rows, logits[name], near, logits["nearest"], task) for name, rows in found.items()}
    figures: dict[str, Any] = {
        "run": str(run),
        "arch": space.arch,
        "fit": fit,
        "count": count,
        "seed": seed,
        "accuracy": accuracy(logits["sampled"], task.test.labels.cpu()).tolist(),
        "novelty": (1 - agreement(logits["sampled"], logits["nearest"])).tolist(),
        "zoo_accuracy": float(group.members["accuracy_test"][group.rows("train")].mean()),
        **told,
    }
    if save is not None:
        names = [save / f"{number:04d}.safetensors" for number in range(count)]
        for name, row, right in zip(names, flat, figures["accuracy"], strict=True):
            write_network(name, row, space, run=str(run), accuracy_test=f"{right:.6f}")
        figures["networks"] = [str(name) for name in names]
    write_json(run / "samples" / f"{space.arch}-{fit}-{seed}.json", figures)
    return figures


def draw(known: Tensor, count: int, fit: Fit, bandwidth: float, seed: int) -> Tensor:
    """Latents (S, E) from the distribution of known ones (N, E).

    A Gaussian with their mean and covariance is drawn from without forming the covariance: random combinations of
    the centred latents have it.
    """
    random = generator(seed, 17)
    centred = known - known.mean(0)
    share = torch.randn(count, len(known), generator=random).to(known.device) / max(len(known) - 1, 1) ** 0.5
    moved = share @ centred  # of mean 0 and the latents' covariance
    if fit == "gaussian":
        return known.mean(0) + moved
    places = torch.randint(len(known), (count,), generator=random).to(known.device)
    return known[places] + bandwidth * moved


def _measure(flat: Tensor, logits: Tensor, near: Tensor, near_logits: Tensor, task: TaskData) -> dict[str, float]:
    """Means over networks (S, P) with test logits (S, B, C), beside the nearest training networks and their logits.

    novelty: share of test images answered otherwise than by the nearest; distance: L2 to it; pairwise_agreement: share
    of test images that two of them answer alike; diversity: L2 between two of them (0 for one network).
    """
    labels = task.test.labels.cpu()
    pairs = [agreement(logits[place], logits[place + 1 :]) for place in range(len(logits) - 1)]
    return {
        "accuracy": float(accuracy(logits, labels).mean()),
        "novelty": float((1 - agreement(logits, near_logits)).mean()),
        "distance": float((flat - near).norm(dim=1).mean()),
        "pairwise_agreement": float(torch.cat(pairs).mean()) if pairs else 1.0,
        "diversity": diversity(flat) if len(flat) > 1 else 0.0,
    }
