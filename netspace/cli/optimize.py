"""`netspace optimize`: improved networks, or a shape from points on its surface."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from netspace.cli.output import optimization, say
from netspace.cli.ranges import MAX_STEPS, real, whole
from netspace.cli.shapes import completion
from netspace.cli.shared import (
    Depth,
    Device,
    Json,
    Network,
    RunArgument,
    SameRun,
    Set,
    Trust,
    Width,
    ZooOption,
    pick,
    run_folder,
    trusting,
)


def optimize(
    start: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="A",
            help=f"{Network} Or noise (noise:ARCH). May be repeated. With --resume, the starts and the run recorded in --out are the default.",
        ),
    ] = None,
    run: RunArgument = None,
    same_run: SameRun = None,
    points: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Instead of --from, in a space of shapes: points on a surface (PLY, OBJ, XYZ, NPY). A latent, a network and a "
            "mesh of a whole shape are found for them.",
        ),
    ] = None,
    normalise: Annotated[
        bool,
        typer.Option(
            "--normalise", help="Move and scale --points to the space's frame: right for points all over a shape."
        ),
    ] = False,
    arch: Annotated[
        str | None,
        typer.Option(
            help="Decode all starts as this architecture; default: each as its own. With a coordinate decoder any "
            "architecture."
        ),
    ] = None,
    width: Width = None,
    depth: Depth = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="The teacher to distil from: a zoo member, best, a zoo file (its best member), or the file of a network. Default "
            "auto: the teacher of the zoo, else its best member."
        ),
    ] = None,
    steps: Annotated[
        int | None, whole(1, MAX_STEPS, "Maximum number of steps; default 500, with --points 200.")
    ] = None,
    lr: Annotated[
        float | None,
        real(
            0,
            1000,
            "Adam's learning rate, in units of the standard deviation of the latents; default 0.02, with --points 0.1.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="The folder to write; default: a folder in optimized/ of the run."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted optimisation with its own settings.")
    ] = False,
    set_: Set = None,
    zoo: ZooOption = None,
    device: Device = None,
    trust_arch: Trust = None,
    json: Json = False,
) -> None:
    """Improve networks by gradient descent on their latents alone, or complete a shape from points on its surface."""
    from netspace.commands.optimize import OptimizeConfig
    from netspace.commands.optimize import optimize as optimize_latents
    from netspace.config import load, read_back
    from netspace.errors import UsageError
    from netspace.run_folder import OPTIMISATION, RunFolder

    trusting(trust_arch)
    run = run if same_run is None else run_folder(run, same_run)
    if points is not None:
        others = {"--from": start, "--teacher": teacher, "--width": width, "--depth": depth, "--resume": resume or None}
        if unfit := [name for name, value in others.items() if value is not None]:
            raise UsageError(f"--points was given with {', '.join(unfit)}: completion has no such option, leave it out")
        _complete(run_folder(run), points, out, normalise, arch, steps, lr, set_, zoo, device, json)
        return
    if normalise:
        raise UsageError("--normalise was given without --points, which it is for: leave it out")
    if not start:
        if resume and out is None:
            raise UsageError("--out is missing: name the folder of the optimisation to resume, or its --from again")
        own = RunFolder.of(OPTIMISATION, out or Path()).begun_with(resume, "--from", "the networks to start from")
        run, zoo = run or Path(str(own.run)), zoo or (Path(own.zoo) if own.zoo else None)
    folder = run_folder(run)
    names = (re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-") for text in [*(start or ()), *([arch] if arch else [])])
    where = out or folder / "optimized" / "-".join(names)
    options = {"starts": start or None, "teacher": teacher, "steps": steps, "learning_rate": lr}
    options |= {"arch": arch, "width": width, "depth": depth}
    given = {name: value for name, value in options.items() if value is not None}
    if resume and (where / "config.yaml").is_file():
        given = read_back(OptimizeConfig, where / "config.yaml").model_dump(mode="json") | given
    config = load(OptimizeConfig, given, set_ or [])
    say(optimize_latents(folder, config, where, resume, zoo, pick(device)), json, optimization)


def _complete(
    run: Path,
    points: Path,
    out: Path | None,
    normalise: bool,
    arch: str | None,
    steps: int | None,
    lr: float | None,
    changes: list[str] | None,
    zoo: Path | None,
    device: str | None,
    json: bool,
) -> None:
    """Complete a shape from points."""
    from netspace.commands.complete import CompleteConfig, complete
    from netspace.config import load

    options = {"steps": steps, "learning_rate": lr}
    config = load(CompleteConfig, {name: value for name, value in options.items() if value is not None}, changes or [])
    where = out or run / "optimized" / re.sub(r"[^A-Za-z0-9.]+", "-", f"points-{points.stem}").strip("-")
    say(complete(run, points, where, config, arch, normalise, zoo, pick(device)), json, completion)
