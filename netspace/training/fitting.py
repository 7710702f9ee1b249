"""Fitting a predictor to one network, in stages and rounds (NeRN, Sec. 3.2; decoupled NeRN, 2024)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from netspace.compressed import Compressed
from netspace.precision import Precision, choose
from netspace.runtime import read_metrics
from netspace.training.loop import Learner, Loop, Stage, Validation
from netspace.training.nern import FitConfig, NernStep, Original


class Fit(Learner):
    """A predictor in training; each stage begins with the best, by validation, of the one before."""

    name, validates_first = "fit", True

    def __init__(
        self,
        config: FitConfig,
        compressed: Compressed,
        original: Original,
        accelerator: Accelerator,
        device: torch.device | str = "cpu",
    ) -> None:
        if accelerator.is_main_process:
            config = with_precision(config, compressed, original, torch.device(device))
        (config,) = broadcast_object_list([config])  # the main process decides for all
        self.precision = {name: getattr(config, name) for name in ("precision", "predictor_precision")}
        self.accelerator, self.model = accelerator, compressed.predictor
        self.log_every, self.validate_every = config.log_every, config.validate_every
        self.rounds = [(stage, number) for stage in config.stages for number in range(stage.rounds)]
        self.stages = [Stage(stage.steps, stage.optimizer) for stage, _ in self.rounds]
        place, shares = accelerator.process_index, accelerator.num_processes
        self.step = NernStep(config, compressed, original, device, place, shares)
        self.best: dict[str, Tensor] = {}

    def run(self, out: Path) -> list[dict[str, Any]]:
        """All stages; leaves the best of the last one, and returns the course of validation.

        Goes on from the last checkpoint in the folder `out`, where there is one.
        """
        Loop(self, self.accelerator, out / "metrics.jsonl", out / "last.pt").run()
        self._use_best()
        self.model.cpu()
        records = read_metrics(out / "metrics.jsonl")
        return [{"stage": 0, **record} for record in records if "relative_error" in record]

    def begin(self, place: int) -> None:
        """A stage begins with the best so far; a round after the first has that as its target, and begins anew ('progressive')."""
        stage, number = self.rounds[place]
        self._use_best()
        if number > 0:
            self.step.target = self.step.all().detach()
            self.step.begin_anew(place)
        self.step.begin(stage, place)

    def terms(self, model: nn.Module, number: int, part: int) -> dict[str, Tensor]:
        """Those of Eq. 2."""
        return self.step(model, number)

    def validate(self) -> Validation:
        """The error of all weights and, where there is data, accuracy on validation images."""
        error, accuracy = self.step.measure()
        note = f"relative error {error:.3f}" + ("" if accuracy is None else f", val {100 * accuracy:.1f} %")
        score = accuracy or 0.0, -error  # of equally accurate ones, as at chance, the nearer
        return Validation({"relative_error": error, "accuracy_val": accuracy}, score, note)

    def keep(self, weights: dict[str, Tensor]) -> None:
        """For the next stage, or for good."""
        self.best = {name: value.clone() for name, value in weights.items()}

    def state(self) -> dict[str, Any]:
        """What is best, and what is fitted."""
        return {"best": self.best, "target": self.step.target}

    def take_back(self, state: dict[str, Any]) -> None:
        """Goes on from `state()`."""
        self.best, self.step.target = state["best"], state["target"].to(self.step.device)

    def _use_best(self) -> None:
        if self.best:
            self.model.load_state_dict(self.best)


def with_precision(config: FitConfig, compressed: Compressed, original: Original, device: torch.device) -> FitConfig:
    """The settings with the precisions that are fastest here for a step of few images and kernels, where they are 'auto'."""
    stages = [stage for stage in config.stages if stage.runs_networks] or list(config.stages)
    few = {"images": min(stages[0].images, 64), "kernels": min(stages[0].kernels, 1024), "pool": None}
    stage = stages[0].model_copy(update=few)
    asked: dict[str, Precision] = {"predictor_precision": config.predictor_precision}
    if stage.runs_networks:
        asked["precision"] = config.precision
    steps: dict[str, NernStep] = {}
    before = {name: value.clone() for name, value in compressed.predictor.state_dict().items()}

    def trial(precision: dict[str, str]) -> None:
        key = str(precision)
        if key not in steps:
            steps[key] = NernStep(config.model_copy(update=precision), compressed, original, device)
            steps[key].begin(stage, 0)
        step = steps[key]
        try:
            torch.stack(list(step(step.predictor, 0).values())).sum().backward()
        finally:  # a trial that failed half way leaves no gradient to the first step
            step.predictor.zero_grad(set_to_none=True)

    shapes = sorted((name, tuple(value.shape)) for name, value in original.state.items())
    chosen = choose(f"fit {shapes} {config.predictor} {stage}", asked, trial, device)
    compressed.predictor.load_state_dict(before)
    return config.model_copy(update={"precision": "float32", **chosen})
