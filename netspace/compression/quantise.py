"""`netspace compress quantise`: the predictor's weights as small integers (decoupled NeRN, 2024).

The original's own weights, quantised as directly, stand beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from netspace.archs import ArchConfig
from netspace.compression.originals import Beside, Pictures, check_named, check_new
from netspace.errors import UsageError
from netspace.models.compressed import FLOAT, Compressed, bytes_of, check_bits, pack, unpack
from netspace.results.compressed import NetworkFigures, Quantisation, QuantisedKind, StoredNetwork


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
    """Writes the file with its predictor's matrices in `bits` bits; figures go to quantise-BITS.json beside `path`.

    Without `model` they go to quantise-BITS-alone.json.

    `networks` holds a row for the original, the original quantised, and what both files give back: bytes, and with
    `model` the relative error of the represented weights, accuracy and agreement with the original on the test images.
    `relative_change` is the distance of both files' weights, in units of the first's. Raises `UsageError` for other bits
    than 4 and 8, a file that is quantised already and an `out` that exists, `NetspaceError` for another network's file.

    >>> result = quantise(compressed, folder / "small.safetensors", bits=8)
    >>> (folder / "small.safetensors").stat().st_size < compressed.stat().st_size
    True
    """
    check_bits(bits)
    check_new(out)
    check_named(model, arch, pictures, key)
    compressed = Compressed.load(path)
    if compressed.bits != FLOAT:
        raise UsageError(f"{path} is quantised to {compressed.bits} bits already: give the file that it was made of")
    before = compressed.reconstruct()
    beside = None if model is None else Beside(compressed, before, path, model, zoo_path, arch, pictures, key)
    replace(compressed, bits=bits).save(out)
    after = Compressed.load(out).reconstruct()
    wanted, found = (compressed.kernels.gather(state) for state in (before, after))
    networks: dict[QuantisedKind, StoredNetwork] = {}
    if beside is not None:
        state = beside.original.state
        coarse, size = _directly(compressed, state, bits)
        networks["original"] = beside.measure(state).extended(StoredNetwork, bytes=bytes_of(state))
        networks["original_quantised"] = beside.measure(coarse).extended(StoredNetwork, bytes=size)
    written: tuple[tuple[QuantisedKind, Path, dict[str, Tensor]], ...]
    written = (("reconstructed", path, before), ("quantised", out, after))
    for name, file, state in written:
        measured = NetworkFigures() if beside is None else beside.measure(state)
        networks[name] = measured.extended(StoredNetwork, bytes=file.stat().st_size)
    result = Quantisation(
        file=str(path),
        out=str(out),
        bits=bits,
        **compressed.sizes(),
        bytes_original=bytes_of(before),
        relative_change=float((found - wanted).norm() / wanted.norm()),
        networks=networks,
    )
    result.write(path.parent / f"quantise-{bits}{'-alone' if model is None else ''}.json")
    return result


def _directly(compressed: Compressed, state: dict[str, Tensor], bits: int) -> tuple[dict[str, Tensor], int]:
    """A network whose own represented weights are quantised, a scale for each filter, and its bytes."""
    matrices = {layer.name: state[layer.name].flatten(1) for layer in compressed.kernels.layers}
    packed = pack(matrices, bits)
    coarse = unpack(packed, {name: value.shape for name, value in matrices.items()})
    whole = compressed.replaced(state, {name: value.view(state[name].shape) for name, value in coarse.items()})
    represented = {id(state[name]) for name in matrices}
    rest = {name: value for name, value in state.items() if id(value) not in represented}
    return whole, bytes_of(packed) + bytes_of(rest)
