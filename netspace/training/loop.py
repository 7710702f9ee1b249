"""The one training loop: steps, validation, checkpoints, records; from a zoo and a recipe to a run folder.

Every step's batch depends on (seed, step) alone, so a run that was stopped, or killed, goes on to the same weights
as one that was not. Under `accelerate launch` the networks of a batch are shared out between the processes.
"""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from netspace import archs
from netspace.config import changed, read_back, to_yaml
from netspace.data import DataConfig, TaskData, load
from netspace.errors import NetspaceError, UsageError
from netspace.functional import NetBatch
from netspace.models.autoencoder import AutoEncoder, build_autoencoder
from netspace.prep import unpack
from netspace.progress import progress
from netspace.runtime import Metrics, alone, generator, pick_device, provenance, remove_remains, write_json, write_text
from netspace.store import ArchGroup, Zoo
from netspace.training.checkpoints import load_last, save_best, save_last
from netspace.training.optimizers import Average, Optimizer
from netspace.training.recipe import SpaceRecipe
from netspace.training.sources import PRepSource
from netspace.training.steps import SingleStep, half, unwrapped
from netspace.training.validation import MEMBERS, Comparison, compare, through

CHECKPOINT_EVERY = 30.0  # seconds
EXAMPLES = 512  # training members that set the model's scales


@dataclass
class Setting:
    """What a run is made of, on its device."""

    recipe: SpaceRecipe
    task: TaskData
    nets: NetBatch
    group: ArchGroup
    model: AutoEncoder
    train: PRepSource
    val: PRepSource


def train(recipe: SpaceRecipe, zoo_path: Path, run: Path, resume: bool = False) -> Path:
    """Learns a space and returns its run folder.

    Goes on from the folder's last checkpoint with `resume`. Raises `UsageError` for a folder that holds another
    run, `NetspaceError` for data that are not the zoo's or a loss that is not finite.
    """
    torch.manual_seed(recipe.seed)
    device = pick_device(recipe.device)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        log_with="tensorboard" if _tensorboard() else None,
        project_dir=str(run),
    )
    first = accelerator.is_main_process
    _check_shares(recipe, accelerator.num_processes)
    with (
        Zoo(zoo_path) as zoo,
        alone(run / ".lock", f"{run} is being trained by another process") if first else nullcontext(),
    ):
        accelerator.wait_for_everyone()
        before = _check_run(recipe, zoo, run, resume)
        setting = prepare(recipe, zoo, accelerator.device)
        accelerator.wait_for_everyone()
        if first:
            _begin_run(recipe, zoo, run)
            _describe(run, setting)
        _loop(setting, run, before, accelerator)
    return run


def prepare(recipe: SpaceRecipe, zoo: Zoo, device: torch.device) -> Setting:
    """Task, networks and a fresh model for a recipe and an open zoo."""
    group = zoo.only()
    task = task_of(zoo, device)
    nets = NetBatch(archs.skeleton(group.spec.arch, group.spec.settings, group.spec.input_shape).to(device), group.spec)
    train, val = (_rows(zoo, group, split) for split in ("train", "val"))
    source, held_out = PRepSource(group, train, device), PRepSource(group, val, device)
    random = generator(recipe.seed, 7)
    places = torch.randperm(len(source), generator=random)[:EXAMPLES]
    images = torch.randint(len(task.train), (recipe.encoder.probes,), generator=random).to(device)
    best = int(group.members["accuracy_val"][train.numpy()].argmax())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = build_autoencoder(
            recipe.latent,
            recipe.encoder,
            recipe.decoder,
            nets,
            probes=task.normalise(task.train.images[images]).cpu(),
            example=source.take(places).cpu(),
            size=group.size,
            reference=source.take(torch.tensor([best]))[0].cpu(),
        )
    return Setting(recipe, task, nets, group, model.to(device), source, held_out)


def task_of(zoo: Zoo, device: torch.device | str) -> TaskData:
    """The data that a zoo was trained on. Raises `NetspaceError` if what is here is not the same."""
    from netspace.config import validate

    task = load(validate(DataConfig, zoo.header.data, str(zoo.path)), device=device)
    if task.split_hash != zoo.header.split_hash:
        raise NetspaceError(
            f"{zoo.path} was trained on {zoo.header.dataset} with split {zoo.header.split_hash[:12]}, but the data here "
            f"have split {task.split_hash[:12]}: other images or labels would give figures that mean nothing"
        )
    return task


def _rows(zoo: Zoo, group: ArchGroup, split: str) -> Tensor:
    rows = torch.from_numpy(group.rows(split))
    if not len(rows):
        raise NetspaceError(f"{zoo.path} has no members in its {split} split, and training needs some")
    return rows


def _check_shares(recipe: SpaceRecipe, shares: int) -> None:
    if recipe.networks % (shares * recipe.accumulate):
        parts = f" in {recipe.accumulate} parts" if recipe.accumulate > 1 else ""
        raise UsageError(
            f"networks ({recipe.networks}) cannot be shared evenly by {shares} processes{parts}: choose a multiple"
        )


def _check_run(recipe: SpaceRecipe, zoo: Zoo, run: Path, resume: bool) -> dict[str, Any] | None:
    """The last checkpoint of the run in a folder, None if there is none; refuses before anything is written."""
    config = run / "config.yaml"
    state = None
    if config.exists():
        held = read_back(SpaceRecipe, config)
        told = json.loads((run / "provenance.json").read_text())
        if not resume:
            raise UsageError(f"{run} exists already: give --resume to go on with it, or choose another --out")
        before, now = (each.model_dump(mode="json", exclude={"device"}) for each in (held, recipe))
        difference = changed(before, now)
        if difference:
            raise UsageError(
                f"{run} was begun with another recipe: {difference}; resume it with its own, or choose another --out"
            )
        if told["zoo_hash"] != zoo.content_hash:
            raise UsageError(f"{run} was trained on another zoo than {zoo.path}: resume it with its own")
        state = load_last(run)
    return state


def _begin_run(recipe: SpaceRecipe, zoo: Zoo, run: Path) -> None:
    config = run / "config.yaml"
    for place in (run, run / "checkpoints"):
        remove_remains(place)
    if not config.exists():
        for folder in ("checkpoints", "figures"):
            (run / folder).mkdir(parents=True, exist_ok=True)
        more = {"zoo": str(zoo.path.resolve()), "zoo_hash": zoo.content_hash}
        write_json(run / "provenance.json", provenance(recipe.seed, **more))
        write_text(config, to_yaml(recipe))


def _describe(run: Path, setting: Setting) -> None:
    """What decoding needs beside the weights."""
    spec = setting.group.spec
    told = {"archs": {setting.group.id: {"spec": json.loads(spec.to_json()), "prep": list(setting.group.size)}}}
    write_json(run / "space.json", told)


def _loop(setting: Setting, run: Path, before: dict[str, Any] | None, accelerator: Accelerator) -> None:
    recipe, device = setting.recipe, accelerator.device
    shares = accelerator.num_processes
    setting.model.decoder.recompute = recipe.recompute
    if recipe.compile:
        for module in (setting.model.encoder, setting.model.decoder):
            module.compile()
    model = accelerator.prepare_model(setting.model)
    bare = unwrapped(model)
    optimizer = Optimizer(bare, recipe.optimizer, recipe.steps)
    average = Average(bare, recipe.optimizer.ema)
    step = SingleStep(recipe, setting.nets, setting.train, setting.task, accelerator.process_index, shares)
    metrics = Metrics(run / "metrics.jsonl")
    start, best = 0, float("inf")
    if before is not None:
        bare.load_state_dict(before["model"])
        optimizer.load_state_dict(before["optimizer"])
        average.values = {name: value.to(device) for name, value in before["average"].items()}
        start, best = int(before["step"]), float(before["best"])
    if accelerator.is_main_process:
        metrics.keep(lambda record: record["step"] <= start)
    accelerator.init_trackers("tensorboard")
    terms: dict[str, Tensor] = {}
    saved = clock = time.monotonic()
    with progress("train", recipe.steps, "steps") as bar:
        bar.begin_at(start)
        for number in range(start, recipe.steps):
            terms = {}
            for part in range(recipe.accumulate):
                early = part + 1 < recipe.accumulate  # gradients meet those of other processes after the last part
                with accelerator.no_sync(model) if early else nullcontext():
                    found = step(model, number, part)
                    accelerator.backward(torch.stack(list(found.values())).sum() / recipe.accumulate)
                for name, value in found.items():
                    terms[name] = terms.get(name, 0.0) + value.detach() / recipe.accumulate
            factor = optimizer.step(number)
            if recipe.optimizer.ema:
                average.update(bare, number)
            done = number + 1
            last = done == recipe.steps
            if done % recipe.log_every == 0 or last:
                means = accelerator.reduce(torch.stack(list(terms.values())), "mean")  # over all processes
                record = dict(zip(terms, means.tolist(), strict=True))  # the one wait for the device
                if not all(map(_finite, record.values())):
                    told = ", ".join(f"{name} {value}" for name, value in record.items())
                    raise NetspaceError(f"the loss is not finite at step {done} ({told}): lower the learning rate")
                now = time.monotonic()
                rate = recipe.log_every / max(now - clock, 1e-9)
                clock = now
                _record(accelerator, metrics, step=done, rate=factor, steps_a_second=rate, **record)
            note = ""
            if done % recipe.validate_every == 0 or last:
                figures = validate_members(setting, bare, average if recipe.optimizer.ema else None)
                _record(accelerator, metrics, step=done, **{f"val_{name}": value for name, value in figures.items()})
                if accelerator.is_main_process and figures["mae"] < best:
                    save_best(run, average.values if recipe.optimizer.ema else bare.state_dict())
                best = min(best, figures["mae"])
                note = f"val: MAE {100 * figures['mae']:.1f} points, R2 {figures['r2']:.2f}"
            if accelerator.is_main_process and (last or time.monotonic() - saved > CHECKPOINT_EVERY):
                held = {"model": bare.state_dict(), "optimizer": optimizer.state_dict(), "average": average.values}
                save_last(run, {**held, "step": done, "best": best})
                saved = time.monotonic()
            bar.advance(1, note)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def validate_members(setting: Setting, model: AutoEncoder, average: Average | None) -> dict[str, float]:
    """The paper's validation: accuracies of validation members and their predictions on validation images."""
    held = {name: value.detach().clone() for name, value in model.state_dict().items()}
    if average is not None:
        model.load_state_dict(average.values)
    count = setting.nets.spec.num_parameters
    found = []
    try:
        for places in torch.arange(len(setting.val)).split(MEMBERS):
            preps = setting.val.take(places)
            with half(setting.recipe.precision, preps.device):
                _, decoded = through(model.both, preps)
            found.append(compare(setting.nets, unpack(preps, count), unpack(decoded, count), setting.task, "val"))
        return Comparison.together(found).summary()
    finally:
        model.load_state_dict(held)


def _record(accelerator: Accelerator, metrics: Metrics, step: int, **values: float) -> None:
    if accelerator.is_main_process:
        metrics.write(step=step, **values)
    accelerator.log(values, step=step)


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def _tensorboard() -> bool:
    from importlib.util import find_spec

    return find_spec("tensorboard") is not None
