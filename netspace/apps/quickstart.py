"""`netspace quickstart`: the whole story on real bundled data, minutes on two cores.

A zoo of small networks on scikit-learn's digits, its latent space, evaluation on members never seen, an interpolation,
and a report. Every part is the command a user would run, with the bundled recipes `zoo/quickstart` and
`space/quickstart`; started again after an interruption it goes on.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from model_zoo.builder import build
from model_zoo.recipe import ZooRecipe
from netspace.apps.evaluate import evaluate
from netspace.apps.interpolate import interpolate
from netspace.config import load
from netspace.runtime import is_run, write_json
from netspace.store import MemberRef, Zoo
from netspace.training.recipe import SpaceRecipe
from netspace.training.space import train

SMALL_ZOO = ("members.train=96", "members.val=24", "members.test=24")
SMALL_SPACE = ("steps=300", "validate_every=100")


def quickstart(run: Path, small: bool = False) -> dict[str, Any]:
    """Builds, trains, evaluates, interpolates, reports; returns the figures of each part and the seconds it took."""
    from netspace.report import report

    started = time.monotonic()
    recipe = load(ZooRecipe, "zoo/quickstart", SMALL_ZOO if small else ())
    zoo_path = run / "zoo.h5"
    build(recipe, zoo_path)
    built = time.monotonic()
    space = load(SpaceRecipe, "space/quickstart", SMALL_SPACE if small else ())
    train(space, zoo_path, run, resume=is_run(run))
    trained = time.monotonic()
    figures = evaluate(run, "test")
    evaluate(run, "train")
    start, end = held_out_ends(zoo_path)
    line = interpolate(run, start, end)
    evaluated = time.monotonic()
    page = report(run)
    seconds = {
        "zoo": built - started,
        "train": trained - built,
        "eval": evaluated - trained,
        "total": time.monotonic() - started,
    }
    told = {
        "run": str(run),
        "zoo": str(zoo_path),
        "report": page["report"],
        "seconds": seconds,
        "eval": figures,
        "interpolate": line,
    }
    write_json(run / "quickstart.json", told)
    return told


def held_out_ends(zoo_path: Path) -> tuple[str, str]:
    """Two test members for the interpolation: the one at the lower quartile, and the best, on validation images."""
    with Zoo(zoo_path) as zoo:
        group = zoo.only()
        rows = group.rows("test")
        ranked = rows[np.argsort(group.members["accuracy_val"][rows], kind="stable")]
        return str(MemberRef(group.id, int(ranked[len(ranked) // 4]))), str(MemberRef(group.id, int(ranked[-1])))
