"""`netspace quickstart`: the whole pipeline on bundled data, in minutes on two cores.

It builds a zoo of small networks on scikit-learn's digits, or of networks that are chairs, learns its latent space, evaluates
it on test members, interpolates, and writes a report. Every part is the command that a user would run, with the bundled recipes
`zoo/quickstart` and `space/quickstart`, or `zoo/chairs` and `space/chairs`; an interrupted quickstart continues when it is
started again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from model_zoo.builder import build
from model_zoo.recipe import ZooRecipe
from netspace.commands.evaluate import evaluate
from netspace.commands.interpolate import interpolate
from netspace.config import load
from netspace.errors import UsageError
from netspace.hardware import machine, pick_device
from netspace.precision import matrix_rates
from netspace.results.spaces import Quickstart
from netspace.run_folder import RunFolder, is_run
from netspace.space import Space
from netspace.surfaces import shapes_extra
from netspace.training.latent_space import train
from netspace.training.recipe import SpaceRecipe
from netspace.zoo import MemberRef, Zoo

SMALL_ZOO = ("members.train=96", "members.val=24", "members.test=24")
SMALL_CHAIRS = ("members.train=48", "members.val=8", "members.test=8", "epochs.first=8", "epochs.last=8")
REFINED_STEPS, SMALL_REFINED_STEPS = 100, 20  # of descent on latents, from the encoder's
SMALL_SPACE = ("steps=300", "validate_every=100")


def quickstart(
    run: Path, small: bool = False, changes: Sequence[str] = (), device: str | None = None, shapes: bool = False
) -> Quickstart:
    """Run the whole pipeline, of digits or of `shapes`; return the figures of each part and the seconds that it took.

    `changes` are `zoo.KEY=VALUE` and `space.KEY=VALUE`, settings of the two recipes. Raises `UsageError` for others.

    >>> fewer = ["zoo.members.train=24", "zoo.members.val=8", "zoo.members.test=8", "zoo.epochs.last=2"]
    >>> fewer += ["space.steps=2", "space.validate_every=2"]
    >>> result = quickstart(folder, small=True, changes=fewer)
    >>> (folder / "report.html").is_file()
    True
    """
    from netspace.report import report

    if shapes:  # which the evaluation at the end needs
        for module in ("skimage.measure", "trimesh"):
            shapes_extra(module)
    started = time.monotonic()
    of_zoo, of_space = split_changes(changes)
    recorded = [*(SMALL_SPACE if small else ()), *of_space]  # in the run's provenance
    if device:
        of_zoo, of_space = [*of_zoo, f"device={device}"], [*of_space, f"device={device}"]
    device = str(pick_device(device or "auto"))
    name, small_zoo = ("chairs", SMALL_CHAIRS) if shapes else ("quickstart", SMALL_ZOO)
    recipe = load(ZooRecipe, f"zoo/{name}", [*(small_zoo if small else ()), *of_zoo])
    space = load(SpaceRecipe, f"space/{name}", [*(SMALL_SPACE if small else ()), *of_space])
    zoo_path = run / "zoo.h5"
    build(recipe, zoo_path)
    built = time.monotonic()
    train(space, zoo_path, run, resume=is_run(run), changes=recorded)
    trained = time.monotonic()
    refined = SMALL_REFINED_STEPS if small else REFINED_STEPS
    known = Space.load(run, device)
    figures = evaluate(run, "test", device=device, refined=refined, space=known)
    evaluate(run, "train", device=device, baselines=False, space=known)
    start, end = held_out_ends(zoo_path)
    line = interpolate(run, start, end, device=device, space=known)
    if not shapes:
        interpolate(run, start, end, device=device, refine=refined, space=known)
    evaluated = time.monotonic()
    page = report(run)
    seconds = {
        "zoo": built - started,
        "train": trained - built,
        "eval": evaluated - trained,
        "total": time.monotonic() - started,
    }
    rates = matrix_rates(torch.device(device))
    result = Quickstart(
        run=str(run),
        zoo=str(zoo_path),
        report=page.report,
        precision=RunFolder.of_space(run).origin.precision,
        machine={**machine(), "threads": torch.get_num_threads(), "operations_per_second": rates},
        seconds=seconds,
        eval=figures,
        interpolate=line,
    )
    result.write(run / "quickstart.json")
    return result


def split_changes(changes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the changes `zoo.KEY=VALUE` and `space.KEY=VALUE` without their first word. Raises `UsageError` for others."""
    split: dict[str, list[str]] = {"zoo": [], "space": []}
    for change in changes:
        recipe, dot, rest = change.partition(".")
        if recipe not in split or not dot:
            raise UsageError(
                f"--set of quickstart takes zoo.KEY=VALUE or space.KEY=VALUE (such as space.steps=400), not {change!r}"
            )
        split[recipe].append(rest)
    return split["zoo"], split["space"]


def held_out_ends(zoo_path: Path) -> tuple[str, str]:
    """Return two test members for the interpolation: the one at the lower quartile and the best, on validation images."""
    with Zoo(zoo_path) as zoo:
        group = zoo.only()
        rows = group.rows("test")
        ranked = rows[np.argsort(group.merit(rows), kind="stable")]
        return str(MemberRef(group.id, int(ranked[len(ranked) // 4]))), str(MemberRef(group.id, int(ranked[-1])))
