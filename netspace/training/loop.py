"""The one training loop: stages of steps, validation, checkpoints, records, resuming, Ctrl-C."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list
from torch import Tensor, nn

from netspace.distributed import DAYS
from netspace.errors import NetspaceError, Stopped
from netspace.io import going_on_from, read_torch, write_torch
from netspace.progress import Progress, progress
from netspace.run_folder import Metrics
from netspace.training.optimizers import Average, Optimizer, OptimizerConfig


class Stopping:
    """Inside the block a first Ctrl-C is noted in `asked` and the training goes on; a second one interrupts it at once.

    Where Python does not interrupt on Ctrl-C anyway, in other threads and under other handlers, nothing is changed.
    """

    def __init__(self, able: bool = True) -> None:
        """Not `able`: as one of several processes, which would stop at different steps."""
        main = threading.current_thread() is threading.main_thread()
        self.able = able and main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        self.asked = False

    def __enter__(self) -> Self:
        if self.able:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.able:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("stopping after this step; Ctrl-C again stops at once", file=sys.stderr, flush=True)


CHECKPOINT_EVERY = 30.0  # seconds


WORST = (-math.inf,)


HELD = {"stage", "step", "score", "model", "optimizer", "average", "learner"}  # in a checkpoint


@dataclass(frozen=True)
class Stage:
    """A stretch of steps, with an optimiser of its own."""

    steps: int
    optimizer: OptimizerConfig
    accumulate: int = 1  # parts of a step, one after another


@dataclass(frozen=True)
class Validation:
    """What a validation found."""

    figures: Mapping[str, float | None]  # for the records
    score: tuple[float, ...]  # the highest of a stage is kept
    note: str  # for the progress bar


class Learner(ABC):
    """What the loop trains."""

    name: str  # for the progress bar
    model: nn.Module
    stages: Sequence[Stage]
    log_every: int  # steps
    validate_every: int  # steps
    validates_first = False  # before the first step of a stage too

    def begin(self, place: int) -> None:  # noqa: B027 - most have nothing to do then
        """Stage `place` begins; what is gone on with is taken back afterwards."""

    @abstractmethod
    def terms(self, model: nn.Module, number: int, part: int) -> dict[str, Tensor]:
        """The terms of a part of step `number`, for this process's share; their sum is minimised.

        The mean over parts and processes is the whole step's. `model` is `self.model`, in what shares gradients.
        """

    @abstractmethod
    def validate(self) -> Validation:
        """How good `self.model` is."""

    @abstractmethod
    def keep(self, weights: dict[str, Tensor]) -> None:
        """Keeps the weights of the best validation of the stage so far."""

    def state(self) -> dict[str, Any]:
        """What going on needs beside model and optimiser."""
        return {}

    def take_back(self, state: dict[str, Any]) -> None:  # noqa: B027 - as `state`
        """Goes on from `state()`."""


def processes(device: torch.device, **more: Any) -> tuple[Accelerator, torch.device]:
    """accelerate's view of the processes, and this one's device: `device`, or one of its own where there are several."""
    before = AcceleratorState._shared_state.get("device", device)
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 and before.type != device.type:
        AcceleratorState._reset_state(reset_partial_state=True)  # it would insist on the device it was first made for
    patient = InitProcessGroupKwargs(timeout=DAYS)
    accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[patient], **more)
    return accelerator, accelerator.device if accelerator.num_processes > 1 else device


class Loop:
    """Takes a learner through its stages, from its last checkpoint where there is one."""

    def __init__(self, learner: Learner, accelerator: Accelerator, metrics: Path, last: Path) -> None:
        """Records go to `metrics`, a line each, and the checkpoint is `last`."""
        self.learner, self.accelerator, self.last = learner, accelerator, last
        self.main, self.metrics = accelerator.is_main_process, Metrics(metrics)
        self.several = len(learner.stages) > 1
        self.model = accelerator.prepare_model(learner.model, device_placement=False)
        self.stopping = Stopping(able=False)

    def run(self) -> None:
        """All stages.

        Raises `NetspaceError` where a loss is not finite, or for a checkpoint of something else, and `Stopped` after Ctrl-C,
        when a checkpoint of the last whole step is written.
        """
        stages, held = self.learner.stages, self._held()
        with going_on_from(self.last):
            reached = (int(held["stage"]), int(held["step"])) if held else (0, -1)
        self.accelerator.wait_for_everyone()  # until all have read what one will write
        if self.main:
            self.metrics.keep(lambda record: (record.get("stage", 0), record["step"]) <= reached)
        several = self.accelerator.num_processes > 1
        with (
            Stopping(able=not several) as self.stopping,
            progress(self.learner.name, sum(stage.steps for stage in stages), "steps") as bar,
        ):
            for place in range(reached[0], len(stages)):
                start, held = self._begin(place, held), {}
                bar.begin_at(self.before + start)
                self._steps(start, bar)
            if self.stopping.asked:  # in the last step: what would follow the training is not begun
                self._stop(self.stage.steps)
        self.accelerator.wait_for_everyone()

    def _begin(self, place: int, held: dict[str, Any]) -> int:
        """Begins a stage, or goes on with it from a checkpoint; returns the step it begins at."""
        learner, model = self.learner, self.learner.model
        self.place, self.stage = place, learner.stages[place]
        self.before = sum(stage.steps for stage in learner.stages[:place])
        learner.begin(place)
        if held:
            with going_on_from(self.last):
                model.load_state_dict(held["model"])
                learner.take_back(held["learner"])
        decay = self.stage.optimizer.ema
        self.optimizer = Optimizer(model, self.stage.optimizer, self.stage.steps)
        self.average = Average(model, decay) if decay else None
        self.score: tuple[float, ...] = WORST
        if held:
            with going_on_from(self.last):
                self.optimizer.load_state_dict(held["optimizer"])
                self.score = tuple(float(value) for value in held["score"])
                if self.average is not None:
                    self.average.load(held["average"])
                return int(held["step"])
        if learner.validates_first:
            self._validate(0)
        return 0

    def _steps(self, start: int, bar: Progress) -> None:
        logged, saved = start, time.monotonic()
        clock = saved
        for number in range(start, self.stage.steps):
            if self.stopping.asked:
                self._stop(number)
            terms = self._gradients(number)
            factor = self.optimizer.step(number)
            if self.average is not None:
                self.average.update(self.learner.model, number)
            done, note = number + 1, ""
            last = done == self.stage.steps
            if done % self.learner.log_every == 0 or last:
                means = self._means(terms, done)
                now = time.monotonic()
                rate = (done - logged) / max(now - clock, 1e-9)
                logged, clock = done, now
                self._record(done, rate=factor, steps_a_second=rate, **means)
            if done % self.learner.validate_every == 0 or last:
                note = self._validate(done)
            if self.main and (last or time.monotonic() - saved > CHECKPOINT_EVERY):
                self._save(done)
                saved = time.monotonic()
            bar.advance(1, note)

    def _stop(self, done: int) -> NoReturn:
        """Saves what `done` steps of the stage have reached, and ends."""
        self._save(done)
        stage = f" of stage {self.place + 1} of {len(self.learner.stages)}" if self.several else ""
        raise Stopped(
            f"stopped after step {done} of {self.stage.steps}{stage}, which is saved in {self.last}: --resume (for quickstart, "
            "the same command) goes on from there"
        )

    def _gradients(self, number: int) -> dict[str, Tensor]:
        """Gradients of a step, in the model; its terms, averaged over parts."""
        terms: dict[str, Tensor] = {}
        parts = self.stage.accumulate
        for part in range(parts):
            early = part + 1 < parts  # gradients meet those of other processes after the last part
            with self.accelerator.no_sync(self.model) if early else nullcontext():
                found = self.learner.terms(self.model, number, part)
                self.accelerator.backward(torch.stack(list(found.values())).sum() / parts)
            for name, value in found.items():
                terms[name] = terms.get(name, 0.0) + value.detach() / parts
        return terms

    def _means(self, terms: dict[str, Tensor], done: int) -> dict[str, float]:
        """The terms of a step over all processes: the one wait for the device."""
        values = self.accelerator.reduce(torch.stack(list(terms.values())), "mean").tolist()
        means = dict(zip(terms, values, strict=True))
        if not all(map(math.isfinite, values)):
            told = ", ".join(f"{name} {value}" for name, value in means.items())
            where = f"step {done}" + (f" of stage {self.place + 1}" if self.several else "")
            raise NetspaceError(f"the loss is not finite at {where} ({told}): lower the learning rate")
        return means

    def _validate(self, done: int) -> str:
        """Notes what the weights are worth, averaged ones where there are, and keeps the best; returns a note for the bar."""
        learner = self.learner
        with nullcontext() if self.average is None else self.average.shown(learner.model):
            found = learner.validate()
        self._record(done, **found.figures)
        (score,) = broadcast_object_list([found.score])  # the main process decides for all
        if score > self.score:
            self.score = score
            learner.keep(learner.model.state_dict() if self.average is None else self.average.values)
        return found.note

    def _record(self, done: int, **values: float | None) -> None:
        if self.main:
            self.metrics.write(**({"stage": self.place} if self.several else {}), step=done, **values)
        self.accelerator.log(values, step=self.before + done)

    def _save(self, done: int) -> None:
        state = {
            "stage": self.place,
            "step": done,
            "score": self.score,
            "model": self.learner.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.values,
            "learner": self.learner.state(),
        }
        write_torch(self.last, state)

    def _held(self) -> dict[str, Any]:
        """The last checkpoint; empty where there is none."""
        held = read_torch(self.last) if self.last.exists() else {}
        if not isinstance(held, dict) or (held and held.keys() != HELD):
            raise NetspaceError(
                f"{self.last} was expected to hold {', '.join(sorted(HELD))}, but holds {', '.join(sorted(map(str, held))) if isinstance(held, dict) else type(held).__name__}: "
                "another version wrote it; choose another --out"
            )
        return held
