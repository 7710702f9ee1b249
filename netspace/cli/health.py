"""`netspace health`: its options, and the text that it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netspace.cli.output import counted, number, percent, say, small, table
from netspace.cli.ranges import MAX_POINTS, real, whole
from netspace.cli.shared import Device, Json, Trust, pick, trusting

if TYPE_CHECKING:
    from netspace.results.health import ArchHealth, Health, Spread

MAX_ROWS = 20  # suspects and copies that are printed; all are in --json


def health(
    zoo: Annotated[Path, typer.Argument(metavar="ZOO", help="A zoo file (HDF5), or a folder of shards.")],
    inputs: Annotated[
        int, whole(0, MAX_POINTS, "Validation inputs on which dead units are counted; 0: they are not counted.")
    ] = 128,
    z: Annotated[
        float,
        real(
            0,
            1e6,
            "A layer's norm is an outlier if its log is so many robust standard deviations off the median, and the norm by a factor of 2 or more.",
            "--z",
        ),
    ] = 6.0,
    tolerance: Annotated[
        float,
        real(0, 0.99, "Relative distance up to which the weights of two members are nearly equal.", with_low=True),
    ] = 0.01,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="CSV", help="Write the figures of all members and layers to this file."),
    ] = None,
    trust_arch: Trust = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Measure norms, spectra and dead units of a zoo's members by layer; list members that look damaged or copied."""
    from netspace.commands.health import health as measure

    trusting(trust_arch)
    say(measure(zoo, inputs, z, tolerance, out, pick(device)), json, text)


def text(figures: Health) -> str:
    """Return the text of `netspace health`."""
    lines = [
        f"{figures.path}: {counted(figures.members, 'member')}; figures are medians, and the least and largest in brackets"
    ]
    for name, arch in figures.archs.items():
        lines += ["", *_arch(name, arch)]
    if figures.inputs:
        lines.append(f"a unit is dead if its activation is the same for all of {figures.inputs} validation inputs")
    lines.append("")
    if figures.suspects:
        lines.append(
            f"{counted(len(figures.suspects), 'member')} that {'looks' if len(figures.suspects) == 1 else 'look'} damaged:"
        )
        lines += [f"  {each.member}: {'; '.join(each.problems)}" for each in figures.suspects[:MAX_ROWS]]
        lines += _more(len(figures.suspects))
    else:
        lines.append("no member looks damaged")
    if figures.copies:
        lines.append(f"{counted(len(figures.copies), 'pair')} of members that are copies:")
        rows = [
            [each.first, each.second, each.relation, small(each.distance), "yes" if each.same_run else "no"]
            for each in figures.copies[:MAX_ROWS]
        ]
        lines += [table(["member", "copy", "", "distance", "of one run"], rows), *_more(len(figures.copies))]
    else:
        lines.append(
            f"no two members are copies (within {percent(figures.tolerance)} of their norm, in any order of channels)"
        )
    if figures.unchecked:
        lines.append(f"{figures.unchecked:,} more pairs may be permuted copies and were not aligned")
    if figures.table:
        lines.append(f"the figures of all members are in {figures.table}")
    return "\n".join(lines)


def _more(count: int) -> list[str]:
    return [f"  ... and {count - MAX_ROWS:,} more (see --json)"] if count > MAX_ROWS else []


def _arch(name: str, arch: ArchHealth) -> list[str]:
    rows = [
        [
            each.layer,
            f"{each.values:,}",
            _spread(each.norm),
            _spread(each.stable_rank),
            "-" if each.rank is None else each.rank,
            _spread(each.tail_exponent),
            _percent(each.dead),
            each.zero,
        ]
        for each in arch.layers
    ]
    head = ["layer", "values", "norm", "stable rank", "of", "tail exponent", "dead units", "zero"]
    lines = [
        f"{name}: {arch.sound:,} of {arch.members:,} members are finite, {arch.diverged:,} diverged",
        table(head, rows),
    ]
    return [*lines, *([f"dead units are not counted: {arch.dead_not_counted}"] if arch.dead_not_counted else [])]


def _spread(figure: Spread | None) -> str:
    if figure is None or figure.median is None:
        return "-"
    return f"{number(figure.median, 2)} ({number(figure.min, 2)} - {number(figure.max, 2)})"


def _percent(figure: Spread | None) -> str:
    if figure is None or figure.median is None:
        return "-"
    return f"{percent(figure.median)} ({percent(figure.min)} - {percent(figure.max)})"
