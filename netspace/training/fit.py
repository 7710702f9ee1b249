"""Fitting a coordinate network to one network, in stages and rounds: reconstruction and distillation (NeRN, Sec. 3.3).

Axes: N kernels, K values of a kernel, B images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from netspace import losses
from netspace.errors import UsageError
from netspace.hardware import free_memory, send
from netspace.models.compressed import Compressed
from netspace.models.coordinate_network import Predictor
from netspace.networks.kernels import Kernels
from netspace.networks.state_dict import map_tensors, run_types, run_with_maps
from netspace.precision import Precision, choose
from netspace.run_folder import read_metrics
from netspace.streams import Stream, generator
from netspace.tasks import Classification
from netspace.training.batches import CACHE_BYTES, Images, RowCache, autocast
from netspace.training.loop import Learner, Loop, Stage, Validation, step_trial
from netspace.training.recipe import FitConfig, StageConfig, Teaches

CHUNK = 1 << 12  # coordinates whose kernels are predicted at once when no gradient is needed


@dataclass
class Original:
    """The network that is represented, and what it needs to run, if known."""

    state: dict[str, Tensor]
    module: nn.Module | None = None
    task: Classification | None = None
    input_shape: tuple[int, ...] | None = None  # of one input, without the batch axis
    # other networks of the task, by the names that stages use
    teachers: Mapping[str, Teaches] = field(default_factory=dict)


class NernStep:
    """The training step of one network's predictor (NeRN, Eq. 2). Processes divide the images of a batch among them."""

    def __init__(
        self,
        config: FitConfig,
        compressed: Compressed,
        original: Original,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.config, self.compressed, self.original, self.device = config, compressed, original, torch.device(device)
        self.own = slice(rank, None, world_size)  # this process's part of a batch of images
        self.predictor = compressed.predictor.to(device)
        self.coordinates = compressed.coordinates(device)
        self.kernels = compressed.targets(original.state).to(device)  # (N, K * K), of the network itself
        self.target = self.kernels  # what is fitted: the network's kernels, or the result of the round before
        kept = compressed.mask()
        self.mask = kept.float().to(device)  # (N, K * K): 1 for weights, without the zeros that the file keeps
        self.num_weights = int(kept.sum())  # over which Eq. 3 is a mean
        self.with_weights = kept.any(dim=1).nonzero().flatten()  # the kernels that have any
        self.matched = kept.to(device) if compressed.zeros else None  # the values whose spread first predictions have
        self.state = map_tensors(run_types(original.state, original.module), lambda value: value.to(device))
        self.fast_state = map_tensors(self.state, lambda value: self._fast(value) if value.dim() == 4 else value)
        if original.module is not None:
            original.module.to(device)
        self.teacher: Teaches | None = None  # whose logits are learnt; None: the network's own
        self.teacher_logits: RowCache | None = None
        self.maps: RowCache | None = None  # the network's own logits and feature maps
        self.teacher_and_pool: tuple[str | None, int | None] | None = None  # of the cached teacher logits
        self.pool: int | None = None  # of the cached maps
        self.norm = (self.target * self.mask).norm(dim=1).cpu()
        self.predictor.match(self.coordinates, self.target, self.matched)

    def reset_predictor(self, number: int) -> None:
        """Give the predictor new initial weights, which are the same for the same `number`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(self.config.seed, Stream.FIT_PREDICTOR, number).initial_seed())
            fresh = Predictor(self.predictor.config, self.target.shape[1])
        self.predictor.load_state_dict(fresh.state_dict())
        self.predictor.match(self.coordinates, self.target, self.matched)

    def begin(self, stage: StageConfig, number: int) -> None:
        """Prepare the steps of a stage, given its number among all stages and rounds."""
        self.stage, self.number, self.images = stage, number, None
        self.teacher = None if stage.teacher is None else self.original.teachers[stage.teacher]
        if stage.runs_networks and stage.inputs == "task":
            assert self.original.task is not None
            task = self.original.task if stage.pool is None else self.original.task.subset(stage.pool, self.config.seed)
            self.images = Images(task, self.config.seed + number)
            if self.teacher_and_pool != (stage.teacher, stage.pool):
                fits = self.images.fixed is not None and 4 * len(task.train) * task.num_outputs <= CACHE_BYTES
                self.teacher_logits = RowCache(len(task.train)) if fits else None
                self.teacher_and_pool = stage.teacher, stage.pool
            if self.pool != stage.pool:
                self.maps = RowCache(len(task.train)) if stage.pool is not None else None
                self.pool = stage.pool

    def __call__(self, model: nn.Module, number: int) -> dict[str, Tensor]:
        """Return the terms of step `number` of the stage for `model`: `self.predictor`, or its wrapper."""
        stage, chosen = self.stage, self.chosen(number)
        rows = slice(None) if chosen is None else chosen
        with autocast(self.config.predictor_precision, self.device):
            values = model(self.coordinates.take(rows))
        values, terms = values.float(), {}
        if not stage.runs_networks:  # other kernels need not be predicted: Eq. 3 is estimated
            error = losses.reconstruction_loss(values, self.target[rows], self.mask[rows], self.num_weights)
            return {"reconstruction": stage.reconstruction * error}
        whole = values
        if chosen is not None:
            with torch.no_grad(), autocast(self.config.precision, self.device):
                rest = self.all().to(values.dtype)
            whole = rest.index_copy(0, chosen, values)
        if stage.reconstruction:
            error = losses.reconstruction_loss(whole, self.target, self.mask)
            terms["reconstruction"] = stage.reconstruction * error
        inputs, index = self._inputs(number)
        with autocast(self.config.precision, inputs.device):
            inputs = self._fast(inputs)
            target_logits, target_maps, map_rows = self._targets(inputs, index)
            weights = map_tensors(self.compressed.weights(whole), self._fast)
            logits, maps = self.run({**self.state, **weights}, inputs, stage.features > 0)
        if stage.distillation:
            terms["distillation"] = stage.distillation * losses.prediction_loss(logits, target_logits, 1.0)
        if stage.features:
            terms["features"] = losses.feature_loss(maps, target_maps, stage.features, map_rows)
        return terms

    def chosen(self, number: int) -> Tensor | None:
        """Return the kernels that get gradients in a step; None for all (NeRN, Sec. 3.2, Stochastic sampling)."""
        stage, count = self.stage, len(self.target)
        if stage.sampling == "all" or (stage.kernels >= count and stage.sampling != "layer"):
            return None
        random = generator(self.config.seed, Stream.FIT_KERNELS, self.number, number)
        if stage.sampling == "layer":
            counts = self.compressed.kernels.counts
            layer = int(torch.randint(len(counts), (), generator=random))
            first = sum(counts[:layer])
            return torch.arange(first, first + counts[layer], device=self.device)
        by_norm = stage.sampling == "weighted" and float(torch.rand((), generator=random)) >= stage.uniform
        if by_norm and bool(self.norm.any()):
            drawn = torch.multinomial(self.norm, stage.kernels, replacement=True, generator=random)
        else:
            drawn = self.with_weights[torch.randperm(len(self.with_weights), generator=random)[: stage.kernels]]
        return send(drawn, self.device)

    def all(self) -> Tensor:
        """Return the predicted kernels (N, K * K) of all coordinates."""
        return torch.cat([self.predictor(piece) for piece in self.coordinates.split(CHUNK)])

    def run(self, state: dict[str, Tensor], inputs: Tensor, features: bool) -> tuple[Tensor, list[Tensor]]:
        """Return logits (B, C) of the network with a state and, with `features`, outputs of represented layers."""
        assert self.original.module is not None
        return run_with_maps(self.original.module, state, inputs, self.compressed.kernels.layers if features else ())

    @torch.no_grad()
    def measure(self) -> tuple[float, float | None]:
        """Return the relative error of all weights and, if there are data, accuracy on validation images."""
        values, task = self.all(), self.original.task
        error = float(((values - self.kernels) * self.mask).norm() / (self.kernels * self.mask).norm())
        if task is None or self.original.module is None:
            return error, None
        state = {**self.state, **self.compressed.weights(values)}
        right = sum(
            int((self.run(state, task.normalise(pixels), False)[0].argmax(-1) == labels).sum())
            for pixels, labels in task.batches(task.val, 512)
        )
        return error, right / len(task.val)

    def _inputs(self, number: int) -> tuple[Tensor, Tensor | None]:
        """Return a step's inputs (B, ...) and their indices in the training split, on the CPU; None if they change."""
        count, images = self.stage.images, self.images
        if images is None:
            assert self.original.input_shape is not None
            random = generator(self.config.seed, Stream.FIT_NOISE, self.number, number)
            noise = torch.rand((count, *self.original.input_shape), generator=random)[self.own]
            return 2 * send(noise, self.device) - 1, None
        inputs = images.take(number, count)[0][self.own]
        return inputs, images.indices(number, count)[self.own] if images.fixed is not None else None

    @torch.no_grad()
    def _targets(self, inputs: Tensor, index: Tensor | None) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Return the logits (B, C) to learn and, for features, the network's maps: of the batch, or tables and rows."""
        if not self.stage.features:
            return self._logits(inputs, index), [], None

        def compute() -> list[Tensor]:
            logits, maps = self.run(self.fast_state, inputs, True)
            return [logits, *maps]

        if index is None or self.maps is None:
            (logits, *maps), rows = compute(), None
        else:
            (table, *maps), rows = self.maps.take(index, compute)
            logits = table[rows]
        return logits if self.teacher is None else self._logits(inputs, index), maps, rows

    def _logits(self, inputs: Tensor, index: Tensor | None) -> Tensor:
        """Return the logits (B, C) of the teacher, or of the network itself if there is none."""

        def compute() -> list[Tensor]:
            logits = self.run(self.fast_state, inputs, False)[0] if self.teacher is None else self.teacher(inputs)
            return [logits.float()]

        if index is None or self.teacher_logits is None:
            return compute()[0]
        (table,), rows = self.teacher_logits.take(index, compute)
        return table[rows]

    def _fast(self, values: Tensor) -> Tensor:
        """Return values in the type and memory format in which convolutions are fastest under autocast."""
        if self.config.precision != "bf16":
            return values
        values = values.bfloat16()
        return values.contiguous(memory_format=torch.channels_last) if values.dim() == 4 else values


@torch.no_grad()
def check_pools(
    config: FitConfig, original: Original, kernels: Kernels, device: torch.device, processes: int = 1
) -> None:
    """Refuse a pool that cannot be cached: images are augmented, maps mix images, or there is too little memory.

    `config.precision` is the one that networks will run in; `processes` share the memory of this machine.

    Raises:
        UsageError: Names the stage, and what to do.
    """
    task = original.task
    for number, stage in enumerate(config.stages):
        if stage.pool is None or task is None or original.module is None:
            continue
        if task.crop_padding or task.flip:
            raise UsageError(
                f"stage {number} draws its images from a pool and caches what the network makes of them, but "
                f"{task.name} is augmented here (crop_padding, flip): leave out 'pool'"
            )
        if not stage.features:
            continue
        state = map_tensors(run_types(original.state, original.module), lambda value: value.to(device))
        image = task.normalise(task.train.images[:1]).to(device)
        with autocast(config.precision, device):
            _, maps = run_with_maps(original.module.to(device), state, image, kernels.layers)
        if any(len(each) != 1 for each in maps):
            raise UsageError(
                f"stage {number} caches feature maps of each image of its 'pool', but a layer of this network folds other "
                "axes into that of the images: leave out 'pool'"
            )
        size = sum(each.nbytes for each in maps)
        count = min(stage.pool, len(task.train))
        most = free_memory(device) // (2 * (1 if device.type == "cuda" else processes))
        if count * size > most:
            fewer = f"set its 'pool' to {most // size:,} or leave it out" if most >= size else "leave it out"
            raise UsageError(
                f"stage {number} caches the feature maps of the {count:,} images of its 'pool', "
                f"{count * size / 2**30:.1f} GiB, where half of the free memory is {most / 2**30:.1f} GiB for a process: {fewer}"
            )


class Fit(Learner):
    """A predictor in training; each stage begins with the best weights, by validation, of the one before."""

    name, validates_first = "fit", True

    def __init__(
        self,
        config: FitConfig,
        compressed: Compressed,
        original: Original,
        accelerator: Accelerator,
        device: torch.device | str = "cpu",
    ) -> None:
        config = with_precision(config, compressed, original, torch.device(device), accelerator)
        self.precision = {name: getattr(config, name) for name in ("precision", "predictor_precision")}
        self.accelerator, self.model = accelerator, compressed.predictor
        self.log_every, self.validate_every = config.log_every, config.validate_every
        self.rounds = [(stage, number) for stage in config.stages for number in range(stage.rounds)]
        self.stages = [Stage(stage.steps, stage.optimizer) for stage, _ in self.rounds]
        ranks = accelerator.process_index, accelerator.num_processes
        self.step = NernStep(config, compressed, original, device, *ranks)
        self.best: dict[str, Tensor] = {}

    def run(self, out: Path) -> list[dict[str, Any]]:
        """Train all stages, leave the best weights of the last one, and return the records of validation.

        Continue from the last checkpoint in the folder `out`, if there is one.
        """
        Loop(self, self.accelerator, out / "metrics.jsonl", out / "last.pt").run()
        self._use_best()
        self.model.cpu()
        records = read_metrics(out / "metrics.jsonl")
        return [{"stage": 0, **record} for record in records if "relative_error" in record]

    def begin(self, stage: int) -> None:
        """Begin with the best so far; after the first round it is the target of a new predictor ('progressive')."""
        config, number = self.rounds[stage]
        self._use_best()
        if number > 0:
            self.step.target = self.step.all().detach()
            self.step.reset_predictor(stage)
        self.step.begin(config, stage)

    def terms(self, model: nn.Module, number: int, part: int) -> dict[str, Tensor]:
        """Return the terms of NeRN, Eq. 2."""
        return self.step(model, number)

    def validate(self) -> Validation:
        """Measure the error of all weights and, if there are data, accuracy on validation images."""
        error, accuracy = self.step.measure()
        note = f"relative error {error:.3f}" + ("" if accuracy is None else f", val {100 * accuracy:.1f} %")
        score = accuracy or 0.0, -error  # of equally accurate predictors, as at chance, the one with the smaller error
        return Validation({"relative_error": error, "accuracy_val": accuracy}, score, note)

    def save_best(self, weights: dict[str, Tensor]) -> None:
        """Save the weights for the next stage, or as the result."""
        self.best = {name: value.clone() for name, value in weights.items()}

    def state(self) -> dict[str, Any]:
        """Return the best weights and the target."""
        return {"best": self.best, "target": self.step.target}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.best, self.step.target = state["best"], state["target"].to(self.step.device)

    def _use_best(self) -> None:
        if self.best:
            self.model.load_state_dict(self.best)


def with_precision(
    config: FitConfig, compressed: Compressed, original: Original, device: torch.device, accelerator: Accelerator
) -> FitConfig:
    """Return the settings with the precisions that are fastest for a step here, where they are 'auto'.

    The main process decides for all; its trial is a step of few images and kernels.
    """
    if accelerator.is_main_process:
        config = _timed_precision(config, compressed, original, device)
    (config,) = broadcast_object_list([config])
    return config


def _timed_precision(config: FitConfig, compressed: Compressed, original: Original, device: torch.device) -> FitConfig:
    stages = [stage for stage in config.stages if stage.runs_networks] or list(config.stages)
    few = {"images": min(stages[0].images, 64), "kernels": min(stages[0].kernels, 1024), "pool": None}
    stage = stages[0].model_copy(update=few)
    requested: dict[str, Precision] = {"predictor_precision": config.predictor_precision}
    if stage.runs_networks:
        requested["precision"] = config.precision
    predictor = compressed.predictor
    before = {name: value.clone() for name, value in predictor.state_dict().items()}

    def make(precision: dict[str, str]) -> Callable[[], dict[str, Tensor]]:
        step = NernStep(config.model_copy(update=precision), compressed, original, device)
        step.begin(stage, 0)
        return lambda: step(predictor, 0)

    shapes = sorted((name, tuple(value.shape)) for name, value in original.state.items())
    chosen = choose(f"fit {shapes} {config.predictor} {stage}", requested, step_trial(make, predictor), device)
    predictor.load_state_dict(before)
    return config.model_copy(update={"precision": "float32", **chosen})
