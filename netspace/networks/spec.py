"""`NetSpec`: the shape of a network, apart from its values.

A spec is derived from a module, never written by hand, and holds nothing that could run: an architecture's
name, its keyword arguments and the ordered names and shapes of its parameters. Batch norm is folded
before (see `netspace.networks.folding`), so parameters are all there is. Values live in PReps (`netspace.networks.prep`)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, Any

from netspace.errors import NetspaceError
from netspace.io import parse_json

if TYPE_CHECKING:
    from torch import nn


Setting = str | int | float | bool | None


@dataclass(frozen=True)
class NetSpec:
    """What a network is made of, without its weights. Hashable; equal specs mean interchangeable networks."""

    arch: str  # a registered architecture ('resnet8') or 'module:factory'
    kwargs: tuple[tuple[str, Setting], ...]  # the factory's keyword arguments, sorted by name
    input_shape: tuple[int, ...]  # of one input, without the batch axis: (C, H, W) for images
    names: tuple[str, ...]  # parameters in the order in which they fill a PRep
    shapes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.shapes):
            raise NetspaceError(
                f"a spec of {self.arch!r} has {len(self.names)} parameter names but {len(self.shapes)} shapes"
            )

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of elements of each parameter."""
        return tuple(prod(shape) for shape in self.shapes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each parameter starts in the flat vector of all parameters."""
        return (0, *accumulate(self.sizes))[:-1]

    @cached_property
    def num_parameters(self) -> int:
        """P: the number of elements of all parameters."""
        return sum(self.sizes)

    @property
    def settings(self) -> dict[str, Setting]:
        """The keyword arguments of the architecture's factory."""
        return dict(self.kwargs)

    @classmethod
    def from_module(cls, module: nn.Module, arch: str, kwargs: dict[str, Any], input_shape: tuple[int, ...]) -> NetSpec:
        """The spec of `module`; its parameters in the order in which the module registers them.

        Raises `NetspaceError` for a module without parameters or with two names for one tensor.
        """
        named = list(module.named_parameters(remove_duplicate=False))
        if not named:
            raise NetspaceError(f"{arch!r} has no parameters: there is nothing to represent")
        if len({id(tensor) for _, tensor in named}) != len(named):
            raise NetspaceError(f"{arch!r} shares one tensor between parameters: untie them before representing it")
        return cls(
            arch=arch,
            kwargs=tuple(sorted(kwargs.items())),
            input_shape=tuple(input_shape),
            names=tuple(name for name, _ in named),
            shapes=tuple(tuple(tensor.shape) for _, tensor in named),
        )

    def to_json(self) -> str:
        """The spec as JSON text; `from_json` gives an equal spec back."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> NetSpec:
        """The spec that `to_json` wrote. Raises `NetspaceError` if the text is not one."""
        try:
            raw = parse_json(text, "the spec")
            return cls(
                arch=str(raw["arch"]),
                kwargs=tuple((str(key), value) for key, value in raw["kwargs"]),
                input_shape=tuple(int(side) for side in raw["input_shape"]),
                names=tuple(str(name) for name in raw["names"]),
                shapes=tuple(tuple(int(side) for side in shape) for shape in raw["shapes"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError, NetspaceError) as error:
            raise NetspaceError(f"not the JSON of a network's spec: {error}") from error

    def difference(self, names_and_shapes: dict[str, tuple[int, ...]]) -> str:
        """How named shapes differ from this spec's, as the end of a sentence; '' if they do not."""
        wanted = dict(zip(self.names, self.shapes, strict=True))
        missing = [name for name in wanted if name not in names_and_shapes]
        extra = [name for name in names_and_shapes if name not in wanted]
        other = [name for name in wanted if name in names_and_shapes and wanted[name] != names_and_shapes[name]]
        parts = []
        if missing:
            parts.append(f"{len(missing)} parameters are missing (first: {missing[0]})")
        if extra:
            parts.append(f"{len(extra)} are not known (first: {extra[0]})")
        if other:
            name = other[0]
            parts.append(f"{name} has shape {names_and_shapes[name]} where {wanted[name]} is expected")
        return "; ".join(parts)
