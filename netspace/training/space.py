"""Learning a space: from a zoo and a recipe to a run folder. The networks of a batch are shared out between processes."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from netspace.config import changed, read_back, to_yaml
from netspace.errors import UsageError
from netspace.runtime import alone, pick_device, provenance, remove_remains, write_json, write_text
from netspace.store import Zoo
from netspace.training.checkpoints import save_best
from netspace.training.loop import Learner, Loop, Stage, Validation, processes
from netspace.training.multi import MultiStep
from netspace.training.recipe import SpaceRecipe
from netspace.training.setting import Setting, prepare, validate_members
from netspace.training.steps import SingleStep


def train(recipe: SpaceRecipe, zoo_path: Path, run: Path, resume: bool = False) -> Path:
    """Learns a space and returns its run folder.

    Goes on from the folder's last checkpoint with `resume`. Raises `UsageError` for a folder that holds another
    run, `NetspaceError` for data that are not the zoo's or a loss that is not finite.
    """
    torch.manual_seed(recipe.seed)
    records = {"log_with": "tensorboard" if _tensorboard() else None, "project_dir": str(run)}
    accelerator, device = processes(pick_device(recipe.device), **records)
    first = accelerator.is_main_process
    with (
        Zoo(zoo_path) as zoo,
        alone(run / ".lock", f"{run} is being trained by another process") if first else nullcontext(),
    ):
        accelerator.wait_for_everyone()
        _check_run(recipe, zoo, run, resume)
        setting = prepare(recipe, zoo, device)
        _check_shares(setting, accelerator.num_processes)
        _check_teacher(setting, run)
        accelerator.wait_for_everyone()
        if first:
            _begin_run(setting, zoo, run)
        learner = SpaceLearner(setting, run, accelerator.process_index, accelerator.num_processes)
        accelerator.init_trackers("tensorboard")
        Loop(learner, accelerator, run / "metrics.jsonl", run / "checkpoints" / "last.pt").run()
        accelerator.end_training()
    return run


class SpaceLearner(Learner):
    """A space in training: one stage, of the recipe's step."""

    name = "train"

    def __init__(self, setting: Setting, run: Path, place: int, shares: int) -> None:
        recipe = setting.recipe
        self.setting, self.run, self.main, self.model = setting, run, place == 0, setting.model
        self.log_every, self.validate_every = recipe.log_every, recipe.validate_every
        self.model.decoder.recompute = recipe.recompute
        if recipe.compile:
            for module in (self.model.encoder, self.model.decoder):
                module.compile()
        self.stages = [Stage(recipe.steps, recipe.optimizer, recipe.accumulate)]
        self.step = _step(setting, place, shares)

    def terms(self, model: nn.Module, number: int, part: int) -> dict[str, Tensor]:
        """Those of the step."""
        return self.step(model, number, part)

    def validate(self) -> Validation:
        """How well validation members are given back."""
        figures = validate_members(self.setting)
        note = f"val: error {100 * figures['error']:.1f} points, agreement {100 * figures['agreement']:.1f} %"
        return Validation({f"val_{name}": value for name, value in figures.items()}, (-figures["error"],), note)

    def keep(self, weights: dict[str, Tensor]) -> None:
        """In the run's folder."""
        if self.main:
            save_best(self.run, weights)


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


def _check_run(recipe: SpaceRecipe, zoo: Zoo, run: Path, resume: bool) -> None:
    """Refuses what is in the folder of a run before anything is written."""
    config = run / "config.yaml"
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


def _step(setting: Setting, place: int, shares: int) -> SingleStep | MultiStep:
    recipe, family, task = setting.recipe, setting.family, setting.task
    if recipe.multi is None:
        source = setting.train[0]
        assert source is not None
        return SingleStep(recipe, family[0].nets, source, task, place, shares)
    assert setting.teacher is not None
    return MultiStep(recipe, family, setting.train, task, setting.teacher, place, shares)


def _tensorboard() -> bool:
    from importlib.util import find_spec

    return find_spec("tensorboard") is not None
