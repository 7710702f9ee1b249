"""Accuracies along lines, as they are drawn: from results on lines between two networks, and means over lines.

Axes: S points of a line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from netspace.report.drawing import Dot, number, percent
from netspace.results.lines import ClassLine, Interpolation, MeanLine


@dataclass(frozen=True)
class Line:
    """Accuracies along a line between two networks, or means over lines."""

    start: str
    end: str
    gamma: np.ndarray  # (S,)
    accuracy: np.ndarray  # (S,) of decoded networks
    weights: np.ndarray | None = None  # (S,) of networks whose weights are mixed
    arch: tuple[str, ...] = ()  # as which each point was decoded; empty if the file does not say
    factors: tuple[tuple[float, str], ...] = ()  # gamma of Eq. 12 and its architecture
    spearman: float | None = None
    weight_spearman: float | None = None
    linear_r2: float | None = None
    weight_linear_r2: float | None = None
    end_differences: tuple[float | None, float | None] | None = None
    aligned: np.ndarray | None = None  # (S,) as `weights`, channels aligned and statistics reset
    name: str = "average"  # of its file, without suffix
    refined: int | None = None  # steps of descent on the ends' latents

    @property
    def marks(self) -> list[Dot]:
        """The points of all curves with the text of each."""
        curves = (("latents", self.accuracy), ("weights", self.weights), ("aligned weights", self.aligned))
        archs = [f", {arch}" for arch in self.arch] if len(set(self.arch)) > 1 else [""] * len(self.gamma)
        return [
            Dot(
                gamma,
                100 * value,
                name,
                f"γ {number(gamma)}{arch if name == 'latents' else ''}; accuracy {percent(value)}",
            )
            for name, values in curves
            if values is not None
            for gamma, value, arch in zip(self.gamma.tolist(), values.tolist(), archs, strict=True)
            if math.isfinite(value)
        ]


def _line(figures: MeanLine | Interpolation | ClassLine, accuracy: list[float | None], **more: Any) -> Line:
    """Return a result's line; curves that do not have a value for each gamma are left out."""

    def curve(name: str) -> np.ndarray | None:
        values = getattr(figures, name, None) or []
        return floats(values) if len(values) == len(figures.gamma) else None

    curves: dict[str, Any] = {"weights": curve("weight_accuracy"), "aligned": curve("aligned_accuracy")}
    gamma, ends = np.array(figures.gamma), figures.end_differences
    return Line(gamma=gamma, accuracy=floats(accuracy), end_differences=ends, **curves, **more)


def mean_line(figures: MeanLine) -> Line | None:
    """Return the mean over the lines of an evaluation; None if it has none."""
    if not figures.gamma or len(figures.latent_accuracy) != len(figures.gamma):
        return None
    ranks = {"spearman": figures.spearman_latent, "weight_spearman": figures.spearman_weights}
    straight = {"linear_r2": figures.linear_r2_latent, "weight_linear_r2": figures.linear_r2_weights}
    return _line(figures, figures.latent_accuracy, start="", end="", **ranks, **straight)


def chosen_line(name: str, line: Interpolation, order: list[str]) -> Line:
    """Return a line between two chosen networks; `order` are the space's architectures by ClassId."""
    ends = (line.arch[0], line.arch[-1]) if line.arch else ("", "")
    known = len(order) > 2 and ends in ((order[0], order[-1]), (order[-1], order[0]))
    on_line = tuple(factors(order, backwards=ends[0] != order[0])) if known else ()
    measures = {key: getattr(line, key) for key in ("spearman", "weight_spearman", "linear_r2", "weight_linear_r2")}
    named = {
        "start": line.names[0],
        "end": line.names[1],
        "arch": tuple(line.arch),
        "name": name,
        "refined": line.refined,
    }
    return _line(line, line.latent_accuracy, factors=on_line, **named, **measures)


def class_line(line: ClassLine, archs: list[str]) -> Line:
    """Return the line of an evaluation from the smallest to the largest architecture."""
    on_line = tuple(zip(line.factors, archs[1:-1], strict=False))
    return _line(line, line.accuracy, start=line.start, end=line.end, arch=tuple(line.arch), factors=on_line)


def factors(archs: list[str], backwards: bool = False) -> list[tuple[float, str]]:
    """Return where Eq. 12 puts the architectures between the smallest and the largest: i / (A - 1).

    >>> factors(["a", "b", "c"])
    [(0.5, 'b')]
    """
    order = archs[::-1] if backwards else archs
    return [(index / (len(order) - 1), order[index]) for index in range(1, len(order) - 1)]


def floats(values: list[float | None]) -> np.ndarray:
    """Return values as float64, NaN for None."""
    return np.array(values, dtype=np.float64)
