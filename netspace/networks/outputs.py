"""What a network gives, as floating-point tensors: one tensor, or nested tuples, lists, dictionaries and data classes of them.

Axes: B inputs, C outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Literal

import torch
from torch import Tensor

from netspace.errors import NetspaceError, unknown

Compare = Literal["auto", "answers", "outputs"]


def output_tensors(outputs: object) -> dict[str, Tensor]:
    """Return the floating-point tensors of what a network gives, by their paths: '0', 'boxes', 'out.0'; '' for a tensor alone.

    >>> import torch
    >>> list(output_tensors({"out": (torch.zeros(2), torch.zeros(3)), "step": 4}))
    ['out.0', 'out.1']
    """
    return dict(_walk(outputs, ""))


def _walk(outputs: object, path: str) -> Iterator[tuple[str, Tensor]]:
    inner: Iterator[tuple[object, object]]
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point():
            yield path, outputs
        return
    if isinstance(outputs, Mapping):
        inner = iter(outputs.items())
    elif isinstance(outputs, list | tuple):
        inner = zip(getattr(outputs, "_fields", range(len(outputs))), outputs, strict=True)
    elif is_dataclass(outputs) and not isinstance(outputs, type):
        inner = ((each.name, getattr(outputs, each.name)) for each in fields(outputs))
    else:
        return
    for name, each in inner:
        yield from _walk(each, f"{path}.{name}" if path else str(name))


@dataclass(frozen=True)
class Outputs:
    """Which tensors of what a network gives are compared, and how: as logits (B, C), or by the error of their values."""

    name: str | None = None  # a path, the first part of paths, or an index; None: all tensors
    logits: bool = True
    bare: bool = True  # the network gives one tensor, in nothing

    @classmethod
    def of(cls, outputs: object, model: str, name: str | None = None, compare: Compare = "auto") -> Outputs:
        """Return what is compared of a network, given what it gives for some inputs.

        One tensor (B, C) with C > 1 is taken for logits, if `compare` is 'auto'.

        Raises:
            UsageError: no output has the name.
            NetspaceError: there is no floating-point tensor, or no logits where `compare` is 'answers'.
        """
        if not output_tensors(outputs):
            raise NetspaceError(
                f"{model} was expected to give floating-point tensors, but gave {describe(outputs)}: leave out its inputs, so "
                "that weights are compared"
            )
        tensors = cls(name).read(outputs)
        logits = len(tensors) == 1 and tensors[0].dim() == 2 and tensors[0].shape[1] > 1
        if compare == "answers" and not logits:
            raise NetspaceError(
                f"{model} was expected to answer with logits (B, C), but gave {describe(outputs)}: pick them by --output, or "
                "leave out what says that it classifies (--zoo, compare=answers)"
            )
        return cls(name, logits and compare != "outputs", isinstance(outputs, Tensor))

    def read(self, outputs: object) -> list[Tensor]:
        """Return the tensors that are compared. Raises `UsageError` if no output has the name."""
        return list(self.named(outputs).values())

    def named(self, outputs: object) -> dict[str, Tensor]:
        """Return the tensors that are compared by their paths. Raises `UsageError` if no output has the name."""
        named = output_tensors(outputs)
        if self.name is None:
            return named
        if self.name in named:
            return {self.name: named[self.name]}
        if inner := {path: value for path, value in named.items() if path.startswith(f"{self.name}.")}:
            return inner
        if self.name.isdecimal() and int(self.name) < len(named):
            return dict([list(named.items())[int(self.name)]])
        if list(named) == [""]:
            raise unknown("output", self.name, ["0"], "The network gives one tensor.")
        raise unknown("output", self.name, named)

    def scaled(self, outputs: object) -> list[Tensor]:
        """Return the tensors that are compared; where their errors count, in units of their norms."""
        tensors = self.read(outputs)
        if self.logits:
            return tensors
        norms = [torch.where(each.isfinite(), each, 0.0).norm().detach() for each in tensors]
        return [each / torch.where(norm > 0, norm, 1.0) for each, norm in zip(tensors, norms, strict=True)]


def describe(outputs: object) -> str:
    """Return what a network gives in words: 'a tensor of (2, 10)', 'boxes (2, 4, 8), scores (2, 8)'.

    >>> import torch
    >>> describe({"boxes": torch.zeros(2, 4), "scores": torch.zeros(2)})
    'boxes (2, 4), scores (2,)'
    """
    if isinstance(outputs, Tensor):
        return f"a tensor of {tuple(outputs.shape)}"
    named = output_tensors(outputs)
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in named.items()) or f"a {type(outputs).__name__}"


def squared_errors(predicted: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Return for each tensor the sum of squared differences, and that of the target's squares, in float32: (tensors, 2).

    Where the target is not finite (a mask), nothing counts. Raises `NetspaceError` for tensors of other shapes.
    """
    shapes = [[tuple(each.shape) for each in side] for side in (predicted, target)]
    if shapes[0] != shapes[1]:
        differ = next((pair for pair in zip(*shapes, strict=False) if pair[0] != pair[1]), tuple(map(len, shapes)))
        raise NetspaceError(
            f"outputs were expected to have the shapes of the original's, but {differ[0]} differs from {differ[1]}: pick an "
            "output whose shape does not depend on the weights by --output"
        )
    rows = []
    for mine, theirs in zip(predicted, target, strict=True):
        mine, theirs = mine.float(), theirs.float()
        known = theirs.isfinite()
        rows.append(torch.stack([torch.where(known, each, 0.0).square().sum() for each in (mine - theirs, theirs)]))
    return torch.stack(rows)


def relative_errors(expected: Iterable[Sequence[Tensor]], given: Iterable[Sequence[Tensor]]) -> Tensor:
    """Return for each output tensor the norm of the differences over the norm of what is expected, float64 (tensors,).

    Both give the tensors of one batch after the other; norms are over all batches. Raises as `squared_errors`.

    >>> import torch
    >>> relative_errors([[torch.tensor([3.0])], [torch.tensor([4.0])]], [[torch.tensor([3.0])], [torch.tensor([3.0])]])
    tensor([0.2000], dtype=torch.float64)
    """
    totals = torch.zeros(())
    for theirs, mine in zip(expected, given, strict=True):
        totals = totals + squared_errors(mine, theirs).double().cpu()
    apart, whole = totals.unbind(1)
    return (apart / torch.where(whole > 0, whole, 1.0)).sqrt()
