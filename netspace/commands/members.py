"""`netspace zoo list`: the table of a zoo's members.

Axes: M members (networks).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from netspace.errors import UsageError
from netspace.results.zoos import MemberList
from netspace.zoo import MEMBER, Zoo
from netspace.zoo.members import DERIVED

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
        columns: The columns to return, or `ALL`; none: `COLUMNS`, and those that only this zoo has.
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
        known = zoo.members.columns
        own = [name for name in known if name not in (*DERIVED, *(MEMBER.names or ()))]
        table = chosen[:limit].table(known if columns == [ALL] else columns or [*COLUMNS, *own])
    rows = zip(*(values.tolist() for values in table.values()), strict=True)
    return MemberList(
        path=str(path), count=count, columns=list(table), members=[dict(zip(table, row, strict=True)) for row in rows]
    )
