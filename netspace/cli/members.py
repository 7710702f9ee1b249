"""`netspace zoo list` and `netspace zoo export`: the members of a zoo, and one of them as a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netspace.cli.output import percent, say, table
from netspace.cli.ranges import MAX_MEMBERS, whole
from netspace.cli.shared import Json, Trust, trusting

if TYPE_CHECKING:
    from netspace.results.zoos import MemberFile, MemberList

LISTED = 50  # members that are printed as text by default

ZooPath = Annotated[Path, typer.Argument(metavar="ZOO", help="A zoo file (HDF5), or a folder of shards.")]


def list_(
    zoo: ZooPath,
    sort: Annotated[str | None, typer.Option(metavar="COLUMN", help="Sort by a column, such as accuracy.")] = None,
    descending: Annotated[bool, typer.Option("--descending", help="Sort the largest first.")] = False,
    filter: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            help="List members that meet a condition on columns: \"accuracy > 0.9 and split == 'test'\". It knows comparisons, "
            "in, not, and, or, and the four operations.",
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="The columns to list, with commas between; all of them: all."),
    ] = None,
    limit: Annotated[
        int | None, whole(1, MAX_MEMBERS, f"List the first N members; default: {LISTED}, with --json all.", metavar="N")
    ] = None,
    json: Json = False,
) -> None:
    """List the members of a zoo. Only its tables are read."""
    from netspace.commands.members import ALL, list_members

    names = None if columns is None else [ALL] if columns == ALL else [name.strip() for name in columns.split(",")]
    most = limit if limit is not None or json else LISTED
    say(list_members(zoo, sort, descending, filter, names, most), json, _listed)


def _listed(result: MemberList) -> str:
    rows = [[_cell(name, value) for name, value in each.items()] for each in result.members]
    text = table(result.columns, rows) if rows else f"no member of {result.path} meets the condition"
    left = result.count - len(rows)
    return text + (f"\n{left:,} more of {result.count:,}: --limit {result.count} lists all" if left else "")


def _cell(column: str, value: Any) -> str:
    if isinstance(value, float):
        if column.startswith("accuracy"):
            return percent(value)
        return "-" if value != value else f"{value:.4g}"
    return str(value)


def export(
    zoo: ZooPath,
    member: Annotated[
        str, typer.Argument(metavar="MEMBER", help="A member (resnet8/0007), best, worst, best:ARCH, or worst:ARCH.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write: .safetensors or .onnx.")],
    batch_norm: Annotated[
        bool,
        typer.Option(
            "--batch-norm", help="Write a state dict for the trained class, whose batch norms then only add a bias."
        ),
    ] = False,
    trust_arch: Trust = None,
    json: Json = False,
) -> None:
    """Write a member as a file: a state dict (safetensors) with batch norm folded into the layers, or ONNX.

    A state dict loads into the module that `netspace.archs.skeleton` makes; with --batch-norm, into the class that was
    trained.
    """
    from netspace.commands.export import export as export_member

    trusting(trust_arch)
    say(export_member(zoo, member, out, batch_norm), json, _exported)


def _exported(result: MemberFile) -> str:
    kind = "with batch norm" if result.batch_norm else "batch norm folded"
    settings = ", ".join(f"{name}={value}" for name, value in result.settings.items())
    return (
        f"{result.file}: {result.member} of {result.zoo}, {result.arch}({settings}), {result.parameters:,} parameters, {kind}, "
        f"score on test images {percent(result.accuracy_test)}"
    )
