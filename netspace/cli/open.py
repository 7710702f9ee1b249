"""`netspace open`: its options, and the line that it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from netspace.cli.output import counted, say
from netspace.cli.ranges import whole
from netspace.cli.shared import Device, Json, Trust, ZooOption, pick, trusting


def open_command(
    path: Annotated[Path, typer.Argument(metavar="RUN|ZOO", help="The run of a space, or a zoo.")],
    port: Annotated[int, whole(0, 65535, "The port on 127.0.0.1; 0: any free one.")] = 5100,
    browser: Annotated[bool, typer.Option(help="Start the browser.")] = True,
    map_kind: Annotated[
        str, typer.Option("--map", help="'principal axes', or 'umap' if umap-learn is installed.")
    ] = "principal axes",
    zoo: ZooOption = None,
    trust_arch: Trust = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Open a page to walk through all members: a map, figures, neighbours, training runs, lines, and points to decode.

    It is served to this machine alone, and needs no network; Ctrl-C ends it.
    """
    from netspace.commands.open_page import open_page

    trusting(trust_arch)
    open_page(
        path,
        lambda result: say(
            result, json, lambda r: f"{counted(r.members, 'member')} by {r.by}: {r.url} (Ctrl-C ends it)"
        ),
        port,
        browser,
        map_kind,
        zoo,
        pick(device),
    )
