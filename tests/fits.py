"""Fits small enough for tests: settings, a network, the step of a first stage, a learner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from netspace.compression.fit import begin
from netspace.models.compressed import Compressed
from netspace.training.fit import Fit, NernStep, Original
from netspace.training.loop import make_accelerator
from netspace.training.recipe import FitConfig

MEMBER = "resnet/0000"  # of `multi_zoo`


def settings(**changes: Any) -> FitConfig:
    stages = [{"steps": 30, "kernels": 64, "optimizer": {"name": "muon", "learning_rate": 2e-3, "muon_rate": 0.02}}]
    result = {"predictor": {"hidden": 24}, "stages": stages, "validate_every": 10}
    return FitConfig.model_validate({**result, **changes})


def state_of(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return dict(
        nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(4, 3)).state_dict()
    )


def stepping(
    config: FitConfig, compressed: Compressed, original: Original, place: int = 0, shares: int = 1
) -> NernStep:
    """The step of a fit's first stage."""
    step = NernStep(config, compressed, original, "cpu", place, shares)
    step.begin(config.stages[0], 0)
    return step


def distilling(multi_zoo: Path, place: int = 0, shares: int = 1, **changes: Any) -> NernStep:
    from netspace.compression.originals import find_original

    original, spec = find_original(MEMBER, multi_zoo)
    config = settings(**changes)
    torch.manual_seed(0)
    return stepping(config, begin(original.state, config, spec), original, place, shares)


def loss_of(step: NernStep, number: int) -> torch.Tensor:
    return torch.stack(list(step(step.predictor, number).values())).sum()


def fitting(config: FitConfig, compressed: Compressed, original: Original) -> Fit:
    accelerator, device = make_accelerator(torch.device("cpu"))
    return Fit(config, compressed, original, accelerator, device)
