"""Networks of a morph and of other methods at the same widths, for `netspace morph eval`; those that are trained are kept in the run.

Batch norms of all networks get their statistics from the same training inputs. Axes: W widths, G groups of channels.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from netspace import distributed as ranks
from netspace.archs import ArchConfig
from netspace.commands.morph import RESULT, fit
from netspace.config import validate
from netspace.errors import NetspaceWarning
from netspace.io import read_json, write_json, write_tensors
from netspace.networks.pruning import Criterion
from netspace.networks.state_dict import FILES
from netspace.networks.widths import Widths, find_widths
from netspace.results.morph_eval import Baseline, Start, TrainingSeconds
from netspace.results.morphs import MorphFit
from netspace.run_folder import MORPH, RunFolder
from netspace.saved_morph import SavedMorph, open_morph, plain_network
from netspace.tasks import Task
from netspace.training import width_baselines as others
from netspace.training.morph import MorphConfig
from netspace.training.network import NetworkConfig, calibration
from netspace.training.slimmable import SlimmableConfig
from netspace.zoo import Zoo

BASELINES: tuple[Baseline, ...] = get_args(Baseline)
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
STARTS: tuple[Start, ...] = get_args(Start)
DRAWS = 50  # K of NeuMeta's Eq. 9
OPTIMIZERS = {"adam": "adam", "adamw": "adam", "muon": "muon"}  # of zoos, by our names
FOLDER = "baselines"  # in the run folder: trained networks
Made = list[nn.Module | None]  # W networks of a method; None where it has none of a width


def network_config(run: Path, morph: SavedMorph, task: Task, epochs: int | None = None, seed: int = 0) -> NetworkConfig:
    """Return how networks are trained that a morph is compared with, `seed` after the recipe's own.

    As the zoo's member was that the morph was fitted to; of another network, or a member whose optimiser is not ours, as long as the
    morph, by the default settings. `epochs` replaces either. What was found is kept in the run folder, as zoos may move.
    """
    kept = run / FOLDER / "network.json"
    if kept.exists():
        known = read_json(kept, dict[str, Any])
    else:
        known = _member_settings(run) or _recipe_settings(morph.config, task)
        if ranks.is_main():
            write_json(kept, known)
    config = validate(NetworkConfig, {**known, "seed": morph.config.seed + seed}, str(kept))
    return config if epochs is None else config.model_copy(update={"epochs": epochs})


def _recipe_settings(config: MorphConfig, task: Task) -> dict[str, Any]:
    own = [each for each in config.stages if each.learns == "widths"]
    inputs = sum(each.epochs * task.size("train") if each.epochs else 0 for each in own)
    inputs += sum(config.batch_size * (each.steps or 0) for each in own)
    return {"epochs": max(1, round(inputs / task.size("train"))), "batch_size": config.batch_size}


def _member_settings(run: Path) -> dict[str, Any] | None:
    """Return how the zoo's member was trained that a morph was fitted to; None if that is not known, or not to be had here."""
    if not (run / "provenance.json").exists():
        return None
    origin = RunFolder.of(MORPH, run).origin
    if (
        origin.zoo is None
        or origin.model is None
        or not Path(origin.zoo).exists()
        or Path(origin.model).suffix in FILES
    ):
        return None
    with Zoo(Path(origin.zoo)) as zoo:
        member, recipe = zoo.find(origin.model), zoo.header.recipe
        row = zoo.group(member.arch).members[member.index]
    given, rate, length = recipe.get("optimizer", {}), float(row["learning_rate"]), int(row["epochs"])
    schedule, decay = given.get("schedule"), given.get("weight_decay")
    plain = given.get("name") in OPTIMIZERS and schedule in ("constant", "cosine") and isinstance(decay, float)
    decoupled = given.get("name") == "adamw" or not decay  # a zoo's adam and muon have the decay in the gradient
    if not plain or not decoupled or not rate > 0 or length < 1:  # drawn settings, or an optimiser that is not ours
        return None
    optimizer = {"name": OPTIMIZERS[given["name"]], "learning_rate": rate, "weight_decay": decay, "schedule": schedule}
    optimizer |= {name: given[name] for name in ("betas", *(["muon_rate"] if given["name"] == "muon" else []))}
    return {"epochs": length, "batch_size": recipe["batch_size"], "optimizer": optimizer}


@dataclass(frozen=True)
class Methods:
    """A morph in its run folder, its task, and the baselines that it is compared with at compression rates `gammas` (W,)."""

    run: Path
    morph: SavedMorph
    task: Task
    gammas: tuple[float, ...]
    baselines: tuple[str, ...]
    us_net_start: Start = "fresh"  # 'network' only where the morph was fitted to one

    @cached_property
    def widths(self) -> list[tuple[int, ...]]:
        """The widths (G,) at each gamma."""
        return [self.morph.info.at(gamma) for gamma in self.gammas]

    @cached_property
    def plain(self) -> tuple[nn.Module, Widths]:
        """The architecture with its batch norms, of which networks are trained, and its groups of channels."""
        spec, own = self.morph.spec, self.morph.info
        module = plain_network(spec.arch, spec.settings, spec.input_shape, keep_batch_norm=True)
        info = find_widths(module, torch.zeros(1, *spec.input_shape), spec.arch)
        assert info.full() == own.full()  # folding changes no widths
        return module, info

    def refitted(self, config: NetworkConfig) -> SavedMorph:
        """Return a morph by the run's recipe, with the seed of `config`, of a network that is trained as that says.

        Raises as `netspace.commands.morph.fit`.
        """
        own, folder = self.morph, self._folder(config)
        model, out = folder / "network.safetensors", folder / "morph"
        if not (out / RESULT).exists():
            recipe = own.config.model_copy(update={"seed": config.seed, "data": own.data})
            arch = ArchConfig(arch=own.spec.arch, kwargs=own.spec.settings)
            known = own.config.start == "network"
            if known:
                network, _ = self._individual(own.info.full(), config)
                write_tensors(model, network.state_dict())
            resume = (out / "config.yaml").exists()
            fit(out, recipe, str(model) if known else None, None, resume, str(self.task.device), arch)
        return open_morph(out, self.task.device)

    def networks(self, config: NetworkConfig) -> tuple[dict[str, Made], TrainingSeconds]:
        """Return the networks of each method, W each, in evaluation mode, and how long their training took.

        Other than baselines there are 'morph', and 'sampled': the morph with the mean of `DRAWS` noisy draws as weights. Networks are
        trained as `config` says. Raises as `SavedMorph.network` and the functions of `netspace.training.width_baselines`.
        """
        made = {"morph": self._own(config, None), "sampled": self._own(config, DRAWS)}
        assert self.morph.path is not None
        seconds: dict[str, Any] = {"morph": MorphFit.read(self.morph.path.parent / RESULT).seconds}
        if "individual" in self.baselines:
            trained = [self._individual(each, config) for each in self.widths]
            made["individual"] = [*others.recalibrated([each for each, _ in trained], self.task, config)]
            seconds["individual"] = [each for _, each in trained]
        if "us_net" in self.baselines:
            made["us_net"], seconds["us_net"] = self._slimmable(config)
        if {"resampled", *(f"pruned_{each}" for each in CRITERIA)} & set(self.baselines):
            made |= self._derived(config)
        return made, TrainingSeconds(**seconds)

    def _own(self, config: NetworkConfig, draws: int | None) -> Made:
        inputs = calibration(self.task, config.seed, config.batch_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NetspaceWarning)  # results say which widths were trained
            return [
                self.morph.network(each, draws=draws, seed=config.seed, batches=inputs).to(self.task.device)
                for each in self.widths
            ]

    def _individual(self, widths: Sequence[int], config: NetworkConfig) -> tuple[nn.Module, float | None]:
        name = f"individual-{hashlib.sha256(repr(tuple(widths)).encode()).hexdigest()[:12]}"
        networks, seconds = timed(
            self._folder(config) / name,
            lambda folder: others.individual_networks(*self.plain, [widths], self.task, config, folder),
        )
        return networks[0], seconds

    def _slimmable(self, config: NetworkConfig) -> tuple[Made, float | None]:
        limits, (indices, widths) = self.morph.config.widths, self._narrower()
        slimmable = SlimmableConfig(narrowest=limits.narrowest, random=limits.random, each_group=limits.each_group)
        fresh = self.us_net_start == "fresh"
        start = self.plain if fresh else (self.morph.module, self.morph.info)
        networks, seconds = timed(
            self._folder(config) / ("us-net" if fresh else "us-net-from-network"),
            lambda folder: others.slimmable_networks(*start, widths, self.task, config, slimmable, folder, fresh),
        )
        return self._at(indices, networks), seconds

    def _derived(self, config: NetworkConfig) -> dict[str, Made]:
        """Return pruned and resampled networks: of the network that the morph was fitted to, or of an individual one."""
        source, info = self.morph.module, self.morph.info
        if self.morph.config.start == "nothing":
            source, info = self._individual(info.full(), config)[0], self.plain[1]
        made: dict[str, Made] = {}
        indices, widths = self._narrower()
        for criterion in CRITERIA:
            if f"pruned_{criterion}" in self.baselines:
                pruned = others.pruned_networks(source, info, widths, self.task, config, criterion)
                made[f"pruned_{criterion}"] = self._at(indices, others.recalibrated(pruned, self.task, config))
        if "resampled" in self.baselines:
            made["resampled"] = [*others.resampled_networks(source, info, self.widths, self.task, config)]
        return made

    def _narrower(self) -> tuple[list[int], list[tuple[int, ...]]]:
        """Return the widths that are at most the full ones, with their indices."""
        indices = [index for index, gamma in enumerate(self.gammas) if gamma >= 0]
        return indices, [self.widths[index] for index in indices]

    def _at(self, indices: Sequence[int], networks: Sequence[nn.Module]) -> Made:
        found = dict(zip(indices, networks, strict=True))
        return [found.get(index) for index in range(len(self.gammas))]

    def _folder(self, config: NetworkConfig) -> Path:
        """Return the folder of networks that are trained alike."""
        said = f"{self.task.split_hash} {config.model_dump_json()}"
        return self.run / FOLDER / hashlib.sha256(said.encode()).hexdigest()[:12]


def timed(folder: Path, train: Callable[[Path], list[nn.Module]]) -> tuple[list[nn.Module], float | None]:
    """Return the networks that `train` makes, or made, in a folder, and the seconds it took; None if it was stopped in between."""
    begun, record, start = folder.exists(), folder / "seconds.json", time.monotonic()
    networks = train(folder)
    if not begun and ranks.is_main():
        write_json(record, round(time.monotonic() - start, 3))
    return networks, read_json(record, float) if record.exists() else None
