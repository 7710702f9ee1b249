"""`netspace morph eval`: networks of a morph at several widths, compared with other methods' networks of exactly these widths.

Nothing is chosen here, so that test inputs decide nothing: they are only reported. Axes: W widths, B inputs, C outputs, D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from netspace import distributed as ranks
from netspace.commands.morph_methods import BASELINES, DRAWS, FOLDER, STARTS, Methods, network_config
from netspace.errors import NetspaceError, UsageError, unknown
from netspace.files import locked
from netspace.io import write_tensors
from netspace.metrics import linear_cka
from netspace.networks.widths import count_parameters
from netspace.results.morph_eval import Baselines, MorphEvaluation, Networks, Start, TrainingSeconds, WidthFigures
from netspace.saved_morph import SavedMorph, open_morph
from netspace.streams import Stream, generator
from netspace.tasks import Task
from netspace.tasks.base import CHUNK

GAMMAS = (0.0, 0.25, 0.5, 0.75)
COMPARED = ("morph", "individual", "us_net")  # whose networks of several widths are compared with each other (Fig. 9)
INPUTS = 512  # test inputs of these comparisons
MAP_SIDE = 4  # to which maps of features are averaged before
PICTURES = 6  # test inputs that the report shows
RESULT, SHOWN = "eval.json", "eval.safetensors"  # in the run folder
ALONE = torch.tensor([-1])  # one network without a seed
Scores = Sequence[float | None]  # (W,)


def evaluate(
    run: Path,
    gammas: Sequence[float] = GAMMAS,
    baselines: Iterable[str] = BASELINES,
    *,
    seeds: int = 1,
    epochs: int | None = None,
    us_net_start: str | None = None,
    device: str = "cpu",
) -> MorphEvaluation:
    """Return the figures of `netspace morph eval --json`; write them to the run folder.

    Networks that have to be trained are kept in the run folder: another evaluation takes them from there, and a stopped one goes
    on where it was.

    Args:
        run: folder of a `netspace morph fit`.
        gammas: compression rates of all groups of channels, each below 1.
        baselines: names of the methods to compare with, of `BASELINES`; none for the morph alone.
        seeds: how many networks of each method are averaged over; for each further one a network is trained, and a morph fitted to it.
        epochs: of training an individual or slimmable network; none: those of the zoo's member that the
            morph was fitted to, or else of the morph's recipe.
        us_net_start: where the slimmable network's training begins: 'network', the one that the morph was fitted to, or 'fresh'
            weights; none: the network if there is one.
        device: on which networks are trained and run.

    Raises:
        UsageError: for no gammas, equal ones, or one that is not below 1; an unknown baseline or start; the start
            'network' of a morph that was fitted to none; what is no folder of a morph.
        NetspaceError: as `open_morph`, `SavedMorph.task` and `Methods.networks`; another process evaluates the same run.

    >>> from netspace.commands.morph import fit
    >>> from netspace.training.morph import MorphConfig
    >>> config = MorphConfig.model_validate({"stages": [{"steps": 2}], "batch_size": 8})
    >>> fitted = fit(folder / "compared", config, "best", zoo)  # the path of a zoo file
    >>> result = evaluate(folder / "compared", (0.0, 0.5), ["pruned_l1"])
    >>> [each.parameters for each in result.widths] == [each.parameters for each in fitted.widths[::2]]
    True
    """
    rates, chosen, morph = _checked(gammas), _known(baselines), open_morph(run, device)
    if morph.path is None or morph.path.parent != run or not morph.has_original:
        raise UsageError(
            f"{run} is not the whole folder of a `netspace morph fit`: what a morph is compared with starts from the network "
            "next to it, and is kept there"
        )
    methods = Methods(run, morph, morph.task(device), rates, chosen, _start(us_net_start, run, morph))
    busy = f"{run} is being evaluated by another process"
    with locked(run / FOLDER / ".lock", busy) if ranks.is_main() else nullcontext():
        trials = [_trial(methods, epochs, number) for number in range(seeds)]
        result = _result(methods, epochs, trials)
        if ranks.is_main():
            write_tensors(run / SHOWN, trials[0].pictures)
            result.write(run / RESULT)
    return result


def _checked(gammas: Sequence[float]) -> tuple[float, ...]:
    """Return gammas in rising order: the widest networks first."""
    if not gammas:
        raise UsageError("no compression rate was given: give some, such as 0,0.25,0.5,0.75")
    if len(set(gammas)) < len(gammas):
        raise UsageError(f"a compression rate is evaluated once, but {', '.join(map(str, gammas))} has one twice")
    return tuple(sorted(map(float, gammas)))


def _known(baselines: Iterable[str]) -> tuple[str, ...]:
    given = tuple(baselines)
    for name in given:
        if name not in BASELINES:
            raise unknown("baseline", name, BASELINES, "Or none, for the morph alone.")
    return tuple(name for name in BASELINES if name in given)


def _start(given: str | None, run: Path, morph: SavedMorph) -> Start:
    """Return where the slimmable network's training begins."""
    if given is not None and given not in STARTS:
        raise unknown("start of the slimmable network", given, STARTS)
    fitted = morph.config.start == "network"
    if given == "network" and not fitted:
        raise UsageError(
            f"the morph in {run} was fitted to no network, so that a slimmable one cannot begin with its weights: "
            "choose fresh weights (--us-net-start fresh), or leave the choice out"
        )
    return "network" if fitted and given != "fresh" else "fresh"


@dataclass(frozen=True)
class Trial:
    """What was measured with one seed, by method."""

    scores: Mapping[str, Scores]
    measures: Mapping[str, Mapping[str, Scores]]  # by name of the measure
    agreement: Scores  # with the network that the morph was fitted to
    original: float | None  # the score of that network
    cka: Mapping[str, Sequence[float]]  # (W,)
    divergence: Mapping[str, Sequence[Sequence[float]]]  # (W, W)
    seconds: TrainingSeconds
    pictures: Mapping[str, Tensor]  # by row: images (PICTURES, h, w, 3) uint8


def _trial(methods: Methods, epochs: int | None, seed: int) -> Trial:
    """Train what has to be trained with a seed, and measure all networks."""
    task, config = methods.task, network_config(methods.run, methods.morph, methods.task, epochs, seed)
    if seed:
        methods = replace(methods, morph=methods.refitted(config))
    morph, (made, seconds) = methods.morph, methods.networks(config)
    figures = {key: [_figures(each, task) for each in networks] for key, networks in made.items()}
    names = dict.fromkeys(name for rows in figures.values() for row in rows for name in row)
    layer = last_layer(morph.module, task.inputs("test", slice(2)))
    whole = {key: [each for each in made[key] if each is not None] for key in COMPARED if key in made}
    pairs = {key: _alike(each, layer, task) for key, each in whole.items() if len(each) == len(methods.gammas)}
    original = None if morph.config.start == "nothing" else morph.module
    return Trial(
        {key: [row.get(task.score_name) for row in rows] for key, rows in figures.items()},
        {
            name: {key: [row.get(name) for row in rows] for key, rows in figures.items() if key != "sampled"}
            for name in names
            if name != task.score_name
        },
        [None if original is None else agreement(each, original, task) for each in whole["morph"]],
        None if original is None else _figures(original, task)[task.score_name],
        {key: cka for key, (cka, _) in pairs.items()},
        {key: divergence for key, (_, divergence) in pairs.items()},
        seconds,
        _pictures(whole["morph"], methods.gammas, task),
    )


def _figures(network: nn.Module | None, task: Task) -> dict[str, float]:
    """Return the score of a network on test inputs, and what else its task measures, by name."""
    if network is None:
        return {}
    figures = task.assess(lambda inputs: _flat(network(inputs)), "test", ALONE)
    return {name: float(value[0]) for name, value in figures.items()}


@torch.no_grad()
def agreement(first: nn.Module, second: nn.Module, task: Task) -> float:
    """Return how alike the outputs of two networks are for test inputs."""
    total, count = 0.0, task.size("test")
    for start in range(0, count, CHUNK):
        inputs = task.inputs("test", slice(start, min(start + CHUNK, count)))
        total += float(task.agreement(_flat(first(inputs)), _flat(second(inputs)))[0]) * len(inputs)
    return total / count


def _alike(networks: Sequence[nn.Module], layer: str, task: Task) -> tuple[list[float], list[list[float]]]:
    """Return linear CKA of features with those of the widest network (W,), and divergences of outputs of all pairs (W, W)."""
    drawn = torch.randperm(task.size("test"), generator=generator(0, Stream.ANALYSED_IMAGES))[:INPUTS].sort().values
    inputs = task.inputs("test", drawn.to(task.device))
    pairs = [features_and_outputs(each, layer, inputs) for each in networks]
    cka = [linear_cka(features, pairs[0][0]) for features, _ in pairs]
    divergence = [
        [float(task.divergence(_flat(outputs), _flat(target))[0]) for _, outputs in pairs] for _, target in pairs
    ]
    return cka, divergence


def last_layer(module: nn.Module, inputs: Tensor) -> str:
    """Return the name of the linear layer or convolution that a network runs last on inputs (B, ...).

    Raises `NetspaceError` if there is none.
    """
    ran: list[str] = []
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear | _ConvNd)]
    handles = [layer.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, layer in layers]
    try:
        with torch.no_grad():
            module(inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        raise NetspaceError("the network runs neither a linear layer nor a convolution: its features are not known")
    return ran[-1]


@torch.no_grad()
def features_and_outputs(module: nn.Module, layer: str, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a layer reads (B, D), and outputs (B, ...) of the network, for inputs (B, ...).

    Maps of features are averaged to at most `MAP_SIDE` x `MAP_SIDE`.
    """
    features: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        (value,) = given
        if value.dim() == 4:
            value = F.adaptive_avg_pool2d(value, (min(MAP_SIDE, value.shape[2]), min(MAP_SIDE, value.shape[3])))
        features.append(value.flatten(1))

    handle = module.get_submodule(layer).register_forward_pre_hook(keep)
    try:
        outputs = torch.cat([module(batch) for batch in inputs.split(CHUNK)])
    finally:
        handle.remove()
    return torch.cat(features), outputs


def _flat(outputs: Tensor) -> Tensor:
    """Return outputs (B, ...) of one network as (1, B, C)."""
    return outputs.flatten(1)[None]


def _pictures(networks: Sequence[nn.Module], gammas: Sequence[float], task: Task) -> dict[str, Tensor]:
    """Return rows of images that show what networks make of test inputs; empty for tasks without pictures.

    Rows that are the same at all widths are there once. Names begin with the number of the row.
    """
    index = torch.arange(min(PICTURES, task.size("test")))
    shown = [task.pictures(each, "test", index) for each in networks]
    rows: dict[str, np.ndarray] = {}
    for name, first in shown[0].items():
        if all(np.array_equal(first, each[name]) for each in shown):
            rows[name] = first
        else:
            rows |= {f"{name}, γ {gamma:g}": each[name] for gamma, each in zip(gammas, shown, strict=True)}
    return {f"{number:02d} {name}": torch.from_numpy(row) for number, (name, row) in enumerate(rows.items())}


def _result(methods: Methods, epochs: int | None, trials: Sequence[Trial]) -> MorphEvaluation:
    """Return the means of trials, with their spread if there are several."""
    morph, task, times = methods.morph, methods.task, [each.seconds for each in trials]
    original = mean([each.original for each in trials])
    return MorphEvaluation(
        run=str(methods.run),
        **task.score_field(),
        seeds=len(trials),
        training=network_config(methods.run, morph, task, epochs).model_dump(mode="json"),
        us_net_start=methods.us_net_start if "us_net" in methods.baselines else None,
        draws=DRAWS,
        narrowest=morph.config.widths.narrowest,
        full_parameters=count_parameters(morph.module, morph.info, morph.info.full()),
        stored_parameters=morph.stored_parameters,
        **({} if original is None else {"full_accuracy": original}),
        widths=[_width(methods, index, trials) for index in range(len(methods.gammas))],
        inputs=min(INPUTS, task.size("test")),
        cka={key: np.mean([each.cka[key] for each in trials], axis=0).tolist() for key in trials[0].cka},
        divergence={
            key: np.mean([each.divergence[key] for each in trials], axis=0).tolist() for key in trials[0].divergence
        },
        seconds=TrainingSeconds(
            morph=mean([each.morph for each in times]),
            individual=[mean(row) for row in zip(*(each.individual for each in times), strict=True)],
            us_net=mean([each.us_net for each in times]),
        ),
    )


def _width(methods: Methods, index: int, trials: Sequence[Trial]) -> WidthFigures:
    """Return the figures of one width."""
    morph, gamma, limits = methods.morph, methods.gammas[index], methods.morph.config.widths
    scores = {key: [each.scores[key][index] for each in trials] for key in trials[0].scores}
    own = {"accuracy": scores["morph"], "sampled_accuracy": scores["sampled"]}
    own["agreement"] = [each.agreement[index] for each in trials]
    more: dict[str, Any] = {
        "measures": {
            name: Networks(**{key: mean([each.measures[name][key][index] for each in trials]) for key in by_method})
            for name, by_method in trials[0].measures.items()
        }
    }
    if len(trials) > 1:
        more |= {f"{name}_std": deviation(values) for name, values in own.items()}
        more["baselines_std"] = Baselines(**{key: deviation(scores[key]) for key in methods.baselines})
    return WidthFigures(
        gamma=gamma,
        parameters=count_parameters(morph.module, morph.info, methods.widths[index]),
        trained=0 <= gamma <= limits.narrowest if limits.random else gamma in (0, limits.narrowest),
        baselines=Baselines(**{key: mean(scores[key]) for key in methods.baselines}),
        **{name: mean(values) for name, values in own.items()},
        **{name: value for name, value in more.items() if value},
    )


def mean(values: Scores) -> float | None:
    """Return the mean of values; None if one is not known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def deviation(values: Scores) -> float | None:
    """Return the standard deviation of values as of a sample; None if one is not known."""
    known = [value for value in values if value is not None]
    return float(np.std(known, ddof=1)) if len(known) == len(values) > 1 else None
