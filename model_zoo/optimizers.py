"""Optimisers over M networks at once: one flat tensor (M, P), every member with its own rate.

Axes: M members, P parameters. torch's own optimisers know one rate for a tensor, so members that differ in rate,
weight decay or age would need a tensor each; these rules are torch's (`torch.optim.Adam`, `AdamW`, `SGD`), tested equal
to them in float64."""

from __future__ import annotations

from math import cos, pi
from typing import Literal

import torch
from torch import Tensor

from netspace.config import Settings

Name = Literal["adam", "adamw", "sgd"]


Schedule = Literal["constant", "cosine", "steps"]


class OptimizerConfig(Settings):
    """How members are trained."""

    name: Name = "adam"
    learning_rate: float | tuple[float, float] = (
        1e-3  # a pair [low, high] is a range from which each run draws, log-uniformly
    )
    weight_decay: float | tuple[float, float] = 0.0  # a pair is a range, as for learning_rate
    momentum: float = 0.9  # sgd only
    betas: tuple[float, float] = (0.9, 0.999)  # adam and adamw
    schedule: Schedule | tuple[Schedule, ...] = "constant"  # if a list, each run draws one
    milestones: tuple[float, ...] = (0.5, 0.6, 0.7)  # of 'steps': fractions of the last epoch of a run
    decay: float = 0.1  # of 'steps': factor of the learning rate at each milestone

    def factor(self, schedule: Schedule, progress: float) -> float:
        """The share of the peak rate that holds at `progress` (0 to 1) of a run."""
        if schedule == "cosine":
            return (1 + cos(pi * min(progress, 1.0))) / 2
        if schedule == "steps":
            return float(self.decay ** sum(progress >= milestone for milestone in self.milestones))
        return 1.0


class StackedOptimizer:
    """Updates flat parameters (M, P) in place from their gradients, each member at its own rate, decay and age."""

    def __init__(self, config: OptimizerConfig, flat: Tensor) -> None:
        self.config = config
        self.steps = torch.zeros(len(flat), 1, dtype=torch.float64, device=flat.device)  # that each member has taken
        kinds = 1 if config.name == "sgd" else 2
        self.moments = [torch.zeros_like(flat) for _ in range(kinds)]

    @torch.no_grad()
    def step(self, flat: Tensor, gradient: Tensor, rates: Tensor, decays: Tensor | None = None) -> None:
        """One step at learning rates (M, 1) and weight decays (M, 1), None for none at all."""
        self.steps += 1
        config = self.config
        if decays is not None and config.name == "adamw":
            flat.mul_(1 - rates * decays)
        elif decays is not None:
            gradient = gradient + decays * flat
        if config.name == "sgd":
            velocity = self.moments[0]
            velocity.mul_(config.momentum).add_(gradient)
            flat.addcmul_(velocity, rates, value=-1)
            return
        first, second = self.moments
        beta1, beta2 = config.betas
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = rates / (1 - beta1**self.steps).to(rates.dtype)
        root = (1 - beta2**self.steps).rsqrt().to(flat.dtype)
        flat.addcdiv_(first * scale, second.sqrt().mul_(root).add_(1e-8), value=-1)

    def keep(self, places: Tensor) -> None:
        """Drops the members that are not among `places`."""
        self.steps = self.steps[places].clone()
        self.moments = [moment[places].clone() for moment in self.moments]

    def join(self, count: int) -> None:
        """Adds `count` members that have taken no step yet, behind the others."""
        self.steps = torch.cat([self.steps, self.steps.new_zeros(count, 1)])
        self.moments = [torch.cat([moment, moment.new_zeros(count, moment.shape[1])]) for moment in self.moments]

    def state(self) -> dict[str, object]:
        """What a checkpoint needs."""
        return {"steps": self.steps, "moments": self.moments}

    def load(self, state: dict[str, object]) -> None:
        """Goes on from `state()`."""
        device = self.steps.device
        self.steps = state["steps"].to(device).clone()  # type: ignore[attr-defined]
        self.moments = [moment.to(device).clone() for moment in state["moments"]]  # type: ignore[attr-defined]
