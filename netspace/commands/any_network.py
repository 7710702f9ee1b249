"""Any network that a user names, alone or as one of a pair to be compared: a member, a file, a compressed network, a morph.

Axes: P parameters, B inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from netspace import archs
from netspace.archs import ArchConfig
from netspace.compression.originals import read_network
from netspace.errors import NetspaceError, UsageError
from netspace.models.coded import CODED
from netspace.models.coded_predictor import AnyCompressed, load_any
from netspace.models.compressed import NOTE as COMPRESSED_NOTE
from netspace.networks.folding import fold
from netspace.networks.graph import batch_norms
from netspace.networks.prep import unflatten
from netspace.networks.spec import NetSpec
from netspace.networks.state_dict import FILES, fits, flat_parameters, read_safetensors, read_state_dict
from netspace.saved_morph import MORPH, RESIZED, SavedMorph, load_morphed, open_morph
from netspace.saved_morph import NOTE as MORPH_NOTE
from netspace.zoo import Zoo

COMPRESSED = "compressed.safetensors"  # in a folder of `netspace compress fit`
KINDS = (
    f"a zoo's member (with --zoo), a state-dict file ({', '.join(FILES)}), a compressed network, or the folder of a "
    "`netspace compress fit` or `netspace morph fit`"
)


@dataclass(frozen=True, eq=False)
class AnyNetwork:
    """A network by its state dict, with what is known of it."""

    name: str
    state: Mapping[str, Tensor]
    module: nn.Module | None = None  # that runs the state, in eval mode
    spec: NetSpec | None = None  # of the folded network
    input_shape: tuple[int, ...] | None = None
    seed: int = -1  # of a member's training run
    morph: SavedMorph | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors."""
        return {name: tuple(value.shape) for name, value in self.state.items()}

    @property
    def parameters(self) -> int:
        """The number of floating-point values; a tensor of several names counts once."""
        values = {id(value): value for value in self.state.values() if value.is_floating_point()}
        return sum(value.numel() for value in values.values())


def load_network(text: str, zoo: Zoo | None, arch: ArchConfig | None = None, key: str | None = None) -> AnyNetwork:
    """Return the network that `text` names.

    Args:
        text: One of `KINDS`.
        zoo: The zoo of members.
        arch: The architecture of a state-dict file that does not say its own.
        key: The name of the state dict in a checkpoint that has several.

    Raises:
        UsageError: There is no such network, or a member was named without a zoo.
        NetspaceError: Its file is damaged, or does not fit `arch`; or the member diverged in training.
    """
    path = Path(text)
    if path.is_dir():
        if (path / MORPH).is_file():
            return _of_morph(text, open_morph(path))
        if (path / COMPRESSED).is_file():
            return _of_compressed(text, load_any(path / COMPRESSED), arch)
        raise UsageError(f"{text} is a folder without a network: expected {KINDS}")
    if path.suffix in FILES:
        return _of_file(text, path, arch, key)
    if zoo is None:
        raise UsageError(f"{text!r} names no file; expected {KINDS}")
    member = zoo[text]
    return of_flat(str(member), member.flat(), member.spec, int(member.seed))


def of_flat(name: str, flat: Tensor, spec: NetSpec, seed: int = -1) -> AnyNetwork:
    """Return the network of a spec with flat parameters (P,)."""
    module = archs.skeleton(spec.arch, spec.settings, spec.input_shape)
    return AnyNetwork(name, unflatten(flat, spec), module, spec, spec.input_shape, seed)


def _of_morph(text: str, morph: SavedMorph) -> AnyNetwork:
    module = morph.network(morph.info.full())
    state = {name: value.detach() for name, value in module.state_dict().items()}
    spec = None if batch_norms(module) else morph.spec
    return AnyNetwork(text, state, module, spec, morph.spec.input_shape, morph=morph)


def _of_compressed(text: str, compressed: AnyCompressed, arch: ArchConfig | None) -> AnyNetwork:
    state, spec = compressed.reconstruct(), compressed.spec
    module = None if spec is None else archs.skeleton(spec.arch, spec.settings, spec.input_shape)
    if module is None and arch is not None:
        module = archs.build(arch.arch, **arch.kwargs, **({} if arch.width is None else {"width": arch.width})).eval()
        expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
        found = {name: tuple(value.shape) for name, value in state.items()}
        module = module if found.items() <= expected.items() else None
    return AnyNetwork(text, state, module, spec, None if spec is None else spec.input_shape)


def _of_file(text: str, path: Path, arch: ArchConfig | None, key: str | None) -> AnyNetwork:
    described = False
    if path.suffix == ".safetensors":
        key = None  # such a file holds one state dict
        if path.is_file():
            state = read_safetensors(path)
            if MORPH_NOTE in state.metadata:
                return _of_morph(text, open_morph(path))
            if COMPRESSED_NOTE in state.metadata or CODED in state.metadata:
                return _of_compressed(text, load_any(path), arch)
            if RESIZED in state.metadata:
                module = load_morphed(path)
                return AnyNetwork(text, module.state_dict(), module)
            described = state.folded
    if key is not None and path.is_file() and _is_single(path):
        key = None  # of the pair's other file
    tensors, module_of_file, spec = read_network(path, None if described else arch, key)
    return AnyNetwork(text, tensors, module_of_file, spec, None if spec is None else spec.input_shape)


def _is_single(path: Path) -> bool:
    """Return whether a file in torch's format holds one state dict, so that none of several has to be named."""
    try:
        read_state_dict(path)
    except NetspaceError:
        return False
    return True


def comparable(first: AnyNetwork, second: AnyNetwork, shape: tuple[int, ...] | None) -> tuple[AnyNetwork, AnyNetwork]:
    """Return two networks in one form, where there is one: both folded, and run by the same module.

    `shape` is of one input, where it is known. Batch norm that cannot be folded stays.
    """
    first, second = _like(first, second), _like(second, first)
    if first.module is None and second.module is not None and first.shapes == second.shapes:
        first = replace(first, module=second.module, input_shape=second.input_shape)
    if second.module is None and first.module is not None and first.shapes == second.shapes:
        second = replace(second, module=first.module, input_shape=first.input_shape)
    return _folded(first, shape), _folded(second, shape)


def _like(network: AnyNetwork, other: AnyNetwork) -> AnyNetwork:
    """Return a network of no known architecture as one of the other's, if its state dict is of that."""
    if network.spec is not None or other.spec is None or not fits(network.state, other.spec):
        return network
    try:
        flat = flat_parameters(network.state, other.spec)
    except NetspaceError:  # it could be folded or not: names and shapes alone do not say so
        return network
    return replace(of_flat(network.name, flat, other.spec), morph=network.morph)


def _folded(network: AnyNetwork, shape: tuple[int, ...] | None) -> AnyNetwork:
    """Return a network with its batch norm absorbed; as it is if it has none, cannot be run, or cannot be folded."""
    shape = network.input_shape or shape
    if network.module is None or shape is None or not batch_norms(network.module):
        return replace(network, input_shape=shape)
    module = copy.deepcopy(network.module)
    module.load_state_dict(network.state, strict=False)
    try:
        folded = fold(module.float(), torch.zeros(2, *shape), name=network.name, constants=True)
    except (NetspaceError, RuntimeError):  # the shape may be another network's
        return replace(network, input_shape=shape)
    state = {name: value.detach() for name, value in folded.named_parameters()}
    return replace(network, state=state, module=folded, input_shape=shape)
