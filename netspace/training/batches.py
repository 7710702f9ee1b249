"""Where a training step's batches come from: PReps from a zoo, images from a task, and the outputs of networks that do not change."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import lcm
from typing import Any

import torch
from torch import Tensor, nn

from netspace.errors import UsageError
from netspace.hardware import send
from netspace.networks.batch import NetBatch
from netspace.networks.family import Family
from netspace.networks.prep import unpack
from netspace.streams import Stream, generator
from netspace.tasks import Task
from netspace.training.recipe import MultiConfig, SpaceRecipe
from netspace.zoo import ArchGroup

CACHE_BYTES = 1 << 30  # PReps, and targets' outputs, are kept in memory up to this size each


class Shuffle:
    """An endless stream of shuffled passes over `count` things; any stretch of it can be asked for."""

    def __init__(self, count: int, seed: int, stream: int) -> None:
        self.count, self.seed, self.stream = count, seed, stream
        self._pass = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def take(self, start: int, many: int) -> Tensor:
        """The things at places start .. start + many of the stream, int64 (many,)."""
        pieces = []
        while many:
            which, place = divmod(start, self.count)
            if which != self._pass:
                self._order = torch.randperm(self.count, generator=generator(self.seed, self.stream, which))
                self._pass = which
            piece = self._order[place : place + many]
            pieces.append(piece)
            start, many = start + len(piece), many - len(piece)
        return torch.cat(pieces)


class PRepSource:
    """PReps of chosen rows of a zoo, from memory where all fit, else from the file, the next ones while others train."""

    def __init__(self, group: ArchGroup, rows: Tensor, device: torch.device) -> None:
        self.group, self.rows, self.device = group, rows, device
        height, width = group.size
        self.kept = group.read(rows.numpy()).to(device) if len(rows) * height * width * 4 <= CACHE_BYTES else None
        self._reader = ThreadPoolExecutor(1) if self.kept is None else None
        self._expected: tuple[list[int], Future[Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: Tensor) -> Tensor:
        """PReps (M, H, W) of the members at `places` (M,) of the chosen rows."""
        if self.kept is not None:
            return self.kept[send(places, self.device)]
        if self._expected is not None and self._expected[0] == places.tolist():
            return send(self._expected[1].result(), self.device)
        return send(self._read(places), self.device)

    def prefetch(self, places: Tensor) -> None:
        """Begins to read what will be taken next, in the background, where members lie in a file."""
        if self._reader is not None:
            if self._expected is not None:
                self._expected[1].cancel()
            self._expected = places.tolist(), self._reader.submit(self._read, places)

    def _read(self, places: Tensor) -> Tensor:
        preps = self.group.read(self.rows[places].numpy())
        return preps.pin_memory() if self.device.type == "cuda" else preps  # in the reader's time


class Targets:
    """What the target networks answer to training images; remembered, where that pays and fits.

    Without augmentation the answers never change, so they are computed once for all members and images.
    """

    def __init__(self, nets: NetBatch, source: PRepSource, images: Tensor, remember: bool) -> None:
        self.nets, self.source = nets, source
        self.table: Tensor | None = None
        size = len(source) * len(images) * 4 * self._classes(images)
        if remember and source.kept is not None and size <= CACHE_BYTES:
            with torch.no_grad():
                flat = unpack(source.kept, nets.spec.num_parameters)
                self.table = torch.cat([nets(flat, chunk) for chunk in images.split(1024)], dim=1)

    def _classes(self, images: Tensor) -> int:
        with torch.no_grad():
            return int(
                self.nets(torch.zeros(1, self.nets.spec.num_parameters, device=images.device), images[:1]).shape[-1]
            )

    def take(self, members: Tensor | None, places: Tensor, preps: Tensor, images: Tensor) -> Tensor:
        """Logits (M, B, C) of the members, or of PReps (M, H, W) that are no members, for the images (B, ...) at `places`."""
        if self.table is not None and members is not None:
            device = self.table.device
            return self.table[send(members, device)[:, None], send(places, device)[None, :]]
        with torch.no_grad():
            return self.nets(unpack(preps, self.nets.spec.num_parameters), images)


class Images:
    """Normalised batches of a task's training images, augmented as the task says, by step."""

    def __init__(self, task: Task, seed: int) -> None:
        self.task, self.seed = task, seed
        self.shuffle = Shuffle(task.size("train"), seed, stream=Stream.INPUTS)
        self.fixed = None if task.augments else task.inputs("train", slice(None))

    def take(self, step: int, many: int) -> tuple[Tensor, Tensor]:
        """Images (B, ...) and their places (B,) in the training split, for a step."""
        places = send(self.places(step, many), self.task.device)
        if self.fixed is not None:
            return self.fixed[places], places
        return self.task.random_inputs(places, generator(self.seed, Stream.AUGMENTATION, step)), places

    def places(self, step: int, many: int) -> Tensor:
        """Places (B,) of a step's images in the training split, on the CPU."""
        return self.shuffle.take(step * many, many)


class Remembered:
    """Rows by the place of an image among N, kept as they are first asked for."""

    def __init__(self, count: int) -> None:
        self.known = torch.zeros(count, dtype=torch.bool)  # of which images; on the CPU: no step waits for the device
        self.tables: list[Tensor] = []  # (N, ...) each, laid out as what was asked for

    def take(self, places: Tensor, ask: Callable[[], Sequence[Tensor]]) -> tuple[list[Tensor], Tensor]:
        """Tables (N, ...) that hold the rows of `places` (B,), which are on the CPU, and these places on the device.

        Where one of the rows is new, all (B, ...) are those that `ask` gives.
        """
        found = [] if self.known[places].all() else list(ask())
        if not self.tables:
            self.tables = [self._table(each) for each in found]
        there = send(places, self.tables[0].device)
        for table, each in zip(self.tables, found, strict=False):
            table[there] = each
        self.known[places] = True
        return self.tables, there

    def _table(self, rows: Tensor) -> Tensor:
        last = rows.dim() == 4 and rows.is_contiguous(memory_format=torch.channels_last)
        shape, layout = (len(self.known), *rows.shape[1:]), torch.channels_last if last else torch.contiguous_format
        return torch.empty(shape, dtype=rows.dtype, device=rows.device, memory_format=layout)


Chosen = list[tuple[int, Tensor]]  # of each ClassId, ascending: rows among its training members


class ClassBatches:
    """Which networks a step sees, of which class; a pure function of seed and step.

    With 'classes' every batch has as many of each class; with 'members', and for a single architecture, all training
    networks are drawn alike, and a batch has whatever classes come (the paper's way). With 'pairs', for two classes, the
    i-th of one and the i-th of the other are drawn together, and the rest of the larger class in twos (the authors' way for
    architectures without networks).
    """

    def __init__(self, recipe: SpaceRecipe, counts: dict[int, int]) -> None:
        """`counts` are the numbers of training members by ClassId."""
        mode = "members" if recipe.multi is None else recipe.multi.batches
        self.networks, self.counts = recipe.networks, counts
        self.balanced, self.pairs = mode == "classes", mode == "pairs"
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
                class_id: Shuffle(count, recipe.seed, Stream.CLASS_MEMBERS + class_id)
                for class_id, count in counts.items()
            }
        else:
            self.all = Shuffle(sum(counts.values()), recipe.seed, stream=Stream.MEMBERS)

    def take(self, number: int, part: slice = slice(None)) -> Chosen:
        """Return the networks of step `number` that are in a part of the batch."""
        if self.balanced:
            each = self.networks // len(self.counts)
            taken = {id: stream.take(number * each, each)[part] for id, stream in self.streams.items()}
            return list(taken.items())
        if self.pairs:
            pairs = self.networks // 2
            rows = self.all.take(number * pairs, pairs)[part].tolist()
            members = [member for row in rows for member in self.together[row]]
            of_class = {id: torch.tensor([row for class_id, row in members if class_id == id]) for id in self.counts}
            return [(class_id, rows) for class_id, rows in of_class.items() if len(rows)]
        drawn = self.all.take(number * self.networks, self.networks)[part]
        if len(self.counts) == 1:  # without a mask, which would wait for a device
            return [(class_id, drawn) for class_id in self.counts]
        chosen, start = [], 0
        for class_id, count in self.counts.items():
            mine = drawn[(drawn >= start) & (drawn < start + count)] - start
            start += count
            if len(mine):
                chosen.append((class_id, mine))
        return chosen


def _pairs(counts: Mapping[int, int]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """(ClassId, row) of both networks of every pair, for two classes with so many training members."""
    (low, low_count), (high, high_count) = counts.items()
    both = min(low_count, high_count)
    larger, count = (low, low_count) if low_count > high_count else (high, high_count)
    left = [((larger, row), (larger, (row + 1) % count)) for row in range(both, count, 2)]
    return [((low, row), (high, row)) for row in range(both)] + left


@dataclass(frozen=True)
class Points:
    """Points on the lines between pairs of a batch's networks; what they are to be like is a loss term's."""

    pairs: Tensor  # (2, S) rows among the batch's networks
    gamma: Tensor  # (S,) how far from the first to the second
    class_ids: Tensor  # (S,) int64: the architectures that they are decoded as

    def __len__(self) -> int:
        return len(self.class_ids)

    def to(self, device: torch.device) -> Points:
        """Return the same on a device."""
        return Points(self.pairs.to(device), self.gamma.to(device), self.class_ids.to(device))

    @classmethod
    def of_pairs(cls, count: int) -> Points:
        """Networks i and S + i of `count` networks of one architecture, as yet in the middle between the two."""
        first = torch.arange(count // 2)
        return cls(torch.stack([first, first + count // 2]), torch.full((len(first),), 0.5), torch.zeros_like(first))

    @classmethod
    def between_ends(cls, counts: Mapping[int, int], family: Family, config: MultiConfig) -> Points:
        """Networks of the smallest and of the largest class of a batch, and every class between (NetSpace, Eq. 12).

        `counts` are the batch's numbers of networks by ClassId. Of `config.pairs` pairs at most, so that each network is
        used before one is used again.
        """
        low, high = counts.get(0, 0), counts.get(len(family) - 1, 0)
        count = min(low * high, config.pairs or low * high) if config.interpolation and family.between else 0
        start = sum(counts.values()) - high
        shift = lcm(low, high)  # after so many, the i-th meets the j-th again: from there on the next one
        ends = [(k % low, start + (k + k // shift) % high) for k in range(count)]
        factors = [(family.factor(class_id), class_id) for class_id in family.between]
        pairs = torch.tensor([end for _ in factors for end in ends], dtype=torch.int64).view(-1, 2).T.contiguous()
        gamma = torch.tensor([factor for factor, _ in factors for _ in ends])
        class_ids = torch.tensor([class_id for _, class_id in factors for _ in ends], dtype=torch.int64)
        return cls(pairs, gamma, class_ids)


def batch_slice(recipe: SpaceRecipe, part: int, rank: int, world_size: int) -> slice:
    """Return which networks of a batch a process takes in a part of a step: every (world_size * accumulate)-th."""
    return slice(rank + world_size * part, None, world_size * recipe.accumulate)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The block computes in bf16 where `precision` says so."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def unwrapped(model: nn.Module) -> Any:
    """The model inside a data-parallel wrapper, or the model itself."""
    return model.module if hasattr(model, "module") else model
