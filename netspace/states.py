"""State dicts, from modules and files, as flat parameters.

Axes: P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from netspace import archs
from netspace.errors import NetspaceError, UsageError
from netspace.folding import fold
from netspace.prep import flatten
from netspace.runtime import read_torch
from netspace.spec import NetSpec

FILES = (".safetensors", ".pt", ".pth")  # what a state dict's file may be called


def flat_parameters(state: Mapping[str, Tensor], spec: NetSpec) -> Tensor:
    """Flat parameters (P,) of a state dict: of the folded network as it is, of one with batch norm after folding.

    Raises `NetspaceError` if it is neither; the sentence speaks of the folded network.
    """
    if not spec.difference(_shapes(state)) or not with_batch_norm(state, spec):
        return flatten({name: value.detach().float() for name, value in state.items()}, spec)
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise NetspaceError(f"{name} of {spec.arch!r} holds values that are not finite")
    whole = archs.build(spec.arch, **spec.settings)
    whole.load_state_dict(dict(state))
    folded = fold(whole, torch.randn(2, *spec.input_shape), name=spec.arch)
    return flatten({name: value.detach().float() for name, value in folded.named_parameters()}, spec)


def with_batch_norm(state: Mapping[str, Tensor], spec: NetSpec) -> bool:
    """Whether a state dict is that of the spec's architecture as it is trained, before batch norm is folded."""
    return _shapes(archs.build(spec.arch, **spec.settings).state_dict()) == _shapes(state)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Named tensors of a state-dict file: safetensors, or torch's format read without running code.

    Of a checkpoint the state dict in it is taken, where there is one alone. Raises `UsageError` or `NetspaceError`.
    """
    if not path.is_file():
        raise UsageError(f"{path} does not exist: give a state-dict file (.safetensors, .pt or .pth)")
    found: Any = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
    if _is_state(found):
        return dict(found)
    inside = (
        {key: value for key, value in found.items() if _is_state(value) and value} if isinstance(found, Mapping) else {}
    )
    if len(inside) == 1:
        return dict(*inside.values())
    what = f"{len(inside)} of them ({', '.join(map(str, inside))})" if inside else "something else"
    raise NetspaceError(
        f"{path} was expected to hold a state dict (names to tensors), but holds {what}: save "
        "`model.state_dict()` alone"
    )


def _is_state(found: Any) -> bool:
    return isinstance(found, Mapping) and all(isinstance(value, Tensor) for value in found.values())


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises `NetspaceError` for anything else."""
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise NetspaceError(f"{path} was expected to be a safetensors file, but cannot be read: {error}") from None
