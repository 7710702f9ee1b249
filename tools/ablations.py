"""NeRN's ablations (Sec. 4.4 and 4.6) on one network: fits that differ from one base by one setting each.

    python tools/ablations.py best --zoo resnet20.h5 --out runs/ablations

Every fit lies in a folder of its own; finished ones are not repeated. Accuracies are of test images, of the checkpoint chosen on
validation images. Writes `ablations.json` and prints a table with the orders that the paper reports, held or not.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from netspace.apps.compress import fit
from netspace.config import validate
from netspace.runtime import write_json
from netspace.training.nern import FitConfig

BASE: dict[str, Any] = {
    "predictor": {"hidden": 160, "embedding": {"base": 1.6, "count": 16}},
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
ORDERS = (  # what the paper finds: the first is worse than the second
    ("reconstruction only", "base"),
    ("order: none", "order: in-filter"),
    ("order: in-filter", "base"),
    ("reconstruction only", "input: noise"),
    ("sampling: layer", "sampling: uniform"),
    ("sampling: layer", "base"),
)


def config_of(changes: dict[str, Any], steps: int, weight: float, seed: int) -> FitConfig:
    """The settings of one variant."""
    stage = {**STAGE, "steps": steps, "distillation": weight, "features": weight}
    whole = {**BASE, "seed": seed, "validate_every": max(1, steps // 2)}
    for name, value in changes.items():
        (whole if name in FitConfig.model_fields else stage)[name] = value
    return validate(FitConfig, {**whole, "stages": [stage]}, "an ablation")


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Means over seeds, and the orders."""
    lines = ["| variant | accuracy (test) | same answers | relative error |", "| --- | --- | --- | --- |"]
    for name, rows in found.items():
        means = [
            sum(row[key] for row in rows) / len(rows)
            for key in ("accuracy_reconstructed", "agreement", "relative_error")
        ]
        lines.append(f"| {name} | {100 * means[0]:.1f} % | {100 * means[1]:.1f} % | {means[2]:.3f} |")
    lines.append("")
    for worse, better in ORDERS:
        if worse in found and better in found:
            pair = [
                sum(row["accuracy_reconstructed"] for row in found[name]) / len(found[name]) for name in (worse, better)
            ]
            lines.append(f"- {worse} < {better}: {'yes' if pair[0] < pair[1] else 'no'}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("member")
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--weight", type=float, default=0.01, help="of both distillation terms")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), help="default: all")
    told = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(told.seeds):
        for name in told.only or VARIANTS:
            folder = told.out / f"{name.replace(': ', '-').replace(' ', '-')}-{seed}"
            done = folder / "fit.json"
            if done.exists():
                figures = json.loads(done.read_text())
            else:
                config = config_of(VARIANTS[name], told.steps, told.weight, seed)
                figures = fit(told.member, folder, config, told.zoo, resume=(folder / "config.yaml").exists())
            kept = ("accuracy_original", "accuracy_reconstructed", "agreement", "relative_error")
            found.setdefault(name, []).append({"seed": seed, **{key: figures[key] for key in kept}})
            write_json(told.out / "ablations.json", {"steps": told.steps, "weight": told.weight, "variants": found})
    print(table(found))


if __name__ == "__main__":
    main()
