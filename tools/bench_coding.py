"""Bytes and milliseconds of ways to code rounded weights: `python tools/bench_coding.py [ZOO.h5]`, one thread.

Networks: a small convolutional network trained here on scikit-learn's digits, the best member of a zoo where one is given, and integers of
Laplace distributions with and without scales of rows and channels. Each layer has one step, a multiple of its standard deviation. Candidates:
the entropy by the frequency of each value of a layer (a bound of coders that know nothing else; without their tables), zstandard on bytes (pip install
zstandard) and zlib, ANS with a table for each layer (pip install constriction), and netspace's. Milliseconds are the least of
three of the process's own time.
"""

from __future__ import annotations

import argparse
import importlib
import lzma
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netspace.native.coding import decode_all, encode_all
from netspace.networks.rounding import kernel_positions, round_step

FACTORS = (0.3, 0.6, 1.0, 1.5, 2.2)  # steps, in standard deviations of the layer
STEPS = 400  # of the network that is trained here
Matrices = list[np.ndarray]


def digits_network() -> dict[str, Tensor]:
    """Return the weights of a network trained on scikit-learn's digits for a few epochs."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    network = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
    for _ in range(STEPS):
        chosen = torch.randint(0, 1400, (64,))
        loss = nn.functional.cross_entropy(network(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        correct = (network(images[1400:]).argmax(1) == labels[1400:]).float().mean()
    print(f"digits: accuracy {float(correct):.3f} after {STEPS} steps")
    return {name: value.detach() for name, value in network.named_parameters()}


def member(zoo: Path) -> dict[str, Tensor]:
    """Return the weights of a zoo's best member."""
    from netspace.compression.originals import find_original

    return find_original("best", zoo)[0].state


def laplace(scale: float, structure: float) -> Matrices:
    """Return integers (256, 576) of Laplace distributions, the scale varying by row and channel of nine."""
    random = np.random.default_rng(0)
    scales = scale * np.exp(structure * random.normal(size=(256, 1)))
    scales = scales * np.exp(structure * random.normal(size=64)).repeat(9)
    return [np.round(random.laplace(size=(256, 576)) * scales).astype(np.int32)]


def entropy(matrices: Matrices) -> float:
    """Return the bytes of matrices by the frequency of each value in its matrix."""
    total = 0.0
    for matrix in matrices:
        counts = np.unique(matrix, return_counts=True)[1]
        total -= float((counts * np.log2(counts / counts.sum())).sum()) / 8
    return total


def in_bytes(matrices: Matrices) -> bytes:
    """Return integers as single bytes where all fit, or two."""
    flat = np.concatenate([matrix.ravel() for matrix in matrices])
    return flat.astype(np.int8 if np.abs(flat).max() < 128 else np.int16).tobytes()


def ans(constriction: Any, matrices: Matrices) -> tuple[bytes, list[tuple[Any, int, int]]]:
    """Return the bytes of an ANS coder with a table of frequencies for each matrix, and the tables: 2 bytes an entry."""
    coder, tables = constriction.stream.stack.AnsCoder(), []
    for matrix in reversed(matrices):
        low, high = int(matrix.min()), int(matrix.max())
        counts = np.bincount((matrix - low).ravel(), minlength=high - low + 1).astype(np.float64)
        model = constriction.stream.model.Categorical((counts + 1e-3) / (counts + 1e-3).sum(), perfect=False)
        coder.encode_reverse(np.ascontiguousarray((matrix - low).ravel().astype(np.int32)), model)
        tables.append((model, low, high - low + 1))
    return coder.get_compressed().tobytes(), tables[::-1]


def ans_back(constriction: Any, data: bytes, tables: list[tuple[Any, int, int]], sizes: list[int]) -> None:
    """Decode what `ans` coded."""
    coder = constriction.stream.stack.AnsCoder(np.frombuffer(data, np.uint32))
    for (model, _, _), size in zip(tables, sizes, strict=True):
        coder.decode(model, size)


def least(run: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a function returns, and the least milliseconds of three calls."""
    times = []
    for _ in range(3):
        start = time.process_time()
        value = run()
        times.append(1000 * (time.process_time() - start))
    return value, min(times)


def optional(name: str) -> Any:
    """Return a module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def measure(name: str, matrices: Matrices, periods: list[int]) -> None:
    """Print a row of the table."""
    count, bound = sum(matrix.size for matrix in matrices), entropy(matrices)
    zeros = sum(int((matrix == 0).sum()) for matrix in matrices) / count
    cells, plain = [name, f"{count:,}", f"{zeros:.0%}", f"{bound:,.0f}"], in_bytes(matrices)
    zstandard, constriction = optional("zstandard"), optional("constriction")
    if zstandard is None:
        cells.append("")
    else:
        data, _ = least(lambda: zstandard.ZstdCompressor(level=19).compress(plain))
        _, back = least(lambda: zstandard.ZstdDecompressor().decompress(data))
        cells.append(f"{len(data):,} ({back:.0f} ms)")
    cells.append(f"{len(zlib.compress(plain, 9)):,}")
    cells.append(f"{len(lzma.compress(plain, lzma.FORMAT_XZ, preset=9)):,}")
    if constriction is None:
        cells.append("")
    else:
        (data, tables), _ = least(lambda: ans(constriction, matrices))
        _, back = least(lambda: ans_back(constriction, data, tables, [matrix.size for matrix in matrices]))
        cells.append(f"{len(data) + 2 * sum(length for _, _, length in tables):,} ({back:.0f} ms)")
    data, forth = least(lambda: encode_all(matrices, periods))
    decoded, back = least(lambda: decode_all(data, [matrix.shape for matrix in matrices], periods))
    assert all(np.array_equal(one, two) for one, two in zip(decoded, matrices, strict=True))
    cells += [f"{len(data):,} ({forth:.0f} and {back:.0f} ms)", f"{len(data) / bound:.3f}"]
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", nargs="?", type=Path, help="a zoo, whose best member is coded")
    zoo = parser.parse_args().zoo
    torch.set_num_threads(1)
    networks = {"digits": digits_network()} | ({} if zoo is None else {zoo.stem: member(zoo)})
    print(
        "| weights, step | values | zeros | entropy | zstandard 19 | zlib 9 | xz 9 | ANS, tables | netspace | of the entropy |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, state in networks.items():
        tensors = [value for value in state.values() if value.dim() > 1]
        periods = [kernel_positions(value.shape) for value in tensors]
        for factor in FACTORS:
            matrices = [round_step(value, factor * float(value.std())).values.numpy() for value in tensors]
            measure(f"{name}, {factor}", matrices, periods)
    for structure in (0.0, 0.5):
        for scale in (0.25, 0.7, 3.0):
            kind = "scales of rows and channels" if structure else "one scale"
            measure(f"Laplace {scale}, {kind}", laplace(scale, structure), [9])


if __name__ == "__main__":
    main()
