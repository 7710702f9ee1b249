"""The ablations of morphing (NeuMeta, Fig. 10 and 11), and our choices: fits of one network that differ from one base.

    python tools/ablations.py morph best --zoo resnet8.h5 --out runs/morph-ablations
    python tools/ablations.py morph best --zoo resnet20.h5 --out runs/r20 --recipe morph/resnet20-fashion --seeds 0 1 2

Every fit has a folder of its own; finished ones are not repeated. Accuracies (scores of other tasks) are of test inputs, by compression
rate gamma, of expected weights and of the mean of K noisy draws, where there is noise; means over seeds. Writes `ablations.json`
and prints a table.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from netspace.commands.morph import fit
from netspace.config import load
from netspace.errors import NetspaceWarning
from netspace.io import read_json, write_json
from netspace.saved_morph import open_morph
from netspace.training.morph import MorphConfig
from netspace.training.network import network_score

GAMMAS = (0.0, 0.25, 0.5, 0.75)
DRAWS = (1, 5, 50)  # K of Eq. 9
MUON = "{name: muon, learning_rate: 0.003, muon_rate: 0.03, schedule: cosine}"
WEIGHTS = f"{{learns: weights, steps: 600, optimizer: {MUON}}}"  # which MLPs learn first
VARIANTS: dict[str, list[str]] = {  # what differs from the recipe
    "base": [],
    "channels as trained": ["order=false"],
    "no noise": ["function.noise=0"],
    "noise 1": ["function.noise=1"],
    "noise 2": ["function.noise=2"],
    "noisy draws in training": ["sampling=noisy"],
    "targets, no distillation": ["loss.distillation=false"],
    "reconstruction 1": ["loss.reconstruction=1"],
    "reconstruction 1, fading": ["loss.reconstruction=1", "loss.fade=0.25"],
    "reconstruction 10": ["loss.reconstruction=10"],
    "regularisation 0.0001": ["loss.regularisation=0.0001"],
    "regularisation 0.001": ["loss.regularisation=0.001"],
    "no sandwich": ["widths.sandwich=false"],
    "a gamma for each group": ["widths.each_group=true"],
    "no smoothed networks": ["widths.smooth=0"],
    "half of the tensors": ["tensors=0.5"],
    "from fresh weights": ["start=nothing"],
    "an MLP for each tensor": ["function.kind=mlps"],
    "one MLP": ["function.kind=mlp"],
}


def config_of(recipe: str, changes: Sequence[str], seed: int, epochs: float | None) -> MorphConfig:
    """Return the settings of a variant; MLPs learn the network's weights before the recipe's stages, which have so many epochs."""
    config = load(MorphConfig, recipe, [*changes, f"seed={seed}"])
    stages = list(config.stages)
    if epochs is not None:
        stages = [
            stage if stage.learns == "weights" else stage.model_copy(update={"epochs": epochs, "steps": None})
            for stage in stages
        ]
    if config.function.kind != "grid" and all(stage.learns == "widths" for stage in stages):
        (first,) = load(MorphConfig, {}, [f"stages=[{WEIGHTS}]"]).stages
        stages.insert(0, first)
    return config.model_copy(update={"stages": tuple(stages)})


def measured(folder: Path, draws: Sequence[int] = DRAWS) -> dict[str, Any]:
    """Return the scores of a morph's networks at all gammas, by expectation and by K; they are kept in its folder."""
    kept = folder / "ablation.json"
    if kept.exists():
        return read_json(kept, dict[str, Any])
    morph = open_morph(folder)
    task, noisy = morph.task(), morph.config.function.noise > 0
    scores: dict[str, list[float]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NetspaceWarning)  # the head of the table says which gammas are trained
        for count in (None, *(draws if noisy else ())):
            networks = (morph.network(morph.info.at(gamma), draws=count) for gamma in GAMMAS)
            scores["expected" if count is None else f"K = {count}"] = [
                network_score(each, task, "test") for each in networks
            ]
    result = {"narrowest": morph.config.widths.narrowest, "scores": scores}
    write_json(kept, result)
    return result


def table(variants: dict[str, list[dict[str, Any]]]) -> str:
    """Return a table of means over seeds, one row for each variant and way to sample."""
    narrowest = next(iter(variants.values()))[0]["narrowest"]
    head = [f"γ {gamma:g}{' (unseen)' if gamma > narrowest else ''}" for gamma in GAMMAS]
    lines = [f"| variant | weights | {' | '.join(head)} |", "| --- | --- |" + " --- |" * len(GAMMAS)]
    for name, rows in variants.items():
        for way in rows[0]["scores"]:
            columns = zip(*(row["scores"][way] for row in rows), strict=True)
            means = [f"{100 * sum(column) / len(column):.1f} %" for column in columns]
            lines.append(f"| {name} | {way} | {' | '.join(means)} |")
    return "\n".join(lines)


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("ablations.py morph", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("member", help="of the zoo, or a file of a state dict")
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="morph/digits", help="the base")
    parser.add_argument("--epochs", type=float, help="of the stages on the task; default: the recipe's")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a change to all variants")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="*", help="default: all variants")
    options = parser.parse_args(words)
    for name in options.only or ():
        if name not in VARIANTS:
            parser.error(f"there is no variant {name!r}: choose from {', '.join(VARIANTS)}")
    finished: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:
        for name in options.only or VARIANTS:
            folder = options.out / f"{re.sub('[^a-z0-9.]+', '-', name.lower()).strip('-')}-{seed}"
            config = config_of(options.recipe, [*options.set, *VARIANTS[name]], seed, options.epochs)
            if not (folder / "fit.json").exists():
                fit(folder, config, options.member, options.zoo, resume=(folder / "config.yaml").exists())
            finished.setdefault(name, []).append({"seed": seed, **measured(folder)})
            write_json(options.out / "ablations.json", {"variants": finished})
    print(table(finished))
