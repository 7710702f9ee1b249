"""Encoders and decoders on one zoo, each trained for the same wall-clock time, as one table.

    python tools/space_grid.py ZOO --out FOLDER [--recipe space/quickstart] [--seconds 100] [--cells linear,probe ...] [--set KEY=VALUE ...]

A cell is DECODER,ENCODER as `DECODERS` and `ENCODERS` below name them. A short run of each says how many steps fit the time;
the run itself has so many, its schedule over all of them. Runs that are finished are kept. Prints a table for
docs/benchmarks-spaces.md: agreement with the own target, R2, bias, identity and diversity, and the best baseline of `eval`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from netspace.commands.evaluate import evaluate
from netspace.config import load
from netspace.run_folder import read_metrics
from netspace.training.latent_space import train
from netspace.training.recipe import SpaceRecipe

DECODERS: dict[str, list[str]] = {
    "linear": ["decoder={kind: linear, start: reference}"],
    "conv": ["decoder={kind: conv, start: reference}"],
    "basis": ["decoder={kind: coordinate, start: reference, hidden: 512, blocks: 1}"],
    "basis-emitted": ["decoder={kind: coordinate, start: emitted, hidden: 512, blocks: 1}"],
    "modulated": ["decoder={kind: coordinate, start: reference, conditioning: modulated, hidden: 128}"],
}
ENCODERS: dict[str, list[str]] = {
    "probe": ["encoder={kind: probe, probes: 128, hidden: 384}"],
    "conv": ["encoder={kind: conv}"],
    "token": ["encoder={kind: token}"],
    "token-pretrained": ["encoder={kind: token, pretrain: 300}"],
}
TRIAL = 60  # steps of the short run


def rate_of(run: Path) -> float:
    """Steps a second over the last half of a run's records."""
    rates = [record["steps_a_second"] for record in read_metrics(run / "metrics.jsonl") if "steps_a_second" in record]
    return sum(rates[len(rates) // 2 :]) / len(rates[len(rates) // 2 :])


def cell(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one cell; its row."""
    decoder, encoder = name.split(",")
    changes = [*DECODERS[decoder], *ENCODERS[encoder], *arguments.set]
    folder = arguments.out / name.replace(",", "-")
    steps_file = folder / "steps.json"
    if not steps_file.exists():
        short = [*changes, f"steps={TRIAL}", f"validate_every={TRIAL}", "log_every=10"]
        trial = train(load(SpaceRecipe, arguments.recipe, short), arguments.zoo, folder / "trial")
        steps = max(int(rate_of(trial) * arguments.seconds), 1)
        steps_file.write_text(json.dumps({"steps": steps}))
    steps = json.loads(steps_file.read_text())["steps"]
    recipe = load(SpaceRecipe, arguments.recipe, [*changes, f"steps={steps}", f"validate_every={max(steps // 4, 1)}"])
    begun = time.monotonic()
    run = train(recipe, arguments.zoo, folder / "run", resume=(folder / "run" / "config.yaml").exists())
    seconds = time.monotonic() - begun
    result = evaluate(run).model_dump(mode="json")
    return {"cell": name, "steps": steps, "seconds": seconds, "result": result}


def row(found: dict[str, Any]) -> str:
    """One line of the table."""
    result = found["result"]
    identity = result["identity"]
    baselines = result["baselines"]
    best = max(
        (each["agreement"], name) for name, each in baselines.items() if each and each.get("agreement") is not None
    )
    decoder, encoder = found["cell"].split(",")
    return (
        f"| {decoder} | {encoder} | {found['steps']:,} | {found['seconds']:.0f} | {result['agreement']:.1%} | {result['r2']:.3f} | "
        f"{100 * result['bias']:+.1f} | {100 * identity['own_minus_peers']:+.1f} | {result['diversity_ratio']:.2f} | "
        f"{best[0]:.1%} ({best[1]}) |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="space/quickstart")
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument(
        "--cells", nargs="+", default=[f"{decoder},{encoder}" for decoder in DECODERS for encoder in ENCODERS]
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(
        "| decoder | encoder | steps | seconds | agreement | R2 | bias | own minus peers | diversity | best baseline |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in arguments.cells:
        found = cell(name, arguments)
        (arguments.out / name.replace(",", "-") / "row.json").write_text(json.dumps(found))
        print(row(found), flush=True)


if __name__ == "__main__":
    main()
