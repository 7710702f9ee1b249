"""Holds a quickstart's result against its bounds: `python tools/check_quickstart.py quickstart.json`.

The bounds are the project's targets, but for the rank correlation of one line (target 0.95, here 0.9), which a tie can move
by that much. Speed is printed, not judged.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

BOUNDS = {  # figure -> (least or most, bound)
    "members": ("at least", 64),
    "r2": ("at least", 0.90),
    "mae": ("at most", 0.04),
    "agreement": ("at least", 0.80),
}
SPEARMAN = 0.9


def main(path: Path) -> int:
    """Exit code 0 if all bounds hold."""
    told = json.loads(path.read_text())
    failed = 0
    rows = [(name, told["eval"][name], *bound) for name, bound in BOUNDS.items()]
    line = told["interpolate"]
    rows.append(("spearman of the latent line", line["spearman"], "at least", SPEARMAN))
    rows.append(("spearman of the weights", line["weight_spearman"], "below", SPEARMAN))
    for name, found, kind, bound in rows:
        holds = {"at least": found >= bound, "at most": found <= bound, "below": found < bound}[kind]
        failed += not holds
        print(f"{'ok  ' if holds else 'FAIL'} {name}: {found:.3f}, {kind} {bound}")
    print("seconds:", ", ".join(f"{name} {value:.0f}" for name, value in told["seconds"].items()))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
