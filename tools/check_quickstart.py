"""Compare a quickstart's result with the project's targets: `python tools/check_quickstart.py quickstart.json [--all]`.

Every target is printed with the figure that was reached. The exit code is 1 if one of those in `ENFORCED` is missed; with
`--all`, if any is. `netspace quickstart` itself does not know them. Speed is printed, not judged.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOLDS = {"at least": lambda value, bound: value >= bound, "at most": lambda value, bound: value <= bound}
HOLDS["above"] = lambda value, bound: value > bound
HOLDS["below"] = lambda value, bound: value < bound
BY_ANSWERS = ("nearest_answers", "nearest_agreement", "five_nearest", "constant", "ensemble", "aligned_average")
# Floors that a broken program misses, and any recipe of ours reaches on any machine. The drawn line has 11 points, of which two
# neighbours that change places cost 0.009; another number of threads rounds otherwise.
ENFORCED = {
    "test members",
    "R2, floor",
    "mean difference, floor",
    "agreement, floor",
    "Spearman of the drawn line, latents",
    "Spearman of the drawn line, weights",
}


@dataclass(frozen=True)
class Target:
    """One figure and the bound that it is to reach."""

    name: str
    value: float | None  # None: it was not measured, and the target is missed
    kind: str  # of HOLDS
    bound: float
    unit: str = ""  # 'points' and '%' are printed times 100

    @property
    def holds(self) -> bool:
        return self.value is not None and bool(HOLDS[self.kind](self.value, self.bound))

    def text(self, value: float | None) -> str:
        """Return a value in the target's unit."""
        if value is None:
            return "not measured"
        return f"{100 * value:.1f} {self.unit}" if self.unit else f"{value:.3f}".removesuffix(".000")


def targets(story: Mapping[str, Any]) -> list[Target]:
    """Return the targets with the figures of `quickstart --json`."""
    figures, line = story["eval"], story["interpolate"]
    identity, bias = figures.get("identity", {}), figures.get("bias")
    rows = [
        Target("test members", figures["members"], "at least", 64),
        Target("R2, floor", figures["r2"], "at least", 0.90),
        Target("mean difference, floor", figures["mae"], "at most", 0.04, "points"),
        Target("agreement, floor", figures["agreement"], "at least", 0.80, "%"),
        Target("R2 of predicted against target accuracy", figures["r2"], "at least", 0.96),
        Target("absolute bias of predicted accuracy", None if bias is None else abs(bias), "at most", 0.01, "points"),
        Target("agreement of predictions", figures["agreement"], "at least", 0.90, "%"),
        Target(
            "agreement with the own target over peers'", identity.get("own_minus_peers"), "at least", 0.10, "points"
        ),
        Target("Spearman of the lines' mean, latents", figures["interpolation"]["spearman_latent"], "at least", 0.95),
        Target("Spearman of the drawn line, latents", line["spearman"], "at least", 0.95),
        Target("Spearman of the drawn line, weights", line["weight_spearman"], "below", 0.95),
    ]
    if refined := figures.get("refined"):  # the latents after some steps of descent
        bias, own = refined.get("bias"), refined.get("identity", {}).get("own_minus_peers")
        mean = (refined.get("interpolation") or {}).get("spearman_latent")
        rows += [
            Target("refined: R2 of accuracy", refined["r2"], "at least", 0.95),
            Target("refined: absolute bias", None if bias is None else abs(bias), "at most", 0.01, "points"),
            Target("refined: agreement", refined["agreement"], "at least", 0.90, "%"),
            Target("refined: own target over peers'", own, "at least", 0.10, "points"),
            Target("refined: Spearman of the lines' mean", mean, "at least", 0.95),
        ]
        if control := figures["baselines"].get("distilled"):
            rows.append(
                Target("refined: agreement, over weights", refined["agreement"], "above", control["agreement"], "%")
            )
    for name in BY_ANSWERS:
        if baseline := figures["baselines"].get(name):  # else it was not measured
            rows.append(Target(f"agreement, over {name}", figures["agreement"], "above", baseline["agreement"], "%"))
    return rows


def main() -> int:
    """Print all targets; return exit code 0 if those that count are reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="the output of `netspace quickstart --json`")
    parser.add_argument("--all", action="store_true", help="every target counts")
    given = parser.parse_args()
    story = json.loads(given.file.read_text())
    failed = 0
    for row in targets(story):
        counts = given.all or row.name in ENFORCED
        failed += counts and not row.holds
        word = "ok  " if row.holds else "FAIL" if counts else "miss"
        print(f"{word} {row.name}: {row.text(row.value)}, {row.kind} {row.text(row.bound)}")
    missing = [name for name in BY_ANSWERS if not story["eval"]["baselines"].get(name)]
    if missing:
        print(f"baselines that are not measured: {', '.join(missing)}")
    print("seconds:", ", ".join(f"{name} {value:.0f}" for name, value in story["seconds"].items()))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
