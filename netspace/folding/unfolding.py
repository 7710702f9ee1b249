"""Folded parameters back in a network with batch norm, so that they load into the class that was trained.

Contract. `unfold` undoes `fold` up to the values that folding forgets: what a batch norm did is in the layer before it, so
the batch norm becomes the identity (mean 0, variance 1 - eps, weight 1), and carries the bias of a layer that has none.

Axes: C channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from netspace.errors import NetspaceError
from netspace.folding.absorb import Absorption, rebuild
from netspace.folding.checks import batch_norms, in_float64, refuse_unfit, run
from netspace.folding.plan import make_plan

TOLERANCE = 1e-6  # largest difference, as a fraction of the largest output: the values are rounded to float32


def unfold(module: nn.Module, folded: Mapping[str, Tensor], example: Tensor, *, name: str = "") -> nn.Module:
    """`module`, a fresh network with batch norm, filled with folded parameters; it is changed and returned, in eval mode.

    `folded` has the names and shapes that remain after `fold(module, example)`. Raises as `fold`, and `NetspaceError` where
    a batch norm without weights would have to multiply by a number that is not positive.
    """
    label = name or type(module).__name__
    refuse_unfit(module, label)
    norms = batch_norms(module)
    plan = make_plan(in_float64(module), example.double(), label) if norms else ()
    reference = rebuild(module, plan)
    with torch.no_grad():
        for key, value in reference.named_parameters():
            value.copy_(folded[key])
        state: dict[str, Tensor] = dict(reference.named_parameters())
        for step in plan:
            _fill_norm(norms[step.norm], step, state, module, label)
        for key, value in module.named_parameters():
            owner = key.rpartition(".")[0]
            if owner not in norms:
                value.copy_(state[key])
    module.eval()
    expected, found = (run(in_float64(each), example.double(), label) for each in (reference, module))
    for one, other in zip(expected, found, strict=True):
        if not torch.allclose(one, other, rtol=0.0, atol=TOLERANCE * float(one.abs().max())):
            raise NetspaceError(
                f"{label} with batch norm does not compute what the folded network does: use the folded one"
            )
    return module


def _fill_norm(norm: _BatchNorm, step: Absorption, state: dict[str, Tensor], module: nn.Module, label: str) -> None:
    """Gives a batch norm what it has to do: nothing, add a bias (C,), or multiply and add."""
    scale, shift = torch.ones(norm.num_features), torch.zeros(norm.num_features)
    if step.kind in ("affine", "kept"):
        scale, shift = state[f"{step.norm}.weight"], state[f"{step.norm}.bias"]
    elif module.get_submodule(step.target).bias is None and f"{step.target}.bias" in state:
        shift = state.pop(f"{step.target}.bias")  # once, where one layer absorbed several
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)
    if norm.weight is not None and norm.bias is not None:
        norm.weight.copy_(scale)
        norm.bias.copy_(shift)
        return
    variance = scale.double().pow(-2) - norm.eps
    if not (scale > 0).all() or not (variance > 0).all():
        raise NetspaceError(
            f"the batch norm {step.norm} of {label} has no weights (affine=False) and cannot multiply by what this network "
            "needs: use the folded network"
        )
    norm.running_var.copy_(variance)
    norm.running_mean.copy_(-shift / scale)
