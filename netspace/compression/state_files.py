"""A network in a state-dict file of any kind, as `compress` takes it: names as they are in the file, and what runs it.

Nothing of the file is changed: prefixes of wrappers stay and types stay; names of one tensor hold the very same tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netspace import archs
from netspace.archs import ArchConfig
from netspace.archs.identity import drawn_constants
from netspace.errors import NetspaceError, UsageError
from netspace.models.compressed import NOTE
from netspace.networks.graph import listed
from netspace.networks.spec import NetSpec
from netspace.networks.state_dict import StateDict, check_tensors, metadata_spec, read_state_dict, without_prefix

Shapes = dict[str, tuple[int, ...]]


def read_network(
    path: Path, arch: ArchConfig | None = None, key: str | None = None
) -> tuple[dict[str, Tensor], nn.Module | None, NetSpec | None]:
    """The state dict of a file, the module that runs it (in eval mode) and its spec, where they are known.

    The module is that of `arch`, or of the architecture that the file names. Raises `UsageError` or `NetspaceError` for
    files that are no network's, that do not fit `arch`, and as `read_state_dict`, `check_tensors` and `archs.build`.
    """
    state = read_state_dict(path, key)
    if NOTE in state.metadata:
        raise UsageError(
            f"{path} is a compressed network: give a network, or what `netspace compress reconstruct` makes of it"
        )
    spec, module = _described(state) if arch is None else (None, _built(arch, state, path))
    check_tensors(state, str(path), None if module is None else dict(module.named_parameters(remove_duplicate=False)))
    for name, value in state.items():
        if value.is_floating_point() and not (value.float() < float("inf")).all():  # -inf is a mask's
            raise NetspaceError(f"{name} of {path} holds values that are not finite")
    return _tied(state, module, path), module, spec


def _described(state: StateDict) -> tuple[NetSpec, nn.Module] | tuple[None, None]:
    """The spec and the folded module of a network that netspace wrote; None for files of others, whatever their metadata say."""
    try:
        spec = metadata_spec(state.metadata)
    except NetspaceError:
        if "folded" in state.metadata:  # netspace wrote it, of an architecture that is to be trusted first
            raise
        return None, None
    if spec is None:
        return None, None
    module = archs.skeleton(spec.arch, spec.settings, spec.input_shape)
    buffers = {name for name, _ in module.named_buffers()}  # which a file may lack
    fits = _difference(_shapes(module.state_dict()), _shapes(state), buffers) is None
    return (spec, module) if fits else (None, None)


def _built(arch: ArchConfig, state: Mapping[str, Tensor], path: Path) -> nn.Module:
    """The module of an architecture, in eval mode, with the names that the file has."""
    settings = {**arch.kwargs, **({} if arch.width is None else {"width": arch.width})}
    with torch.random.fork_rng(devices=()):
        try:
            module, other = (archs.build(arch.arch, **settings).eval() for _ in range(2))
        except (TypeError, ValueError, RuntimeError) as error:  # whatever a factory of others raises
            raise UsageError(f"{arch.arch} cannot be built with {settings}: {error}; change --kwargs") from None
    wanted, optional = _shapes(module.state_dict()), _optional(module, state)
    inner = without_prefix(state, lambda shapes: _difference(wanted, shapes, optional) is None)
    found = _shapes(inner)
    if drawn := drawn_constants(module, other, set(wanted)):
        raise NetspaceError(
            f"{arch.arch} draws constants ({listed(drawn)}) that its state dict does not hold, so {path} does not say which "
            "network it is: make them persistent buffers, or fix them"
        )
    name = _difference(wanted, found, optional)
    if name is not None:
        told = [f"of shape {shapes[name]}" if name in shapes else "absent" for shapes in (wanted, found)]
        raise NetspaceError(
            f"{path} does not fit {arch.arch} with {settings}: {name} is {told[0]} in the architecture and {told[1]} in the "
            "file; name the architecture it was saved from, and its settings by --kwargs"
        )
    return module if inner.keys() == state.keys() else _wrapped(module, state, next(iter(inner)))


def _difference(wanted: Shapes, found: Shapes, optional: set[str]) -> str | None:
    """The first name whose shapes differ; `optional` ones may be missing in `found`."""
    names = (name for name in [*wanted, *found] if wanted.get(name) != found.get(name))
    return next((name for name in names if name in found or name not in optional), None)


def _optional(module: nn.Module, state: Mapping[str, Tensor]) -> set[str]:
    """Names of a module that a file may lack: counters of batches, and further names of tensors."""
    counters = {name for name in module.state_dict() if name.rpartition(".")[2] == "num_batches_tracked"}
    return counters | {name for names in _groups(module) for name in names[1:]}


def _wrapped(module: nn.Module, state: Mapping[str, Tensor], first: str) -> nn.Module:
    """A module under the prefix that all names of a file have; `first` is the first name without it."""
    counter = state.get("n_averaged")
    full = next(name for name in state if name != "n_averaged")
    for part in reversed(full.removesuffix(first).rstrip(".").split(".")):
        module = _Wrapper(part, module)
    if counter is not None:
        module.register_buffer("n_averaged", counter.clone())
    return module.eval()


class _Wrapper(nn.Module):
    """A module as the only part of another, which does what it does."""

    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.inner_name = name
        self.add_module(name, inner)

    def forward(self, *inputs: Any) -> Any:
        return self.get_submodule(self.inner_name)(*inputs)


def _groups(module: nn.Module) -> list[list[str]]:
    """The names of each tensor of a module that has several."""
    found: dict[int, list[str]] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        found.setdefault(id(value), []).append(name)
    return [names for names in found.values() if len(names) > 1]


def _tied(state: Mapping[str, Tensor], module: nn.Module | None, path: Path) -> dict[str, Tensor]:
    """`state` with the very same tensor under all names of one: by the module, or without one by what the file shares."""
    if module is not None:
        groups = [[name for name in names if name in state] for names in _groups(module)]
    else:
        shared: dict[tuple[Any, ...], list[str]] = {}
        for name, value in state.items():
            place = value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride(), value.dtype
            shared.setdefault(place if value.numel() else (name,), []).append(name)
        groups = list(shared.values())
    found = dict(state)
    for names in groups:
        for name in names[1:]:
            if not torch.equal(state[name].float(), state[names[0]].float()):
                raise NetspaceError(
                    f"{name} and {names[0]} are one tensor in the architecture, but differ in {path}: name the architecture "
                    "it was saved from"
                )
            found[name] = state[names[0]]
    return found


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(value.shape) for name, value in state.items()}
