"""The comparisons of `tools/bench.py morph`: smooth orders of a network's channels (NeuMeta, Eq. 8), ours and the paper's.

The paper's search is 2.5-opt (Bentley 1992) on a tour with one more node, at distance 0 from all: here from the network's own order and
from greedy's, as plain Python and compiled, which separates the time of the search from Python's; and from random orders for
as long as ours takes. A lower bound says what no order can reach. Networks have random weights or, without `--quick`, those of a short
training on digits. Functions are compiled before they are timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from reference import train_step
from sklearn.datasets import load_digits

from netspace import archs
from netspace.native import compiled
from netspace.native.matrix_paths import greedy_path, path_length
from netspace.networks.ordering import channel_distances, greedy_orders, smooth_orders
from netspace.networks.widths import find_widths

SMALL = 1e-9  # least gain of a move
EPOCHS = 20  # of the training on digits
ROUNDS = 1_000  # of the lower bound


@compiled
def two_and_a_half_opt(distances: np.ndarray, tour: np.ndarray) -> np.ndarray:
    """Improve a tour (M,) in place, by distances (M, M), until no 2-opt move and no move of one node pays; return it."""
    nodes, moved = len(tour), True
    while moved:
        moved = False
        for i in range(nodes - 2):
            for j in range(i + 2, nodes):
                a, b, c, d = tour[i], tour[i + 1], tour[j], tour[(j + 1) % nodes]
                if d == a:
                    continue
                e, f = tour[i + 2], tour[j - 1]
                gap = distances[a, b] + distances[c, d]
                if gap - distances[a, c] - distances[b, d] > SMALL:
                    tour[i + 1 : j + 1] = tour[i + 1 : j + 1][::-1].copy()
                elif e != c and gap + distances[b, e] - distances[a, e] - distances[c, b] - distances[b, d] > SMALL:
                    tour[i + 1 : j] = tour[i + 2 : j + 1].copy()
                    tour[j] = b
                elif f != b and gap + distances[f, c] - distances[f, d] - distances[a, c] - distances[c, b] > SMALL:
                    tour[i + 2 : j + 1] = tour[i + 1 : j].copy()
                    tour[i + 1] = c
                else:
                    continue
                moved = True
    return tour


@compiled
def one_tree(distances: np.ndarray, penalties: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the bound of the least 1-tree on the last node, by penalised distances (M, M), and its degrees (M,)."""
    count = len(distances) - 1
    degrees, done = np.zeros(count + 1, dtype=np.int64), np.zeros(count, dtype=np.bool_)
    away, parent, total = np.full(count, np.inf), np.zeros(count, dtype=np.int64), -2 * penalties.sum()
    away[0] = 0.0
    for step in range(count):
        node = -1
        for other in range(count):
            if not done[other] and (node < 0 or away[other] < away[node]):
                node = other
        done[node] = True
        total += away[node]
        if step:
            degrees[node] += 1
            degrees[parent[node]] += 1
        for other in range(count):
            length = distances[node, other] + penalties[node] + penalties[other]
            if not done[other] and length < away[other]:
                away[other], parent[other] = length, node
    last = distances[count, :count] + penalties[:count] + penalties[count]
    nearest = np.argsort(last)[:2]
    degrees[count] = 2
    for node in nearest:
        degrees[node] += 1
        total += last[node]
    return total, degrees


def lower_bound(distances: np.ndarray, upper: float) -> float:
    """Return a length that no tour is under (Held and Karp 1970), near that of the shortest; `upper` is the length of one."""
    penalties, best, scale, since = np.zeros(len(distances)), -np.inf, 2.0, 0
    for _ in range(ROUNDS):
        bound, degrees = one_tree(distances, penalties)
        best, since = (bound, 0) if bound > best else (best, since + 1)
        if since == 20:
            scale, since = scale / 2, 0
        slope = degrees - 2.0
        if not slope.any():
            break
        penalties = penalties + scale * (upper - bound) / (slope @ slope) * slope
    return float(best)


def network(quick: bool) -> torch.nn.Module:
    """Return a ResNet20 (16, 32 and 64 channels), trained on digits unless `quick`, which has a small one."""
    torch.manual_seed(0)
    if quick:
        return archs.build("resnet8", channels=1, image_size=8, width=0.25).eval()
    module, data = archs.build("resnet20", channels=1, image_size=8), load_digits()
    images, labels = torch.from_numpy(data.images).float()[:, None] / 8 - 1, torch.from_numpy(data.target).long()
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels)).split(100):
            train_step(module, optimizer, images[rows], labels[rows])
    return module.eval()


class Permutation:
    """Not a contestant by itself: all ways to order the channels of one network in turns, in a process of its own."""

    def __init__(self, repeats: int, quick: bool, device: torch.device) -> None:
        module = network(quick)
        self.groups = find_widths(module, torch.zeros(2, 1, 8, 8), "the benchmark's network").groups
        self.tensors = dict(module.named_parameters())
        self.distances = [channel_distances(self.tensors, group) for group in self.groups]
        self.padded = [np.pad(each, ((0, 1), (0, 1))) for each in self.distances]
        self.rates: list[dict[str, Any]] = []
        ways: dict[str, Callable[[], float]] = {
            "own order": lambda: self.total(map(np.arange, map(len, self.distances))),
            "greedy": lambda: self.total(map(greedy_path, self.distances)),
            "greedy, best of its starts": lambda: self.total(map(torch.Tensor.numpy, greedy_orders(*self.network))),
            "2.5-opt, in Python": lambda: self.plain(two_and_a_half_opt.py_func, False),
            "2.5-opt": lambda: self.plain(two_and_a_half_opt, False),
            "2.5-opt from greedy": lambda: self.plain(two_and_a_half_opt, True),
            "ours": lambda: self.total(map(torch.Tensor.numpy, smooth_orders(*self.network))),
        }
        for name in ("greedy", "2.5-opt", "ours"):
            ways[name]()  # compiles
        one_tree(self.padded[0], np.zeros(len(self.padded[0])))
        for name, way in ways.items():
            self._add(name, *zip(*(timed(way) for _ in range(repeats)), strict=True))
        ours = self.rates[-1]
        self._add("2.5-opt, random starts, as long as ours", *zip(timed(lambda: self.restarted(ours["seconds"]))))
        self._add("lower bound", *zip(timed(lambda: self.bound(ours["variation"]))))
        plain = next(row["variation"] for row in self.rates if row["way"] == "2.5-opt from greedy")
        for row in self.rates:
            row["under_plain"] = 1 - row["variation"] / plain

    @property
    def network(self) -> tuple[Any, Any]:
        return self.tensors, self.groups

    def total(self, orders: Iterator[np.ndarray]) -> float:
        return sum(path_length(each, order) for each, order in zip(self.distances, orders, strict=True))

    def plain(self, search: Callable[[np.ndarray, np.ndarray], np.ndarray], from_greedy: bool) -> float:
        """Return the total variation after a search from each group's own order or greedy's, distances included."""
        total = 0.0
        for group in self.groups:
            distances = channel_distances(self.tensors, group)
            start = greedy_path(distances) if from_greedy else np.arange(group.size)
            padded = np.pad(distances, ((0, 1), (0, 1)))
            total += tour_length(padded, search(padded, np.append(start, group.size)))
        return total

    def restarted(self, seconds: float) -> float:
        """Return the least total variation of searches from random orders, each group for an equal part of the time."""
        random, total = np.random.default_rng(0), 0.0
        for distances in self.padded:
            best, end = np.inf, time.perf_counter() + seconds / len(self.padded)
            while best == np.inf or time.perf_counter() < end:
                found = two_and_a_half_opt(distances, random.permutation(len(distances)))
                best = min(best, tour_length(distances, found))
            total += best
        return total

    def bound(self, variation: float) -> float:
        uppers = [tour_length(each, two_and_a_half_opt(each, np.arange(len(each)))) for each in self.padded]
        return sum(lower_bound(each, upper) for each, upper in zip(self.padded, uppers, strict=True))

    def _add(self, way: str, variations: tuple[float, ...], seconds: tuple[float, ...]) -> None:
        row = {"way": way, "groups": len(self.groups), "channels": sum(group.size for group in self.groups)}
        self.rates.append({**row, "variation": variations[0], "seconds": statistics.median(seconds)})


def tour_length(distances: np.ndarray, tour: np.ndarray) -> float:
    return float(distances[tour, np.roll(tour, -1)].sum())


def timed(way: Callable[[], float]) -> tuple[float, float]:
    """Return the result of a function and the seconds it took."""
    start = time.perf_counter()
    return way(), time.perf_counter() - start


def permutation_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"Orders of {rows[0]['channels']} channels in {rows[0]['groups']} groups; searches with the distances:",
        "",
        "| way | total variation | under 2.5-opt's from greedy | seconds |",
        "|---|---|---|---|",
    ]
    for row in rows:
        lines.append(f"| {row['way']} | {row['variation']:,.1f} | {row['under_plain']:.2%} | {row['seconds']:.3g} |")
    return lines
