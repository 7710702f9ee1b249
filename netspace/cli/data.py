"""`netspace data ...`: list and download the image sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from netspace.cli.output import say
from netspace.cli.shared import Json

app = typer.Typer(no_args_is_help=True, help="List and download the image sets.")


@app.command("list")
def list_(json: Json = False) -> None:
    """List the image sets."""
    from netspace.results.zoos import DataList
    from netspace.tasks import DATASETS

    say(
        DataList(data={name: each.help for name, each in DATASETS.items()}),
        json,
        lambda r: "\n".join(f"{name:14} {text}" for name, text in r.data.items()),
    )


@app.command("fetch")
def fetch_(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An image set, such as fashion-mnist or cifar10.")],
    root: Annotated[
        Path | None, typer.Option(help="The folder to write to; default: NETSPACE_DATA, else ~/.cache/netspace/data.")
    ] = None,
    json: Json = False,
) -> None:
    """Download an image set from its official source and verify its checksum."""
    from netspace.results.zoos import DataFiles
    from netspace.tasks import DataConfig, fetch, load_images

    path = fetch(name, root)
    task = load_images(DataConfig(name=name, root=root))
    result = DataFiles(
        name=name,
        path=str(path),
        images={split: len(task.split(split)) for split in ("train", "val", "test")},
        split_hash=task.split_hash,
    )
    say(
        result,
        json,
        lambda r: f"{r.name} lies in {r.path}: " + ", ".join(f"{n:,} {s}" for s, n in r.images.items()),
    )
