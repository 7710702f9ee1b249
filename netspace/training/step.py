"""The training step of a space: a batch of networks becomes named terms of a loss (NetSpace, Sec. III).

Axes: M members (networks), S points between pairs of them, A architectures, B inputs of a batch, C outputs, H W of a PRep.
A single architecture is a family of one. Another loss term is a function of the `Batch` and a line in the table `TERMS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from netspace import losses
from netspace.hardware import send
from netspace.models.autoencoder import layer_deviation
from netspace.models.coordinate_decoder import CoordinateDecoder
from netspace.networks.family import Family, Networks
from netspace.networks.prep import unpack
from netspace.streams import Stream, generator
from netspace.tasks import Task
from netspace.training.batches import Chosen, ClassBatches, Images, Points, Targets, autocast, batch_slice, unwrapped
from netspace.training.recipe import SpaceRecipe
from netspace.training.setup import Setup


@dataclass(frozen=True)
class Batch:
    """The inputs of loss terms: M networks, then the S points between them, and the outputs that are their targets.

    Tensors that no term of the recipe asks for have no elements.
    """

    recipe: SpaceRecipe
    task: Task
    family: Family
    groups: Sequence[tuple[int, Tensor]]  # ClassIds, each once, and PReps (M_c, H_c, W) of the M networks
    points: Points
    class_ids: Tensor  # (M + S,) int64
    spread: Tensor  # (H, W) or (A, H, W), standard deviation of every parameter's layer
    decoded: Tensor  # (M + S, H, W)
    class_logits: Tensor  # (M + S, A) of the ClassId head
    logits: Tensor  # (M + S, B, C) of the decoded networks
    target_logits: Tensor  # (M, B, C) of the networks themselves
    teacher_logits: Tensor  # (B, C)
    labels: Tensor  # (B, ...) the task's targets of the inputs, such as labels
    sized_logits: Tensor  # (K, B, C) of some networks decoded as another architecture
    sized_targets: Tensor  # (K, B, C) of these networks themselves

    @property
    def count(self) -> int:
        """M."""
        return sum(len(preps) for _, preps in self.groups)

    def by_class(self, loss: Callable[[int, Tensor, slice], Tensor]) -> Tensor:
        """Return the mean over M, a scalar, of `loss(class_id, preps, rows)`, itself that over one class's networks."""
        total, first = torch.zeros((), device=self.decoded.device), 0
        for class_id, preps in self.groups:
            value = loss(class_id, preps, slice(first, first + len(preps)))
            total = total + (value if len(self.groups) == 1 else value * len(preps) / self.count)
            first += len(preps)
        return total


def classid(batch: Batch, weight: float) -> Tensor:
    """Return the loss of the ClassId head, which reads the architecture from a latent (Eq. 6): a scalar."""
    return weight * losses.class_loss(batch.class_logits[: batch.count], batch.class_ids[: batch.count]).mean()


def distillation(batch: Batch, weight: float) -> Tensor:
    """Return the distillation loss of decoded networks from the teacher (Eq. 5): a scalar."""
    multi = batch.recipe.multi
    assert multi is not None
    outputs = batch.logits[: batch.count], batch.teacher_logits, batch.labels
    return weight * batch.task.distillation_loss(*outputs, multi.temperature, multi.alpha).mean()


def interpolation(batch: Batch, weight: float) -> Tensor:
    """Return the loss of points between the ends: ClassId and distillation from the teacher (Eq. 11).

    A scalar: the sum over points, divided by M.
    """
    multi, points = batch.recipe.multi, slice(batch.count, None)
    assert multi is not None
    outputs = batch.logits[points], batch.teacher_logits, batch.labels
    values = losses.class_loss(batch.class_logits[points], batch.class_ids[points])
    values = values + batch.task.distillation_loss(*outputs, multi.temperature, multi.alpha)
    return weight * values.sum() / batch.count


def behaviour(batch: Batch, weight: float) -> Tensor:
    """Return the loss between outputs of decoded and encoded networks (Eq. 1): a scalar."""
    loss = batch.recipe.loss

    def of_class(class_id: int, preps: Tensor, rows: slice) -> Tensor:
        outputs = batch.logits[rows], batch.target_logits[rows]
        return weight * batch.task.behaviour_loss(*outputs, loss.temperature, loss.relative)

    return batch.by_class(of_class)


def contrastive(batch: Batch, weight: float) -> Tensor:
    """Decoded networks behave like those that were encoded rather than like others of their architecture: a scalar."""

    def of_class(class_id: int, preps: Tensor, rows: slice) -> Tensor:
        return weight * losses.contrastive_loss(
            batch.logits[rows], batch.target_logits[rows], batch.recipe.loss.contrast
        )

    return batch.by_class(of_class)


def lines(batch: Batch, weight: float) -> Tensor | None:
    """Return the loss between outputs of points between two networks and a blend of both; None without points."""
    loss, points = batch.recipe.loss, batch.points
    if not len(points):
        return None
    first, second = (batch.target_logits.index_select(0, ends) for ends in points.pairs)
    blend = batch.task.blend(first, second, points.gamma)
    return weight * batch.task.behaviour_loss(batch.logits[batch.count :], blend, loss.temperature, loss.relative)


def weights(batch: Batch, weight: float) -> Tensor:
    """Return the distance of decoded from encoded parameters, in units of their layer's spread: a scalar."""

    def of_class(class_id: int, preps: Tensor, rows: slice) -> Tensor:
        parameters, height = batch.family[class_id].parameters, preps.shape[1]
        spread = (batch.spread if batch.spread.dim() == 2 else batch.spread[class_id])[:height]
        scaled = [unpack(each / spread, parameters) for each in (batch.decoded[rows, :height], preps)]
        return weight * losses.weight_loss(*scaled)

    return batch.by_class(of_class)


def sizes(batch: Batch, weight: float) -> Tensor:
    """Return the loss between outputs of networks decoded as another architecture and encoded ones (Eq. 1): a scalar."""
    loss = batch.recipe.loss
    outputs = batch.sized_logits, batch.sized_targets
    return weight * batch.task.behaviour_loss(*outputs, loss.temperature, loss.relative)


@dataclass(frozen=True)
class Term:
    """A term of the loss. The sum of all terms is minimised."""

    weight: Callable[[SpaceRecipe], float | None]  # what the recipe gives it; None: not a term of this recipe
    loss: Callable[[Batch, float], Tensor | None]  # times the weight; None: this batch has nothing for it
    logits: bool = True  # whether decoded networks are run for it
    targets: bool = False  # whether the networks themselves are run for it


TERMS: dict[str, Term] = {
    "classid": Term(lambda recipe: recipe.multi.classid if recipe.multi else None, classid, logits=False),
    "distillation": Term(lambda recipe: recipe.multi.distillation or None if recipe.multi else None, distillation),
    "interpolation": Term(lambda recipe: recipe.multi.interpolation or None if recipe.multi else None, interpolation),
    "behaviour": Term(
        lambda recipe: recipe.loss.behaviour or (0.0 if recipe.loss.lines else None), behaviour, targets=True
    ),
    "contrastive": Term(lambda recipe: recipe.loss.contrastive or None, contrastive, targets=True),
    "lines": Term(lambda recipe: recipe.loss.lines or None, lines, targets=True),
    "sizes": Term(lambda recipe: recipe.sizes.weight if recipe.sizes else None, sizes, targets=True),
    "weights": Term(lambda recipe: recipe.loss.weights or None, weights, logits=False),
}


class Step:
    """One training step: encode, decode, run the networks, sum the terms.

    Networks are decoded as their own architecture, and points between as the one that Eq. 7 gives, not as the one that the
    ClassId head reads: it is trained at the same time. Networks of one class run stacked.
    """

    def __init__(self, setup: Setup, rank: int = 0, world_size: int = 1) -> None:
        self.recipe, self.family, self.task, self.teacher = setup.recipe, setup.family, setup.task, setup.teacher
        self.rank, self.world_size = rank, world_size
        recipe, task = self.recipe, self.task
        weighted = ((name, term, term.weight(recipe)) for name, term in TERMS.items())
        self.terms = [(name, term, weight) for name, term, weight in weighted if weight is not None]
        self.runs_networks = any(term.logits or term.targets for _, term, _ in self.terms)
        self.sources = {class_id: source for class_id, source in enumerate(setup.train) if source is not None}
        self.batches = ClassBatches(recipe, {class_id: len(source) for class_id, source in self.sources.items()})
        self.images = Images(task, recipe.seed)
        self.targets: dict[int, Targets] = {}
        self.teacher_logits: Tensor | None = None  # (N, C) for all N training images, where they never change
        self._layouts: dict[tuple[tuple[int, int], ...], tuple[Tensor, Tensor, Points]] = {}
        decoder = setup.model.decoder
        self.sizes = [
            (arch, *decoder.tokens_for(arch)) for arch in setup.sizes if isinstance(decoder, CoordinateDecoder)
        ]
        fixed = self.images.fixed
        with autocast(recipe.networks_precision, task.device):
            if self.teacher is not None and fixed is not None:
                self.teacher_logits = torch.cat([self.teacher(chunk) for chunk in fixed.split(1024)]).float()
            if any(term.targets for _, term, _ in self.terms):
                cached = recipe.remember_targets and fixed is not None and not recipe.noise
                pool = fixed if fixed is not None and cached else task.inputs("train", slice(1))
                for class_id, source in self.sources.items():
                    self.targets[class_id] = Targets(self.family[class_id].nets, source, pool, cached)

    def __call__(self, model: nn.Module, number: int, part: int = 0) -> dict[str, Tensor]:
        """Return the terms of a part of step `number`, for the networks of this process.

        There are `recipe.accumulate` parts; the batch's loss is the mean over parts and processes.
        """
        batch = self.batch(model, number, part)
        values = {name: term.loss(batch, weight) for name, term, weight in self.terms}
        return {name: value for name, value in values.items() if value is not None}

    def batch(self, model: nn.Module, number: int, part: int = 0) -> Batch:
        """Return the inputs of the loss terms for a part of step `number`."""
        recipe, device, nothing = self.recipe, self.task.device, torch.empty(0)
        chosen, spread = self._chosen(number, part), unwrapped(model).spread
        groups = [(class_id, self.sources[class_id].take(members)) for class_id, members in chosen]
        if recipe.noise:
            groups = [(class_id, self._with_noise(preps, spread, number, part)) for class_id, preps in groups]
        for class_id, members in self._chosen(*divmod(number * recipe.accumulate + part + 1, recipe.accumulate)):
            self.sources[class_id].prefetch(members)
        class_ids, ids, points = self._layout(tuple((class_id, len(members)) for class_id, members in chosen))
        if recipe.multi is None:
            points = replace(points, gamma=self._gamma(len(points), number, part))
        with autocast(recipe.precision, device):
            decoded, class_logits = model(groups, points.pairs, points.gamma, ids)
        logits = target_logits = teacher_logits = labels = sized_logits = sized_targets = nothing
        if self.runs_networks:
            images, positions = self.images.take(number, recipe.images)
            if self.teacher is not None:  # else no term compares networks with targets
                labels = self.task.targets("train", positions)
            with autocast(recipe.networks_precision, device):
                if self.teacher is not None:
                    cache = self.teacher_logits
                    teacher_logits = self.teacher(images) if cache is None else cache[positions]
                if self.targets:
                    target_logits = torch.cat(
                        [
                            self.targets[class_id].take(None if recipe.noise else members, positions, preps, images)
                            for (class_id, members), (_, preps) in zip(chosen, groups, strict=True)
                        ]
                    )
                logits = Networks(self.family, decoded, class_ids).each(lambda nets, flat: nets(flat, images))
            if self.sizes:
                sized_logits, sized_targets = self._sized(model, number, part, groups, images, target_logits)
        return Batch(
            recipe=recipe,
            task=self.task,
            family=self.family,
            groups=groups,
            points=points,
            class_ids=ids,
            spread=spread,
            decoded=decoded,
            class_logits=nothing if class_logits is None else class_logits,
            logits=logits,
            target_logits=target_logits,
            teacher_logits=teacher_logits,
            labels=labels,
            sized_logits=sized_logits,
            sized_targets=sized_targets,
        )

    def _sized(
        self,
        model: nn.Module,
        number: int,
        part: int,
        groups: Sequence[tuple[int, Tensor]],
        images: Tensor,
        target_logits: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return outputs (K, B, C) of the first networks of one class, decoded as another architecture, and their own."""
        recipe, inner = self.recipe, unwrapped(model)
        assert recipe.sizes is not None
        random = generator(recipe.seed, Stream.SIZES, number, part)
        arch, tokens, embedded = self.sizes[int(torch.randint(len(self.sizes), (), generator=random))]
        chosen = number % len(groups)
        class_id, preps = groups[chosen]
        preps, first = preps[: recipe.sizes.networks], sum(len(each) for _, each in groups[:chosen])
        with autocast(recipe.precision, self.task.device):
            flat = inner.decoder.emit(inner.encoder(preps, class_id), tokens, embedded)
        with autocast(recipe.networks_precision, self.task.device):
            return arch.nets(flat.float(), images), target_logits[first : first + len(preps)]

    def _layout(self, counts: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor, Points]:
        """Return the ClassIds (M + S,) of a batch's networks and points, on the CPU and on the device, and the points.

        They are cached by the number of networks of each class, so that balanced batches copy nothing to the device.
        """
        if counts not in self._layouts:
            recipe, device = self.recipe, self.task.device
            own = torch.tensor([class_id for class_id, count in counts for _ in range(count)])
            if recipe.multi is None:
                points = Points.of_pairs(len(own) if recipe.loss.lines else 0)
            else:
                points = Points.between_ends(dict(counts), self.family, recipe.multi)
            class_ids = torch.cat([own, points.class_ids])
            self._layouts[counts] = class_ids, class_ids.to(device), points.to(device)
        return self._layouts[counts]

    def _gamma(self, count: int, number: int, part: int) -> Tensor:
        """Return gamma (S,) of this process's points: 0 at the first network, 1 at the second."""
        own = batch_slice(self.recipe, part, self.rank, self.world_size)
        gamma = torch.rand(self.recipe.networks // 2, generator=generator(self.recipe.seed, Stream.LINES, number))
        return send(gamma[own][:count], self.task.device)

    def _with_noise(self, preps: Tensor, spread: Tensor, number: int, part: int) -> Tensor:
        """Return PReps (M, H, W) of which every second one has noise of a random size."""
        own = batch_slice(self.recipe, part, self.rank, self.world_size)
        count, random = (
            self.recipe.networks,
            generator(self.recipe.seed, Stream.DISTURBANCE, number),
        )  # of the whole batch
        sizes = self.recipe.noise * torch.rand(count, generator=random)
        sizes[::2] = 0
        noise = sizes.view(-1, 1, 1) * torch.randn(count, *preps.shape[1:], generator=random)
        return preps + send(noise[own], preps.device) * layer_deviation(spread, self.family[0].parameters)

    def _chosen(self, number: int, part: int) -> Chosen:
        return self.batches.take(number, batch_slice(self.recipe, part, self.rank, self.world_size))
