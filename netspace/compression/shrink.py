"""`netspace compress quantise` and `prune`: a compressed network whose predictor takes fewer bits or has fewer weights.

The original's own weights, quantised or pruned directly, are the comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from netspace.archs import ArchConfig
from netspace.compression.originals import Pictures, check_new
from netspace.compression.reference import Reference, Unlabelled, check_named
from netspace.errors import UsageError
from netspace.models.coded_predictor import load_predictor
from netspace.models.compressed import FLOAT, Compressed, bytes_of, check_bits, pack, unpack
from netspace.progress import progress
from netspace.results.compressed import (
    NetworkFigures,
    PrunedNetwork,
    Pruning,
    Quantisation,
    QuantisedKind,
    StoredNetwork,
)

SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the weights that are pruned


def quantise(
    path: Path,
    out: Path,
    bits: int,
    model: str | None = None,
    zoo_path: Path | None = None,
    arch: ArchConfig | None = None,
    pictures: Pictures | None = None,
    key: str | None = None,
) -> Quantisation:
    """Write a compressed file with the predictor's matrices in `bits` bits (decoupled NeRN, 2024).

    The figures are also written next to `path`: to quantise-BITS.json, or to quantise-BITS-alone.json without `model`.
    `networks` holds a row for the original, the original quantised, and the networks of both files: bytes, and with `model` the
    relative error of the represented weights, accuracy and agreement with the original on the test images.
    `relative_change` is the distance between the weights of both files, in units of the first's.

    Raises:
        UsageError: for other bits than 4 and 8, a file that is quantised already and an `out` that exists.
        NetspaceError: `path` is the file of another network than `model`.

    >>> result = quantise(compressed, folder / "small.safetensors", bits=8)
    >>> (folder / "small.safetensors").stat().st_size < compressed.stat().st_size
    True
    """
    check_bits(bits)
    check_new(out)
    unlabelled = Unlabelled(pictures)
    check_named(model, arch, unlabelled, key)
    compressed = load_predictor(path)
    if compressed.bits != FLOAT:
        raise UsageError(f"{path} is quantised to {compressed.bits} bits already: give the file that it was made of")
    before = compressed.reconstruct()
    reference = None if model is None else Reference(compressed, before, path, model, zoo_path, arch, unlabelled, key)
    replace(compressed, bits=bits).save(out)
    after = Compressed.load(out).reconstruct()
    exact, rounded = (compressed.kernels.gather(state) for state in (before, after))
    networks: dict[QuantisedKind, StoredNetwork] = {}
    if reference is not None:
        state = reference.original.state
        coarse, size = _quantise_directly(compressed, state, bits)
        networks["original"] = reference.measure(state).extended(StoredNetwork, bytes=bytes_of(state))
        networks["original_quantised"] = reference.measure(coarse).extended(StoredNetwork, bytes=size)
    written: tuple[tuple[QuantisedKind, Path, dict[str, Tensor]], ...]
    written = (("reconstructed", path, before), ("quantised", out, after))
    for name, file, state in written:
        measured = NetworkFigures() if reference is None else reference.measure(state)
        networks[name] = measured.extended(StoredNetwork, bytes=file.stat().st_size)
    result = Quantisation(
        file=str(path),
        out=str(out),
        bits=bits,
        **compressed.sizes(),
        bytes_original=bytes_of(before),
        relative_change=float((rounded - exact).norm() / exact.norm()),
        networks=networks,
    )
    result.write(path.parent / f"quantise-{bits}{'-alone' if model is None else ''}.json")
    return result


def _quantise_directly(compressed: Compressed, state: dict[str, Tensor], bits: int) -> tuple[dict[str, Tensor], int]:
    """Return a network whose own represented weights are quantised, with a scale for each filter, and its bytes."""
    matrices = {layer.name: state[layer.name].flatten(1) for layer in compressed.kernels.layers}
    packed = pack(matrices, bits)
    coarse = unpack(packed, {name: value.shape for name, value in matrices.items()})
    whole = compressed.replaced(state, {name: value.view(state[name].shape) for name, value in coarse.items()})
    represented = {id(state[name]) for name in matrices}
    rest = {name: value for name, value in state.items() if id(value) not in represented}
    return whole, bytes_of(packed) + bytes_of(rest)


def prune(
    path: Path,
    model: str,
    zoo_path: Path | None = None,
    shares: Sequence[float] = SHARES,
    arch: ArchConfig | None = None,
    pictures: Pictures | None = None,
    key: str | None = None,
) -> Pruning:
    """Set shares of the predictor's weights to 0, the smallest of all its matrices first (NeRN, Sec. 5, Fig. 5 left).

    The figures are also written to prune.json next to `path`. `predictor` has a row for each share: the weights that are left,
    the relative error of the reconstructed network, its accuracy and its agreement with the original on the test images, and
    `images` with pictures. `original` has the same for the original's represented weights, pruned directly.

    Raises:
        UsageError: for shares outside [0, 1).
        NetspaceError: `path` is the file of another network than `model`.

    >>> result = prune(compressed, "best", zoo, shares=[0.0, 0.5])
    >>> (compressed.parent / "prune.json").is_file()
    True
    """
    for share in shares:
        if not 0 <= share < 1:
            raise UsageError(f"a share of {share:g} of the weights was to be pruned: give shares from 0 to below 1")
    compressed = load_predictor(path)
    state = compressed.reconstruct()
    reference = Reference(compressed, state, path, model, zoo_path, arch, Unlabelled(pictures), key)
    original = reference.expected
    whole = deepcopy(compressed.predictor.state_dict())
    matrices = {name: value for name, value in whole.items() if value.dim() == 2}
    represented = {layer.name: original[layer.name] for layer in compressed.kernels.layers}
    rows: dict[str, list[PrunedNetwork]] = {"predictor": [], "original": []}
    with progress("pruning", 2 * len(shares), "networks") as bar:
        for share in shares:
            weights = {"predictor": pruned(matrices, share), "original": pruned(represented, share)}
            compressed.predictor.load_state_dict({**whole, **weights["predictor"]})
            for name, network in (
                ("predictor", compressed.reconstruct()),
                ("original", compressed.replaced(original, weights["original"])),
            ):
                count = sum(int(value.count_nonzero()) for value in weights[name].values())
                rows[name].append(reference.measure(network).extended(PrunedNetwork, share=share, weights=count))
                bar.advance()
    result = Pruning(file=str(path), **compressed.sizes(), accuracy_original=reference.accuracy, **rows)
    result.write(path.parent / "prune.json")
    return result


def pruned(weights: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return tensors with a share of all their values at 0: those of the smallest magnitudes."""
    sizes = [value.numel() for value in weights.values()]
    flat = torch.cat([value.float().flatten() for value in weights.values()])
    flat[flat.abs().argsort(stable=True)[: round(share * len(flat))]] = 0
    return {
        name: piece.view(value.shape) for (name, value), piece in zip(weights.items(), flat.split(sizes), strict=True)
    }
