"""Baselines of `netspace eval`, which need no decoder, and controls for architectures not seen in training.

Axes: M members, N training networks (the bank), P parameters, E latent size, B inputs, C outputs, V validation members.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from netspace import archs
from netspace.errors import NetspaceError
from netspace.metrics import nearest
from netspace.models.autoencoder import layer_deviation, layer_spread
from netspace.networks.alignment import align, check_same_function, reset_statistics
from netspace.networks.batch import NetBatch
from netspace.networks.channels import channel_groups
from netspace.networks.family import ArchClass, Networks
from netspace.networks.prep import unpack
from netspace.progress import Progress, progress
from netspace.space import Space
from netspace.streams import Stream, generator
from netspace.tasks import Task
from netspace.training.batches import Images
from netspace.training.optimizers import Optimizer, OptimizerConfig
from netspace.training.recipe import SpaceRecipe
from netspace.training.setup import Teacher, training_rows
from netspace.training.validation import Comparison, accuracies, compare_outputs, network_outputs, slices
from netspace.zoo import Zoo

MAX_BANK = 4096  # training members that baselines draw on, and that new networks are drawn from and compared with
MAX_NOISE_MEMBERS = 16  # validation members by which the noise is chosen
NOISES = (0.01, 0.03, 0.1, 0.3)  # in units of each layer's standard deviation; the best on validation members is used
MAX_SELECTION_IMAGES = 2000  # validation images by which training networks are chosen: the first ones
MAX_SELECTION_MEMBERS = 256  # validation members by which the one constant network is chosen
SAME_ACCURACY = 0.001  # validation accuracies that differ by at most so much from the nearest one are ties
NEAREST = 5  # networks of `five_nearest`
MAX_LOGITS = 1 << 24  # values of training networks' logits in memory at once
MAX_ALIGNED = 10  # networks of `aligned_average`, the best on validation images
STATISTICS_INPUTS = 1000  # training inputs on which their average gets its statistics
OPTIMIZER = OptimizerConfig(name="adam", learning_rate=0.003, schedule="cosine", warmup=50, clip=5.0)
AUTOMATIC_STEPS = 5000  # a distilled control of more steps is trained only if it is asked for


_READ: WeakKeyDictionary[Space, dict[tuple[str, str, str], Tensor]] = WeakKeyDictionary()


def trained_latents(space: Space, zoo: Zoo, arch: ArchClass) -> Tensor:
    """Return the latents (N, E) of the networks of an architecture that the space was trained on, `MAX_BANK` at most.

    They are read once for each space. Raises `NetspaceError` if there are none.
    """
    if not arch.trained or arch.id not in zoo.archs:
        raise NetspaceError(f"{zoo.path} has no networks of {arch.id}, whose latents are needed")
    known, key = _READ.setdefault(space, {}), (zoo.content_hash, arch.id, str(space.device))
    if key not in known:
        known[key] = space.encode_preps(zoo.group(arch.id).read(bank_rows(space, zoo, arch)), arch.id)
    return known[key]


def bank_rows(space: Space, zoo: Zoo, arch: ArchClass) -> np.ndarray:
    """Return the rows (N,) of the networks of an architecture that the space was trained on, `MAX_BANK` at most."""
    return training_rows(space.recipe, zoo, zoo.group(arch.id))[:MAX_BANK].numpy()


@dataclass(frozen=True)
class Choice:
    """The training networks that are compared with each member: rows of the bank."""

    single: dict[str, Tensor]  # (M,) by the name of the baseline
    nearest: Tensor  # (M, NEAREST) by their outputs, or as many as there are


class Baselines:
    """The training networks of one architecture of a space, compared with networks that it reconstructs."""

    def __init__(self, space: Space, zoo: Zoo, class_id: int) -> None:
        arch = space.family[class_id]
        self.space, self.class_id, self.parameters = space, class_id, arch.parameters
        self.group = zoo.group(arch.id)
        rows = bank_rows(space, zoo, arch)
        preps, self.seeds = self.group.read(rows).to(space.device), self.group.seeds(rows)
        self.merits = torch.from_numpy(np.ascontiguousarray(self.group.merit(rows)))
        self.bank = unpack(preps, arch.parameters)
        self.latents = trained_latents(space, zoo, arch)
        spread = layer_deviation(layer_spread(preps, arch.spec), arch.parameters)
        self.spread = unpack(spread, arch.parameters)

    def compare(
        self, target: Tensor, latents: Tensor, target_logits: Tensor, task: Task, seeds: Tensor
    ) -> tuple[dict[str, Comparison], float, dict[str, Tensor]]:
        """Compare each baseline with networks (M, P) of `seeds` (M,), which have latents (M, E) and test logits (M, B, C).

        Return comparisons by name, the scale of the noise that was used, and the networks (M, P) of `nearest_answers` and
        `average`:

        - `nearest`, `nearest_latent`: the training network with the nearest weights, or latent;
        - `same_accuracy`: a random one among those whose validation accuracy is nearest (ties: `SAME_ACCURACY`);
        - `nearest_answers`: the one whose outputs for validation images are nearest, by KL(target || it);
        - `nearest_agreement`: the one that gives most validation images the target's class; of several, the nearest by KL;
        - `five_nearest`: the mean of the class probabilities of the five nearest by KL;
        - `constant`: one network for every member, the one that agrees most with the validation members;
        - `ensemble`: the mean of the class probabilities of all training networks;
        - `average`: the mean of all training networks' weights; `noise`: `nearest` plus Gaussian noise;
        - `aligned_average`: the mean of the best few after alignment of their channels, with the statistics of its
          sources; left out if the network's graph cannot be traced.
        """
        scale = self._noise_scale(task)
        compare_chosen = self._compare_on_own_inputs if task.own_inputs else self._compare_chosen
        turns = len(seeds) if task.own_inputs else 1  # of all networks on test inputs
        with progress("baselines", (1 + turns) * len(self.bank), "networks") as bar:
            choice = self._choose(target, latents, task, seeds, bar)
            compared = compare_chosen(choice, target_logits, task, seeds, bar)
        noisy = self._noisy(self.bank[choice.single["nearest"].to(self.bank.device)], scale)
        average = self.bank.mean(0, keepdim=True)
        networks = {"noise": noisy, "average": average}
        if (aligned := self._aligned_average(task)) is not None:
            networks["aligned_average"] = aligned
        for name, flat in networks.items():
            flat = flat.expand(len(seeds), -1) if task.own_inputs else flat
            logits = self._test_logits(flat, task, seeds[: len(flat)]).expand_as(target_logits)
            compared[name] = compare_outputs(target_logits, logits, task, "test", seeds)
        near = self.bank[choice.single["nearest_answers"].to(self.bank.device)]
        return compared, scale, {"nearest_answers": near, "average": average.expand(len(target), -1)}

    def _choose(self, target: Tensor, latents: Tensor, task: Task, seeds: Tensor, bar: Progress) -> Choice:
        """Choose training networks by their outputs for validation inputs, a part of the bank at a time."""
        device = self.bank.device
        part = slice(min(MAX_SELECTION_IMAGES, task.size("val")))

        def logits_of(flat: Tensor, own: Tensor) -> Tensor:
            inputs_of = None if task.own_inputs else own  # networks are compared with each other
            return network_outputs(self._networks(flat), task, "val", inputs_of, part.stop).to(device)

        def scores(flat: Tensor, logits: Tensor, own: Tensor) -> Tensor:
            if task.own_inputs:
                return torch.from_numpy(accuracies(self._networks(flat), task, "val", own)).to(device)
            return task.score(logits, task.targets("val", part, own).to(device))

        target_logits, judges = logits_of(target, seeds), logits_of(*self._judges())
        divergences, agreements, popularity, score = [], [], [], []
        size = _part_size(target_logits)
        for flat, own in zip(self.bank.split(size), self.seeds.split(size), strict=True):
            logits = logits_of(flat, own)
            divergences.append(task.divergences(target_logits, logits))
            agreements.append(task.agreements(target_logits, logits))
            popularity.append(task.agreements(judges, logits).sum(0))
            score.append(scores(flat, logits, own))
            bar.advance(len(flat))
        divergence, same = torch.cat(divergences, 1), torch.cat(agreements, 1)
        chosen = {
            "nearest": nearest(target, self.bank),
            "nearest_latent": nearest(latents, self.latents),
            "same_accuracy": _random_tie((scores(target, target_logits, seeds)[:, None] - torch.cat(score)).abs()),
            "nearest_answers": divergence.argmin(1),
            "nearest_agreement": divergence.masked_fill(same < same.amax(1, keepdim=True), torch.inf).argmin(1),
            "constant": torch.cat(popularity).argmax().expand(len(target)),
        }
        several = divergence.topk(min(NEAREST, len(self.bank)), dim=1, largest=False).indices
        return Choice({name: rows.cpu() for name, rows in chosen.items()}, several.cpu())

    def _compare_chosen(
        self, choice: Choice, target_logits: Tensor, task: Task, seeds: Tensor, bar: Progress
    ) -> dict[str, Comparison]:
        """Run every training network once on the test inputs, and compare those that were chosen."""
        members: dict[str, list[Tensor]] = {name: [] for name in choice.single}
        parts: dict[str, list[Comparison]] = {name: [] for name in choice.single}
        ensemble, nearest_votes = torch.zeros(target_logits.shape[1:]), torch.zeros(target_logits.shape)
        start, size = 0, _part_size(target_logits)
        for flat, own in zip(self.bank.split(size), self.seeds.split(size), strict=True):
            logits = self._test_logits(flat, task, own)
            votes = task.votes(logits)
            ensemble += votes.sum(0)
            for name, row in choice.single.items():
                here = ((row >= start) & (row < start + len(flat))).nonzero()[:, 0]
                if len(here):
                    members[name].append(here)
                    chosen = target_logits[here], logits[row[here] - start]
                    parts[name].append(compare_outputs(*chosen, task, "test", seeds[here]))
            here, column = ((choice.nearest >= start) & (choice.nearest < start + len(flat))).nonzero(as_tuple=True)
            nearest_votes.index_add_(0, here, votes[choice.nearest[here, column] - start])
            start += len(flat)
            bar.advance(len(flat))
        compared = {
            name: Comparison.concatenate(parts[name]).select(torch.cat(members[name]).argsort().numpy())
            for name in choice.single
        }
        means = {
            "five_nearest": nearest_votes / choice.nearest.shape[1],
            "ensemble": (ensemble / len(self.bank)).expand_as(target_logits),
        }
        for name, mean in means.items():
            compared[name] = compare_outputs(target_logits, task.from_votes(mean), task, "test", seeds)
        return compared

    def _compare_on_own_inputs(
        self, choice: Choice, target_logits: Tensor, task: Task, seeds: Tensor, bar: Progress
    ) -> dict[str, Comparison]:
        """Compare what `_compare_chosen` does, for members with inputs of their own: each runs every training network."""
        outputs = {name: torch.zeros_like(target_logits) for name in (*choice.single, "five_nearest", "ensemble")}
        size = _part_size(target_logits)
        for index, seed in enumerate(seeds):
            near, start = choice.nearest[index], 0
            for flat in self.bank.split(size):
                logits = self._test_logits(flat, task, seed.expand(len(flat)))
                votes = task.votes(logits)
                here = near[(near >= start) & (near < start + len(flat))] - start
                outputs["five_nearest"][index] += votes[here].sum(0) / len(near)
                outputs["ensemble"][index] += votes.sum(0) / len(self.bank)
                for name, row in choice.single.items():
                    if start <= row[index] < start + len(flat):
                        outputs[name][index] = logits[row[index] - start]
                start += len(flat)
                bar.advance(len(flat))
        for name in ("five_nearest", "ensemble"):
            outputs[name] = task.from_votes(outputs[name])
        return {name: compare_outputs(target_logits, each, task, "test", seeds) for name, each in outputs.items()}

    def _judges(self) -> tuple[Tensor, Tensor]:
        """Return the networks (V, P) by which the constant one is chosen, and their seeds: of the bank if there are no validation members."""
        flat, seeds = self._validation_members(MAX_SELECTION_MEMBERS)
        return (flat, seeds) if len(flat) else (self.bank[:MAX_SELECTION_MEMBERS], self.seeds[:MAX_SELECTION_MEMBERS])

    def _validation_members(self, limit: int) -> tuple[Tensor, Tensor]:
        """Return the first validation members (V, P) and their seeds (V,)."""
        rows = self.group.rows("val")[:limit]
        return unpack(self.group.read(rows).to(self.bank.device), self.parameters), self.group.seeds(rows)

    def _aligned_average(self, task: Task) -> Tensor | None:
        """Return the mean (1, P) of the `MAX_ALIGNED` best training networks, aligned to the best; None without a graph."""
        best = self.merits.argsort(descending=True, stable=True)[:MAX_ALIGNED]
        weights = torch.full((1, len(best)), 1 / len(best), device=self.bank.device)
        return aligned_mixtures(self.space.family[self.class_id].nets, self.bank[best], weights, task)

    def _networks(self, flat: Tensor) -> Networks:
        return Networks.of_class(self.space.family, self.class_id, flat)

    def _test_logits(self, flat: Tensor, task: Task, seeds: Tensor) -> Tensor:
        return network_outputs(self._networks(flat), task, "test", seeds)

    def _noise_scale(self, task: Task) -> float:
        """Return the noise with the smallest mean |difference| of accuracy on validation members and images."""
        target, seeds = self._validation_members(MAX_NOISE_MEMBERS)
        if not len(target):
            return NOISES[0]
        near = self.bank[nearest(target, self.bank)]
        own = accuracies(self._networks(target), task, "val", seeds)
        noisy = [accuracies(self._networks(self._noisy(near, scale)), task, "val", seeds) for scale in NOISES]
        return NOISES[int(np.argmin([np.abs(each - own).mean() for each in noisy]))]

    def _noisy(self, flat: Tensor, scale: float) -> Tensor:
        noise = torch.randn(flat.shape, generator=generator(0, Stream.BASELINE_NOISE)).to(flat.device)
        return flat + scale * self.spread * noise


def aligned_mixtures(nets: NetBatch, flat: Tensor, weights: Tensor, task: Task) -> Tensor | None:
    """Align networks (K, P) to the first, mix them by weights (S, K), and reset statistics to those of the sources: (S, P).

    Return None for a graph that cannot be traced. Statistics are those on inputs that all networks share.
    """
    spec = nets.spec
    inputs = task.inputs("train", slice(STATISTICS_INPUTS))
    try:
        groups = channel_groups(nets.skeleton, torch.zeros(2, *spec.input_shape, device=flat.device), spec.arch)
        sources = align(flat[0], flat, spec, groups)
        check_same_function(nets.skeleton, spec, flat, sources, inputs[:4])
    except NetspaceError:
        return None
    return reset_statistics(nets.skeleton, spec, groups, weights @ sources, sources, weights, inputs)


def _part_size(logits: Tensor) -> int:
    """Return the number of networks that are run at once, for logits (M, B, C)."""
    return max(MAX_LOGITS // (logits.shape[1] * logits.shape[2]), 1)


def _random_tie(distance: Tensor) -> Tensor:
    """Return, for each row of distances (M, N), a random column (M,) of the smallest, which differ by at most `SAME_ACCURACY`."""
    draws = torch.rand(distance.shape, generator=generator(0, Stream.SAME_ACCURACY)).to(distance.device)
    return draws.masked_fill(distance > distance.amin(1, keepdim=True) + SAME_ACCURACY, -1.0).argmax(1)


@contextmanager
def learnt_part_off(space: Space) -> Iterator[bool]:
    """Set the decoder's scales to 0 inside the block, so that it emits one network for each architecture, whatever the latent.

    Yield whether the decoder has such scales: not every one does.
    """
    scales = space.model.decoder.scales()
    before = [scale.detach().clone() for scale in scales]
    with torch.no_grad():
        for scale in scales:
            scale.zero_()
    try:
        yield bool(scales)
    finally:
        with torch.no_grad():
            for scale, value in zip(scales, before, strict=True):
                scale.copy_(value)


def distilled(space: Space, arch: ArchClass, teacher: Teacher, task: Task) -> float:
    """Distil a fresh network of `arch` from the teacher, for as many steps as the space was trained; return its test accuracy.

    The batches are those of the space's training, and the loss is the space's (NetSpace, Eq. 5). The network has its batch
    norm, as a zoo's have in training. Nothing is chosen: the last weights count.
    """
    recipe = space.recipe
    assert recipe.multi is not None
    spec = arch.spec
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(recipe.seed, Stream.DISTILLED_NETWORK, space.class_id(arch.id)).initial_seed())
        network = archs.build(spec.arch, **spec.settings).to(task.device)
    _distil(network, recipe, teacher, task)
    network.eval()
    with torch.no_grad():
        logits = torch.cat([network(task.inputs("test", part)) for part in slices(task.size("test"), 1024)])
    return float(task.score(logits, task.targets("test", slice(None))))


def _distil(network: torch.nn.Module, recipe: SpaceRecipe, teacher: Teacher, task: Task) -> None:
    """Train the network on the teacher's logits and the labels."""
    multi = recipe.multi
    assert multi is not None
    images, optimizer = Images(task, recipe.seed), Optimizer(network, OPTIMIZER, recipe.steps)
    cache = None if images.fixed is None else torch.cat([teacher(chunk) for chunk in images.fixed.split(1024)])
    network.train()
    for step in range(recipe.steps):
        batch, rows = images.take(step, recipe.images)
        teacher_logits = teacher(batch) if cache is None else cache[rows]
        targets = task.targets("train", rows)
        loss = task.distillation_loss(network(batch)[None], teacher_logits, targets, multi.temperature, multi.alpha)
        loss.mean().backward()
        optimizer.step(step)
