"""Functions that give the weights of a network at any width, by their kind (NeuMeta)."""

from __future__ import annotations

import torch
from torch import nn

from netspace.models.weight_function import FunctionConfig, WeightFunction
from netspace.models.weight_grid import WeightGrid
from netspace.models.weight_mlps import WeightMlps
from netspace.networks.widths import Widths

__all__ = ["FunctionConfig", "WeightFunction", "make_function"]


def make_function(module: nn.Module, info: Widths, config: FunctionConfig, seed: int) -> WeightFunction:
    """Return a fresh weight function for the parameters of `module`; torch's random state stays as it was."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return (WeightGrid if config.kind == "grid" else WeightMlps)(module, info, config)
