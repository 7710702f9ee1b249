"""Optimisers over M networks at once: one flat tensor (M, P), every member with its own rate.

Axes: M members, P parameters. torch's own optimisers know one rate for a tensor, so members that differ in rate
would need a tensor each; these rules are torch's (`torch.optim.Adam`, `AdamW`, `SGD`), tested equal to them in float64.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from netspace.config import Settings

Name = Literal["adam", "adamw", "sgd"]


class OptimizerConfig(Settings):
    """How members are trained."""

    name: Name = "adam"
    learning_rate: float | tuple[float, float] = 1e-3  # a pair is a range: each run draws its own, log-uniformly
    weight_decay: float = 0.0
    momentum: float = 0.9  # sgd only
    betas: tuple[float, float] = (0.9, 0.999)  # adam and adamw
    schedule: Literal["constant", "cosine", "steps"] = "constant"
    milestones: tuple[float, ...] = (0.5, 0.6, 0.7)  # for 'steps', as shares of a run's last epoch
    decay: float = 0.1  # for 'steps', the factor at each milestone

    def factor(self, progress: float) -> float:
        """The share of the peak rate that holds at `progress` (0 to 1) of a run."""
        from math import cos, pi

        if self.schedule == "cosine":
            return (1 + cos(pi * min(progress, 1.0))) / 2
        if self.schedule == "steps":
            return float(self.decay ** sum(progress >= milestone for milestone in self.milestones))
        return 1.0


class StackedOptimizer:
    """Updates flat parameters (M, P) in place from their gradients, each member at its own rate."""

    def __init__(self, config: OptimizerConfig, flat: Tensor) -> None:
        self.config = config
        self.steps = 0
        kinds = 1 if config.name == "sgd" else 2
        self.moments = [torch.zeros_like(flat) for _ in range(kinds)]

    @torch.no_grad()
    def step(self, flat: Tensor, gradient: Tensor, rates: Tensor) -> None:
        """One step; `rates` (M, 1) are this step's learning rates."""
        self.steps += 1
        config = self.config
        if config.weight_decay and config.name == "adamw":
            flat.mul_(1 - rates * config.weight_decay)
        elif config.weight_decay:
            gradient = gradient + config.weight_decay * flat
        if config.name == "sgd":
            velocity = self.moments[0]
            velocity.mul_(config.momentum).add_(gradient)
            flat.addcmul_(velocity, rates, value=-1)
            return
        first, second = self.moments
        beta1, beta2 = config.betas
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        unbias1 = 1 - beta1**self.steps
        root_unbias2 = (1 - beta2**self.steps) ** 0.5
        denominator = (second.sqrt() / root_unbias2).add_(1e-8)
        flat.addcdiv_(first * rates, denominator, value=-1 / unbias1)

    def keep(self, places: Tensor) -> None:
        """Drops the members that are not among `places`."""
        self.moments = [moment[places].clone() for moment in self.moments]

    def state(self) -> dict[str, object]:
        """What a checkpoint needs."""
        return {"steps": self.steps, "moments": self.moments}

    def load(self, state: dict[str, object]) -> None:
        """Goes on from `state()`."""
        self.steps = int(state["steps"])  # type: ignore[call-overload]
        self.moments = [moment.clone() for moment in state["moments"]]  # type: ignore[attr-defined]
