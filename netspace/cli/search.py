"""`netspace search`: its options, and the text that it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netspace.cli.output import counted, percent, say, small, table
from netspace.cli.ranges import MAX_MEMBERS, whole
from netspace.cli.shared import Device, Json, Trust, ZooOption, pick, trusting

if TYPE_CHECKING:
    from netspace.results.members import Search


def search(
    path: Annotated[Path, typer.Argument(metavar="RUN|ZOO", help="The run of a space, or a zoo.")],
    like: Annotated[
        str | None,
        typer.Option(
            metavar="A",
            help="The network to be near to: a member (resnet8/0007), best, worst, best:ARCH, worst:ARCH, or a state-dict file.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN=VALUE", help="The value to be near to: accuracy=0.9, epochs=5, learning_rate=0.01."
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(help="Compare latents (the default of a run), answers (the default of a zoo) or weights."),
    ] = None,
    count: Annotated[int, whole(1, MAX_MEMBERS, "Number of members.")] = 10,
    zoo: ZooOption = None,
    trust_arch: Trust = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """List the members that are nearest to a network, or to a value of a column of the zoo's table.

    The first search describes all members in an index file next to the run or the zoo; later ones read it.
    """
    from netspace.commands.search import search as find

    trusting(trust_arch)
    say(find(path, like, target, by, count, zoo, pick(device)), json, text)


def text(figures: Search) -> str:
    """Return the text of `netspace search`."""
    rows = [
        [
            each.member,
            small(each.distance),
            percent(each.accuracy_test),
            each.epochs,
            each.run,
            each.split or "-",
            each.source,
        ]
        for each in figures.matches
    ]
    if figures.like is None:
        subject = f"{figures.target} = {figures.value:g}"
    else:
        subject = f"{figures.like} by {figures.by}"
    if not rows:
        return f"{figures.path} has no other member that {subject} could be compared with"
    first = f"the {len(rows)} of {counted(figures.members, 'member')} nearest to {subject}"
    lines = [first, "", table(["member", "distance", "accuracy", "epochs", "run", "split", "source"], rows)]
    how = "built now" if figures.built else "read"
    index = f"; the index {figures.index} was {how}" if figures.index else ""
    return "\n".join([*lines, f"searched in {1000 * figures.seconds:.0f} ms{index}"])
