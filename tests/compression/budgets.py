"""Searches small enough for tests: settings, a network, and one of it in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from netspace import archs
from netspace.archs import ArchConfig
from netspace.compression.work import BudgetConfig

NET = "budgets:net"
NET_ARCH = ArchConfig(arch=NET)


def settings(size: int | None = 9_000, **changes: Any) -> BudgetConfig:
    """Return settings of few steps; `size` is in bytes."""
    short = {"short_steps": 2, "steps": 3, "predictor_steps": 2, "predictor_whole": 3, "images": 16, "curve": ()}
    budget = {} if size is None else {"budget": {"bytes": size}}
    return BudgetConfig.model_validate({**short, **budget, **changes})


def net() -> nn.Module:
    """Return a network with batch norm for inputs (B, 3, 8, 8): 4,068 weights with more than one axis."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 16, 3),
    )


def net_file(folder: Path) -> str:
    """Write the state dict of `net`, and allow this process to build it."""
    archs.trust(NET)
    path = folder / "net.safetensors"
    save_file(net().state_dict(), path)
    return str(path)
