"""The one training loop: stages of steps, validation, checkpoints, records, resuming, Ctrl-C."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Self

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list
from torch import Tensor, nn

from netspace.distributed import TIMEOUT
from netspace.errors import NetspaceError, Stopped
from netspace.io import read_torch, resuming_from, write_torch
from netspace.progress import Progress, progress
from netspace.run_folder import Metrics
from netspace.training.optimizers import Average, Optimizer, OptimizerConfig

CHECKPOINT_EVERY = 30.0  # seconds
CHECKPOINT_KEYS = {"stage", "step", "score", "model", "optimizer", "average", "learner"}


class GracefulStop:
    """Inside the block a first Ctrl-C sets `requested`, and training goes on; a second one interrupts it at once.

    Where Python does not interrupt on Ctrl-C anyway, in other threads and under other handlers, nothing is changed.
    """

    def __init__(self, enabled: bool = True) -> None:
        """Disable it if there are several processes, which would stop at different steps."""
        in_main_thread = threading.current_thread() is threading.main_thread()
        self.enabled = enabled and in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        self.requested = False

    def __enter__(self) -> Self:
        if self.enabled:
            signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *error: object) -> None:
        if self.enabled:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("stopping after this step; Ctrl-C again stops at once", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Stage:
    """A sequence of steps with an optimiser of its own."""

    steps: int
    optimizer: OptimizerConfig
    accumulate: int = 1  # parts of a step, one after another


@dataclass(frozen=True)
class Validation:
    """The result of a validation."""

    figures: Mapping[str, float | None]  # for the records
    score: tuple[float, ...]  # the weights with the highest score of a stage are kept
    note: str  # for the progress bar


class Learner(ABC):
    """What the loop trains."""

    name: str  # for the progress bar
    model: nn.Module
    stages: Sequence[Stage]
    log_every: int  # steps
    validate_every: int  # steps
    validates_first = False  # validate before the first step of a stage too
    finished = False  # a validation says that no step is left to take; part of `state`

    def begin(self, stage: int) -> None:  # noqa: B027 - most have nothing to do then
        """Prepare a stage, given its index. If the stage is resumed, `load_state` is called afterwards."""

    @abstractmethod
    def terms(self, model: nn.Module, number: int, part: int) -> dict[str, Tensor]:
        """Return the loss terms () of a part of step `number` for this process; their sum is minimised.

        Their mean over parts and processes belongs to the whole step. `model` is `self.model`, wrapped if there are
        several processes.
        """

    @abstractmethod
    def validate(self) -> Validation:
        """Measure how good `self.model` is."""

    @abstractmethod
    def save_best(self, weights: dict[str, Tensor]) -> None:
        """Save the weights of the best validation of the stage so far."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs in addition to model and optimiser."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:  # noqa: B027 - as `state`
        """Continue from `state()`."""


def make_accelerator(device: torch.device, **settings: Any) -> tuple[Accelerator, torch.device]:
    """Return an accelerator and this process's device, which is `device` unless there are several processes."""
    before = AcceleratorState._shared_state.get("device", device)
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 and before.type != device.type:
        AcceleratorState._reset_state(reset_partial_state=True)  # else it keeps the device of the first accelerator
    timeout = InitProcessGroupKwargs(timeout=TIMEOUT)
    accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[timeout], **settings)
    return accelerator, accelerator.device if accelerator.num_processes > 1 else device


def step_trial(
    make: Callable[[dict[str, str]], Callable[[], dict[str, Tensor]]], model: nn.Module
) -> Callable[[dict[str, str]], None]:
    """Return a function for `netspace.precision.choose` that runs a training step in given precisions.

    `make` returns a function of the loss terms, once for each precision.
    """
    steps: dict[tuple[str, ...], Callable[[], dict[str, Tensor]]] = {}

    def trial(precision: dict[str, str]) -> None:
        key = tuple(precision.values())
        if key not in steps:
            steps[key] = make(precision)
        try:
            torch.stack(list(steps[key]().values())).sum().backward()
        finally:  # also after a trial that failed: the first step must not see its gradients
            model.zero_grad(set_to_none=True)

    return trial


class Loop:
    """Takes a learner through its stages, from its last checkpoint if there is one."""

    def __init__(self, learner: Learner, accelerator: Accelerator, metrics: Path, last: Path) -> None:
        """Write a line for each record to the file `metrics`, and checkpoints to the file `last`."""
        self.learner, self.accelerator, self.last = learner, accelerator, last
        self.main, self.metrics = accelerator.is_main_process, Metrics(metrics)
        self.multi_stage = len(learner.stages) > 1
        self.model = accelerator.prepare_model(learner.model, device_placement=False)
        self.stop = GracefulStop(enabled=False)

    def run(self) -> None:
        """Train all stages.

        Raises `NetspaceError` if a loss is not finite or the checkpoint does not fit, and `Stopped` after Ctrl-C, once
        a checkpoint of the last whole step is written. A step whose terms or weights are not finite is never saved.
        """
        stages, checkpoint = self.learner.stages, self._checkpoint()
        with resuming_from(self.last):
            reached = (int(checkpoint["stage"]), int(checkpoint["step"])) if checkpoint else (0, -1)
        self.accelerator.wait_for_everyone()  # all must have read the checkpoint before one process writes the next
        if self.main:
            self.metrics.keep(lambda record: (record.get("stage", 0), record["step"]) <= reached)
        with (
            GracefulStop(enabled=self.accelerator.num_processes == 1) as self.stop,
            progress(self.learner.name, sum(stage.steps for stage in stages), "steps") as bar,
        ):
            for index in range(reached[0], len(stages)):
                start, checkpoint = self._begin(index, checkpoint), {}
                bar.begin_at(self.steps_before + start)
                self._steps(start, bar)
            if self.stop.requested:  # in the last step: what would follow the training is not begun
                self._save_and_stop(self.stage.steps)
        self.accelerator.wait_for_everyone()

    def _begin(self, index: int, checkpoint: dict[str, Any]) -> int:
        """Begin a stage, or resume it from a checkpoint; return the number of steps done."""
        learner, model = self.learner, self.learner.model
        self.index, self.stage = index, learner.stages[index]
        self.steps_before = sum(stage.steps for stage in learner.stages[:index])
        learner.begin(index)
        if checkpoint:
            with resuming_from(self.last):
                model.load_state_dict(checkpoint["model"])
                learner.load_state(checkpoint["learner"])
        self.optimizer = Optimizer(model, self.stage.optimizer, self.stage.steps)
        self.average = Average(model, self.stage.optimizer.ema) if self.stage.optimizer.ema else None
        self.score: tuple[float, ...] = (-math.inf,)
        self.terms: dict[str, Tensor] = {}  # of the last step
        if checkpoint:
            with resuming_from(self.last):
                self.optimizer.load_state_dict(checkpoint["optimizer"])
                self.score = tuple(float(value) for value in checkpoint["score"])
                if self.average is not None:
                    self.average.load(checkpoint["average"])
                return int(checkpoint["step"])
        if learner.validates_first:
            self._validate(0)
        return 0

    def _steps(self, start: int, bar: Progress) -> None:
        logged, saved = start, time.monotonic()
        clock = saved
        for number in range(start, self.stage.steps):
            if self.learner.finished:
                return
            if self.stop.requested:
                self._save_and_stop(number)
            self.terms = self._gradients(number)
            factor = self.optimizer.step(number)
            if self.average is not None:
                self.average.update(self.learner.model, number)
            done, note = number + 1, ""
            last = done == self.stage.steps
            if done % self.learner.log_every == 0 or last:
                means = self._means(self.terms, done)
                now = time.monotonic()
                speed = (done - logged) / max(now - clock, 1e-9)
                logged, clock = done, now
                self._record(done, rate=factor, steps_a_second=speed, **means)
            if done % self.learner.validate_every == 0 or last:
                note = self._validate(done)
            if self.main and (last or self.learner.finished or time.monotonic() - saved > CHECKPOINT_EVERY):
                if self._is_finite():  # else a later step says so, and the last good checkpoint stays
                    self._save(done)
                saved = time.monotonic()
            bar.advance(1, note)

    def _save_and_stop(self, done: int) -> NoReturn:
        if not self._is_finite():
            raise NetspaceError(
                f"stopped at {self._where(done)}, after which the loss or weights are not finite, so that it is not saved: lower the "
                "learning rate"
            )
        self._save(done)
        stage = f" of stage {self.index + 1} of {len(self.learner.stages)}" if self.multi_stage else ""
        raise Stopped(
            f"stopped after step {done} of {self.stage.steps}{stage}, which is saved in {self.last}: --resume (for quickstart, eval and "
            "transfer, the same command) goes on from there"
        )

    def _gradients(self, number: int) -> dict[str, Tensor]:
        """Accumulate the gradients of a step in the model; return its terms, averaged over parts."""
        terms: dict[str, Tensor] = {}
        parts = self.stage.accumulate
        for part in range(parts):
            last = part + 1 == parts  # only then are gradients averaged over processes
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                values = self.learner.terms(self.model, number, part)
                self.accelerator.backward(torch.stack(list(values.values())).sum() / parts)
            for name, value in values.items():
                terms[name] = terms.get(name, 0.0) + value.detach() / parts
        return terms

    def _means(self, terms: dict[str, Tensor], done: int) -> dict[str, float]:
        """Return the terms of a step averaged over processes: the only wait for the device."""
        values = self.accelerator.reduce(torch.stack(list(terms.values())), "mean").tolist()
        means = dict(zip(terms, values, strict=True))
        if not all(map(math.isfinite, values)):
            listed = ", ".join(f"{name} {value}" for name, value in means.items())
            raise NetspaceError(f"the loss is not finite at {self._where(done)} ({listed}): lower the learning rate")
        return means

    def _where(self, done: int) -> str:
        return f"step {done}" + (f" of stage {self.index + 1}" if self.multi_stage else "")

    def _is_finite(self) -> bool:
        """Return whether the last step's terms in this process and the weights after it are finite."""
        return all(
            bool(torch.isfinite(each).all()) for each in (*self.terms.values(), *self.learner.model.parameters())
        )

    def _validate(self, done: int) -> str:
        """Record a validation of the weights, or of their average, and save them if they are best; return a note."""
        learner = self.learner
        with nullcontext() if self.average is None else self.average.applied_to(learner.model):
            result = learner.validate()
        self._record(done, **result.figures)
        (score,) = broadcast_object_list([result.score])  # the main process decides for all
        if score > self.score:
            self.score = score
            learner.save_best(learner.model.state_dict() if self.average is None else self.average.values)
        return result.note

    def _record(self, done: int, **values: float | None) -> None:
        if self.main:
            self.metrics.write(**({"stage": self.index} if self.multi_stage else {}), step=done, **values)
        self.accelerator.log(values, step=self.steps_before + done)

    def _save(self, done: int) -> None:
        state = {
            "stage": self.index,
            "step": done,
            "score": self.score,
            "model": self.learner.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.values,
            "learner": self.learner.state(),
        }
        write_torch(self.last, state)

    def _checkpoint(self) -> dict[str, Any]:
        """Read the last checkpoint; return an empty dictionary if there is none."""
        checkpoint = read_torch(self.last) if self.last.exists() else {}
        if isinstance(checkpoint, dict) and checkpoint.keys() in (CHECKPOINT_KEYS, set()):
            return checkpoint
        held = ", ".join(sorted(map(str, checkpoint))) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise NetspaceError(
            f"{self.last} was expected to hold {', '.join(sorted(CHECKPOINT_KEYS))}, but holds {held}: another version wrote "
            "it; choose another --out"
        )
