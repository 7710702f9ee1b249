"""Fresh weights for a network whose factory is not at hand."""

from __future__ import annotations

import torch
from torch import nn

from netspace.networks.folding import FrozenAffine


@torch.no_grad()
def draw_fresh(module: nn.Module, trained: nn.Module) -> None:
    """Draw all parameters of a network anew from torch's random state, children before their parents, as constructors do.

    Layers draw their own by `reset_parameters`. Parameters of other classes get normal values with the mean and the standard
    deviation that they have in `trained`, the same network at these or other widths (it may be `module` itself).
    """
    for name, child in module.named_children():
        draw_fresh(child, trained.get_submodule(name))
    reset = getattr(module, "reset_parameters", None) or getattr(
        module, "_reset_parameters", None
    )  # of nn.MultiheadAttention
    if callable(reset):
        reset()
    elif isinstance(module, FrozenAffine):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    else:
        for name, value in module.named_parameters(recurse=False):
            before = trained.get_parameter(name).detach().float()
            if value.is_floating_point() and before.numel() > 1:
                value.normal_(float(before.mean()), float(before.std()))
