"""Where a training step's batches come from: PReps of a zoo, inputs of a task, and cached outputs of frozen networks.

Axes: M members (networks), S points between pairs of them, B inputs of a batch, C outputs, N training inputs, H W of a
PRep.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import lcm, prod
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from netspace.errors import UsageError
from netspace.hardware import require_memory, send
from netspace.networks.batch import NetBatch
from netspace.networks.family import Family
from netspace.networks.prep import unpack
from netspace.streams import Stream, generator
from netspace.tasks import Task
from netspace.training.recipe import MultiConfig, SpaceRecipe
from netspace.zoo import ArchGroup

CACHE_BYTES = 1 << 30  # largest cache of PReps, and of the outputs of target networks


class Shuffle:
    """An endless stream of shuffled passes over 0 .. count - 1; any part of it can be read at any time."""

    def __init__(self, count: int, seed: int, stream: int) -> None:
        self.count, self.seed, self.stream = count, seed, stream
        self._pass = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def take(self, start: int, count: int) -> Int64[Tensor, " N"]:
        """Return the numbers at positions start .. start + count - 1 of the stream."""
        pieces = []
        while count:
            number, offset = divmod(start, self.count)
            if number != self._pass:
                self._order = torch.randperm(self.count, generator=generator(self.seed, self.stream, number))
                self._pass = number
            piece = self._order[offset : offset + count]
            pieces.append(piece)
            start, count = start + len(piece), count - len(piece)
        return torch.cat(pieces)


class PRepSource:
    """PReps of some rows of a zoo: from memory if all of them fit, else from the file, with prefetching."""

    def __init__(self, group: ArchGroup, rows: Int64[Tensor, " N"], device: torch.device) -> None:
        self.group, self.rows, self.device = group, rows, device
        height, width = group.size
        self.cache = group.read(rows.numpy()).to(device) if len(rows) * height * width * 4 <= CACHE_BYTES else None
        self._reader = ThreadPoolExecutor(1) if self.cache is None else None
        self._next: tuple[list[int], Future[Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Int64[Tensor, " M"]) -> Float[Tensor, "M H W"]:
        """Return the PReps of the members `rows[index]`."""
        if self.cache is not None:
            return self.cache[send(index, self.device)]
        if self._next is not None and self._next[0] == index.tolist():
            return send(self._next[1].result(), self.device)
        return send(self._read(index), self.device)

    def prefetch(self, index: Int64[Tensor, " M"]) -> None:
        """Begin to read in the background what `take` will be called with next; do nothing if PReps are in memory."""
        if self._reader is not None:
            if self._next is not None:
                self._next[1].cancel()
            self._next = index.tolist(), self._reader.submit(self._read, index)

    def _read(self, index: Tensor) -> Tensor:
        preps = self.group.read(self.rows[index].numpy())
        return preps.pin_memory() if self.device.type == "cuda" else preps  # in the reader's time


class Targets:
    """The outputs of target networks for training images.

    With `cache` they are computed once for all members and images, if PReps are in memory and the outputs fit
    `CACHE_BYTES`. Without augmentation they never change.
    """

    def __init__(self, nets: NetBatch, source: PRepSource, images: Tensor, cache: bool) -> None:
        self.nets, self.source, self.table = nets, source, None
        preps, parameters = source.cache, nets.spec.num_parameters
        with torch.no_grad():
            outputs = nets(torch.zeros(1, parameters, device=images.device), images[:1]).shape[-1]
            if cache and preps is not None and 4 * len(source) * len(images) * outputs <= CACHE_BYTES:
                flat = unpack(preps, parameters)
                self.table = torch.cat([nets(flat, chunk) for chunk in images.split(1024)], dim=1)  # (N, images, C)

    def take(
        self, members: Int64[Tensor, " M"] | None, index: Int64[Tensor, " B"], preps: Tensor, images: Tensor
    ) -> Float[Tensor, "M B C"]:
        """Return the logits of members, or of other networks by their `preps` (M, H, W), for `images` (B, ...).

        `index` says which training images these are. Without `members` nothing is read from the cache.
        """
        if self.table is not None and members is not None:
            device = self.table.device
            return self.table[send(members, device)[:, None], send(index, device)[None, :]]
        with torch.no_grad():
            return self.nets(unpack(preps, self.nets.spec.num_parameters), images)


class Images:
    """Normalised batches of a task's training inputs, augmented if the task says so, by step."""

    def __init__(self, task: Task, seed: int) -> None:
        self.task, self.seed = task, seed
        self.shuffle = Shuffle(task.size("train"), seed, stream=Stream.INPUTS)
        self.fixed = None if task.augments else task.inputs("train", slice(None))  # (N, ...)

    def take(self, step: int, count: int) -> tuple[Tensor, Int64[Tensor, " B"]]:
        """Return the inputs (B, ...) of a step and their indices in the training split, on the task's device.

        Raises:
            UsageError: memory does not hold so many inputs, which are more than there are.
        """
        if count > self.task.size("train"):  # some are there twice
            noun, values = self.task.input_noun, prod(self.task.input_shape)
            require_memory(count, values, f"a batch of {count:,}", self.task.device, noun)
        index = send(self.indices(step, count), self.task.device)
        if self.fixed is not None:
            return self.fixed[index], index
        return self.task.random_inputs(index, generator(self.seed, Stream.AUGMENTATION, step)), index

    def indices(self, step: int, count: int) -> Int64[Tensor, " B"]:
        """Return the indices of a step's inputs in the training split, on the CPU."""
        return self.shuffle.take(step * count, count)


class RowCache:
    """Tensors of rows, one row for each of N images, that are computed when an image is first used."""

    def __init__(self, count: int) -> None:
        self.known = torch.zeros(count, dtype=torch.bool)  # of which images; on the CPU: no step waits for the device
        self.tables: list[Tensor] = []  # (N, ...) each, in the memory format of what was computed

    def take(self, index: Int64[Tensor, " B"], compute: Callable[[], Sequence[Tensor]]) -> tuple[list[Tensor], Tensor]:
        """Return the tables (N, ...), with the rows `index` filled in, and `index` on their device.

        If one of the rows is new, `compute` is called for all of them: (B, ...) for each table.
        """
        rows = [] if self.known[index].all() else list(compute())
        if not self.tables:
            self.tables = [self._table(each) for each in rows]
        on_device = send(index, self.tables[0].device)
        for table, each in zip(self.tables, rows, strict=False):
            table[on_device] = each
        self.known[index] = True
        return self.tables, on_device

    def _table(self, rows: Tensor) -> Tensor:
        last = rows.dim() == 4 and rows.is_contiguous(memory_format=torch.channels_last)
        shape, layout = (len(self.known), *rows.shape[1:]), torch.channels_last if last else torch.contiguous_format
        return torch.empty(shape, dtype=rows.dtype, device=rows.device, memory_format=layout)


Chosen = list[tuple[int, Tensor]]  # for each ClassId, ascending: indices (M_c,) among its training members


class ClassBatches:
    """The networks of each step, by ClassId; a pure function of seed and step.

    With 'classes' a batch has equally many networks of each class. With 'members', and for a single architecture, all
    training networks are drawn alike, whatever their class (the paper's way). With 'pairs', for two classes, the i-th
    network of one is drawn with the i-th of the other, and the rest of the larger class in twos (the authors' way for
    architectures without networks).
    """

    def __init__(self, recipe: SpaceRecipe, counts: dict[int, int]) -> None:
        """Take counts of training members by ClassId. Raises `UsageError` for 'pairs' unless there are two classes."""
        mode = "members" if recipe.multi is None else recipe.multi.batches
        self.networks, self.counts = recipe.networks, counts
        self.balanced, self.pairs = mode == "classes", mode == "pairs"
        if self.pairs:
            if len(counts) != 2:
                raise UsageError(
                    f"multi.batches pairs is for networks of two architectures, but there are {len(counts)}: choose classes "
                    "or members"
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
        """Return the networks of step `number`, or those in a part of its batch."""
        if self.balanced:
            each = self.networks // len(self.counts)
            return [(class_id, stream.take(number * each, each)[part]) for class_id, stream in self.streams.items()]
        if self.pairs:
            count = self.networks // 2
            members = [
                member for pair in self.all.take(number * count, count)[part].tolist() for member in self.together[pair]
            ]
            of_class = {id: torch.tensor([row for class_id, row in members if class_id == id]) for id in self.counts}
            return [(class_id, rows) for class_id, rows in of_class.items() if len(rows)]
        drawn = self.all.take(number * self.networks, self.networks)[part]
        if len(self.counts) == 1:  # without a mask, which would wait for a device
            return [(class_id, drawn) for class_id in self.counts]
        chosen, start = [], 0
        for class_id, count in self.counts.items():
            rows = drawn[(drawn >= start) & (drawn < start + count)] - start
            start += count
            if len(rows):
                chosen.append((class_id, rows))
        return chosen


def _pairs(counts: Mapping[int, int]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return (ClassId, index) of both networks of every pair, given the numbers of training members of two classes."""
    (low, low_count), (high, high_count) = counts.items()
    both = min(low_count, high_count)
    larger, count = (low, low_count) if low_count > high_count else (high, high_count)
    left = [((larger, row), (larger, (row + 1) % count)) for row in range(both, count, 2)]
    return [((low, row), (high, row)) for row in range(both)] + left


@dataclass(frozen=True)
class Points:
    """Points on the lines between pairs of a batch's networks. The loss terms say what they are compared with."""

    pairs: Tensor  # (2, S) rows among the batch's networks
    gamma: Tensor  # (S,) how far from the first to the second
    class_ids: Tensor  # (S,) int64: the architectures that they are decoded as

    def __len__(self) -> int:
        return len(self.class_ids)

    def to(self, device: torch.device) -> Points:
        """Return the points on a device."""
        return Points(self.pairs.to(device), self.gamma.to(device), self.class_ids.to(device))

    @classmethod
    def of_pairs(cls, count: int) -> Points:
        """Return the middles of networks i and S + i of `count` networks of one architecture; steps set `gamma`."""
        first = torch.arange(count // 2)
        return cls(torch.stack([first, first + count // 2]), torch.full((len(first),), 0.5), torch.zeros_like(first))

    @classmethod
    def between_ends(cls, counts: Mapping[int, int], family: Family, config: MultiConfig) -> Points:
        """Return a point of every class between, for pairs of a smallest and a largest network (NetSpace, Eq. 12).

        `counts` are the batch's numbers of networks by ClassId. At most `config.pairs` pairs are used, so that each
        network is used before one is used again.
        """
        low, high = counts.get(0, 0), counts.get(len(family) - 1, 0)
        count = min(low * high, config.pairs or low * high) if config.interpolation and family.between else 0
        start = sum(counts.values()) - high
        shift = lcm(low, high)  # after so many, the i-th meets the j-th again: from there on the next one
        ends = [(k % low, start + (k + k // shift) % high) for k in range(count)]
        between = [(family.factor(class_id), class_id) for class_id in family.between]
        pairs = torch.tensor([end for _ in between for end in ends], dtype=torch.int64).view(-1, 2).T.contiguous()
        gamma = torch.tensor([gamma for gamma, _ in between for _ in ends])
        class_ids = torch.tensor([class_id for _, class_id in between for _ in ends], dtype=torch.int64)
        return cls(pairs, gamma, class_ids)


def batch_slice(recipe: SpaceRecipe, part: int, rank: int, world_size: int) -> slice:
    """Return which networks of a batch a process uses in a part of a step: every (world_size * accumulate)-th."""
    return slice(rank + world_size * part, None, world_size * recipe.accumulate)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Compute in bf16 inside the block if `precision` is 'bf16'."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def unwrapped(model: nn.Module) -> Any:
    """Return the model inside a data-parallel wrapper, or the model itself."""
    return model.module if hasattr(model, "module") else model
