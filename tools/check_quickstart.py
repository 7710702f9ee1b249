"""Holds a quickstart's result against its bounds: `python tools/check_quickstart.py quickstart.json`.

The bounds are the project's targets. Speed is printed, not judged.
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
# Of one line of 11 points, of which two neighbours that change places cost 0.009. The same seed, machine and number of threads
# give the same; another number of threads rounds otherwise: 0.998 was measured with one, 0.964 to 0.973 with two.
SPEARMAN = 0.95


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
