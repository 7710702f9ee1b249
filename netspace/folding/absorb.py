"""The arithmetic of folding: a plan carried out on values, and on a module.

Contract. `fold_state` is the only place where a batch norm is computed away; `rebuild` and `Folder` call it.
It works in float64 and returns the dtypes it was given, on values with or without a leading axis of members.

Axes: M members (networks), C channels; `...` is M or nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


class FrozenAffine(nn.Module):
    """`weight * x + bias` per channel: a batch norm that had no layer to go into. (B, C, ...)."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)  # (C,)
        self.bias = nn.Parameter(bias)  # (C,)

    def forward(self, input: Tensor) -> Tensor:  # the name by which batch norm can be called
        shape = (1, -1) + (1,) * (input.ndim - 2)
        return input * self.weight.view(shape) + self.bias.view(shape)

    def extra_repr(self) -> str:
        return str(self.weight.numel())


@dataclass(frozen=True)
class Absorption:
    """Where one batch norm goes. `target` is the layer before it, or `norm` itself for the kinds 'affine' and 'kept'.

    A batch norm of a subclass with a forward of its own, such as one with an activation inside, is 'kept': the layer stays
    with its statistics made neutral (mean 0, variance 1 - eps), its weight and bias those of 'affine'.
    """

    norm: str
    target: str
    kind: Literal["conv", "transposed", "linear", "affine", "kept"]
    eps: float
    groups: int = 1  # of a transposed convolution, whose weight has the shape (in, out / groups, kernel...)


def fold_state(plan: Iterable[Absorption], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state after `plan`.

    y = gamma * (W x + b - mean) / sqrt(var + eps) + beta (netspace.md, Suppl. VI), so y = W' x + b' with
    W' = scale * W, b' = scale * b + shift, scale = gamma / sqrt(var + eps), shift = beta - scale * mean.
    """
    out = dict(state)
    for step in plan:
        mean = out.pop(f"{step.norm}.running_mean")  # (..., C)
        scale = torch.rsqrt(out.pop(f"{step.norm}.running_var").double() + step.eps)
        if (gamma := out.pop(f"{step.norm}.weight", None)) is not None:
            scale = scale * gamma.double()
        shift = -scale * mean.double()
        if (beta := out.pop(f"{step.norm}.bias", None)) is not None:
            shift = shift + beta.double()
        if step.kind in ("affine", "kept"):
            out[f"{step.norm}.weight"], out[f"{step.norm}.bias"] = scale.to(mean.dtype), shift.to(mean.dtype)
            continue
        weight, bias = out[f"{step.target}.weight"], out.get(f"{step.target}.bias")
        if bias is not None:
            shift = shift + scale * bias.double()
        out[f"{step.target}.weight"] = _scaled(weight.double(), scale, step).to(weight.dtype)
        out[f"{step.target}.bias"] = shift.to(weight.dtype)
    return out


def _scaled(weight: Tensor, scale: Tensor, step: Absorption) -> Tensor:
    """`weight` with what leads to output channel c multiplied by scale[..., c]; scale (..., C)."""
    lead = scale.shape[:-1]
    if step.kind != "transposed":  # (..., out, in / groups, kernel...)
        return weight * scale.reshape(scale.shape + (1,) * (weight.ndim - scale.ndim))
    # (..., in, out / groups, kernel...): the groups lie along `in`, so they get an axis of their own first
    per_group, kernel = weight.shape[len(lead) + 1], weight.shape[len(lead) + 2 :]
    grouped = weight.reshape(*lead, step.groups, -1, per_group, *kernel)
    factors = scale.reshape(*lead, step.groups, 1, per_group, *(1 for _ in kernel))
    return (grouped * factors).reshape(weight.shape)


def rebuild(module: nn.Module, plan: Iterable[Absorption]) -> nn.Module:
    """A copy of `module` in eval mode with `plan` carried out, in its own dtypes."""
    built = copy.deepcopy(module)
    state = {key: value.detach() for key, value in (*module.named_parameters(), *module.named_buffers())}
    state = fold_state(plan, state)
    for step in plan:
        norm = built.get_submodule(step.norm)
        new: nn.Module = nn.Identity()
        if step.kind == "kept":
            _neutralise(norm, state[f"{step.norm}.weight"], state[f"{step.norm}.bias"], step.eps)
            continue
        if step.kind == "affine":
            new = FrozenAffine(state[f"{step.norm}.weight"], state[f"{step.norm}.bias"])
        else:
            target = built.get_submodule(step.target)
            trains = built.get_parameter(f"{step.target}.weight").requires_grad
            for key in ("weight", "bias"):
                setattr(target, key, nn.Parameter(state[f"{step.target}.{key}"], trains))
        for path in [path for path, each in built.named_modules(remove_duplicate=False) if each is norm]:
            parent, _, leaf = path.rpartition(".")
            setattr(built.get_submodule(parent), leaf, new)
    return built.eval()


def _neutralise(norm: nn.Module, weight: Tensor, bias: Tensor, eps: float) -> None:
    """Makes a batch norm compute weight * x + bias (C,) before whatever else its forward does."""
    norm.weight, norm.bias = nn.Parameter(weight), nn.Parameter(bias)
    norm.get_buffer("running_mean").zero_()
    norm.get_buffer("running_var").fill_(1 - eps)
