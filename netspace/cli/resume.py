"""`netspace resume`: go on with whatever a folder or a zoo was begun as."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from netspace.cli import compress, morph
from netspace.cli.optimize import optimize
from netspace.cli.shared import Device, Json, Trust


def resume(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run folder of train, compress fit, morph fit or optimize; or a zoo."),
    ],
    trust_arch: Trust = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Continue an interrupted run with its own settings: the folder says which command began it.

    A zoo whose build was interrupted is built to its end.
    """
    from netspace.cli.app import train
    from netspace.cli.zoo import resume_build
    from netspace.run_folder import FIT, MORPH, OPTIMISATION, kind_to_resume

    if not run.is_dir():
        resume_build(run, trust_arch, device, json)
        return
    kind = kind_to_resume(run)
    if kind == FIT:
        compress.fit(out=run, resume=True, trust_arch=trust_arch, device=device, json=json)
    elif kind == MORPH:
        morph.fit(out=run, resume=True, trust_arch=trust_arch, device=device, json=json)
    elif kind == OPTIMISATION:
        optimize(out=run, resume=True, trust_arch=trust_arch, device=device, json=json)
    else:
        train(out=run, resume=True, trust_arch=trust_arch, device=device, json=json)
