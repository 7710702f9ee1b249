"""The comparison of `tools/bench.py orders`: length and time of paths through kernels, ours and the paper's (NeRN, Sec. 3.3).

The plain way always takes the nearest kernel left, in numpy; it is also measured compiled, which separates the time of the
search from Python's. Kernels are a network's, or are drawn from a seed: normal, in few directions. Functions are compiled before
they are timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from netspace.compression.originals import find_original
from netspace.native.orders import Grid, arrange
from netspace.native.paths import greedy_path, path_length, short_path
from netspace.networks.kernels import Kernels

Path_ = Callable[[np.ndarray], np.ndarray]

RESNET20 = [(16, 3), *[(16, 16)] * 6, (32, 16), *[(32, 32)] * 5, (64, 32), *[(64, 64)] * 5]
RESNET18 = [(64, 3), *[(64, 64)] * 4, (128, 64), *[(128, 128)] * 3, (256, 128), *[(256, 256)] * 3, (512, 256)]
RESNET18 += [(512, 512)] * 3
TINY = [(4, 3), (8, 4)]


@dataclass(frozen=True)
class Layers:
    """A network's 3x3 kernels (N, 9), layer by layer, and the grid (filters, channels) of each layer."""

    name: str
    kernels: np.ndarray
    grids: list[Grid]

    @classmethod
    def subset(cls, name: str, grids: list[Grid]) -> Layers:
        random = np.random.default_rng(0)
        basis = random.normal(size=(9, 9)) * 0.6 ** np.arange(9)
        kernels = random.normal(size=(sum(filters * channels for filters, channels in grids), 9)) @ basis
        return cls(f"{name} (drawn)", kernels.astype(np.float32), grids)

    @classmethod
    def of(cls, network: str, zoo: Path | None) -> Layers:
        original, _ = find_original(network, zoo)
        kernels = Kernels.of(original.state)
        grids = [layer.grid(kernels.side) for layer in kernels.layers]
        return cls(network, kernels.gather(original.state).flatten(1).numpy(), grids)

    def split(self) -> list[np.ndarray]:
        return np.split(self.kernels, np.cumsum([filters * channels for filters, channels in self.grids])[:-1])

    def each(self, path: Path_, kind: str) -> list[np.ndarray]:
        """Return the orders of all layers by a function that finds a path."""
        if kind == "cross-filter":
            return [path(layer) for layer in self.split()]
        return [_in_filter(layer, grid, path) for layer, grid in zip(self.split(), self.grids, strict=True)]

    def length(self, orders: list[np.ndarray]) -> float:
        return sum(path_length(layer, order) for layer, order in zip(self.split(), orders, strict=True))


def _in_filter(points: np.ndarray, grid: Grid, path: Path_) -> np.ndarray:
    filters, channels = grid
    of_filters = points.reshape(filters, channels, -1)
    rows = np.stack([index * channels + path(of_filter) for index, of_filter in enumerate(of_filters)])
    return rows[path(points[rows].reshape(filters, -1))].ravel()


def plain_greedy(points: np.ndarray) -> np.ndarray:
    """Return the path from the first point, always to the nearest one left, in numpy."""
    rest, left, order, here = points.copy(), np.arange(len(points)), [], 0
    for last in range(len(points) - 1, -1, -1):
        order.append(left[here])
        current = rest[here].copy()
        rest[here], left[here] = rest[last], left[last]
        if last:
            here = int(((rest[:last] - current) ** 2).sum(axis=1).argmin())
    return np.array(order)


class Orders:
    """Not a contestant by itself: all ways in turns, in a process of its own."""

    def __init__(self, network: str | None, zoo: Path | None, repeats: int, quick: bool, device: torch.device) -> None:
        small = Layers.of(network, zoo) if network else Layers.subset("ResNet20", TINY if quick else RESNET20)
        large = Layers.subset("ResNet18", TINY if quick else RESNET18)
        arrange(Layers.subset("", TINY).kernels, TINY, "in-filter")
        greedy_path(small.kernels[:9])
        self.rates: list[dict[str, Any]] = []
        for kind in ("cross-filter", "in-filter"):
            plain: dict[str, Path_] = {"greedy, numpy": plain_greedy, "greedy, compiled": greedy_path}
            self._measure(small, kind, {**plain, "ours, one core": short_path}, repeats)
        for kind in ("cross-filter", "in-filter"):
            self._measure(large, kind, {"greedy, compiled": greedy_path}, 1)

    def _measure(self, layers: Layers, kind: str, paths: dict[str, Path_], repeats: int) -> None:
        """Add the rows of one case: length and seconds of each way; lengths are compared with the first way's."""
        ways = {name: lambda path=path: layers.each(path, kind) for name, path in paths.items()}
        ways["ours"] = lambda: arrange(layers.kernels, layers.grids, kind)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        lengths = {}
        for _ in range(repeats):
            for name, way in ways.items():
                start = time.perf_counter()
                orders = way()
                seconds[name].append(time.perf_counter() - start)
                lengths[name] = layers.length(orders)
        plain = next(iter(lengths.values()))
        for name in ways:
            row = {"name": layers.name, "kernels": len(layers.kernels), "kind": kind, "way": name}
            row |= {"length": lengths[name], "under_greedy": 1 - lengths[name] / plain}
            self.rates.append({**row, "seconds": statistics.median(seconds[name]), "all_seconds": seconds[name]})


def orders_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| kernels | order | way | length | under greedy's | seconds |", "|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['name']}, {row['kernels']:,} | {row['kind']} | {row['way']} | {row['length']:,.2f} | "
            f"{row['under_greedy']:.1%} | {row['seconds']:.3g} |"
        )
    return lines
