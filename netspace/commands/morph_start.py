"""The network that a morph begins with: a zoo's member, a state-dict file, or a fresh one; with batch norm, or folded."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netspace import archs
from netspace.archs import ArchConfig
from netspace.archs.identity import check_identity, check_outputs
from netspace.compression.originals import read_network
from netspace.config import validate
from netspace.errors import NetspaceError, UsageError
from netspace.networks.folding import fold, unfold
from netspace.networks.graph import batch_norms
from netspace.networks.prep import unflatten
from netspace.networks.resizing import with_statistics
from netspace.networks.spec import NetSpec
from netspace.networks.state_dict import FILES, without_prefix
from netspace.networks.widths import Widths, find_widths, resized
from netspace.saved_morph import plain_network
from netspace.tasks import DataConfig, Task, load
from netspace.training.morph import MorphConfig
from netspace.training.network import calibration
from netspace.training.setup import task_of
from netspace.zoo import Zoo


@dataclass(frozen=True, eq=False)
class Start:
    """A network at full width, in eval mode, and its task, where that is known."""

    module: nn.Module
    spec: NetSpec
    task: Task | None
    data: DataConfig | None

    @property
    def info(self) -> Widths:
        """Its groups of channels. Raises as `find_widths`."""
        return find_widths(self.module, torch.zeros(1, *self.spec.input_shape), self.spec.arch)


def find_start(
    config: MorphConfig,
    model: str | None,
    zoo_path: Path | None,
    device: torch.device,
    arch: ArchConfig | None = None,
    input_shape: tuple[int, ...] | None = None,
    key: str | None = None,
) -> Start:
    """Return the network that a recipe begins with, as `netspace morph fit` names it.

    Raises:
        UsageError: Options that do not go together, or a network that cannot be named like this.
        NetspaceError: A file or data that cannot be read, or a network that does not fit its task.
    """
    task, data = _task(config, zoo_path, device)
    if model is None:
        start = _of_arch(config, arch, task, data)
    elif Path(model).suffix in FILES:
        start = _of_file(config, Path(model), arch, task, data, input_shape, key)
    else:
        start = _of_member(config, model, zoo_path, arch, key, task, data)
    if task is not None:
        _check_fits(start, task)
    _check_stages(config, start)
    if config.start == "nothing":
        info = start.info
        return replace(start, module=resized(start.module, info, info.full(), config.seed).eval())
    return start


def _task(
    config: MorphConfig, zoo_path: Path | None, device: torch.device
) -> tuple[Task, DataConfig] | tuple[None, None]:
    if zoo_path is None:
        return (None, None) if config.data is None else (load(config.data, device), config.data)
    if config.data is not None:
        raise UsageError(
            f"the task was given twice, by --zoo {zoo_path} and by the recipe's data: leave one of them out"
        )
    with Zoo(zoo_path) as zoo:
        return task_of(zoo, device), validate(DataConfig, zoo.header.data, str(zoo_path))


def _of_arch(config: MorphConfig, arch: ArchConfig | None, task: Task | None, data: DataConfig | None) -> Start:
    """Return an untrained network of --arch."""
    if arch is None or config.start == "network":
        raise UsageError(
            "MODEL is missing: name the network whose weights become a function (a zoo's member or a state-dict file), or "
            "train from nothing, with --arch NAME and --set start=nothing"
        )
    if task is None:
        raise UsageError(
            f"{arch.arch} is to be trained from nothing, but no task is known: give --zoo, or --set data.name=NAME"
        )
    settings = arch.settings(task.input_shape, task.num_outputs, task.arch_settings)
    check_identity(arch.arch, lambda: archs.build(arch.arch, **settings), task.input_shape)
    module = plain_network(arch.arch, settings, task.input_shape, config.batch_norm == "keep")
    return Start(module, NetSpec.from_module(module, arch.arch, settings, task.input_shape), task, data)


def _of_file(
    config: MorphConfig,
    path: Path,
    arch: ArchConfig | None,
    task: Task | None,
    data: DataConfig | None,
    input_shape: tuple[int, ...] | None,
    key: str | None,
) -> Start:
    """Return the network of a state-dict file: of --arch as it was trained, else of what the file itself names, folded."""
    if arch is not None and task is not None:
        settings = arch.settings(task.input_shape, task.num_outputs, task.arch_settings)
        arch = arch.model_copy(update={"kwargs": settings, "width": None})
    state, module, spec = read_network(path, arch, key)
    if spec is not None:
        return _of_folded(config, state, spec, task, data)
    if module is None or arch is None:
        raise UsageError(
            f"only the weights of {path} are known, and a network of other widths has to be run: give --arch NAME, and --kwargs"
        )
    shape = input_shape if task is None else tuple(task.input_shape)
    if shape is None:
        raise UsageError(f"the shape of an input of {path} is not known: give --zoo, or --input-shape C,H,W")
    settings = {**arch.kwargs, **({} if arch.width is None else {"width": arch.width})}
    trained = plain_network(arch.arch, settings, shape, True)
    parameters = dict(trained.named_parameters()).keys()
    trained.load_state_dict(without_prefix(state, lambda shapes: parameters <= shapes.keys()), strict=False)
    if config.batch_norm == "fold":
        folded = fold(trained, torch.zeros(2, *shape), name=arch.arch, constants=True)
        trained = plain_network(arch.arch, settings, shape, False)
        trained.load_state_dict(folded.state_dict())
    return Start(trained, NetSpec.from_module(trained, arch.arch, settings, shape), task, data)


def _of_member(
    config: MorphConfig,
    model: str,
    zoo_path: Path | None,
    arch: ArchConfig | None,
    key: str | None,
    task: Task | None,
    data: DataConfig | None,
) -> Start:
    """Return a zoo's member."""
    for option, given, what in (("--arch", arch, "of"), ("--key", key, "read from")):
        if given is not None:
            raise UsageError(
                f"{option} says what a state-dict file is {what}, but {model!r} names a zoo's member, whose architecture is "
                f"known: leave {option} out"
            )
    if zoo_path is None:
        raise UsageError(
            f"{model!r} names a zoo's member, but no zoo is at hand: give --zoo, or a state-dict file ({', '.join(FILES)})"
        )
    with Zoo(zoo_path) as zoo:
        member = zoo[model]
        return _of_folded(config, unflatten(member.flat(), member.spec), member.spec, task, data)


@torch.no_grad()
def _of_folded(
    config: MorphConfig, named: Mapping[str, Tensor], spec: NetSpec, task: Task | None, data: DataConfig | None
) -> Start:
    """Return the network of folded parameters; to keep batch norm it gets norms that change nothing."""
    keep, settings, shape = config.batch_norm == "keep", spec.settings, spec.input_shape
    module = plain_network(spec.arch, settings, shape, keep)
    if not (keep and batch_norms(module)):
        for name, value in module.named_parameters():
            value.copy_(named[name])
    elif config.start == "network":
        if task is None:
            raise UsageError(
                f"{spec.arch} has batch norm, which takes its statistics from a task's inputs, but no task is known: give --zoo, "
                "--set data.name=NAME, or --set batch_norm=fold"
            )
        _check_inputs(spec, task)
        module = unfold(module, named, torch.zeros(2, *shape), name=spec.arch)
        batches = [each.cpu() for each in calibration(task, config.seed, config.batch_size)]
        module = with_statistics(module, batches, spec.arch)
    return Start(module, NetSpec.from_module(module, spec.arch, settings, shape), task, data)


def _check_inputs(spec: NetSpec, task: Task) -> None:
    if tuple(spec.input_shape) != tuple(task.input_shape):
        raise UsageError(
            f"{spec.arch} takes {task.input_noun} of {tuple(spec.input_shape)}, but {task.name} has {tuple(task.input_shape)}: "
            "give the task that the network was trained on"
        )


def _check_fits(start: Start, task: Task) -> None:
    """Raise `UsageError` or `NetspaceError` for a network that is not one of the task, or a task that networks do not share."""
    if task.own_inputs or task.own_targets:
        raise UsageError(
            f"each network of {task.name} has data of its own, and networks of several widths share theirs: choose another task"
        )
    _check_inputs(start.spec, task)
    inputs, nouns = task.inputs("train", slice(2)).cpu(), (task.input_noun, task.output_noun)
    copies = lambda: copy.deepcopy(start.module)  # noqa: E731 - a network of its own for the check
    check_outputs(start.spec.arch, copies, inputs, task.output_shape, trained=True, nouns=nouns)


def _check_stages(config: MorphConfig, start: Start) -> None:
    if start.task is not None:
        return
    if any(stage.learns == "widths" for stage in config.stages):
        raise UsageError(
            f"{start.spec.arch} is to be trained at several widths, but no task is known: give --zoo, or --set data.name=NAME"
        )
    if batch_norms(start.module):
        raise NetspaceError(
            f"{start.spec.arch} has batch norm, whose statistics each width takes from a task's inputs, but no task is known: "
            "give --zoo, --set data.name=NAME, or --set batch_norm=fold"
        )


def origin(
    model: str | None,
    zoo_path: Path | None,
    arch: ArchConfig | None,
    input_shape: tuple[int, ...] | None,
    key: str | None,
) -> dict[str, Any]:
    """Return what names the network, for the provenance of a run."""
    found: dict[str, Any] = {"input_shape": input_shape, "key": key}
    if model is not None:
        path = Path(model)
        found["model"] = str(path.resolve()) if path.suffix in FILES else model
    if arch is not None:
        found["arch"] = arch.model_dump(mode="json")
    if zoo_path is not None:
        with Zoo(zoo_path) as zoo:
            found |= {"zoo": str(zoo_path.resolve()), "zoo_hash": zoo.content_hash}
    return {name: value for name, value in found.items() if value is not None}
