"""Fitting a predictor to one network: reconstruction and distillation, in stages (NeRN, Sec. 3.2; decoupled NeRN, 2024).

Axes: N kernels, K their side, B images, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call

from netspace import losses
from netspace.compressed import Compressed
from netspace.config import Settings
from netspace.data import TaskData
from netspace.errors import NetspaceError
from netspace.kernels import Pointwise
from netspace.models.coordinates import embedded_size
from netspace.models.inr import PredictorConfig
from netspace.progress import progress
from netspace.runtime import generator, read_torch, write_torch
from netspace.training.optimizers import Optimizer, OptimizerConfig
from netspace.training.sources import CACHE_BYTES, Images
from netspace.training.steps import half

CHECKPOINT_EVERY = 30.0  # seconds
WORST = -float("inf"), -float("inf")  # validation accuracy, and the relative error's negative
PIECE = 1 << 12  # coordinates that are predicted at once where nothing is learnt from them


class StageConfig(Settings):
    """One stage of the fit, with an optimiser of its own."""

    steps: int = Field(8_000, ge=1)
    rounds: int = Field(1, ge=1)  # of so many steps; each after the first fits what the one before gave ('progressive')
    reconstruction: float = Field(1.0, ge=0)  # weight of Eq. 3
    distillation: float = Field(0.0, ge=0)  # of Eq. 5
    features: float = Field(0.0, ge=0)  # of Eq. 4
    inputs: Literal["task", "noise"] = "task"  # what is shown to the networks; noise: U[-1, 1], no data
    images: int = Field(256, ge=1)  # in a batch
    kernels: int = Field(4096, ge=1)  # that gradients flow through in a step
    sampling: Literal["all", "layer", "uniform", "weighted"] = "weighted"  # how they are drawn
    uniform: float = Field(0.8, ge=0, le=1)  # p_uni: share of steps that 'weighted' draws uniformly
    optimizer: OptimizerConfig = OptimizerConfig(name="muon", learning_rate=2e-3, muon_rate=0.02, schedule="cosine")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.reconstruction + self.distillation + self.features:
            raise ValueError("all terms of a stage are 0")
        return self

    @property
    def runs_networks(self) -> bool:
        """Whether the networks themselves are run."""
        return self.distillation + self.features > 0


class FitConfig(Settings):
    """How a network is represented."""

    seed: int = 0
    layers: tuple[str, ...] = ()  # patterns of the weights that are; none: all convolutions
    pointwise: Pointwise = "centre"  # how 1x1 convolutions are taken; tiles: as matrices, K * K times fewer coordinates
    side: int | None = Field(None, ge=1)  # K, larger convolutions left out; None: the largest's, 3 for matrices alone
    order: Literal["none", "in-filter", "cross-filter"] = "cross-filter"
    norms: bool = True  # filters in units of their norm, which is kept beside: as many values as a batch norm's scale
    predictor: PredictorConfig = PredictorConfig()
    stages: tuple[StageConfig, ...] = (StageConfig(),)
    validate_every: int = Field(500, ge=1)  # steps
    precision: Literal["float32", "bf16"] = "float32"  # of the networks that are run
    predictor_precision: Literal["float32", "bf16"] = "float32"  # of the predictor's steps; it is validated in float32


@dataclass
class Original:
    """The network that is represented, and what it is run with where that is known."""

    state: dict[str, Tensor]
    module: nn.Module | None = None
    task: TaskData | None = None
    input_shape: tuple[int, ...] | None = None  # of one input, without the batch axis


class Fit:
    """Fits a predictor, stage by stage; keeps the best by validation."""

    def __init__(
        self, config: FitConfig, compressed: Compressed, original: Original, device: torch.device | str = "cpu"
    ) -> None:
        self.config, self.compressed, self.original, self.device = config, compressed, original, torch.device(device)
        self.coordinates = compressed.kernels.coordinates().to(device)
        self.wanted = compressed.targets(original.state).to(device)  # (N, K * K), of the network itself
        self.target = self.wanted  # what is fitted: that, or what the round before gave
        self.mask = compressed.kernels.mask()[compressed.places].flatten(1).float().to(device)
        self.state = {name: value.to(device) for name, value in original.state.items()}
        compressed.predictor.to(device)
        if original.module is not None:
            original.module.to(device)
        size = 4 * len(self.coordinates) * embedded_size(compressed.predictor.config.embedding)
        self.embedded = None if size > CACHE_BYTES else compressed.predictor.embedding(self.coordinates)
        self.answers: Tensor | None = None  # the network's to all images, NaN where it was not asked yet
        self.norm = (self.target * self.mask).norm(dim=1).cpu()
        self.best: dict[str, Tensor] = {}
        self.best_score = WORST
        self.curve: list[dict[str, Any]] = []
        compressed.predictor.match(self.coordinates, self.target)

    def run(self, checkpoint: Path) -> list[dict[str, Any]]:
        """All stages; returns the course of validation. Goes on from the checkpoint if there is one."""
        held = dict(read_torch(checkpoint)) if checkpoint.exists() else {}
        stages = [(stage, number) for stage in self.config.stages for number in range(stage.rounds)]
        total = sum(stage.steps for stage, _ in stages)
        with progress("fit", total, "steps") as bar:
            done = 0
            for place, (stage, number) in enumerate(stages):
                if held and place < int(held["stage"]):
                    done += stage.steps
                    continue
                if held and place == int(held["stage"]):
                    self._take_back(held)
                elif number > 0:  # progressive: what the round before gave is the target of this
                    self._use_best()
                    self.target = self._all().detach()
                elif place > 0:
                    self._use_best()
                optimizer = Optimizer(self.compressed.predictor, stage.optimizer, stage.steps)
                start = 0
                if held and place == int(held["stage"]):
                    optimizer.load_state_dict(held["optimizer"])
                    start = int(held["step"])
                bar.begin_at(done + start)
                self._stage(stage, place, start, optimizer, checkpoint, bar.advance)
                done += stage.steps
                held = {}
        self._use_best()
        self.compressed.predictor.cpu()
        return self.curve

    def _stage(
        self,
        stage: StageConfig,
        place: int,
        start: int,
        optimizer: Optimizer,
        checkpoint: Path,
        advance: Callable[[float, str], None],
    ) -> None:
        saved = time.monotonic()
        images = None
        if stage.runs_networks and stage.inputs == "task":
            assert self.original.task is not None
            images = Images(self.original.task, self.config.seed + place)
        if start == 0:
            self.best_score = WORST  # of this stage: what it is for may cost what the one before was for
            self._validate(place, 0)
        for number in range(start, stage.steps):
            chosen = self._chosen(stage, place, number)
            loss = self._loss(stage, place, number, chosen, images)
            loss.backward()
            optimizer.step(number)
            done, note = number + 1, ""
            if done % self.config.validate_every == 0 or done == stage.steps:
                if not torch.isfinite(loss):
                    raise NetspaceError(
                        f"the loss is not finite at step {done} of stage {place + 1}: lower the learning rate"
                    )
                note = self._validate(place, done)
            if time.monotonic() - saved > CHECKPOINT_EVERY:
                self._save(checkpoint, place, done, optimizer)
                saved = time.monotonic()
            advance(1, note)

    def _chosen(self, stage: StageConfig, place: int, number: int) -> Tensor | None:
        """The kernels that gradients flow through in a step; None for all (NeRN, Sec. 3.2, Stochastic sampling)."""
        count = len(self.target)
        if stage.sampling == "all" or (stage.kernels >= count and stage.sampling != "layer"):
            return None
        random = generator(self.config.seed, 31, place, number)
        if stage.sampling == "layer":
            counts = self.compressed.kernels.counts
            layer = int(torch.randint(len(counts), (), generator=random))
            first = sum(counts[:layer])
            return torch.arange(first, first + counts[layer], device=self.device)
        if stage.sampling == "weighted" and float(torch.rand((), generator=random)) >= stage.uniform:
            able = min(stage.kernels, int(self.norm.count_nonzero()))
            drawn = torch.multinomial(self.norm, able, generator=random) if able else torch.arange(0)
        else:
            drawn = torch.randperm(count, generator=random)[: stage.kernels]
        return drawn.to(self.device, non_blocking=True)

    def _loss(
        self, stage: StageConfig, place: int, number: int, chosen: Tensor | None, images: Images | None
    ) -> Tensor:
        rows = slice(None) if chosen is None else chosen
        with half(self.config.predictor_precision, self.device):
            values = self._predicted(rows)
        values = values.float()
        loss = torch.zeros((), device=self.device)
        if stage.reconstruction:
            away = losses.reconstruction_loss(values, self.target[rows], self.mask[rows])
            loss = loss + stage.reconstruction * away
        if not stage.runs_networks:
            return loss
        whole = values
        if chosen is not None:
            with torch.no_grad(), half(self.config.precision, self.device):
                rest = self._all().to(values.dtype)
            whole = rest.index_copy(0, chosen, values)
        places = None
        if images is not None:
            shown, places = images.take(number, stage.images)
            places = places if images.fixed is not None else None
        else:
            shape = (stage.images, *self._input_shape())
            noise = torch.rand(shape, generator=generator(self.config.seed, 37, place, number))
            shown = 2 * noise.to(self.device) - 1
        features = stage.features > 0
        with half(self.config.precision, shown.device):
            shown = self._quick(shown)
            told, maps = self._told(shown, None if features else places, features)
            weights = {name: self._quick(value) for name, value in self.compressed.weights(whole).items()}
            found, seen = self._run({**self.state, **weights}, shown, features)
        if stage.distillation:
            loss = loss + stage.distillation * losses.prediction_loss(found, told, 1.0)
        if features:
            loss = loss + stage.features * losses.feature_loss(seen, maps)
        return loss

    def _quick(self, values: Tensor) -> Tensor:
        """What convolutions in half precision are fastest with; as it was in float32."""
        if self.config.precision != "bf16":
            return values
        values = values.bfloat16()
        return values.contiguous(memory_format=torch.channels_last) if values.dim() == 4 else values

    @torch.no_grad()
    def _told(self, shown: Tensor, places: Tensor | None, features: bool) -> tuple[Tensor, list[Tensor]]:
        """What `_run` says of the network itself; logits for training images at `places` (B,) are remembered."""
        if places is None:
            return self._run(self.state, shown, features)
        if self.answers is not None and not (known := self.answers[places]).isnan().any():
            return known, []
        logits, _ = self._run(self.state, shown, False)
        assert self.original.task is not None
        count = len(self.original.task.train)
        if self.answers is None and 4 * count * logits.shape[1] <= CACHE_BYTES:
            self.answers = torch.full((count, logits.shape[1]), torch.nan, device=self.device)
        if self.answers is not None:
            self.answers[places] = logits.float()
        return logits, []

    def _run(self, state: dict[str, Tensor], shown: Tensor, features: bool) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, C) of the network with a state, and the outputs of the layers that are represented."""
        module, maps = self.original.module, []
        assert module is not None
        with ExitStack() as hooks:
            for layer in self.compressed.kernels.layers if features else ():
                held = module.get_submodule(layer.name.rpartition(".")[0])
                handle = held.register_forward_hook(lambda _module, _inputs, output: maps.append(output))
                hooks.callback(handle.remove)
            logits: Tensor = functional_call(module, state, (shown,))
        return logits, maps

    def _predicted(self, rows: slice | Tensor) -> Tensor:
        """Values (n, K * K) of chosen coordinates."""
        predictor = self.compressed.predictor
        return (
            predictor(self.coordinates[rows]) if self.embedded is None else predictor.of_embedded(self.embedded[rows])
        )

    def _all(self) -> Tensor:
        count = len(self.coordinates)
        return torch.cat([self._predicted(slice(start, start + PIECE)) for start in range(0, count, PIECE)])

    @torch.no_grad()
    def _validate(self, place: int, step: int) -> str:
        """Notes the error of all weights and, where there is data, accuracy on validation images; keeps the best."""
        values = self._all()
        error = float(((values - self.wanted) * self.mask).norm() / (self.wanted * self.mask).norm())
        record: dict[str, Any] = {"stage": place, "step": step, "relative_error": error, "accuracy_val": None}
        right, note = 0.0, f"relative error {error:.3f}"
        task = self.original.task
        if task is not None and self.original.module is not None:
            state = {**self.state, **self.compressed.weights(values)}
            found = sum(
                int((self._run(state, task.normalise(pixels), False)[0].argmax(-1) == labels).sum())
                for pixels, labels in task.batches(task.val, 512)
            )
            right = record["accuracy_val"] = found / len(task.val)
            note += f", val {100 * right:.1f} %"
        self.curve.append(record)
        if (right, -error) > self.best_score:  # of equally accurate ones, as at chance, the nearer
            self.best_score = right, -error
            self.best = {name: value.clone() for name, value in self.compressed.predictor.state_dict().items()}
        return note

    def _input_shape(self) -> tuple[int, ...]:
        assert self.original.input_shape is not None
        return self.original.input_shape

    def _use_best(self) -> None:
        if self.best:
            self.compressed.predictor.load_state_dict(self.best)

    def _save(self, path: Path, place: int, step: int, optimizer: Optimizer) -> None:
        held = {"stage": place, "step": step, "optimizer": optimizer.state_dict(), "curve": self.curve}
        model = self.compressed.predictor.state_dict()
        write_torch(path, {**held, "model": model, "best": self.best, "score": self.best_score, "target": self.target})

    def _take_back(self, held: dict[str, Any]) -> None:
        self.compressed.predictor.load_state_dict(held["model"])
        self.best, self.best_score, self.curve, self.target = held["best"], held["score"], held["curve"], held["target"]
        self.target = self.target.to(self.device)


@torch.no_grad()
def answers_of(module: nn.Module, state: dict[str, Tensor], task: TaskData, split: str) -> Tensor:
    """Logits (N, C) of a network for all images of a split."""
    batches = task.batches(task.split(split), 512)
    return torch.cat([functional_call(module, state, (task.normalise(pixels),)).float() for pixels, _ in batches])
