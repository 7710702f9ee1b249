"""A zoo's recipe (what a user writes) and the training runs that follow from it.

Runs are a pure function of the recipe: each one's seed, rate, epochs and split are known before anything is trained, so
any process, and any restart, computes the same ones.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from model_zoo.forward import OptimizerConfig, Schedule
from netspace import archs
from netspace.config import FileName, Seed, Settings, changed
from netspace.errors import UsageError
from netspace.networks.prep import WIDTH_STEP
from netspace.streams import Stream, generator
from netspace.tasks import NUMBERED, DataConfig
from netspace.zoo import SPLITS, Shard

Fraction = Annotated[float, Field(gt=0, le=1)]


class SplitConfig(Settings):
    """Members of each architecture in each split; by default those of NetSpace's single-architecture setting."""

    train: int = Field(100, ge=0)  # members for training spaces
    val: int = Field(16, ge=0)  # members for validation
    test: int = Field(16, ge=0)  # members for tests

    @property
    def total(self) -> int:
        """Members of all splits."""
        return self.train + self.val + self.test


class ArchConfig(archs.ArchConfig):
    """One architecture of a zoo."""

    members: SplitConfig | None = None  # members of this architecture in each split; none: those of the zoo


EARLY = (100, 50, 20, 10, 4, 2)  # members in each sixth of the range, as NetSpace's authors list 186 epochs of 600


class EpochConfig(Settings):
    """Epochs for which members are trained. Each split by itself spans the whole range."""

    first: int = Field(1, ge=1)  # epochs of the member that is trained for the shortest time
    last: int = Field(600, ge=1)  # epochs of the member that is trained for the longest time
    spacing: Literal["even", "log", "early"] = (
        "even"  # how epochs are spread from first to last; early: dense in the first sixth of the range
    )
    # members taken from one training run as snapshots; 1: every member is a run of its own
    snapshots: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.last < self.first:
            raise ValueError(f"the last epoch ({self.last}) comes before the first ({self.first})")
        return self


class VarietyConfig(Settings):
    """The training data of each run, drawn for it by itself, so that members differ in what they do."""

    classes: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = (
        None  # minimum and maximum number of classes whose images a run sees; none: all
    )
    images: tuple[Fraction, Fraction] = (1.0, 1.0)  # minimum and maximum fraction of these classes' images, log-uniform
    label_noise: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] = (
        0.0,
        0.0,
    )  # minimum and maximum fraction of labels that are replaced by another of the run's classes

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("classes", "images", "label_noise"):
            bounds = getattr(self, name)
            if bounds is not None and bounds[0] > bounds[1]:
                raise ValueError(f"variety.{name} is a minimum and a maximum; found {bounds[0]} above {bounds[1]}")
        return self


@dataclass(frozen=True)
class Variety:
    """The training data of one run, as numbers that were drawn for it."""

    classes: int | None  # None: all
    images: float  # fraction
    label_noise: float  # fraction

    def training_data(self, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Return the indices (n,) of the training images of a run with `seed`, and its labels (N,) of all N images.

        Each of its classes keeps at least one image. A replaced label is another of these classes.
        """
        random = generator(seed, Stream.VARIETY, len(labels))  # of two numbers: an epoch's generator has one
        present = labels.unique()
        count = min(self.classes or len(present), len(present))
        seen = present[torch.randperm(len(present), generator=random)[:count]].sort().values
        chosen = []
        for label in seen:
            own = (labels == label).nonzero()[:, 0]
            chosen.append(own[torch.randperm(len(own), generator=random)[: max(1, round(len(own) * self.images))]])
        images = torch.cat(chosen).sort().values
        own_labels = labels.clone()
        flipped = images[torch.rand(len(images), generator=random) < self.label_noise]
        if count > 1:
            index = torch.searchsorted(seen, own_labels[flipped])
            shift = torch.randint(1, count, (len(flipped),), generator=random)
            own_labels[flipped] = seen[(index + shift) % count]
        return images, own_labels


class TeacherConfig(ArchConfig):
    """The network that teaches spaces of the zoo (NetSpace, Eq. 3): the best of a few, on validation images."""

    members: SplitConfig = SplitConfig(train=2, val=0, test=0)  # candidates
    epochs: int = Field(300, ge=1)  # epochs of training
    optimizer: OptimizerConfig = OptimizerConfig()
    batch_size: int = Field(128, ge=1)  # images in a batch


class ZooRecipe(Settings):
    """Everything that decides which networks a zoo holds, and how they are trained."""

    bundled: ClassVar[str] = "zoo"

    name: FileName = "zoo"  # names the file, zoos/NAME.h5
    seed: Seed = 0  # of all random numbers
    data: DataConfig = DataConfig()
    archs: dict[str, ArchConfig]  # architectures of the zoo by their ids
    teacher: TeacherConfig | None = (
        None  # the network that teaches spaces of this zoo; built next to it, as a zoo of its own
    )
    members: SplitConfig = SplitConfig()
    epochs: EpochConfig = EpochConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    batch_size: int = Field(128, ge=1)  # images in a batch
    variety: VarietyConfig | None = None  # what each run learns from; none: all training images, with their labels
    # initial weights: independent, each run's own; shared, the same for all runs of an architecture
    init: Literal["independent", "shared"] = "independent"
    align: bool = False  # permute the channels of all members to those of their architecture's best (`zoo align`)
    # weight of the smoothness term of convolutions in the loss (NeRN, Eq. 6)
    smoothness: float = Field(0.0, ge=0, allow_inf_nan=False)
    # the same of linear layers, whose kernels are single values, as those of 1x1 convolutions: |difference|, not 1 - cosine
    smoothness_linear: float = Field(0.0, ge=0, allow_inf_nan=False)
    # width W of the PReps, whose heights follow; none: the width at which the smallest architecture has 8 rows
    prep_width: int | None = Field(None, ge=WIDTH_STEP, le=1 << 24, multiple_of=WIDTH_STEP)
    # networks trained at once as one stack; none: the number that calibration finds fastest
    fused: int | None = Field(None, ge=1)
    precision: Literal["auto", "float32", "bf16"] = (
        "auto"  # of the forward and backward passes; auto: the faster one on this machine
    )
    compile: bool = False  # compile the passes with torch.compile: worth it for long builds on GPUs
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto: a GPU if there is one

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.archs:
            raise ValueError("no architecture is given under 'archs'")
        if not self.members.total and not any(each.members for each in self.archs.values()):
            raise ValueError("no members are asked for")
        for name in self.archs:
            if "/" in name or name in ("", ".", "..") or not name.isprintable():
                raise ValueError(f"{name!r} cannot be an architecture's id: leave slashes and control characters out")
            if not self.members_of(name).total:
                raise ValueError(f"no members of {name} are asked for: give it some, or leave it out")
            for split in SPLITS if self.data.variants else ():
                self._check_variants(name, split)
        if self.teacher and not self.teacher.members.total:
            raise ValueError("no members of the teacher are asked for: give it one at least, or leave it out")
        return self

    def _check_variants(self, arch: str, split: str) -> None:
        """Refuse a split that cuts through the variants of a mesh, which would then be in training and in test."""
        members, variants = getattr(self.members_of(arch), split), self.data.variants or 1
        if -(-members // self.epochs.snapshots) % variants:
            raise ValueError(
                f"{members} {split} members of {arch} cut through the {variants} variants of a mesh, which belong in one split: ask "
                f"for a multiple of {variants * self.epochs.snapshots}"
            )

    def members_of(self, arch: str) -> SplitConfig:
        """Return the numbers of an architecture's members."""
        return self.archs[arch].members or self.members

    def teacher_recipe(self) -> ZooRecipe | None:
        """Return the recipe of the zoo that the teacher is built as; None if there is no teacher."""
        if self.teacher is None:
            return None
        teacher = self.teacher
        return self.model_copy(
            update={
                "name": f"{self.name}-teacher",
                "archs": {teacher.arch: ArchConfig(arch=teacher.arch, width=teacher.width, kwargs=teacher.kwargs)},
                "teacher": None,
                "members": teacher.members,
                "epochs": EpochConfig(first=teacher.epochs, last=teacher.epochs),
                "optimizer": teacher.optimizer,
                "batch_size": teacher.batch_size,
                "variety": None,
                "align": False,
                "smoothness": 0.0,
                "smoothness_linear": 0.0,
                "fused": None,
            }
        )

    def changed_since(self, before: Mapping[str, Any]) -> str:
        """Return what differs from the `science` that a zoo was begun with, '' if nothing.

        Without a `prep_width` any width is the same.
        """
        return changed({**before, "prep_width": None} if self.prep_width is None else before, self.science())

    def science(self) -> dict[str, Any]:
        """Return the settings that decide the networks, without the device and the teacher of spaces."""
        added = ("smoothness", "smoothness_linear", "variety", "align")
        newer = {name for name in added if not getattr(self, name)}  # not in older zoos
        newer |= {"init"} if self.init == "independent" else set()
        dumped = self.model_dump(mode="json", exclude={"device", "teacher", *newer})
        if self.optimizer.name != "muon":
            del dumped["optimizer"]["muon_rate"]
        return dumped


@dataclass(frozen=True)
class RunPlan:
    """A training run of a network, and the epochs at which it becomes a member."""

    arch: str
    run: int
    seed: int
    epochs: tuple[int, ...]  # ascending
    learning_rate: float
    split: str
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    variety: Variety | None = None
    init: int | None = None  # seed of the initial weights; None: `seed`

    @property
    def initial_seed(self) -> int:
        """The seed of the initial weights."""
        return self.seed if self.init is None else self.init


def num_runs(recipe: ZooRecipe) -> int:
    """Return the number of runs of a recipe."""
    members = [getattr(recipe.members_of(arch), split) for arch in recipe.archs for split in SPLITS]
    return sum(-(-count // recipe.epochs.snapshots) for count in members)


def planned_runs(recipe: ZooRecipe, shard: Shard | None = None) -> list[RunPlan]:
    """Return all runs of a recipe, architecture by architecture, the longest first; of a shard every N-th of these.

    The last few plans are cached. Raises `UsageError` for ranges that numbers cannot be drawn from.
    """
    return list(_planned(recipe.model_dump_json(exclude={"device"}), shard))


@lru_cache(maxsize=4)
def _planned(settings: str, shard: Shard | None) -> tuple[RunPlan, ...]:
    """Return the runs of a recipe, given as JSON; numbers are drawn for the runs of the shard alone."""
    recipe = ZooRecipe.model_validate_json(settings)
    runs = [run for arch in recipe.archs for run in _ordered_runs(recipe, arch)]
    hashes = {arch: _hash(arch) for arch in recipe.archs}
    shared = {
        arch: _random_seed(generator(recipe.seed, hashes[arch])) if recipe.init == "shared" else None
        for arch in recipe.archs
    }
    numbers, optimizer, firsts = NUMBERED.get(recipe.data.name), recipe.optimizer, _first_signals(recipe)
    plans = []
    for arch, number, split, index, epochs in runs if shard is None else runs[shard.index - 1 :: shard.count]:
        random = generator(recipe.seed, hashes[arch], number)
        seed = _random_seed(random)
        rate = _drawn("learning_rate", optimizer.learning_rate, random)
        decay = _drawn("weight_decay", optimizer.weight_decay, random, zero=True)
        schedule, variety = _schedule(optimizer, random), _variety(recipe.variety, random)
        init = seed if numbers and shared[arch] is None else shared[arch]
        seed = numbers(split, index, firsts[split] + index) if numbers else seed
        plans.append(RunPlan(arch, number, seed, epochs, rate, split, decay, schedule, variety, init))
    return tuple(plans)


def _ordered_runs(recipe: ZooRecipe, arch: str) -> list[tuple[str, int, str, int, tuple[int, ...]]]:
    """Return the runs of an architecture, the longest first: (arch, number, split, index in the split, epochs)."""
    members = recipe.members_of(arch)
    runs = [(split, *run) for split in SPLITS for run in enumerate(spread(recipe.epochs, getattr(members, split)))]
    ordered = sorted(enumerate(runs), key=lambda run: (-run[1][2][-1], run[0]))
    return [(arch, number, split, index, epochs) for number, (split, index, epochs) in ordered]


def _first_signals(recipe: ZooRecipe) -> dict[str, int]:
    """Return the number of each split's first signal: no architecture has it in an earlier split."""
    members = [recipe.members_of(arch) for arch in recipe.archs]
    runs = [max(-(-getattr(each, split) // recipe.epochs.snapshots) for each in members) for split in SPLITS]
    return dict(zip(SPLITS, accumulate(runs, initial=0), strict=False))


def _random_seed(random: torch.Generator) -> int:
    return int(torch.randint(1 << 31, (), generator=random))


def spread(config: EpochConfig, members: int) -> list[tuple[int, ...]]:
    """Return the epochs at which each run of a split of `members` becomes a member.

    Members are spaced evenly (log-evenly, or densest early) over first..last. Runs of several snapshots are
    interleaved, so that each spans the range. If rounding gives a run the same epoch twice, the later snapshot is taken
    one epoch later.
    """
    if members <= 0:
        return []
    positions = [(index + 0.5) / members for index in range(members)] if members > 1 else [1.0]
    low, high = config.first, config.last
    if config.spacing == "log":
        epochs = [round(_log_uniform(low, high, position)) for position in positions]
    else:
        if config.spacing == "early":
            counts = np.cumsum((0, *EARLY))
            positions = np.interp(positions, counts / counts[-1], np.linspace(0, 1, len(counts))).tolist()
        epochs = [round(low + position * (high - low)) for position in positions]
    runs = -(-members // config.snapshots)
    return [_ascending(epochs[start::runs]) for start in range(runs)]


def _ascending(epochs: list[int]) -> tuple[int, ...]:
    ascending: list[int] = []
    for epoch in epochs:
        ascending.append(max(epoch, ascending[-1] + 1) if ascending else epoch)
    return tuple(ascending)


def _log_uniform(low: float, high: float, position: float) -> float:
    """Return the number at a position (0 to 1) of a range, on a logarithmic scale."""
    return math.exp(math.log(low) + position * (math.log(high) - math.log(low)))


def _drawn(name: str, value: float | tuple[float, float], random: torch.Generator, zero: bool = False) -> float:
    """Return the number itself, or one drawn log-uniformly from the range."""
    if value == 0 and zero:
        return 0.0
    low, high = (value, value) if isinstance(value, float) else value
    if not 0 < low <= high:
        least = "of at least" if zero else "above"
        raise UsageError(
            f"optimizer.{name} is a number {least} 0, or a range of two above 0, the lower first; found {value}"
        )
    if low == high:
        return low
    return _log_uniform(low, high, float(torch.rand((), generator=random, dtype=torch.float64)))


def _schedule(config: OptimizerConfig, random: torch.Generator) -> Schedule:
    if isinstance(config.schedule, str):
        return config.schedule
    if not config.schedule:
        raise UsageError("optimizer.schedule is one of constant, cosine, steps, or several of them; found none")
    return config.schedule[int(torch.randint(len(config.schedule), (), generator=random))]


def _variety(config: VarietyConfig | None, random: torch.Generator) -> Variety | None:
    if config is None:
        return None
    count, images, noise = torch.rand(3, generator=random, dtype=torch.float64).tolist()
    classes = None
    if config.classes is not None:
        first, last = config.classes
        classes = first + min(int(count * (last - first + 1)), last - first)
    return Variety(
        classes,
        _log_uniform(*config.images, images),
        config.label_noise[0] + noise * (config.label_noise[1] - config.label_noise[0]),
    )


def _hash(text: str) -> int:
    """Return a hash of a name that is the same in every process, unlike `hash`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
