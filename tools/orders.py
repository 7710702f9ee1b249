"""How short and how fast paths through kernels are, beside the paper's greedy one (NeRN, Sec. 3.3).

    python tools/orders.py best --zoo resnet20.h5

Lengths and seconds for a network's convolutions, layer by layer, by greedy in numpy and compiled and by ours; and the seconds
of all orders of ResNet18's 3x3 convolutions, whose kernels are drawn from a seed. What is compiled is compiled before.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from netspace.apps.originals import find_original
from netspace.kernels import Kernels
from netspace.ordering import greedy_path, path_length, short_path
from netspace.ordering.arranging import arrange

RESNET18 = [(64, 3), *[(64, 64)] * 4, (128, 64), *[(128, 128)] * 3, (256, 128), *[(256, 256)] * 3, (512, 256)]
RESNET18 += [(512, 512)] * 3


def plain_greedy(points: np.ndarray) -> np.ndarray:
    """From the first point on to the nearest that is left, in numpy; what is visited makes room for the last."""
    rest, left, order, here = points.copy(), np.arange(len(points)), [], 0
    for last in range(len(points) - 1, -1, -1):
        order.append(left[here])
        current = rest[here].copy()
        rest[here], left[here] = rest[last], left[last]
        if last:
            here = int(((rest[:last] - current) ** 2).sum(axis=1).argmin())
    return np.array(order)


def main() -> None:
    parser = argparse.ArgumentParser(description="Paths through kernels, beside greedy ones.")
    parser.add_argument("member")
    parser.add_argument("--zoo", type=Path, required=True)
    told = parser.parse_args()
    random = np.random.default_rng(0)
    for path in (short_path, greedy_path):
        path(random.normal(size=(300, 9)).astype(np.float32))
    original, _ = find_original(told.member, told.zoo)
    kernels = Kernels.of(original.state)
    ends = np.cumsum(kernels.counts)[:-1]
    layers = np.split(kernels.gather(original.state).flatten(1).numpy(), ends)
    print("| path | length | seconds |\n|---|---|---|")
    for name, path in (("greedy, numpy", plain_greedy), ("greedy, compiled", greedy_path), ("ours", short_path)):
        start = time.perf_counter()
        orders = [path(layer) for layer in layers]
        took = time.perf_counter() - start
        length = sum(path_length(layer, order) for layer, order in zip(layers, orders, strict=True))
        print(f"| {name} | {length:,.2f} | {took:.2f} |")
    basis = random.normal(size=(9, 9)) * 0.6 ** np.arange(9)
    drawn = (random.normal(size=(sum(f * c for f, c in RESNET18), 9)) @ basis).astype(np.float32)
    for kind in ("cross-filter", "in-filter"):
        start = time.perf_counter()
        arrange(drawn, RESNET18, kind)
        print(f"| ResNet18's size, {kind} | - | {time.perf_counter() - start:.1f} |")


if __name__ == "__main__":
    main()
