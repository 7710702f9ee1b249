"""`netspace zoo list` and `netspace zoo export`: the table of a zoo's members, and one of them as a file.

Axes: M members (networks).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from netspace.commands.morph_sample import check_network_file, write_onnx
from netspace.errors import UsageError
from netspace.io import write_tensors
from netspace.networks.state_dict import folded_metadata
from netspace.results.zoos import MemberFile, MemberList
from netspace.zoo import Zoo

ALL = "all"  # in place of the names of columns
COLUMNS = ("member", "split", "run", "seed", "epochs", "accuracy_train", "accuracy_val", "accuracy_test")


def list_members(
    path: Path,
    sort: str | None = None,
    descending: bool = False,
    where: str | None = None,
    columns: Sequence[str] | None = None,
    limit: int | None = None,
) -> MemberList:
    """Return rows of the table of a zoo; no weights are read.

    Args:
        path: The zoo.
        sort: The column by which members are sorted; none: by architecture and row.
        descending: Largest first.
        where: A condition on columns, as `netspace.zoo.Members.filter` takes it.
        columns: The columns to return, or `ALL`; none: `COLUMNS`.
        limit: The number of members to return at most; none: all.

    Raises:
        UsageError: an unknown column, or a condition that is none.
        NetspaceError: as `Zoo`.

    >>> listed = list_members(zoo, sort="accuracy", descending=True, where="split == 'test'", columns=["member"], limit=2)
    >>> listed.count, len(listed.members)
    (6, 2)
    """
    if limit is not None and limit < 1:
        raise UsageError(f"the number of members to list is at least 1; found {limit}")
    with Zoo(path) as zoo:
        chosen = zoo.filter(where=where)
        if sort is not None:
            chosen = chosen.sort(sort, descending)
        count = len(chosen)
        table = chosen[:limit].table(None if columns == [ALL] else columns or COLUMNS)
    rows = zip(*(values.tolist() for values in table.values()), strict=True)
    return MemberList(
        path=str(path), count=count, columns=list(table), members=[dict(zip(table, row, strict=True)) for row in rows]
    )


def export(path: Path, member: str, out: Path, batch_norm: bool = False) -> MemberFile:
    """Write a member of a zoo to the file `out`, which must not exist: a state dict (safetensors), or ONNX.

    Args:
        path: The zoo.
        member: As `Zoo.find` takes it: 'resnet8/0007', 'best', 'worst:resnet8'.
        out: The file; its suffix says the format.
        batch_norm: Keep batch norm, as the identity but for a bias, so that the state dict loads into the class that was
            trained. Else it is folded into the layers, as the zoo stores it.

    Raises:
        UsageError: no such member, another suffix, or a file that exists.
        NetspaceError: the member diverged, its architecture makes other networks, or packages for ONNX are missing.

    >>> export(zoo, "best", folder / "net.safetensors").parameters
    1477
    """
    check_network_file(out)
    with Zoo(path) as zoo:
        found = zoo[member]
        module = found.module(batch_norm=batch_norm)
        spec = found.spec
    if out.suffix == ".onnx":
        write_onnx(out, module, spec.input_shape)
    else:
        state = {name: value.detach().contiguous() for name, value in module.state_dict().items()}
        write_tensors(out, state, **folded_metadata(spec, folded=not batch_norm), zoo=str(path), member=str(found))
    return MemberFile(
        zoo=str(path),
        member=str(found),
        arch=spec.arch,
        settings=spec.settings,
        parameters=spec.num_parameters,
        input_shape=list(spec.input_shape),
        batch_norm=batch_norm,
        accuracy_test=found.accuracy,
        file=str(out),
    )
