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
    trained: bool = True  # whether the space was trained on networks of it; False: it was only declared

    @property
    def spec(self) -> NetSpec:
        """The names, shapes and settings of its networks."""
        return self.nets.spec

    @property
    def parameters(self) -> int:
        """P, the number of parameters of its networks."""
        return self.nets.spec.num_parameters


class Family:
    """Architectures in the order of their ClassIds, which are indices into it."""

    def __init__(self, classes: Iterable[ArchClass], rows: int | None = None) -> None:
        """`rows` is the minimum height of a PRep that holds any of them; by default that of the largest architecture.

        Raises `NetspaceError` for PReps of several widths, `UsageError` for a smallest or largest without trained networks."""
        self.classes = tuple(sorted(classes, key=lambda each: (each.parameters, each.id)))
        self.rows = max(rows or 0, *(each.size[0] for each in self.classes))
        widths = {each.size[1] for each in self.classes}
        if len(widths) != 1:
            raise NetspaceError(f"PReps of one space have one width; those of {self.names} have {sorted(widths)}")
        for each, word in ((self.classes[0], "smallest"), (self.classes[-1], "largest")):
            if len(self.classes) > 1 and not each.trained:
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
        """Return ones for every element of PReps: (A, H, W), or (H, W) of a single architecture."""
        return torch.ones(len(self), *self.size) if len(self) > 1 else torch.ones(self.size)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input of the networks."""
        return self.classes[0].spec.input_shape

    @property
    def between(self) -> range:
        """The ClassIds between the smallest and the largest."""
        return range(1, len(self) - 1)

    def class_id(self, name: str) -> int:
        """Return the ClassId of an architecture. Raises `UsageError`, which lists those of the family."""
        for class_id, each in enumerate(self.classes):
            if each.id == name:
                return class_id
        raise unknown("architecture", name, [each.id for each in self.classes], "(of this space)")

    def factor(self, class_id: int) -> float:
        """Return gamma of a ClassId between the smallest architecture (0) and the largest (1) (NetSpace, Eq. 12).

        With A architectures, ClassId i lies at i / (A - 1): Eq. 7 read backwards, from the ClassId to its factor.
        """
        return class_id / (len(self) - 1) if len(self) > 1 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the architectures as JSON values, from which `from_json` makes the family again."""
        return {
            each.id: {
                "class_id": class_id,
                "spec": json.loads(each.spec.to_json()),
                "prep": list(each.size),
                "shown": each.trained,
            }
            for class_id, each in enumerate(self.classes)
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any], device: torch.device | str, rows: int | None = None) -> Family:
        """Return the family of a record that `to_json` made. Raises `NetspaceError`, `KeyError`, `TypeError` or `ValueError`."""
        classes = [
            ArchClass(
                name,
                net_batch(NetSpec.from_json(json.dumps(entry["spec"])), device),
                (int(entry["prep"][0]), int(entry["prep"][1])),
                bool(entry.get("shown", True)),
            )
            for name, entry in record.items()
        ]
        return cls(classes, rows)


@dataclass(frozen=True, eq=False)
class Networks:
    """Networks of the architectures of a family, in one batch."""

    family: Family
    preps: Tensor  # (M, H, W), each in the first rows
    class_ids: Tensor  # (M,) int64, on the CPU

    def __len__(self) -> int:
        return len(self.preps)

    def __getitem__(self, rows: Tensor | slice) -> Networks:
        """Return the networks of some rows."""
        return Networks(self.family, self.preps[rows], self.class_ids[rows])

    @property
    def archs(self) -> list[str]:
        """The ids of their architectures (M,)."""
        return [self.family[class_id].id for class_id in self.class_ids.tolist()]

    def flat(self, row: int) -> Tensor:
        """Return the parameters (P,) of one network."""
        return unpack(self.preps[row], self.family[int(self.class_ids[row])].parameters)

    def each(self, work: Callable[..., Tensor], *others: Tensor) -> Tensor:
        """Return `work(nets, flat)`, (M_c, ...) for the networks (M_c, P_c) of each class, in the order of the networks (M, ...).

        `work` also gets the rows of `others` (M, ...) that belong to the class; they are on the CPU.
        """
        ids = tuple(self.class_ids.tolist())
        if len(set(ids)) < 2:
            arch = self.family[ids[0] if ids else 0]
            return work(arch.nets, unpack(self.preps, arch.parameters), *others)
        stacks, _ = by_class(ids, self.preps.device)
        outputs = torch.cat(
            [
                work(
                    self.family[class_id].nets,
                    unpack(self.preps.index_select(0, order), self.family[class_id].parameters),
                    *(each[order.cpu()] for each in others),
                )
                for class_id, order in stacks
            ]
        )
        return outputs.index_select(0, by_class(ids, outputs.device)[1])

    @classmethod
    def concatenate(cls, parts: Sequence[Networks]) -> Networks:
        """Return the networks of parts of one family, in their order."""
        preps, ids = [part.preps for part in parts], [part.class_ids for part in parts]
        return cls(parts[0].family, torch.cat(preps), torch.cat(ids))

    @classmethod
    def of_class(cls, family: Family, class_id: int, flat: Tensor) -> Networks:
        """Return networks with the parameters (M, P) of one class."""
        return cls(family, pack(flat, family.size), torch.full((len(flat),), class_id))


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # a caller in that mode may not be the last
def by_class(class_ids: tuple[int, ...], device: torch.device) -> tuple[list[tuple[int, Tensor]], Tensor]:
    """Return the rows (M_c,) of each ClassId c that occurs, ascending, and the order (M,) that undoes this; cached."""
    ids = torch.tensor(class_ids, dtype=torch.int64)
    orders = [(class_id, (ids == class_id).nonzero()[:, 0]) for class_id in sorted(set(class_ids))]
    back = torch.cat([order for _, order in orders]).argsort()
    return [(class_id, order.to(device)) for class_id, order in orders], back.to(device)


def declared(
    name: str,
    config: archs.ArchConfig,
    image_shape: tuple[int, ...],
    classes: int,
    width: int,
    device: torch.device,
    own: Mapping[str, int] | None = None,
) -> ArchClass:
    """Return an architecture without trained networks, for PReps of a `width`; `own` as for `archs.task_settings`."""
    settings = config.settings(image_shape, classes, own)
    check_identity(config.arch, partial(archs.build, config.arch, **settings), image_shape)
    skeleton = archs.skeleton(config.arch, settings, image_shape)
    spec = NetSpec.from_module(skeleton, config.arch, settings, image_shape)
    return ArchClass(
        name, NetBatch(skeleton.to(device), spec), (height(spec.num_parameters, width), width), trained=False
    )


def net_batch(spec: NetSpec, device: torch.device | str) -> NetBatch:
    """Return a batch that runs networks of a spec."""
    return NetBatch(archs.skeleton(spec.arch, spec.settings, spec.input_shape).to(device), spec)
