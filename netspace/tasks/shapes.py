"""Networks that are shapes: from points (B, 3) to signed distances or occupancies (B, 1) (NetSpace, Eq. 2; Suppl. V).

Axes: M members, B points of a batch, N points of a split, S shapes.

A network's seed is the number of its shape in a collection: parametric chairs, or the meshes of a folder. It is fitted to
points of its own, half of them near the surface. Networks are compared with each other at shared points, those of seed -1,
which are near the surfaces of the first shapes, and half of them anywhere in the cube [-1, 1]^3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from netspace import metrics
from netspace.errors import UsageError
from netspace.tasks.base import SPLITS, DataConfig, Task
from netspace.tasks.chairs import chair

TOLERANCE = 0.01  # distances that differ by less are alike (NetSpace, Suppl. V)
SPREADS = (0.05, 0.0158)  # standard deviations of points about the surface, half of them each (DeepSDF, Sec. 4)
POINTS = {
    "train": 8192,
    "val": 2048,
    "test": 4096,
}  # of each network, unless the settings have other numbers for training
SHARED = 64  # shapes near whose surfaces shared points lie
UNRELATED = ("image_size", "channels", "crop_padding", "flip", "mean", "std", "limit", "classes", "images", "latent")


class Shape(Protocol):
    """A closed shape within `RADIUS` of the origin."""

    def distances(self, points: np.ndarray) -> np.ndarray:
        """Return signed distances (N,) float64 of points (N, 3), negative inside."""
        ...

    def surface(self, count: int, random: np.random.RandomState) -> np.ndarray:
        """Return points (count, 3) on the surface, uniform by area."""
        ...


class Shapes(Protocol):
    """A collection of numbered shapes."""

    @property
    def variants(self) -> int:
        """How many consecutive shapes are variants of one."""
        ...

    @property
    def content_hash(self) -> str:
        """A hash that is equal for equal shapes."""
        ...

    @property
    def count(self) -> int | None:
        """How many there are; None: as many as wanted."""
        ...

    def shape(self, number: int) -> Shape:
        """Return a shape by its number."""
        ...

    def name(self, number: int) -> str:
        """Return a shape's name, such as 'chair/0003'."""
        ...

    def labels(self, number: int) -> Mapping[str, float | str]:
        """Return what is known of a shape, by name."""
        ...

    def samples(self, numbers: Sequence[int], split: str, count: int) -> np.ndarray:
        """Return points and their distances, (S, count, 4) float32, of these shapes for a split."""
        ...

    def prepare(self, numbers: Sequence[int], counts: Mapping[str, int]) -> None:
        """Compute and cache what takes long of these shapes' samples, `counts` of each split, on all cores."""
        ...


class Chairs:
    """Parametric chairs. `seed` is that of the collection."""

    count: int | None = None
    variants = 1
    upright = (2, 1)  # they stand along z and look along y

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        text = repr([(chair(number, seed).centres, chair(number, seed).halves) for number in range(4)])
        self.content_hash = hashlib.sha256(f"chairs {seed} {text}".encode()).hexdigest()

    def shape(self, number: int) -> Shape:
        """Return chair `number`."""
        return chair(number, self.seed)

    def name(self, number: int) -> str:
        """Return 'chair/0003' and so on."""
        return chair(number, self.seed).name

    def labels(self, number: int) -> Mapping[str, float]:
        """Return the parameters that a chair was made from."""
        return chair(number, self.seed).labels

    def samples(self, numbers: Sequence[int], split: str, count: int) -> np.ndarray:
        """Return points and their distances, (S, count, 4) float32, of these chairs for a split."""
        return np.stack([samples(self.shape(number), split, count, (self.seed, number)) for number in numbers])

    def prepare(self, numbers: Sequence[int], counts: Mapping[str, int]) -> None:
        """Do nothing: chairs are sampled as fast as a cache is read."""


def near_and_far(shape: Shape, count: int, random: np.random.RandomState) -> np.ndarray:
    """Return points (count, 3) float64: half near the surface, half uniform in the cube [-1, 1]^3, in random order."""
    near = shape.surface(count // 2, random)
    spreads = np.resize(np.array(SPREADS), len(near))[:, None]
    near = near + spreads * random.standard_normal(near.shape)
    far = 2 * random.random_sample((count - len(near), 3)) - 1
    return random.permutation(np.concatenate([near.clip(-1, 1), far]))


def samples(shape: Shape, split: str, count: int, seeds: Sequence[int]) -> np.ndarray:
    """Return points and their signed distances, (count, 4) float32. `seeds` (at most some numbers) say which ones."""
    random = np.random.RandomState([*seeds, 2 + SPLITS.index(split)])
    points = near_and_far(shape, count, random).astype(np.float32)
    distances = shape.distances(points.astype(np.float64))
    return np.concatenate([points, distances[:, None].astype(np.float32)], 1)


class SignedDistances(Task):
    """Networks from points to signed distances. Scores are the fraction of points whose distance is right to 0.01."""

    own_inputs: ClassVar[bool] = True
    own_targets: ClassVar[bool] = True
    surfaces: ClassVar[bool] = True
    score_name: ClassVar[str] = "within"
    score_noun: ClassVar[str] = "score"
    score_meaning: ClassVar[str] = "the fraction of points whose distance is right to 0.01"
    loss_name: ClassVar[str] = "mean squared difference of distances"
    input_noun: ClassVar[str] = "points"
    output_noun: ClassVar[str] = "distances"
    input_shape = (3,)
    num_outputs = 1
    level: ClassVar[float] = 0.0  # of outputs at the surface; below it a point is inside

    def __init__(self, config: DataConfig, device: torch.device, shapes: Shapes | None = None) -> None:
        """Raises `UsageError` for settings of images."""
        refuse_unrelated(config, UNRELATED)
        self.name, self.device = config.name, device
        self.shapes = Chairs(config.split_seed) if shapes is None else shapes
        self.upright = getattr(self.shapes, "upright", self.upright)  # most files of meshes say nothing of it
        self.points = {**POINTS, "train": config.points or POINTS["train"]}
        self.split_hash = hashlib.sha256(f"{self.shapes.content_hash} {self.points}".encode()).hexdigest()
        self._rows: dict[str, dict[int, int]] = {split: {} for split in SPLITS}  # of each seed in the pool
        self._pools: dict[str, Tensor] = {}  # (S, N, 4): points and what is true of them

    def size(self, split: str) -> int:
        """Return the number of points of each network in a split."""
        return self.points[split]

    def inputs(self, split: str, index: Tensor | slice, seeds: Int64[Tensor, " M"] | None = None) -> Tensor:
        """Return points (M, B, 3) of shapes, or shared ones (B, 3) without `seeds`, in [-1, 1]."""
        return self._take(split, index, seeds)[..., :3]

    def targets(self, split: str, index: Tensor | slice, seeds: Int64[Tensor, " M"] | None = None) -> Tensor:
        """Return what is true of these points, (M, B, 1) or (B, 1); NaN for shared ones."""
        return self._take(split, index, seeds)[..., 3:]

    def prepare(self, seeds: Int64[Tensor, " M"]) -> None:
        """Sample these shapes, on all cores, if that takes long. Raises `UsageError` if there are not so many shapes."""
        self.shapes.prepare(sorted(set(seeds.tolist()) - {-1}), self.points)

    def labels(self, seeds: Int64[Tensor, " M"]) -> dict[str, np.ndarray]:
        """Return what is known of shapes, (M,) by name; empty if nothing is."""
        known = [self.shapes.labels(seed) for seed in seeds.tolist()]
        return {name: np.array([each[name] for each in known]) for name in (known[0] if known else ())}

    def member_name(self, seed: int) -> str:
        """Return the name of the shape with this seed, such as 'chair/0003'."""
        return self.shapes.name(seed)

    def _take(self, split: str, index: Tensor | slice, seeds: Tensor | None) -> Tensor:
        numbers = [-1] if seeds is None else seeds.tolist()
        rows = torch.tensor(self._pool_rows(split, numbers), device=self.device)
        pool = self._pools[split]
        if isinstance(index, slice):
            taken = pool[:, index][rows]
        else:
            taken = pool[rows[:, None], index.to(self.device)]
        return taken[0] if seeds is None and (isinstance(index, slice) or index.dim() == 1) else taken

    def _pool_rows(self, split: str, numbers: Sequence[int]) -> list[int]:
        """Return which rows of the pool have these shapes; those that are missing are sampled."""
        rows = self._rows[split]
        missing = sorted({number for number in numbers if number not in rows})
        if missing:
            new = [self._shared(split)[None]] if missing[0] == -1 else []
            own = [number for number in missing if number >= 0]
            if own:
                new.append(self._true(self.shapes.samples(own, split, self.points[split])))
            pool = torch.from_numpy(np.concatenate(new)).to(self.device)
            before = self._pools.get(split)
            self._pools[split] = pool if before is None else torch.cat([before, pool])
            rows.update((number, row) for row, number in enumerate(missing, len(rows)))
        return [rows[number] for number in numbers]

    def _shared(self, split: str) -> np.ndarray:
        """Return points (N, 4) float32 that all networks share; what is true of them differs by network: NaN."""
        count = self.points[split]
        variants = self.shapes.variants
        known = min(SHARED, (self.shapes.count or SHARED * variants) // variants)
        random = np.random.RandomState([known, count, SPLITS.index(split)])
        each = -(-count // known)
        points = np.concatenate(
            [near_and_far(self.shapes.shape(number * variants), each, random) for number in range(known)]
        )
        points = points[random.permutation(len(points))[:count]].astype(np.float32)
        return np.concatenate([points, np.full((count, 1), np.nan, dtype=np.float32)], 1)

    def _true(self, samples: np.ndarray) -> np.ndarray:
        """Return samples (S, N, 4), points and distances, with what networks are to say of them in place of distances."""
        return samples

    def score(self, outputs: Float[Tensor, "*M B 1"], targets: Tensor) -> Float[Tensor, "*M"]:
        """Return the fraction of points whose distance is right to 0.01."""
        return metrics.within(outputs, targets, TOLERANCE)

    def agreement(self, first: Float[Tensor, "*#M B 1"], second: Float[Tensor, "*#M B 1"]) -> Float[Tensor, ...]:
        """Return the fraction of points at which both give the same distance to 0.01 (NetSpace, Suppl. V)."""
        return metrics.within(first, second, TOLERANCE)

    def inputs_between(
        self, split: str, first: Int64[Tensor, " M"], second: Int64[Tensor, " M"], gamma: Float[Tensor, " M"]
    ) -> Tensor:
        """Return the shared points (M, N, 3): networks between two shapes have none of their own."""
        return self.inputs(split, slice(None)).expand(len(gamma), -1, -1)

    def targets_between(
        self, split: str, first: Int64[Tensor, " M"], second: Int64[Tensor, " M"], gamma: Float[Tensor, " M"]
    ) -> Tensor:
        """Return what is true of the shared points, (M, N, 1), mixed from two shapes with `gamma` of the second."""
        points = self.inputs(split, slice(None)).cpu().double().numpy()
        known: dict[int, np.ndarray] = {}

        def true(seed: int) -> Tensor:
            if seed < 0:
                return torch.full((len(points), 1), torch.nan, device=self.device)
            if seed not in known:
                values = np.concatenate([points, self.shapes.shape(seed).distances(points)[:, None]], 1)
                known[seed] = self._true(values[None].astype(np.float32))[0, :, 3:]
            return torch.from_numpy(known[seed]).to(self.device)

        mixed = zip(first.tolist(), second.tolist(), gamma.tolist(), strict=True)
        return torch.stack([torch.lerp(true(one), true(other), factor) for one, other, factor in mixed])


class Occupancies(SignedDistances):
    """Networks from points to logits of being outside. Scores are the fraction of points that are on the right side."""

    score_name: ClassVar[str] = "right side"
    score_meaning: ClassVar[str] = "the fraction of points that are on the right side of the surface"
    loss_name: ClassVar[str] = "mean squared difference of logits"
    output_noun: ClassVar[str] = "occupancies"

    def _true(self, samples: np.ndarray) -> np.ndarray:
        return np.concatenate([samples[..., :3], (samples[..., 3:] > 0).astype(np.float32)], -1)

    def score(self, outputs: Float[Tensor, "*M B 1"], targets: Tensor) -> Float[Tensor, "*M"]:
        """Return the fraction of points that are on the right side of the surface."""
        return (
            ((outputs > 0) == (targets > 0.5)).double().mean((-2, -1)).where(~targets.isnan().any((-2, -1)), torch.nan)
        )

    def agreement(self, first: Float[Tensor, "*#M B 1"], second: Float[Tensor, "*#M B 1"]) -> Float[Tensor, ...]:
        """Return the fraction of points that both put on the same side of the surface."""
        return ((first > 0) == (second > 0)).double().mean((-2, -1))

    def training_loss(self, outputs: Float[Tensor, "*M B 1"], targets: Tensor) -> Float[Tensor, ""]:
        """Return the binary cross-entropy, in nats."""
        return F.binary_cross_entropy_with_logits(outputs, targets)


FIELDS: dict[str, type[SignedDistances]] = {"sdf": SignedDistances, "occupancy": Occupancies}


def load_chairs(config: DataConfig, device: torch.device) -> Task:
    """Return the task of networks that are parametric chairs; `split_seed` is the collection's seed."""
    if config.root is not None:
        raise UsageError(f"data set {config.name!r} is made, not read, but root={config.root} was given: leave it out.")
    refuse_unrelated(config, ["variants"])
    return FIELDS[config.field or "sdf"](config, device)


def refuse_unrelated(config: DataConfig, names: Sequence[str]) -> None:
    """Raise `UsageError` if one of these settings was given."""
    given = [name for name in names if getattr(config, name) is not None]
    if given:
        raise UsageError(f"data set {config.name!r} has no setting {', '.join(given)}: leave it out.")
