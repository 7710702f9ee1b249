"""`netspace morph fit`: the weights of a network as a function of its widths (NeuMeta). Axes: G groups of channels."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from netspace.archs import ArchConfig, trust_options
from netspace.commands.morph_start import Start, find_start, origin
from netspace.errors import UsageError
from netspace.io import hash_tensors, read_json, write_json
from netspace.models.weight_function import WeightFunction
from netspace.networks.ordering import check_function, greedy_orders, ordered, ordered_module, smooth_orders
from netspace.networks.ordering import total_variation as variation_of
from netspace.networks.widths import Widths, count_parameters
from netspace.precision import Concrete
from netspace.results.compressed import NetworkMark
from netspace.results.morphs import MorphFit, MorphWidth, TotalVariation
from netspace.run_folder import MORPH as KIND
from netspace.run_folder import RunFolder, provenance
from netspace.saved_morph import MORPH, NETWORK, SavedMorph, make_function
from netspace.training.loop import make_accelerator
from netspace.training.morph import MorphConfig, MorphLearner
from netspace.training.network import calibration, network_score

RESULT, PRECISION = "fit.json", "precision.json"  # in the run folder
CHECKED = 4  # inputs of noise on which a network in another order has to answer the same


def fit(
    out: Path,
    config: MorphConfig,
    model: str | None = None,
    zoo_path: Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    arch: ArchConfig | None = None,
    input_shape: tuple[int, ...] | None = None,
    key: str | None = None,
) -> MorphFit:
    """Learn the weights of a network at all widths; write `morph.safetensors` and what belongs to it to the folder `out`.

    Args:
        out: The run folder.
        config: The recipe.
        model: A member of the zoo, or a state-dict file; none: `arch` is trained from nothing.
        zoo_path: The zoo of the member, or whose task a file is for.
        resume: Go on with a run that was interrupted.
        device: Where to train.
        arch: The architecture of a file.
        input_shape: Of a file's network, where no task says it.
        key: Which of a checkpoint's state dicts is meant.

    Raises:
        UsageError: Before anything is written, for options that do not go together, and for a folder that is in use.
        NetspaceError: Before anything is written, for a network that cannot be read or run, or has no widths to change.

    >>> config = MorphConfig.model_validate({"stages": [{"steps": 2}], "batch_size": 8})
    >>> result = fit(folder / "morph", config, "best", zoo)  # the path of a zoo file
    >>> [each.gamma for each in result.widths]
    [0.0, 0.25, 0.5]
    """
    accelerator, own = make_accelerator(torch.device(device))
    start = find_start(config, model, zoo_path, own, arch, input_shape, key)
    info = start.info
    mark = NetworkMark(hash=hash_tensors(*(value for _, value in sorted(start.module.state_dict().items()))))
    module, variation = _in_order(start.module, info, config.seed) if config.order else (start.module, None)
    folder, first = RunFolder.of(KIND, out, trust_options()), accelerator.is_main_process
    with folder.locked("written", first):
        begun = None if folder.last.exists() else time.monotonic()  # the time of a resumed run is not known
        if first:
            _check_folder(folder, config, resume, mark)
            folder.begin(config, provenance(config.seed, **origin(model, zoo_path, arch, input_shape, key)))
        chosen = _precision(folder, module, config, start) if first else {}
        (chosen,) = broadcast_object_list([chosen])  # the main process decides for all
        running = config.model_copy(update=chosen)
        function = make_function(module, info, config.function, config.seed)
        function.start(dict(module.named_parameters()))
        ranks = accelerator.process_index, accelerator.num_processes
        learner = MorphLearner(module, info, function, start.task, running, None, *ranks)
        morph = _saved(learner.run(out), module, info, config, start)
        if first:
            morph.save(out)
            seconds = None if begun is None else round(time.monotonic() - begun, 1)
            if (out / RESULT).exists():  # the run was finished before
                seconds = MorphFit.read(out / RESULT).seconds
            _result(morph, start, variation, seconds).extended(MorphFit, precision=chosen).write(out / RESULT)
        accelerator.wait_for_everyone()
    return MorphFit.read(out / RESULT)


def _precision(folder: RunFolder, module: nn.Module, config: MorphConfig, start: Start) -> dict[str, str]:
    """Return the precision of a resumed run, or the one in which a step is fastest, and write it to the folder."""
    record = folder.path / PRECISION
    if record.exists():
        return dict(read_json(record, dict[str, Concrete]))
    if folder.last.exists():
        return {"precision": "float32"}  # of runs that were begun before there was a choice
    trial = make_function(module, start.info, config.function, config.seed)
    trial.start(dict(module.named_parameters()))
    chosen = MorphLearner(module, start.info, trial, start.task, config).timed_precision()
    write_json(record, chosen)
    return chosen


def _in_order(module: nn.Module, info: Widths, seed: int) -> tuple[nn.Module, TotalVariation]:
    """Return a copy with its channels in the order of small total variation; raise `NetspaceError` if its function changed."""
    tensors, groups = dict(module.named_parameters()), info.groups
    orders = smooth_orders(tensors, groups, seed)
    made = ordered_module(module, groups, orders)
    noise = torch.randn(CHECKED, *info.example.shape[1:], generator=torch.Generator().manual_seed(0))
    check_function(module, made, noise, info.label)
    greedy = ordered(tensors, groups, greedy_orders(tensors, groups))
    return made, TotalVariation(
        before=variation_of(tensors, groups),
        after=variation_of(dict(made.named_parameters()), groups),
        greedy=variation_of(greedy, groups),
    )


def _check_folder(folder: RunFolder, config: MorphConfig, resume: bool, mark: NetworkMark) -> None:
    """Refuse a folder that holds another run, or files of a morph that would be overwritten; mark a new one."""
    folder.check(config, resume)
    network = folder.path / "network.json"
    if folder.begun:
        if NetworkMark.read(network).hash != mark.hash:
            raise UsageError(
                f"{folder.path} was begun with another network: resume it with its own (`{folder.command}`), or choose another --out"
            )
        return
    for name in (MORPH, NETWORK):
        if (folder.path / name).exists():
            raise UsageError(f"{folder.path} holds {name} already: choose another --out, so that nothing is lost")
    mark.write(network)


def _saved(function: WeightFunction, module: nn.Module, info: Widths, config: MorphConfig, start: Start) -> SavedMorph:
    """Return the morph of a trained function, all of it where the function is."""
    device = next(function.parameters()).device
    return SavedMorph(
        function.eval().requires_grad_(False),
        module.to(device),
        info,
        config,
        start.spec,
        start.data,
        None if start.task is None else start.task.split_hash,
    )


def _result(morph: SavedMorph, start: Start, variation: TotalVariation | None, seconds: float | None) -> MorphFit:
    """Measure the networks of validation, and the one that the morph was fitted to, on test inputs."""
    info, task, narrowest = morph.info, start.task, morph.config.widths.narrowest
    gammas = {info.at(gamma): gamma for gamma in (narrowest, narrowest / 2, 0.0)}
    batches = [] if task is None else calibration(task, morph.config.seed, morph.config.batch_size)
    widths = [
        MorphWidth(
            gamma=gamma,
            parameters=count_parameters(morph.module, info, each),
            accuracy=None if task is None else network_score(morph.network(each, batches=batches), task, "test"),
        )
        for each, gamma in sorted(gammas.items(), key=lambda pair: pair[1])
    ]
    known = task is not None and morph.config.start == "network"
    return MorphFit(
        run=str(morph.path and morph.path.parent),
        file=str(morph.path),
        arch=morph.spec.arch,
        groups=dict(zip(info.names, info.full(), strict=True)),
        narrowest=narrowest,
        full_parameters=count_parameters(morph.module, info, info.full()),
        stored_parameters=morph.stored_parameters,
        **({"full_accuracy": network_score(morph.module, task, "test")} if task is not None and known else {}),
        widths=widths,
        **({} if variation is None else {"total_variation": variation}),
        **({} if task is None else task.score_field()),
        seconds=seconds,
    )
