"""Training steps of a space: a batch becomes named terms of a loss, for one architecture or for several (NetSpace, Sec. III).

Axes: M members (networks), B images, C classes, E latent size, H W of a PRep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import lcm

import torch
from torch import Tensor, nn

from netspace import losses
from netspace.errors import UsageError
from netspace.hardware import send
from netspace.networks.batch import NetBatch
from netspace.networks.family import Family, Networks
from netspace.networks.prep import unpack
from netspace.streams import Stream, generator
from netspace.tasks import Task
from netspace.training.batches import Images, PRepSource, Shuffle, Targets, dealt, half, unwrapped
from netspace.training.recipe import MultiConfig, SpaceRecipe
from netspace.training.setup import Teacher


class SingleStep:
    """The single-architecture setting (NetSpace, Sec. III): predicted networks behave like their targets, Eq. 1."""

    def __init__(
        self, recipe: SpaceRecipe, nets: NetBatch, source: PRepSource, task: Task, place: int = 0, shares: int = 1
    ) -> None:
        self.recipe, self.nets, self.source, self.task = recipe, nets, source, task
        self.place, self.shares = place, shares
        self.members = Shuffle(len(source), recipe.seed, stream=Stream.MEMBERS)
        self.images = Images(task, recipe.seed)
        remember = recipe.remember_targets and self.images.fixed is not None and not recipe.noise
        with half(recipe.networks_precision, task.device):
            pool = self.images.fixed if remember else task.inputs("train", slice(1))
            assert pool is not None
            self.targets = Targets(nets, source, pool, remember)

    def __call__(self, model: nn.Module, number: int, part: int = 0) -> dict[str, Tensor]:
        """The terms of a part of step `number`, for this process's share of the networks; their sum is minimised.

        There are `recipe.accumulate` parts; the mean over parts and processes is the whole batch's.
        """
        recipe = self.recipe
        place, apart = dealt(recipe, part, self.place, self.shares)
        members = self._members(number, part)
        preps = self.source.take(members)
        if recipe.noise:
            preps = self._disturbed(preps, unwrapped(model).spread, number, place, apart)
        self.source.expect(self._members(*divmod(number * recipe.accumulate + part + 1, recipe.accumulate)))
        lines = recipe.loss.lines > 0 and len(members) > 1
        pairs = len(members) // 2 if lines else 0
        shares = torch.rand(recipe.networks // 2, generator=generator(recipe.seed, Stream.LINES, number))
        share = send(shares[place::apart][:pairs], preps.device)  # the pairs of one process, dealt out
        with half(recipe.precision, self.task.device):
            predicted, between = model(preps, share)
        predicted = torch.cat([predicted, between]).float()
        terms = {}
        count = self.nets.spec.num_parameters
        if recipe.loss.behaviour or lines:
            images, places = self.images.take(number, recipe.images)
            with half(recipe.networks_precision, self.task.device):
                target = self.targets.take(None if recipe.noise else members, places, preps, images)
                answer = self.nets(unpack(predicted, count), images)
            settings = recipe.loss.temperature, recipe.loss.relative
            own, mixed = answer.split([len(preps), pairs])
            terms["behaviour"] = recipe.loss.behaviour * self.task.behaviour_loss(own, target, *settings)
            if lines:
                wanted = self.task.blend(target[:pairs], target[pairs : 2 * pairs], share)
                terms["lines"] = recipe.loss.lines * self.task.behaviour_loss(mixed, wanted, *settings)
        if recipe.loss.weights:
            spread = unwrapped(model).spread
            own_preps = predicted[: len(preps)]
            difference = losses.weight_loss(unpack(own_preps / spread, count), unpack(preps / spread, count))
            terms["weights"] = recipe.loss.weights * difference
        return terms

    def _disturbed(self, preps: Tensor, spread: Tensor, number: int, place: int, apart: int) -> Tensor:
        """PReps (M, H, W) as networks of their own, near those of the zoo: every second one with noise of a random size."""
        count, random = (
            self.recipe.networks,
            generator(self.recipe.seed, Stream.DISTURBANCE, number),
        )  # of the whole batch, then its part
        sizes = self.recipe.noise * torch.rand(count, generator=random)
        sizes[::2] = 0
        noise = sizes.view(-1, 1, 1) * torch.randn(count, *preps.shape[1:], generator=random)
        return preps + send(noise[place::apart], preps.device) * spread

    def _members(self, number: int, part: int) -> Tensor:
        place, apart = dealt(self.recipe, part, self.place, self.shares)
        return self.members.take(number * self.recipe.networks, self.recipe.networks)[place::apart]


Chosen = list[tuple[int, Tensor]]  # places among the shown members of each ClassId, ascending


class ClassBatches:
    """Which networks a step sees, of which class; a pure function of seed and step.

    With 'classes' every batch has as many of each class; with 'members' all shown networks are drawn alike, and a batch
    has whatever classes come (the paper's way, which balances by how many it shows). With 'pairs', for two shown classes,
    the i-th of one and the i-th of the other are drawn together, and what is left of the larger class in twos (the authors'
    way for architectures never shown).
    """

    def __init__(self, recipe: SpaceRecipe, counts: dict[int, int]) -> None:
        assert recipe.multi is not None
        self.networks, self.counts = recipe.networks, counts
        self.balanced, self.pairs = recipe.multi.batches == "classes", recipe.multi.batches == "pairs"
        if self.pairs:
            if len(counts) != 2:
                raise UsageError(
                    f"multi.batches pairs is for networks of two architectures, but {len(counts)} are shown: take classes or "
                    "members"
                )
            self.together = _pairs(counts)
            self.all = Shuffle(len(self.together), recipe.seed, stream=Stream.MEMBERS)
        elif self.balanced:
            self.streams = {
                place: Shuffle(count, recipe.seed, Stream.CLASS_MEMBERS + place) for place, count in counts.items()
            }
        else:
            self.all = Shuffle(sum(counts.values()), recipe.seed, stream=Stream.MEMBERS)

    def take(self, number: int, place: int, apart: int) -> Chosen:
        """The networks of step `number` at places place, place + apart, ... of the batch."""
        if self.balanced:
            each = self.networks // len(self.counts)
            taken = {id: stream.take(number * each, each)[place::apart] for id, stream in self.streams.items()}
            return list(taken.items())
        if self.pairs:
            pairs = self.networks // 2
            rows = self.all.take(number * pairs, pairs)[place::apart].tolist()
            members = [member for row in rows for member in self.together[row]]
            of_class = {id: torch.tensor([row for class_id, row in members if class_id == id]) for id in self.counts}
            return [(class_id, found) for class_id, found in of_class.items() if len(found)]
        drawn, found, first = self.all.take(number * self.networks, self.networks)[place::apart], [], 0
        for class_id, count in self.counts.items():
            mine = drawn[(drawn >= first) & (drawn < first + count)] - first
            first += count
            if len(mine):
                found.append((class_id, mine))
        return found


def _pairs(counts: Mapping[int, int]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """(ClassId, row) of both networks of every pair, for two classes with so many shown members."""
    (low, few), (high, many) = counts.items()
    both = min(few, many)
    larger, count = (low, few) if few > many else (high, many)
    left = [((larger, row), (larger, (row + 1) % count)) for row in range(both, count, 2)]
    return [((low, row), (high, row)) for row in range(both)] + left


class Between:
    """The points of Eq. 12 between networks of the smallest and of the largest class in a batch."""

    def __init__(self, held: Mapping[int, int], family: Family, config: MultiConfig) -> None:
        """Every pair at every class between, for a batch of so many networks of each ClassId.

        Of `config.pairs` pairs at most, so that each network is used before one is used again.
        """
        low, high = held.get(0, 0), held.get(len(family) - 1, 0)
        count = min(low * high, config.pairs or low * high) if config.interpolation and family.between else 0
        start = sum(held.values()) - high
        shift = lcm(low, high)  # after so many, the i-th meets the j-th again: from there on the next one
        ends = [(k % low, start + (k + k // shift) % high) for k in range(count)]
        factors = [(family.factor(place), place) for place in family.between]
        self.pairs = torch.tensor([end for _ in factors for end in ends], dtype=torch.int64).view(-1, 2).T.contiguous()
        self.share = torch.tensor([factor for factor, _ in factors for _ in ends])
        self.class_ids = torch.tensor([place for _, place in factors for _ in ends], dtype=torch.int64)


class MultiStep:
    """Predicted networks are good at the task, as the teacher is; so are those between the ends, by class (Eq. 3-12).

    Networks are decoded as the architecture they are of, and points between as the one that Eq. 7 asks for: the ClassId
    head learns beside them, and no step has to wait for what it says. Networks of one class run stacked.
    """

    def __init__(
        self,
        recipe: SpaceRecipe,
        family: Family,
        sources: Sequence[PRepSource | None],
        task: Task,
        teacher: Teacher,
        place: int = 0,
        shares: int = 1,
    ) -> None:
        assert recipe.multi is not None
        self.recipe, self.multi, self.family, self.task, self.teacher = recipe, recipe.multi, family, task, teacher
        self.place, self.shares = place, shares
        self.sources = {class_id: source for class_id, source in enumerate(sources) if source is not None}
        self.batches = ClassBatches(recipe, {class_id: len(source) for class_id, source in self.sources.items()})
        self.images = Images(task, recipe.seed)
        self.targets: dict[int, Targets] = {}
        self._layouts: dict[tuple[tuple[int, int], ...], tuple[Tensor, Tensor, Tensor, Tensor]] = {}
        with half(recipe.networks_precision, task.device):
            fixed = self.images.fixed
            self.told = None if fixed is None else torch.cat([teacher(chunk) for chunk in fixed.split(1024)]).float()
            if recipe.loss.behaviour:
                remember = recipe.remember_targets and fixed is not None
                pool = fixed if fixed is not None and remember else task.inputs("train", slice(1))
                for class_id, source in self.sources.items():
                    self.targets[class_id] = Targets(family[class_id].nets, source, pool, remember)

    def __call__(self, model: nn.Module, number: int, part: int = 0) -> dict[str, Tensor]:
        """The terms of a part of step `number`, for this process's share of the networks; their sum is minimised.

        Terms are the paper's sums over networks and points, divided by the number of networks.
        """
        recipe, multi, device = self.recipe, self.multi, self.task.device
        chosen = self._chosen(number, part)
        groups = [(class_id, self.sources[class_id].take(places)) for class_id, places in chosen]
        for class_id, places in self._chosen(*divmod(number * recipe.accumulate + part + 1, recipe.accumulate)):
            self.sources[class_id].expect(places)
        count = sum(len(places) for _, places in chosen)
        class_ids, pairs, share, ids = self._laid_out(tuple((class_id, len(places)) for class_id, places in chosen))
        with half(recipe.precision, device):
            decoded, class_logits = model(groups, pairs, share, ids)
        images, places = self.images.take(number, recipe.images)
        labels = self.task.targets("train", places)
        with half(recipe.networks_precision, device):
            told = self.teacher(images) if self.told is None else self.told[places]
            answers = Networks(self.family, decoded, class_ids).each(lambda nets, flat: nets(flat, images))
        settings = multi.temperature, multi.alpha
        terms = {"classid": multi.classid * losses.class_loss(class_logits[:count], ids[:count]).mean()}
        if multi.distillation:
            learnt = self.task.distillation_loss(answers[:count], told, labels, *settings)
            terms["distillation"] = multi.distillation * learnt.mean()
        if multi.interpolation:
            points = losses.class_loss(class_logits[count:], ids[count:])
            points = points + self.task.distillation_loss(answers[count:], told, labels, *settings)
            terms["interpolation"] = multi.interpolation * points.sum() / count
        first, spread = 0, unwrapped(model).spread
        for (class_id, preps), (_, members) in zip(groups, chosen, strict=True):
            mine = slice(first, first + len(preps))
            first += len(preps)
            for name, value in self._like_targets(
                class_id, preps, members, decoded[mine], answers[mine], spread, images, places
            ).items():
                terms[name] = terms.get(name, 0.0) + value * len(preps) / count
        return terms

    def _like_targets(
        self,
        class_id: int,
        preps: Tensor,
        members: Tensor,
        decoded: Tensor,
        answers: Tensor,
        spread: Tensor,
        images: Tensor,
        places: Tensor,
    ) -> dict[str, Tensor]:
        """The single setting's terms for the networks of one class, where the recipe asks for them."""
        loss, terms = self.recipe.loss, {}
        if loss.behaviour:
            with half(self.recipe.networks_precision, self.task.device):
                target = self.targets[class_id].take(members, places, preps, images)
            told = self.task.behaviour_loss(answers, target, loss.temperature, loss.relative)
            terms["behaviour"] = loss.behaviour * told
        if loss.weights:
            rows, parameters = preps.shape[1], self.family[class_id].parameters
            scaled = [each[:, :rows] / spread[class_id, :rows] for each in (decoded, preps)]
            terms["weights"] = loss.weights * losses.weight_loss(*(unpack(each, parameters) for each in scaled))
        return terms

    def _laid_out(self, held: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """ClassIds of a batch's networks and points, on the CPU; pairs, shares and ClassIds on the device.

        Remembered by how many networks of each class there are, so that balanced batches send nothing.
        """
        if held not in self._layouts:
            between = Between(dict(held), self.family, self.multi)
            own = torch.tensor([class_id for class_id, many in held for _ in range(many)])
            class_ids = torch.cat([own, between.class_ids])
            pairs, share, ids = (each.to(self.task.device) for each in (between.pairs, between.share, class_ids))
            self._layouts[held] = class_ids, pairs, share, ids
        return self._layouts[held]

    def _chosen(self, number: int, part: int) -> Chosen:
        return self.batches.take(number, *dealt(self.recipe, part, self.place, self.shares))
