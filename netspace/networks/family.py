"""The architectures of a latent space, in the order of their ClassIds.

Axes: A architectures, H W of a PRep. ClassIds 0 to A - 1 order architectures by their number of parameters (NetSpace,
Sec. III); PReps share one width, and the largest height holds them all. A single-architecture space has A = 1."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from netspace import archs
from netspace.archs.identity import check_identity
from netspace.errors import NetspaceError, UsageError, unknown
from netspace.networks.batch import NetBatch
from netspace.networks.prep import height, pack, unpack
from netspace.networks.spec import NetSpec


@dataclass(frozen=True, eq=False)
class ArchClass:
    """One architecture of a family."""

    id: str  # as the zoo names it
    nets: NetBatch
    size: tuple[int, int]  # (H, W) of its PReps
    shown: bool = True  # whether a space saw trained networks of it; False: it was only declared

    @property
    def spec(self) -> NetSpec:
        """What its networks are made of."""
        return self.nets.spec

    @property
    def parameters(self) -> int:
        """P: how many parameters its networks have."""
        return self.nets.spec.num_parameters


class Family:
    """Architectures in the order of their ClassIds, which are places in it."""

    def __init__(self, classes: Iterable[ArchClass], rows: int | None = None) -> None:
        """`rows` is the height of a PRep that holds any of them, where it is to be more than the largest needs.

        Raises `NetspaceError` for PReps of several widths, `UsageError` for a smallest or largest never shown."""
        self.classes = tuple(sorted(classes, key=lambda each: (each.parameters, each.id)))
        self.rows = max(rows or 0, *(each.size[0] for each in self.classes))
        widths = {each.size[1] for each in self.classes}
        if len(widths) != 1:
            raise NetspaceError(f"PReps of one space have one width; those of {self.names} have {sorted(widths)}")
        for each, word in ((self.classes[0], "smallest"), (self.classes[-1], "largest")):
            if len(self.classes) > 1 and not each.shown:
                raise UsageError(
                    f"networks of {each.id}, the {word} architecture, are needed: architectures are ordered between the "
                    f"smallest and the largest ({self.names}), and those between alone may go without"
                )

    def __len__(self) -> int:
        return len(self.classes)

    def __iter__(self) -> Iterator[ArchClass]:
        return iter(self.classes)

    def __getitem__(self, class_id: int) -> ArchClass:
        return self.classes[class_id]

    @property
    def names(self) -> str:
        """All ids, the smallest architecture first."""
        return ", ".join(each.id for each in self.classes)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of a PRep that holds any of them."""
        return self.rows, self.classes[0].size[1]

    def ones(self) -> Tensor:
        """Ones of the shape of what is known of every element of PReps: (A, H, W), or (H, W) of a single architecture."""
        return torch.ones(len(self), *self.size) if len(self) > 1 else torch.ones(self.size)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one input of the networks."""
        return self.classes[0].spec.input_shape

    @property
    def between(self) -> range:
        """The ClassIds between the smallest and the largest."""
        return range(1, len(self) - 1)

    def class_id(self, name: str) -> int:
        """The ClassId of an architecture. Raises `UsageError` naming those there are."""
        for place, each in enumerate(self.classes):
            if each.id == name:
                return place
        raise unknown("architecture", name, [each.id for each in self.classes], "(of this space)")

    def factor(self, class_id: int) -> float:
        """How far from the smallest to the largest architecture a ClassId lies: gamma (NetSpace, Eq. 12).

        With A architectures, ClassId i lies at i / (A - 1): Eq. 7 read backwards, from the ClassId to its factor.
        """
        return class_id / (len(self) - 1) if len(self) > 1 else 0.0

    def to_json(self) -> dict[str, Any]:
        """What decoding needs to know of them, as JSON values."""
        return {
            each.id: {
                "class_id": place,
                "spec": json.loads(each.spec.to_json()),
                "prep": list(each.size),
                "shown": each.shown,
            }
            for place, each in enumerate(self.classes)
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any], device: torch.device | str, rows: int | None = None) -> Family:
        """The family that `to_json` told of. Raises `NetspaceError`, `KeyError`, `TypeError` or `ValueError`."""
        classes = [
            ArchClass(
                name,
                net_batch(NetSpec.from_json(json.dumps(entry["spec"])), device),
                (int(entry["prep"][0]), int(entry["prep"][1])),
                bool(entry.get("shown", True)),
            )
            for name, entry in told.items()
        ]
        return cls(classes, rows)


@dataclass(frozen=True, eq=False)
class Networks:
    """Networks of a family's architectures, side by side."""

    family: Family
    preps: Tensor  # (M, H, W), each in the first rows
    class_ids: Tensor  # (M,) int64, on the CPU

    def __len__(self) -> int:
        return len(self.preps)

    def __getitem__(self, rows: Tensor | slice) -> Networks:
        """The networks of some rows."""
        return Networks(self.family, self.preps[rows], self.class_ids[rows])

    def flat(self, place: int) -> Tensor:
        """The parameters (P,) of one network."""
        return unpack(self.preps[place], self.family[int(self.class_ids[place])].parameters)

    def each(self, work: Callable[..., Tensor], *others: Tensor) -> Tensor:
        """work(nets, flat) -> (M_c, ...) of the networks (M_c, P_c) of every class, put together in order (M, ...).

        `work` is given the rows of `others` (M, ...), too, which lie on the CPU.
        """
        ids = tuple(self.class_ids.tolist())
        if len(set(ids)) == 1:
            arch = self.family[ids[0]]
            return work(arch.nets, unpack(self.preps, arch.parameters), *others)
        stacks, _ = by_class(ids, self.preps.device)
        found = torch.cat(
            [
                work(
                    self.family[place].nets,
                    unpack(self.preps.index_select(0, order), self.family[place].parameters),
                    *(each[order.cpu()] for each in others),
                )
                for place, order in stacks
            ]
        )
        return found.index_select(0, by_class(ids, found.device)[1])

    @classmethod
    def concatenate(cls, parts: Sequence[Networks]) -> Networks:
        """All networks of several parts of one family, in their order."""
        preps, ids = [part.preps for part in parts], [part.class_ids for part in parts]
        return cls(parts[0].family, torch.cat(preps), torch.cat(ids))

    @classmethod
    def of_class(cls, family: Family, class_id: int, flat: Tensor) -> Networks:
        """Networks (M, P) of one class."""
        return cls(family, pack(flat, family.size), torch.full((len(flat),), class_id))


@lru_cache(maxsize=256)
def by_class(class_ids: tuple[int, ...], device: torch.device) -> tuple[list[tuple[int, Tensor]], Tensor]:
    """Return the rows (M_c,) of each ClassId c that occurs, ascending, and the order (M,) that undoes this; cached."""
    ids = torch.tensor(class_ids, dtype=torch.int64)
    orders = [(place, (ids == place).nonzero()[:, 0]) for place in sorted(set(class_ids))]
    back = torch.cat([order for _, order in orders]).argsort()
    return [(place, order.to(device)) for place, order in orders], back.to(device)


def declared(
    name: str, config: archs.ArchConfig, image_shape: tuple[int, ...], classes: int, width: int, device: torch.device
) -> ArchClass:
    """An architecture of which no network was ever trained, for PReps of a `width`."""
    settings = config.settings(image_shape, classes)
    check_identity(config.arch, partial(archs.build, config.arch, **settings), image_shape)
    skeleton = archs.skeleton(config.arch, settings, image_shape)
    spec = NetSpec.from_module(skeleton, config.arch, settings, image_shape)
    return ArchClass(
        name, NetBatch(skeleton.to(device), spec), (height(spec.num_parameters, width), width), shown=False
    )


def net_batch(spec: NetSpec, device: torch.device | str) -> NetBatch:
    """What runs networks of a spec."""
    return NetBatch(archs.skeleton(spec.arch, spec.settings, spec.input_shape).to(device), spec)
