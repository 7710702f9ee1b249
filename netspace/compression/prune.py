"""`netspace compress prune`: how many of the predictor's weights are needed (NeRN, Sec. 5, Fig. 5 left)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor

from netspace.archs import ArchConfig
from netspace.compression.originals import Beside, Pictures
from netspace.errors import UsageError
from netspace.models.compressed import Compressed
from netspace.progress import progress
from netspace.results.compressed import PrunedNetwork, Pruning

SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def prune(
    path: Path,
    model: str,
    zoo_path: Path | None = None,
    shares: Sequence[float] = SHARES,
    arch: ArchConfig | None = None,
    pictures: Pictures | None = None,
    key: str | None = None,
) -> Pruning:
    """Sets shares of the predictor's weights to 0, the smallest of all its matrices first; writes prune.json beside `path`.

    `predictor` has a row for each share: weights left, and the reconstructed network's relative error, accuracy and
    agreement with the original on the test images, and `images` with pictures. `original` has the same for the original's represented weights,
    pruned directly. Raises `UsageError` for shares outside [0, 1), `NetspaceError` for another network's file.

    >>> result = prune(compressed, "best", zoo, shares=[0.0, 0.5])
    >>> (compressed.parent / "prune.json").is_file()
    True
    """
    for share in shares:
        if not 0 <= share < 1:
            raise UsageError(f"a share of {share:g} of the weights was to be pruned: give shares from 0 to below 1")
    compressed = Compressed.load(path)
    state = compressed.reconstruct()
    beside = Beside(compressed, state, path, model, zoo_path, arch, pictures, key)
    whole = deepcopy(compressed.predictor.state_dict())
    matrices = {name: value for name, value in whole.items() if value.dim() == 2}
    represented = {layer.name: beside.original.state[layer.name] for layer in compressed.kernels.layers}
    rows: dict[str, list[PrunedNetwork]] = {"predictor": [], "original": []}
    with progress("pruning", 2 * len(shares), "networks") as bar:
        for share in shares:
            left = pruned(matrices, share)
            compressed.predictor.load_state_dict({**whole, **left})
            kept = pruned(represented, share)
            tried = (compressed.reconstruct(), left), (compressed.replaced(beside.original.state, kept), kept)
            for name, (network, weights) in zip(rows, tried, strict=True):
                count = sum(int(value.count_nonzero()) for value in weights.values())
                rows[name].append(beside.measure(network).extended(PrunedNetwork, share=share, weights=count))
                bar.advance()
    result = Pruning(file=str(path), **compressed.sizes(), accuracy_original=beside.accuracy, **rows)
    result.write(path.parent / "prune.json")
    return result


def pruned(weights: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Tensors with a share of all their values, the smallest magnitudes, at 0."""
    sizes = [value.numel() for value in weights.values()]
    flat = torch.cat([value.float().flatten() for value in weights.values()])
    flat[flat.abs().argsort(stable=True)[: round(share * len(flat))]] = 0
    return {
        name: piece.view(value.shape) for (name, value), piece in zip(weights.items(), flat.split(sizes), strict=True)
    }
