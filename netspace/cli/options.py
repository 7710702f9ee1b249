"""Options that several commands share."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe; may be repeated."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: a GPU if there is one.")]
RunOption = Annotated[Path | None, typer.Option("--run", help="A run folder; default: the newest under runs/.")]
RunArgument = Annotated[
    Path | None, typer.Argument(metavar="RUN", help="A run folder; default: the newest under runs/.")
]
SameRun = Annotated[Path | None, typer.Option("--run", help="The same as RUN.")]
ZooOption = Annotated[Path | None, typer.Option("--zoo", help="The run's zoo, where it has moved.")]
Trust = Annotated[
    list[str] | None,
    typer.Option(
        "--trust-arch", metavar="MODULE:FACTORY", help="An architecture outside netspace that may be imported."
    ),
]
Kwargs = Annotated[
    str | None, typer.Option(metavar="JSON", help="Keyword arguments of --arch's factory, as a JSON object.")
]


def keyword_arguments(text: str | None) -> dict[str, Any]:
    """What --kwargs says. Raises `UsageError` for anything but a JSON object."""
    from netspace.errors import UsageError

    try:
        given = jsonlib.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--kwargs was expected to be a JSON object, but {text!r} is not: {error}") from None
    if not isinstance(given, dict):
        raise UsageError(f"--kwargs was expected to be a JSON object, but {text!r} is not one")
    return given


def run_folder(run: Path | None, same: Path | None = None) -> Path:
    """The run that was named, as an argument or as `--run`, or the newest. Raises `UsageError` if both name one."""
    from netspace.errors import UsageError
    from netspace.run_folder import newest_run

    if run is not None and same is not None:
        raise UsageError(f"the run was given twice, as {run} and as --run {same}: give it once")
    return run or same or newest_run()


def pick(device: str | None) -> str:
    """The device that was named, or the best there is."""
    from netspace.hardware import pick_device

    return str(pick_device(device or "auto"))


def trusting(names: Sequence[str] | None) -> None:
    """Lets this process import the architectures that the user typed."""
    if names:
        from netspace import archs

        archs.trust(*(name for name in names if ":" in name))
