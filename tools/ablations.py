"""NeRN's ablations (Sec. 4.4 and 4.6) on one network, and optimisers under several embeddings: fits that differ from one base.

    python tools/ablations.py best --zoo resnet20.h5 --out runs/ablations
    python tools/ablations.py best --zoo resnet20.h5 --out runs/optimizers --group optimizers --steps 1200
    python tools/ablations.py svhn.pth --layers 'features.[12].*' --out runs/optimizers --group optimizers

`morph` as the first word has the ablations of morphing: see `tools/ablations_morph.py`. Every fit has a folder of its own; finished ones are not repeated. Accuracies are of test images, of the checkpoint chosen on
validation images; of a state-dict file without a zoo there is the relative error alone. Writes `ablations.json` and prints a
table; for NeRN's, with the orders that the paper reports and whether they hold.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ablations_morph

from netspace.compression.fit import fit
from netspace.config import validate
from netspace.io import write_json
from netspace.results.compressed import FitResult
from netspace.training.recipe import FitConfig

BASE: dict[str, Any] = {
    "predictor": {"hidden": 160, "embedding": {"coordinates": "normalised", "base": 1.6, "count": 16}},
    "precision": "bf16",
}
STAGE: dict[str, Any] = {
    "images": 32,
    "kernels": 4096,
    "optimizer": {"name": "muon", "learning_rate": 0.002, "muon_rate": 0.03, "schedule": "cosine"},
}
VARIANTS: dict[str, dict[str, Any]] = {  # what differs from the base: settings of the fit, or of its one stage
    "base": {},
    "reconstruction only": {"distillation": 0.0, "features": 0.0},
    "reconstruction + logits": {"features": 0.0},
    "order: none": {"order": "none"},
    "order: in-filter": {"order": "in-filter"},
    "input: noise": {"inputs": "noise"},
    "sampling: layer": {"sampling": "layer"},
    "sampling: uniform": {"sampling": "uniform"},
    "sampling: all": {"sampling": "all"},
}
ALONE = {"distillation": 0.0, "features": 0.0}
EMBEDDINGS: dict[str, dict[str, Any]] = {
    "raw 0.76 x 40 (the paper's)": {"coordinates": "raw", "base": "smooth", "count": 40},
    "raw 1.25 x 40": {"coordinates": "raw", "base": "rough", "count": 40},
    "normalised 1.6 x 16": {"coordinates": "normalised", "base": 1.6, "count": 16},
}
METHODS: dict[str, dict[str, Any]] = {
    "Muon (0.03)": STAGE["optimizer"],
    "Muon (0.01)": {**STAGE["optimizer"], "muon_rate": 0.01},
    "SOAP (0.003)": {"name": "soap", "learning_rate": 0.003, "betas": [0.9, 0.95], "schedule": "cosine"},
    "Ranger (0.005, the paper's)": {
        "name": "ranger",
        "learning_rate": 0.005,
        "betas": [0.5, 0.999],
        "weight_decay": 0.001,
        "schedule": "cosine",
    },
    "Adam (0.003)": {"name": "adam", "learning_rate": 0.003, "schedule": "cosine"},
}
OPTIMIZERS: dict[str, dict[str, Any]] = {  # by reconstruction alone
    f"{embedding_name}; {name}": {**ALONE, "predictor": {"hidden": 160, "embedding": embedding}, "optimizer": method}
    for embedding_name, embedding in EMBEDDINGS.items()
    for name, method in METHODS.items()
}
GROUPS = {"nern": VARIANTS, "optimizers": OPTIMIZERS}
ORDERS = (  # the paper's findings: the first is worse than the second
    ("reconstruction only", "base"),
    ("order: none", "order: in-filter"),
    ("order: in-filter", "base"),
    ("reconstruction only", "input: noise"),
    ("sampling: layer", "sampling: uniform"),
    ("sampling: layer", "base"),
)


def config_of(
    changes: dict[str, Any], steps: int, weight: float, seed: int, layers: Sequence[str] = (), norms: bool = True
) -> FitConfig:
    """Return the settings of one variant."""
    stage = {**STAGE, "steps": steps, "distillation": weight, "features": weight}
    whole = {**BASE, "seed": seed, "validate_every": max(1, steps // 2), "layers": list(layers), "norms": norms}
    for name, value in changes.items():
        (whole if name in FitConfig.model_fields else stage)[name] = value
    return validate(FitConfig, {**whole, "stages": [stage]}, "an ablation")


def table(variants: dict[str, list[dict[str, Any]]]) -> str:
    """Return a table of means over seeds, and the orders."""
    lines = ["| variant | accuracy (test) | same answers | relative error |", "| --- | --- | --- | --- |"]
    for name, rows in variants.items():
        accuracy, agreement = (percent([row[key] for row in rows]) for key in ("accuracy_reconstructed", "agreement"))
        error = sum(row["relative_error"] for row in rows) / len(rows)
        lines.append(f"| {name} | {accuracy} | {agreement} | {error:.3f} |")
    lines.append("")
    for worse, better in ORDERS:
        if worse in variants and better in variants:
            pairs = [[row["accuracy_reconstructed"] for row in variants[name]] for name in (worse, better)]
            holds = sum(pairs[0]) / len(pairs[0]) < sum(pairs[1]) / len(pairs[1])
            seeds = [one < two for one, two in zip(*pairs, strict=False)]
            lines.append(f"- {worse} < {better}: {'yes' if holds else 'no'}, by {sum(seeds)} of {len(seeds)} seeds")
    return "\n".join(lines)


def percent(values: list[float | None]) -> str:
    """Return the mean over seeds; '-' if it is not known."""
    known = [value for value in values if value is not None]
    return f"{100 * sum(known) / len(known):.1f} %" if known else "-"


def main() -> None:
    if sys.argv[1:2] == ["morph"]:
        ablations_morph.main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("member", help="of the zoo, or a file of a state dict")
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--layers", nargs="*", default=(), help="patterns of the weights that are represented")
    parser.add_argument("--no-norms", action="store_true", help="filters as they are, as in the paper")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--weight", type=float, default=1e-4, help="of both distillation terms; default: the paper's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--group", choices=list(GROUPS), default="nern")
    parser.add_argument("--only", nargs="*", help="default: all of the group")
    options = parser.parse_args()
    variants = GROUPS[options.group]
    for name in options.only or ():
        if name not in variants:
            parser.error(f"{options.group} has no variant {name!r}: choose from {', '.join(variants)}")
    finished: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:
        for name in options.only or variants:
            folder = options.out / f"{re.sub('[^a-z0-9.]+', '-', name.lower()).strip('-')}-{seed}"
            done = folder / "fit.json"
            if done.exists():
                figures = FitResult.read(done)
            else:
                config = config_of(
                    variants[name], options.steps, options.weight, seed, options.layers, not options.no_norms
                )
                figures = fit(options.member, folder, config, options.zoo, resume=(folder / "config.yaml").exists())
            keys = ("accuracy_original", "accuracy_reconstructed", "agreement", "relative_error")
            finished.setdefault(name, []).append({"seed": seed, **{key: getattr(figures, key) for key in keys}})
            write_json(
                options.out / "ablations.json", {"steps": options.steps, "weight": options.weight, "variants": finished}
            )
    print(table(finished))


if __name__ == "__main__":
    main()
