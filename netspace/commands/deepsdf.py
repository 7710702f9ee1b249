"""The baseline `deepsdf` of `netspace eval`: an auto-decoder trained on the networks that a space of shapes was trained on.

Axes: N training networks, M members of a split, B points, R grid points along each side, E latent size.

It learns from what the target networks give, at points of the training split, and has a latent of the space's size and
as many parameters as the space's decoder; the space's encoder is not counted, as the auto-decoder has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float32
from torch import Tensor

from netspace import distributed as ranks
from netspace.config import changed, read_back
from netspace.errors import NetspaceError, UsageError
from netspace.io import hash_tensors, read_tensors, write_tensors
from netspace.models.auto_decoder import AutoDecoder, hidden_size
from netspace.networks.family import Networks
from netspace.run_folder import RunFolder, provenance, read_metrics
from netspace.space import Space
from netspace.streams import Stream, generator
from netspace.surfaces import grid_values
from netspace.tasks import Task
from netspace.training.deepsdf import VALIDATED, DeepSdfConfig, DeepSdfLearner, field_values, fit_latents
from netspace.training.descent import OwnSamples
from netspace.training.loop import Loop, make_accelerator
from netspace.training.validation import slices

DEEPSDF = "deepsdf"  # the folder in a run folder, and the kind of run that it holds
GRID_LATENTS = 4  # whose values on a grid are computed at once
GRID_CHUNK = 1 << 12  # points of each of these


@dataclass(frozen=True)
class Bank:
    """The networks that a space was trained on, of all its architectures, and those of a split."""

    train: Networks
    train_seeds: Tensor  # (N,)
    members: Networks
    member_seeds: Tensor  # (M,)


@dataclass(frozen=True, eq=False)
class FittedFields:
    """An auto-decoder with the latents of a split's members."""

    model: AutoDecoder
    latents: Tensor  # (M, E)
    steps: int  # of training

    @property
    def parameters(self) -> int:
        """The decoder's parameters; latents are not counted."""
        return sum(value.numel() for value in self.model.parameters()) - self.model.latents.numel()

    def outputs(self, task: Task, split: str, seeds: Tensor) -> Tensor:
        """Return the values (M, B, C) at all points of a split of members with `seeds` (M,), on the CPU."""
        points = task.inputs(split, slice(None), seeds).expand(len(self.latents), -1, -1)
        return field_values(self.model, self.latents, points).cpu()

    def grid(self, rows: Tensor, resolution: int) -> Float32[Tensor, "M R R R"]:
        """Return the values of the members in `rows` (M,) on the grid of `netspace.surfaces.grid_values`."""
        latents = self.latents[rows.to(self.latents.device)]
        pieces = [
            grid_values(self.model, latents[some], resolution, GRID_CHUNK)
            for some in slices(len(latents), GRID_LATENTS)
        ]
        return torch.cat(pieces)


def deepsdf(
    space: Space, bank: Bank, task: Task, zoo_hash: str, split: str, config: DeepSdfConfig | None = None
) -> FittedFields:
    """Train an auto-decoder, or take the one that the run folder holds, and find the latents of a split's members.

    It is kept in `deepsdf/` of the run, where an interrupted training continues. One of other settings, another zoo or
    another space is replaced.

    Raises:
        UsageError: the networks are no shapes.
        NetspaceError: another process trains it, or its files are damaged.
    """
    check_deepsdf(task)
    assert space.run is not None
    config = config or DeepSdfConfig()
    folder = RunFolder(space.run / DEEPSDF, ["netspace", "eval", "--deepsdf", str(space.run)], DEEPSDF)
    origin = {"run_hash": hash_tensors(*space.model.state_dict().values()), "zoo_hash": zoo_hash}
    train, val = _samples(bank, task)
    with folder.locked("trained", ranks.is_main()):
        text = ranks.chosen_by_main(lambda: _begun(config, folder, origin, train, val, space, task).model_dump_json())
        settings = DeepSdfConfig.model_validate_json(text)
        model = _fresh(settings, len(train), space, task)
        _train(settings, model, train, val, folder)
        latents = _latents(model, bank, task, split, settings, folder)
    assert settings.steps is not None
    return FittedFields(model, latents, settings.steps)


def check_deepsdf(task: Task) -> None:
    """Raise `UsageError` for a task whose networks are no shapes."""
    if not task.surfaces:
        raise UsageError(f"the baseline deepsdf was asked for, but networks of {task.name} are no shapes: leave it out")


def _begun(
    config: DeepSdfConfig,
    folder: RunFolder,
    origin: dict[str, str],
    train: OwnSamples,
    val: OwnSamples,
    space: Space,
    task: Task,
) -> DeepSdfConfig:
    """Return the settings of the training that the folder holds, or begin another one there."""
    before = _resolved(config, folder, origin)
    if before is not None:
        return before
    config = _sized(config, space, task)
    if config.steps is None:
        trial = config.model_copy(update={"steps": 1})
        learner = DeepSdfLearner(trial, _fresh(trial, len(train), space, task), train, val, folder)
        config = config.model_copy(update={"steps": _steps(learner, space)})
    _forget(folder)
    folder.begin(config, provenance(config.seed, **origin))
    return config


def _samples(bank: Bank, task: Task) -> tuple[OwnSamples, OwnSamples]:
    """Return what training networks give at their points, and what the first of them give at points for validation."""
    train = OwnSamples.of_networks(bank.train, bank.train_seeds, task, "train")
    some = slice(VALIDATED)
    return train, OwnSamples.of_networks(bank.train[some], bank.train_seeds[some], task, "val")


def _resolved(config: DeepSdfConfig, folder: RunFolder, origin: dict[str, str]) -> DeepSdfConfig | None:
    """Return the settings of the training that the folder holds; None if it holds none of these settings and networks."""
    if not folder.begun:
        return None
    before = read_back(DeepSdfConfig, folder.config)
    if (folder.origin.run_hash, folder.origin.zoo_hash) != (origin["run_hash"], origin["zoo_hash"]):
        return None
    open_settings = {name for name in ("steps", "hidden") if getattr(config, name) is None}
    old, new = (each.model_dump(mode="json", exclude=open_settings) for each in (before, config))
    return None if changed(old, new) else before


def _sized(config: DeepSdfConfig, space: Space, task: Task) -> DeepSdfConfig:
    """Return the settings with the hidden layers' size: that of as many parameters as the space's decoder."""
    if config.hidden is not None:
        return config
    parameters = sum(value.numel() for value in space.model.decoder.parameters())
    size = hidden_size(parameters, space.latent, config.layers, task.input_shape[0], task.num_outputs)
    return config.model_copy(update={"hidden": max(size, 4)})


def _fresh(config: DeepSdfConfig, shapes: int, space: Space, task: Task) -> AutoDecoder:
    assert config.hidden is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(config.seed, Stream.AUTO_DECODER).initial_seed())
        model = AutoDecoder(shapes, space.latent, config.hidden, config.layers, task.input_shape[0], task.num_outputs)
    return model.to(space.device)


def _steps(learner: DeepSdfLearner, space: Space) -> int:
    """Return how many steps take as long as the space's training took, or as many as it took if that is not known."""
    assert space.run is not None
    seconds = trained_seconds(RunFolder.of_space(space.run).metrics)
    return max(round(seconds / learner.seconds_a_step()), 1) if seconds else space.recipe.steps


def trained_seconds(metrics: Path) -> float:
    """Return how long a training took by its records, validations included; 0 if they do not say it."""
    seconds, before = 0.0, 0
    for record in read_metrics(metrics):
        speed = record.get("steps_a_second")
        if isinstance(speed, int | float) and speed > 0:
            seconds, before = seconds + (record["step"] - before) / speed, record["step"]
    return seconds


def _forget(folder: RunFolder) -> None:
    """Remove what a folder holds of another training."""
    for path in (folder.config, folder.path / "provenance.json", folder.metrics, folder.last, folder.best):
        path.unlink(missing_ok=True)


def _train(config: DeepSdfConfig, model: AutoDecoder, train: OwnSamples, val: OwnSamples, folder: RunFolder) -> None:
    """Train, from the last checkpoint on; the model has the best weights then."""
    accelerator, _ = make_accelerator(model.latents.device)
    learner = DeepSdfLearner(config, model, train, val, folder, accelerator.process_index, accelerator.num_processes)
    Loop(learner, accelerator, folder.metrics, folder.last).run()
    try:
        model.load_state_dict(folder.load_best())
    except RuntimeError:
        raise NetspaceError(
            f"{folder.best} does not hold the auto-decoder of its settings: delete {folder.path} to train it again"
        ) from None
    model.eval().requires_grad_(False)


def _latents(
    model: AutoDecoder, bank: Bank, task: Task, split: str, config: DeepSdfConfig, folder: RunFolder
) -> Tensor:
    """Return the latents of a split's members: those that were found before, or new ones, which are kept."""
    path = folder.path / f"latents-{split}.safetensors"
    expected = {"decoder": hash_tensors(*model.state_dict().values()), "settings": config.model_dump_json()}
    if path.exists():
        tensors, notes = read_tensors(path)
        latents = tensors.get("latents", torch.empty(0))
        if expected.items() <= notes.items() and latents.shape == (len(bank.members), model.latents.shape[1]):
            return latents.to(model.latents.device)
    samples = OwnSamples.of_networks(bank.members, bank.member_seeds, task, "train")
    latents = fit_latents(model, samples, config)
    if ranks.is_main():
        write_tensors(path, {"latents": latents}, **expected)
    return latents
