"""`netspace sample`: new networks, drawn from the distribution of the latents of an architecture.

Axes: N training members, S samples, P parameters, E latent size, B inputs, C outputs.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from netspace.commands.baselines import MAX_ALIGNED, MAX_BANK, aligned_mixtures, learnt_part_off, trained_latents
from netspace.commands.convert import write_network, zoo_of
from netspace.errors import UsageError, unknown
from netspace.hardware import NETWORK_COPIES, require_memory
from netspace.metrics import diversity, nearest
from netspace.models.autoencoder import layer_deviation, layer_spread
from netspace.networks.family import ArchClass, Networks
from netspace.networks.prep import pack, unpack
from netspace.results.spaces import SampleFigures, Sampling
from netspace.space import Space
from netspace.streams import Stream, generator
from netspace.tasks import Task
from netspace.training.setup import task_of, training_rows
from netspace.training.validation import accuracies, network_outputs
from netspace.zoo import Zoo

PAIRS = 256  # of a smallest and a largest network, for an architecture not seen in training
NOISE = 0.1  # of the baseline 'nearest + noise', in units of each layer's standard deviation
FITS = ("gaussian", "kde")
Fit = Literal["gaussian", "kde"]


def known_latents(space: Space, zoo: Zoo, arch: ArchClass) -> Tensor:
    """Return latents (N, E) of the training members of an architecture.

    For an architecture not seen in training they are points between random pairs of the smallest and the largest
    architecture's, at the factor gamma of NetSpace, Eq. 12 (`Space.factor`). Raises `NetspaceError` if the zoo has no such
    members.
    """
    own = next((each for each in space.family if each.id == arch.id), arch)
    if own.trained:
        return trained_latents(space, zoo, own)
    random = generator(0, Stream.SAMPLE_ENDS)
    ends = [trained_latents(space, zoo, space.family[class_id]) for class_id in (0, len(space.family) - 1)]
    first, last = (end[torch.randint(len(end), (PAIRS,), generator=random).to(end.device)] for end in ends)
    return torch.lerp(first, last, space.factor(own))


def known_networks(space: Space, zoo: Zoo, arch: ArchClass) -> Tensor | None:
    """Return the parameters (N, P) of the zoo's training members of an architecture; None if it has none.

    They are those that the space was trained on; of an architecture not seen in training all, to compare with.
    """
    if arch.id not in zoo.archs:
        return None
    group = zoo.group(arch.id)
    rows = training_rows(space.recipe, zoo, group).numpy() if arch.trained else group.rows("train")
    return unpack(group.read(rows[:MAX_BANK]).to(space.device), arch.parameters) if len(rows) else None


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
    width: float | None = None,
    depth: int | None = None,
) -> Sampling:
    """Draw `count` networks; measure how accurate, how new and how different they are, compared with baselines.

    Networks of an architecture not seen in training are drawn where Eq. 12 puts it (NetSpace, Sampling of Unseen
    Architectures), and compared with normally trained ones, if the zoo has any. `fit` is the distribution: one Gaussian over the
    latents of training members, or one around each of them ('kde') with a width of `bandwidth` times the former's. `save` is a
    folder for the networks, as safetensors. With a coordinate decoder, `arch` may be any architecture, or one of the space's at
    another `width` or `depth` (`Space.resized`). The figures are also written to the run's `samples/`.

    Raises:
        UsageError: for less than 2 networks, more than fit into memory, an unknown `fit` or `bandwidth`, and an architecture that the space does not have,
            or none if it has several.
        NetspaceError: the run has no space, or the zoo is another.

    >>> result = sample(run, count=2, save=folder)
    >>> len(list(folder.glob("*.safetensors")))
    2
    """
    if count < 2:
        raise UsageError(f"at least 2 networks are drawn, to tell how they differ; {count} were asked for")
    if not 0 < bandwidth < float("inf"):
        raise UsageError(
            f"a bandwidth of {bandwidth:g} was asked for: give a number above 0, in widths of the Gaussian"
        )
    if fit not in FITS:
        raise unknown("fit", fit, FITS)
    space = Space.load(run, device)
    decoding = space.select(arch, width, depth)  # the same latents, perhaps as an architecture that nobody declared
    kind = space.arch_class(arch) if decoding is space else decoding.arch_class()
    class_id = decoding.class_id(kind.id)
    with zoo_of(run, zoo_path) as zoo:
        task = task_of(zoo, space.device)
        values = NETWORK_COPIES * kind.parameters + task.size("test") * task.num_outputs
        require_memory(count, values, f"--count {count}", space.device)
        known = known_latents(space, zoo, kind)
        bank = known_networks(space, zoo, kind)
        trained = np.empty(0)
        if kind.id in zoo.archs:
            trained = zoo.group(kind.id).members["accuracy_test"][zoo.group(kind.id).rows("train")]
        controls = {} if kind.trained else _neighbour(space, zoo, kind, task)
    latents = draw(known, count, fit, bandwidth, seed)  # type: ignore[arg-type]
    flat = decoding.decode_flat(latents, kind.id)
    sets = {"sampled": flat, **({} if bank is None else _baselines(flat, bank, kind, seed))}
    logits = {
        name: network_outputs(Networks.of_class(decoding.family, class_id, rows), task, "test")
        for name, rows in sets.items()
    }
    near, near_logits = sets.get("nearest"), logits.get("nearest")
    figures = {name: _measure(rows, logits[name], near, near_logits, task) for name, rows in sets.items()}
    novelty = None if near_logits is None else 1 - task.agreement(logits["sampled"], near_logits)
    scores = _scores(logits["sampled"], task).tolist()
    if not kind.trained:
        with learnt_part_off(decoding) as off:
            reference = decoding.decode_all(latents, kind.id) if off else None
        if reference is not None:
            controls["accuracy_scale_zero"] = float(accuracies(reference, task, "test").mean())
    files: dict[str, list[str]] = {}  # the key is absent if nothing is saved
    if save is not None:
        names = [save / f"{number:04d}.safetensors" for number in range(count)]
        for name, row, score in zip(names, flat, scores, strict=True):
            write_network(name, row, kind, run=str(run), accuracy_test=f"{score:.6f}")
        files = {"networks": [str(name) for name in names]}
    result = Sampling(
        run=str(run),
        arch=kind.id,
        shown=kind.trained,
        factor=space.factor(kind) if space.multi else None,
        fit=fit,
        count=count,
        seed=seed,
        accuracy=scores,
        novelty=[None] * count if novelty is None else novelty.tolist(),
        classid_accuracy=(float((space.class_ids(latents) == class_id).double().mean()) if decoding.multi else None),
        zoo_accuracy=float(trained.mean()) if len(trained) else None,
        **controls,
        **figures,
        **files,
        **task.score_field(),
    )
    result.write(run / "samples" / f"{kind.id}-{fit}-{seed}.json")
    return result


def _neighbour(space: Space, zoo: Zoo, arch: ArchClass, task: Task) -> dict[str, Any]:
    """Return what the trained architecture nearest in log(parameters) does: its members, and the average of its best, aligned."""
    trained = [each for each in space.family if each.trained and each.id in zoo.archs]
    near = min(trained, key=lambda each: abs(math.log(each.parameters / arch.parameters)))
    group = zoo.group(near.id)
    rows = training_rows(space.recipe, zoo, group).numpy()
    best = rows[np.argsort(-group.merit(rows), kind="stable")[:MAX_ALIGNED]]
    flat = unpack(group.read(best).to(space.device), near.parameters)
    average = aligned_mixtures(near.nets, flat, torch.full((1, len(flat)), 1 / len(flat), device=flat.device), task)
    accuracy = None
    if average is not None:
        networks = Networks.of_class(space.family, space.class_id(near.id if space.multi else None), average)
        accuracy = float(accuracies(networks, task, "test")[0])
    return {
        "neighbour": near.id,
        "neighbour_accuracy": float(group.members["accuracy_test"][rows].mean()),
        "neighbour_average": accuracy,
    }


def _baselines(flat: Tensor, bank: Tensor, arch: ArchClass, seed: int) -> dict[str, Tensor]:
    """Return baselines from training networks (N, P): those nearest to samples (S, P), these with noise, and the mean of all."""
    near = bank[nearest(flat, bank)]
    spread = layer_deviation(layer_spread(pack(bank, arch.size), arch.spec), arch.parameters)
    noise = torch.randn(near.shape, generator=generator(seed, Stream.SAMPLE_NOISE)).to(near.device)
    return {
        "nearest": near,
        "noise": near + NOISE * unpack(spread, arch.parameters) * noise,
        "average": bank.mean(0, keepdim=True),
    }


def draw(known: Tensor, count: int, fit: Fit, bandwidth: float, seed: int) -> Tensor:
    """Draw latents (S, E) from the distribution of known ones (N, E).

    The covariance of a Gaussian is not formed: random combinations of the centred latents have it.
    """
    random = generator(seed, Stream.SAMPLES)
    weights = torch.randn(count, len(known), generator=random).to(known.device) / max(len(known) - 1, 1) ** 0.5
    deviations = weights @ (known - known.mean(0))  # of mean 0 and the latents' covariance
    if fit == "gaussian":
        return known.mean(0) + deviations
    rows = torch.randint(len(known), (count,), generator=random).to(known.device)
    return known[rows] + bandwidth * deviations


def _scores(outputs: Tensor, task: Task) -> Tensor:
    """Return the scores (S,) of networks with test outputs (S, B, C), which have no seeds."""
    return task.score(outputs, task.targets("test", slice(None), torch.full((len(outputs),), -1)).cpu())


def _measure(
    flat: Tensor, logits: Tensor, near: Tensor | None, near_logits: Tensor | None, task: Task
) -> SampleFigures:
    """Measure networks (S, P) with test logits (S, B, C), given the nearest training networks and their logits.

    `novelty` is the fraction of test images that the nearest answers otherwise and `distance` the L2 distance to it (both None
    if there is none); `pairwise_agreement` the fraction of test images that two networks answer alike and `diversity` the L2
    distance between two (0 for a single network). All are means.
    """
    pairs = [task.agreement(logits[row], logits[row + 1 :]) for row in range(len(logits) - 1)]
    return SampleFigures(
        accuracy=float(_scores(logits, task).mean()),
        novelty=None if near_logits is None else float((1 - task.agreement(logits, near_logits)).mean()),
        distance=None if near is None else float((flat - near).norm(dim=1).mean()),
        pairwise_agreement=float(torch.cat(pairs).mean()) if pairs else 1.0,
        diversity=diversity(flat) if len(flat) > 1 else 0.0,
    )
