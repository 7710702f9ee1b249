"""Train a space: from a zoo and a recipe to a run folder. Processes divide the networks of a batch among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from netspace.archs import trust_options
from netspace.config import bundled_names, load, resumed
from netspace.errors import UsageError
from netspace.hardware import pick_device
from netspace.io import write_json
from netspace.precision import Precision, choose
from netspace.run_folder import MERIT, SPACE, RunFolder, is_run, newest_run, provenance
from netspace.training.loop import Learner, Loop, Stage, Validation, make_accelerator, step_trial
from netspace.training.recipe import SpaceRecipe
from netspace.training.setup import Setup, prepare, validate_members
from netspace.training.step import Step
from netspace.zoo import Zoo

PRECISIONS = ("precision", "networks_precision")  # of a recipe: of encoder and decoder, and of the networks
TRIAL_NETWORKS = 4  # networks of each architecture in the step that chooses between precisions


def recipe_of(
    config: str | None, changes: Sequence[str], run: Path | None, resume: bool
) -> tuple[SpaceRecipe, Path, Sequence[str]]:
    """Return a run's recipe, its folder, and the changes to the recipe's file that it is (or was) begun with.

    A resumed run has settings of its own: without `config` its recipe is the run's, and with `config` the run's changes
    need not be given again. Raises `UsageError` if neither a recipe nor a run is given.
    """
    if config is None:
        if not resume:
            raise UsageError(
                f"RECIPE is missing: a training begins with a recipe ({', '.join(bundled_names('space'))}, or a YAML file); "
                "only --resume takes the run's own"
            )
        folder = newest_run() if run is None else run
        if not is_run(folder):
            raise UsageError(f"{folder} is no run that could be resumed: give RECIPE, the recipe to begin it with")
        return resumed(SpaceRecipe, folder / "config.yaml", changes), folder, ()
    recipe = load(SpaceRecipe, config, changes)
    folder = Path("runs") / recipe.name if run is None else run
    if resume and is_run(folder):
        recipe = load(SpaceRecipe, config, [*RunFolder.of_space(folder).origin.changes, *changes])
    return recipe, folder, changes


def train(recipe: SpaceRecipe, zoo_path: Path, run: Path, resume: bool = False, changes: Sequence[str] = ()) -> Path:
    """Train a space and return its run folder.

    With `resume`, continue from the folder's last checkpoint. `changes` are those that made the recipe from its file;
    the run records them.

    Raises:
        UsageError: the folder holds another run, or the run was trained on another zoo or with another teacher.
        NetspaceError: the data are not the zoo's, or a loss is not finite.

    >>> recipe = SpaceRecipe.model_validate({
    ...     "latent": 16, "encoder": {"kind": "probe"}, "decoder": {"kind": "linear"}, "steps": 2, "validate_every": 2,
    ... })
    >>> train(recipe, zoo, folder / "run") == folder / "run"  # the path of a zoo file
    True
    """
    torch.manual_seed(recipe.seed)
    records = {"log_with": "tensorboard" if find_spec("tensorboard") else None, "project_dir": str(run)}
    accelerator, device = make_accelerator(pick_device(recipe.device), **records)
    main = accelerator.is_main_process
    with Zoo(zoo_path) as zoo, RunFolder.of_space(run).locked("trained", main):
        folder = RunFolder.of(SPACE, run, [*_moved_zoo(run, zoo), *trust_options()])
        accelerator.wait_for_everyone()
        folder.check(recipe, resume, "another recipe", exclude={"device"})
        if folder.begun and folder.origin.zoo_hash != zoo.content_hash:
            raise UsageError(
                f"{run} was trained on another zoo than {zoo.path}: resume it with its own (`{folder.command}`)"
            )
        setup = prepare(recipe, zoo, device)
        _check_answers(setup)
        _check_batch(setup, accelerator.num_processes)
        _check_teacher(setup, folder)
        accelerator.wait_for_everyone()
        precision = _precision(setup, folder, accelerator)
        setup = setup.with_precision(precision)
        if main:
            _begin_run(setup, recipe, precision, zoo, folder, changes)
        learner = SpaceLearner(setup, folder, accelerator.process_index, accelerator.num_processes)
        accelerator.init_trackers("tensorboard")
        Loop(learner, accelerator, folder.metrics, folder.last).run()
        accelerator.end_training()
    return run


def _moved_zoo(run: Path, zoo: Zoo) -> list[str]:
    """Return the option that resumes a run on its zoo where that is no longer at the path that the run recorded."""
    if not is_run(run):
        return []
    origin = RunFolder.of_space(run).origin
    moved = origin.zoo_hash == zoo.content_hash and origin.zoo != str(zoo.path.resolve())
    return ["--zoo", str(zoo.path)] if moved else []


class SpaceLearner(Learner):
    """A space in training: one stage."""

    name = "train"

    def __init__(self, setup: Setup, run: RunFolder, rank: int, world_size: int) -> None:
        recipe = setup.recipe
        self.recipe = recipe
        self.setup, self.run, self.main, self.model = setup, run, rank == 0, setup.model
        self.log_every, self.validate_every = recipe.log_every, recipe.validate_every
        self.model.decoder.recompute = recipe.recompute
        if recipe.compile:
            for module in (self.model.encoder, self.model.decoder):
                module.compile()
        self.stages = [Stage(recipe.steps, recipe.optimizer, recipe.accumulate)]
        self.step = Step(setup, rank, world_size)

    def terms(self, model: nn.Module, number: int, part: int) -> dict[str, Tensor]:
        """Return the terms of the recipe's step."""
        return self.step(model, number, part)

    def validate(self) -> Validation:
        """Measure how well validation members are reconstructed."""
        figures = validate_members(self.setup)
        note = f"val: error {100 * figures['error']:.1f} points, agreement {100 * figures['agreement']:.1f} %"
        own = self.setup.task.own_targets  # networks that differ in what they do, not in how well
        self.finished = self.recipe.stop_at is not None and figures["agreement"] >= self.recipe.stop_at
        score = figures["agreement"] if own else -figures["error"]
        record = {f"val_{name}": value for name, value in figures.items()}
        return Validation({**record, MERIT: score}, (score,), note)

    def state(self) -> dict[str, Any]:
        """Return whether the training is at its end, though steps are left."""
        return {"finished": True} if self.finished else {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.finished = bool(state.get("finished", False))

    def save_best(self, weights: dict[str, Tensor]) -> None:
        """Save the weights in the run's folder."""
        if self.main:
            self.run.save_best(weights)


def _precision(setup: Setup, run: RunFolder, accelerator: Accelerator) -> dict[str, str]:
    """Return the precision of the models and of the networks: that of a resumed run, else the fastest for a step."""
    recipe = setup.recipe
    requested: dict[str, Precision] = {name: getattr(recipe, name) for name in PRECISIONS}
    chosen: dict[str, str] = {}
    if accelerator.is_main_process:
        before = run.origin.precision if (run.path / "provenance.json").exists() else {}
        if all(name in before for name in PRECISIONS):
            chosen = {name: before[name] for name in PRECISIONS}
        else:
            names = " ".join(f"{each.id} {each.spec.num_parameters}" for each in setup.family)
            subject = f"{names} {recipe.latent} {recipe.encoder} {recipe.decoder} {recipe.networks} {recipe.images}"
            chosen = choose(subject, requested, _trial(setup), setup.task.device)
    (chosen,) = broadcast_object_list([chosen])  # the main process decides for all
    return chosen


def _trial(setup: Setup) -> Callable[[dict[str, str]], None]:
    """Return a function that runs a step with few networks, forwards and backwards, in given precisions."""
    recipe = setup.recipe
    few = (
        min(recipe.networks, TRIAL_NETWORKS * setup.num_trained) // setup.num_trained * setup.num_trained
        or recipe.networks
    )
    update = {"networks": few, "accumulate": 1, "remember_targets": False}
    small = replace(setup, recipe=recipe.model_copy(update=update))
    return step_trial(lambda precision: partial(Step(small.with_precision(precision)), setup.model, 0), setup.model)


def _check_answers(setup: Setup) -> None:
    """Refuse at the start what would end the first validation."""
    encoder, task = setup.recipe.encoder, setup.task
    if encoder.refine and encoder.answers == "classes" and task.num_outputs < 2:
        raise UsageError(
            f"encoder.answers: classes was given, but networks of {task.name} have one output, which tells no classes apart: set "
            "encoder.answers=values"
        )


def _check_batch(setup: Setup, world_size: int) -> None:
    recipe = setup.recipe
    classes = setup.num_trained if recipe.multi and recipe.multi.batches != "members" else 1
    if recipe.networks % (world_size * recipe.accumulate * classes):
        parts = f" in {recipe.accumulate} parts" if recipe.accumulate > 1 else ""
        of_each = f" with as many of each of {classes} classes" if classes > 1 else ""
        raise UsageError(
            f"networks ({recipe.networks}) cannot be shared evenly by {world_size} processes{parts}{of_each}: choose a multiple"
        )
    loss, multi = recipe.loss, recipe.multi
    needed = {
        "loss.lines": 2 if loss.lines else 1,
        "loss.contrastive": 2 * classes if loss.contrastive else 1,  # two of each architecture
        "multi.interpolation": 2 if multi and multi.interpolation and setup.family.between else 1,
    }
    term, smallest = max(needed.items(), key=lambda each: each[1])
    parts_of_all = world_size * recipe.accumulate
    if recipe.networks // parts_of_all < smallest:
        raise UsageError(
            f"{term} compares networks of a batch with each other, but each of its {parts_of_all} parts (processes x accumulate) has "
            f"{recipe.networks // parts_of_all}: choose {smallest * parts_of_all} networks or more, or fewer parts"
        )


def _check_teacher(setup: Setup, run: RunFolder) -> None:
    if setup.teacher is not None and run.begun and run.origin.teacher_hash != setup.teacher.hash:
        raise UsageError(
            f"{run.path} was begun with another teacher than {setup.teacher.name}: resume it with its own "
            f"({run.origin.teacher}), by `{run.command}`"
        )


def _begin_run(
    setup: Setup, recipe: SpaceRecipe, precision: dict[str, str], zoo: Zoo, run: RunFolder, changes: Sequence[str]
) -> None:
    origin: dict[str, Any] = {
        "zoo": str(zoo.path.resolve()),
        "zoo_hash": zoo.content_hash,
        "precision": precision,
        "changes": list(changes),
    }
    if setup.teacher is not None:
        origin |= {"teacher": setup.teacher.name, "teacher_hash": setup.teacher.hash}
    for folder in ("checkpoints", "figures"):
        (run.path / folder).mkdir(parents=True, exist_ok=True)
    run.begin(recipe, provenance(setup.recipe.seed, **origin))
    write_json(
        run.path / "space.json", {"archs": setup.family.to_json()}
    )  # what decoding needs in addition to the weights
