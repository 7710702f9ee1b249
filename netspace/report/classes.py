"""What an evaluation of a space of several architectures tells beside the figures of one.

Axes: A architectures, the smallest first, so that places are ClassIds; M members, S points of a line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from netspace.errors import NetspaceError
from netspace.report.reading import ends_of, finite, names_of, numbers_of, part

AGAIN = "run `netspace eval` again"


@dataclass(frozen=True)
class Between:
    """Networks decoded where Eq. 12 puts an architecture between the smallest and the largest; fractions, means."""

    arch: str
    gamma: float | None
    shown: bool  # whether the space saw trained networks of it
    recognised: float | None  # share that the ClassId head takes for it
    accuracy: float | None  # on test images, of networks as the head decodes them
    trained: float | None  # of the zoo's own test members
    ratio: float | None  # the former to the latter
    scale_zero: float | None  # accuracy with the decoder's learnt part off
    distilled: float | None  # of a network that learnt from the teacher for as many steps as the space


@dataclass(frozen=True)
class ClassLine:
    """Networks of several architectures along the line between two latents (NetSpace, Fig. 5)."""

    start: str
    end: str
    gamma: np.ndarray  # (S,)
    accuracy: np.ndarray  # (S,) fractions
    arch: list[str]  # as which each point was decoded
    factors: list[tuple[float, str]]  # gamma of Eq. 12 and the architecture that is meant there
    ends: tuple[float | None, float | None] = (None, None)  # decoded minus target accuracy, at start and end


@dataclass(frozen=True)
class Classes:
    """Architectures of an evaluation's members, and what lies between them."""

    archs: list[str]  # A ids, all that the space can decode
    target: np.ndarray  # (M,) ClassIds of the members
    predicted: np.ndarray  # (M,) ClassIds as which they were decoded
    confusion: np.ndarray  # (A, A) counts: of each architecture, decoded as each
    between: list[Between]
    line: ClassLine | None


def classes_of(figures: Mapping[str, Any], file: Path, members: int) -> Classes | None:
    """From the figures of an evaluation; None where the space is of one architecture.

    Raises `NetspaceError`, naming the file, where they contradict each other.
    """
    archs = names_of(figures, "archs", file)
    if len(archs) < 2:
        return None
    detail = part(figures, "detail")
    ids = [_class_ids(detail, name, archs, file, members) for name in ("arch", "arch_predicted")]
    try:
        confusion = np.array(figures.get("confusion"), dtype=np.float64)
    except (TypeError, ValueError):
        confusion = np.empty(0)
    if confusion.shape != (len(archs), len(archs)) or not (confusion >= 0).all():
        raise NetspaceError(f"{file}: 'confusion' was expected to hold {len(archs)} x {len(archs)} counts: {AGAIN}")
    between = [_between(name, part(part(figures, "between"), name)) for name in part(figures, "between")]
    line = _line(part(figures, "line"), archs, file) if part(figures, "line") else None
    return Classes(archs, ids[0], ids[1], confusion, between, line)


def factors(archs: list[str], backwards: bool = False) -> list[tuple[float, str]]:
    """Where Eq. 12 puts the architectures between the smallest and the largest: i / (A - 1).

    >>> factors(["a", "b", "c"])
    [(0.5, 'b')]
    """
    order = archs[::-1] if backwards else archs
    return [(place / (len(order) - 1), order[place]) for place in range(1, len(order) - 1)]


def _class_ids(detail: Mapping[str, Any], name: str, archs: list[str], file: Path, members: int) -> np.ndarray:
    found = names_of(detail, name, file)
    if len(found) != members or not set(found) <= set(archs):
        raise NetspaceError(
            f"{file}: {name!r} was expected to tell every member's architecture, one of {', '.join(archs)}: {AGAIN}"
        )
    return np.array([archs.index(each) for each in found])


def _between(arch: str, told: Mapping[str, Any]) -> Between:
    keys = ("classid_accuracy", "accuracy", "accuracy_zoo", "ratio", "accuracy_scale_zero", "accuracy_distilled")
    return Between(
        arch, finite(told.get("gamma")), told.get("shown") is not False, *(finite(told.get(key)) for key in keys)
    )


def _line(told: Mapping[str, Any], archs: list[str], file: Path) -> ClassLine:
    gamma, accuracy, places = (numbers_of(told, name, file) for name in ("gamma", "accuracy", "factors"))
    arch = names_of(told, "arch", file)
    if not len(gamma) == len(accuracy) == len(arch) > 0 or len(places) not in (0, len(archs) - 2):
        raise NetspaceError(
            f"{file}: 'line' was expected to hold one accuracy and one architecture for each gamma: {AGAIN}"
        )
    meant = list(zip(places.tolist(), archs[1:-1], strict=True)) if len(places) else []
    ends = ends_of(told)
    return ClassLine(str(told.get("from", "?")), str(told.get("to", "?")), gamma, accuracy, arch, meant, ends)
