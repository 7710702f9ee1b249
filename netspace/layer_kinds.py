"""Which tensors of a network are kernels of convolutions, and which are matrices.

The module says so where it is known; otherwise names and shapes do. Axes: F filters and C channels of a convolution.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

Kind = Literal["convolution", "matrix"]
# Leaf names of tensors that have a convolution's number of axes and are none: positions, tokens, layer scales, magnitudes
OTHER = re.compile(
    r"(^|_)(bias|pos|position\w*|embed\w*|token\w*|table|scale|gamma|beta|mask|prompt\w*|g|original0)(_|$)"
)
NORM = re.compile(r"(^|_)(\w*norm|ln|bn|gn)\d*(_|$)")  # last part of a normalisation's module path
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)
CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
PARAMETRISED = re.compile(r"(^|\.)parametrizations\.")


def layer_kinds(state: Mapping[str, Tensor], module: nn.Module | None = None) -> dict[str, Kind]:
    """The kernels of convolutions of 1 or 2 axes and the matrices among named tensors, in their order; all others are left out.

    A layer of `module` that is torch's own, or derived from one, decides for its tensors. For layers of unknown classes,
    and without a module, a tensor of 3 or 4 axes is a kernel unless its name or the shape of its layer's bias speaks against it.
    """
    layers = {} if module is None else dict(module.named_modules())
    tied = further_names(state)  # a tensor of several names goes by its first
    found = {name: _kind(name, state, layers.get(layer_of(name))) for name in state if name not in tied}
    return {name: kind for name, kind in found.items() if kind is not None}


def further_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """The names of tensors that have another name before it in a state dict, and that first name."""
    first: dict[int, str] = {}
    found = {name: first.setdefault(id(value), name) for name, value in state.items()}
    return {name: before for name, before in found.items() if name != before}


def layer_of(name: str) -> str:
    """The module path of the layer that a tensor belongs to; of a parametrised layer, not that of its parametrisation.

    >>> layer_of("features.0.weight"), layer_of("features.0.parametrizations.weight.original1")
    ('features.0', 'features.0')
    """
    inside = PARAMETRISED.search(name)
    return name[: inside.start()] if inside else name.rpartition(".")[0]


def _kind(name: str, state: Mapping[str, Tensor], layer: nn.Module | None) -> Kind | None:
    value, leaf = state[name], name.rpartition(".")[2]
    if not value.is_floating_point() or value.dim() not in (2, 3, 4) or not value.numel() or leaf == "bias":
        return None
    shape = tuple(value.shape)
    if isinstance(layer, _ConvNd):
        grid = (layer.in_channels, layer.out_channels) if layer.transposed else (layer.out_channels, layer.in_channels)
        whole = (grid[0], grid[1] // layer.groups, *layer.kernel_size)
        return "convolution" if shape == whole and not OTHER.search(leaf) else None
    bias = state.get(f"{name.removesuffix('weight')}bias") if leaf == "weight" else None
    is_norm = isinstance(layer, NORMS) or (bias is not None and bias.dim() > 1)
    if value.dim() == 2:
        return None if is_norm or min(shape) < 2 else "matrix"
    if is_norm or (layer is not None and _is_torchs(layer)):
        return None
    return "convolution" if _named_as_kernel(name, shape) else None


def _is_torchs(layer: nn.Module) -> bool:
    """Whether a layer is torch's own or derived from one, such as LayerNorm; containers say nothing of their tensors."""
    return any(
        each.__module__.startswith("torch.nn.modules.") and each not in CONTAINERS for each in type(layer).__mro__
    )


def _named_as_kernel(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of 3 or 4 axes is a convolution's kernel by its name and shape alone."""
    leaf = name.rpartition(".")[2]
    if OTHER.search(leaf) or NORM.search(layer_of(name).rpartition(".")[2]):
        return False
    return "weight" in leaf or (shape[0] > 1 and prod(shape[1:]) > 1)  # not a table for one input, nor a layer scale
