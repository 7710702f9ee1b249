"""The one training loop: steps, validation, checkpoints, records; from a zoo and a recipe to a run folder.

Every step's batch depends on (seed, step) alone, so a run that was stopped, or killed, goes on to the same weights
as one that was not. Under `accelerate launch` the networks of a batch are shared out between the processes.
"""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from netspace.config import changed, read_back, to_yaml
from netspace.errors import NetspaceError, UsageError
from netspace.progress import progress
from netspace.runtime import Metrics, alone, pick_device, provenance, remove_remains, write_json, write_text
from netspace.store import Zoo
from netspace.training.checkpoints import load_last, save_best, save_last
from netspace.training.multi import MultiStep
from netspace.training.optimizers import Average, Optimizer
from netspace.training.recipe import SpaceRecipe
from netspace.training.setting import Setting, prepare, validate_members
from netspace.training.steps import SingleStep, unwrapped

CHECKPOINT_EVERY = 30.0  # seconds


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
    with (
        Zoo(zoo_path) as zoo,
        alone(run / ".lock", f"{run} is being trained by another process") if first else nullcontext(),
    ):
        accelerator.wait_for_everyone()
        before = _check_run(recipe, zoo, run, resume)
        setting = prepare(recipe, zoo, accelerator.device)
        _check_shares(setting, accelerator.num_processes)
        _check_teacher(setting, run)
        accelerator.wait_for_everyone()
        if first:
            _begin_run(setting, zoo, run)
        _loop(setting, run, before, accelerator)
    return run


def _check_shares(setting: Setting, shares: int) -> None:
    recipe = setting.recipe
    classes = setting.shown if recipe.multi and recipe.multi.batches == "classes" else 1
    if recipe.networks % (shares * recipe.accumulate * classes):
        parts = f" in {recipe.accumulate} parts" if recipe.accumulate > 1 else ""
        of_each = f" with as many of each of {classes} classes" if classes > 1 else ""
        raise UsageError(
            f"networks ({recipe.networks}) cannot be shared evenly by {shares} processes{parts}{of_each}: choose a multiple"
        )


def _check_teacher(setting: Setting, run: Path) -> None:
    config = run / "config.yaml"
    if setting.teacher is None or not config.exists():
        return
    told = json.loads((run / "provenance.json").read_text())
    if told.get("teacher_hash") != setting.teacher.hash:
        raise UsageError(
            f"{run} was begun with another teacher than {setting.teacher.name}: resume it with its own ({told.get('teacher')})"
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


def _begin_run(setting: Setting, zoo: Zoo, run: Path) -> None:
    config = run / "config.yaml"
    for place in (run, run / "checkpoints"):
        remove_remains(place)
    if not config.exists():
        for folder in ("checkpoints", "figures"):
            (run / folder).mkdir(parents=True, exist_ok=True)
        more = {"zoo": str(zoo.path.resolve()), "zoo_hash": zoo.content_hash}
        if setting.teacher is not None:
            more |= {"teacher": setting.teacher.name, "teacher_hash": setting.teacher.hash}
        write_json(run / "provenance.json", provenance(setting.recipe.seed, **more))
        write_text(config, to_yaml(setting.recipe))
    write_json(run / "space.json", {"archs": setting.family.to_json()})  # what decoding needs beside the weights


def _loop(setting: Setting, run: Path, before: dict[str, Any] | None, accelerator: Accelerator) -> None:
    recipe, device = setting.recipe, accelerator.device
    setting.model.decoder.recompute = recipe.recompute
    if recipe.compile:
        for module in (setting.model.encoder, setting.model.decoder):
            module.compile()
    model = accelerator.prepare_model(setting.model)
    bare = unwrapped(model)
    optimizer = Optimizer(bare, recipe.optimizer, recipe.steps)
    average = Average(bare, recipe.optimizer.ema)
    step = _step(setting, accelerator.process_index, accelerator.num_processes)
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
                if accelerator.is_main_process and figures["error"] < best:
                    save_best(run, average.values if recipe.optimizer.ema else bare.state_dict())
                best = min(best, figures["error"])
                note = f"val: error {100 * figures['error']:.1f} points, agreement {100 * figures['agreement']:.1f} %"
            if accelerator.is_main_process and (last or time.monotonic() - saved > CHECKPOINT_EVERY):
                held = {"model": bare.state_dict(), "optimizer": optimizer.state_dict(), "average": average.values}
                save_last(run, {**held, "step": done, "best": best})
                saved = time.monotonic()
            bar.advance(1, note)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def _step(setting: Setting, place: int, shares: int) -> SingleStep | MultiStep:
    recipe, family, task = setting.recipe, setting.family, setting.task
    if recipe.multi is None:
        source = setting.train[0]
        assert source is not None
        return SingleStep(recipe, family[0].nets, source, task, place, shares)
    assert setting.teacher is not None
    return MultiStep(recipe, family, setting.train, task, setting.teacher, place, shares)


def _record(accelerator: Accelerator, metrics: Metrics, step: int, **values: float) -> None:
    if accelerator.is_main_process:
        metrics.write(step=step, **values)
    accelerator.log(values, step=step)


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def _tensorboard() -> bool:
    from importlib.util import find_spec

    return find_spec("tensorboard") is not None
