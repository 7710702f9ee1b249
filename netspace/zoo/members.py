"""The members of a zoo as Python objects: one network, a selection of them, and a PyTorch data set of PReps.

    with Zoo("zoo.h5") as zoo:
        for member in zoo.split("test").filter(where="accuracy > 0.9"):
            network = member.module()  # a torch module in eval mode

Tables are in memory, PReps are read when they are used.

Axes: M members (networks), P parameters, H W of a PRep, E latent size, B inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np
from jaxtyping import Float, Float32

from netspace.errors import NetspaceError, UsageError, unknown
from netspace.networks.prep import unflatten, unpack
from netspace.networks.spec import NetSpec
from netspace.zoo.columns import joined
from netspace.zoo.file import MEMBER, ArchGroup, MemberRef, ZooFile
from netspace.zoo.query import matches

if TYPE_CHECKING:
    import pandas
    from torch import Tensor, nn

    from netspace.zoo.dataset import PRepDataset

ALIASES = {"accuracy": "accuracy_test"}  # further names of columns
DERIVED = ("member", "arch", "parameters")  # columns that are not in the table of an architecture


class LatentSpace(Protocol):
    """What gives the latents of members: `netspace.Space`."""

    def encode(self, network: Any) -> Tensor:
        """Return the latent (E,) of a network."""


class Member:
    """One network of an open zoo. The columns of its row in the table are attributes, too: `member.seed`, `member.split`.

    >>> from netspace.zoo import Zoo
    >>> with Zoo(zoo) as opened:  # the path of a zoo file
    ...     member = opened["lenetlike/0003"]
    ...     member.module().training, member.split
    (False, 'train')
    """

    seed: int  # of the initialisation and the data order
    run: int  # members of one run are snapshots of one training
    epochs: int  # trained for, 0 if not known
    learning_rate: float  # peak, NaN if not known
    accuracy_train: float  # 0 to 1
    accuracy_val: float
    accuracy_test: float
    accuracy: float  # on test images
    split: str  # 'train', 'val', 'test', or '' for a member of none
    status: str  # 'ok' or 'diverged'
    source: str  # the recipe's name, or the file it was imported from

    def __init__(self, group: ArchGroup, index: int) -> None:
        self.group, self.index = group, index

    @property
    def ref(self) -> MemberRef:
        """Its architecture's id and its row."""
        return MemberRef(self.group.id, self.index)

    @property
    def arch(self) -> str:
        """The id of its architecture in the zoo."""
        return self.group.id

    @property
    def spec(self) -> NetSpec:
        """Names and shapes of its parameters, and the settings of its architecture."""
        return self.group.spec

    @property
    def row(self) -> dict[str, Any]:
        """Its row of the table: every column by name."""
        return {name: _scalar(_values(self.group, name)[self.index]) for name in _columns(self.group)}

    def __str__(self) -> str:
        return str(self.ref)

    def __repr__(self) -> str:
        accuracy = f"{100 * self.accuracy:.1f} %" if np.isfinite(self.accuracy) else "not known"
        return (
            f"Member({str(self.ref)!r}, {self.spec.arch}, {self.spec.num_parameters:,} parameters, "
            f"split {self.split or 'none'!r}, score {accuracy})"
        )

    def __getattr__(self, name: str) -> Any:
        if name in ("group", "index"):  # of a copy that is not filled yet
            raise AttributeError(name)
        column = ALIASES.get(name, name)
        if column not in _columns(self.group):
            raise AttributeError(f"a member has no column or attribute {name!r}; its columns are {', '.join(self.row)}")
        return _scalar(_values(self.group, column)[self.index])

    def prep(self) -> Float32[Tensor, "H W"]:
        """Return its parameters as a PRep, read from the file. Raises `NetspaceError` if it is corrupted."""
        return self.group.read([self.index])[0]

    def flat(self) -> Float32[Tensor, " P"]:
        """Return its parameters. Raises `NetspaceError` if it diverged in training, or is corrupted."""
        if self.status != "ok":
            raise NetspaceError(f"{self.ref} diverged in training: the zoo keeps its row, but it has no weights")
        return unpack(self.prep(), self.spec.num_parameters)

    def state_dict(self, batch_norm: bool = False) -> dict[str, Tensor]:
        """Return its parameters by name, batch norm folded; with `batch_norm` those and the buffers of the trained class.

        A state dict with batch norm loads into the class that was trained (`load_state_dict`): its batch norms are the
        identity but for a bias, so that the network computes the same. Raises as `module`.
        """
        if batch_norm:
            return self.module(batch_norm=True).state_dict()
        return {name: value.clone() for name, value in unflatten(self.flat(), self.spec).items()}

    def module(self, batch_norm: bool = False) -> nn.Module:
        """Return the network as a plain torch module, in eval mode: inputs (B, ...) to outputs.

        Batch norm is folded, or with `batch_norm` the network is of the class that was trained, as `state_dict` says.

        Raises:
            UsageError: its architecture is code outside netspace that was not trusted.
            NetspaceError: it diverged in training, is corrupted, or its architecture makes other parameters today.
        """
        from netspace.networks.state_dict import module_of  # tables are listed without what builds networks

        return module_of(self.flat(), self.spec, batch_norm=batch_norm)

    def latent(self, space: LatentSpace) -> Float[Tensor, " E"]:
        """Return its latent in a space. Raises `UsageError` if the space does not encode networks of its architecture."""
        return space.encode(self)


class Members(Sequence[Member]):
    """Some members of an open zoo, in an order. Selections of it are new ones; nothing is copied or read from disk."""

    def __init__(self, zoo: ZooFile, class_ids: np.ndarray, rows: np.ndarray) -> None:
        """`class_ids` (M,) are indices into the zoo's architectures, `rows` (M,) those in their tables."""
        self.zoo, self.class_ids, self.rows = zoo, class_ids, rows

    @classmethod
    def of(cls, zoo: ZooFile) -> Members:
        """Return all members of a zoo, by architecture and row."""
        counts = [len(group) for group in zoo.archs.values()]
        rows = [np.arange(count) for count in counts]
        return cls(zoo, np.repeat(np.arange(len(counts)), counts), np.concatenate([np.arange(0), *rows]))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Member]:
        groups = self._groups
        for class_id, row in zip(self.class_ids.tolist(), self.rows.tolist(), strict=True):
            yield Member(groups[class_id], row)

    @overload
    def __getitem__(self, index: int | str) -> Member: ...
    @overload
    def __getitem__(self, index: slice | np.ndarray) -> Members: ...
    def __getitem__(self, index: Any) -> Member | Members:
        """Return a member by its index here or its name, or those of a slice, of indices or of a mask.

        Raises `UsageError` for an unknown name, `IndexError` for an index out of range.
        """
        if isinstance(index, str):
            ref = self.zoo.find(index)
            member = Member(self.zoo.group(ref.arch), ref.index)
            if not bool(((self.class_ids == member.group.class_id) & (self.rows == ref.index)).any()):
                raise UsageError(f"{ref} is a member of {self.zoo.path}, but not of this selection of {len(self)}")
            return member
        if isinstance(index, int | np.integer):
            return Member(self._groups[int(self.class_ids[index])], int(self.rows[index]))
        return Members(self.zoo, self.class_ids[index], self.rows[index])

    def __repr__(self) -> str:
        names = [self._groups[class_id].id for class_id in np.unique(self.class_ids)]
        return f"Members({len(self):,} of {str(self.zoo.path)!r}: {', '.join(names) or 'none'})"

    @property
    def _groups(self) -> list[ArchGroup]:
        return list(self.zoo.archs.values())

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns: the member's name, its architecture, those of the table, and those that only this zoo has."""
        own = dict.fromkeys(name for group in self.zoo.archs.values() for name in group.columns)
        return (*DERIVED, *(MEMBER.names or ()), *own)

    @property
    def names(self) -> list[str]:
        """Names of the members, such as 'resnet8/0007'."""
        groups = self._groups
        pairs = zip(self.class_ids.tolist(), self.rows.tolist(), strict=True)
        return [f"{groups[class_id].id}/{row:04d}" for class_id, row in pairs]

    def column(self, name: str) -> np.ndarray:
        """Return a column (M,): numbers, or texts. Raises `UsageError` if there is no such."""
        name = ALIASES.get(name, name)
        if name not in self.columns:
            raise unknown("column", name, [*self.columns, *ALIASES])
        groups = self._groups
        if name == "member":
            return np.array(self.names, dtype=str)
        if name in DERIVED:
            values = [group.id if name == "arch" else group.spec.num_parameters for group in groups]
            return np.array(values or [""])[self.class_ids]
        starts = np.cumsum([0, *(len(group) for group in groups)])[:-1]
        counts = [len(group) for group in groups]
        if name in (MEMBER.names or ()):
            whole = np.concatenate([group.members[name] for group in groups]) if groups else np.zeros(0)
        else:
            whole = joined([group.columns for group in groups], counts)[name]
        found: np.ndarray = whole[starts[self.class_ids] + self.rows] if len(self) else whole[:0]
        return np.char.decode(found, errors="replace") if found.dtype.kind == "S" else found

    def table(self, columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Return columns (M,) by name; all, if none are named. Raises as `column`."""
        return {name: self.column(name) for name in columns or self.columns}

    def to_pandas(self) -> pandas.DataFrame:
        """Return the table as a `pandas.DataFrame` with the members' names as its index.

        Raises `NetspaceError` if pandas is not installed (the extra `pandas`).
        """
        try:
            import pandas
        except ImportError:
            raise NetspaceError(
                'a table was asked for as a pandas.DataFrame, but pandas is not installed: `pip install "netspace[pandas]"`'
            ) from None
        return pandas.DataFrame(self.table()).set_index("member")

    def split(self, name: str) -> Members:
        """Return the members of a split: 'train', 'val', 'test', or 'all' for those in any. Raises `UsageError` for another."""
        keep = np.zeros(len(self), dtype=bool)
        for class_id, group in enumerate(self._groups):
            keep |= (self.class_ids == class_id) & np.isin(self.rows, group.rows(name))
        return self[keep]

    def filter(
        self,
        arch: str | None = None,
        split: str | None = None,
        where: str | Callable[[Member], bool] | None = None,
    ) -> Members:
        """Return the members that meet all conditions that are given.

        Args:
            arch: The id of their architecture.
            split: As `split`.
            where: A condition on columns as text, such as `"accuracy > 0.9 and epochs == 8"`, which is parsed and never run;
                or a function of a member.

        Raises:
            UsageError: An unknown architecture or split, or a text that is no condition.

        >>> from netspace.zoo import Zoo
        >>> with Zoo(zoo) as opened:
        ...     len(opened.filter(split="train", where="epochs > 2 and accuracy >= 0"))
        12
        """
        chosen = self
        if arch is not None:
            chosen = chosen[chosen.class_ids == self.zoo.group(arch).class_id]
        if split is not None:
            chosen = chosen.split(split)
        if isinstance(where, str):
            return chosen[matches(where, (*self.columns, *ALIASES), chosen.column, len(chosen))]
        if where is not None:
            return chosen[np.array([bool(where(member)) for member in chosen], dtype=bool)]
        return chosen

    def sort(self, column: str, descending: bool = False) -> Members:
        """Return the members in the order of a column; numbers that are not known come last. Raises as `column`."""
        values = self.column(column)
        order = np.argsort(values, kind="stable")
        if descending:
            order = len(values) - 1 - np.argsort(values[::-1], kind="stable")[::-1]
        if values.dtype.kind == "f":
            unknown_last = np.isnan(values[order])
            order = np.concatenate([order[~unknown_last], order[unknown_last]])
        return self[order]

    def read(self) -> Float32[Tensor, "M H W"]:
        """Return their PReps, in one batch. Raises as `dataset`, and `NetspaceError` if one is corrupted."""
        return self.dataset().preps(np.arange(len(self)))

    def dataset(self, target: str | None = None) -> PRepDataset:
        """Return a PyTorch data set of their PReps (H, W), or of pairs of a PRep and the column `target`.

        Raises `UsageError` for members of several sizes of PReps, or a column that holds no numbers.
        """
        targets = None if target is None else self.column(target)
        if targets is not None and targets.dtype.kind not in "fiu":
            raise UsageError(f"the target of a data set is a column of numbers, but {target!r} holds texts")
        from netspace.zoo.dataset import PRepDataset  # tables are read without torch

        return PRepDataset(self.zoo, self.class_ids, self.rows, targets)


class MemberAccess:
    """What `Zoo` offers as a sequence of its members: the methods of `Members`, of all of them."""

    @cached_property
    def members(self) -> Members:
        """All members, by architecture and row."""
        assert isinstance(self, ZooFile)
        return Members.of(self)

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members)

    @overload
    def __getitem__(self, index: int | str) -> Member: ...
    @overload
    def __getitem__(self, index: slice | np.ndarray) -> Members: ...
    def __getitem__(self, index: Any) -> Member | Members:
        return self.members[index]

    def split(self, name: str) -> Members:
        """As `Members.split`."""
        return self.members.split(name)

    def filter(
        self,
        arch: str | None = None,
        split: str | None = None,
        where: str | Callable[[Member], bool] | None = None,
    ) -> Members:
        """As `Members.filter`."""
        return self.members.filter(arch, split, where)

    def sort(self, column: str, descending: bool = False) -> Members:
        """As `Members.sort`."""
        return self.members.sort(column, descending)

    def table(self, columns: Sequence[str] | None = None) -> Mapping[str, np.ndarray]:
        """As `Members.table`."""
        return self.members.table(columns)

    def to_pandas(self) -> pandas.DataFrame:
        """As `Members.to_pandas`."""
        return self.members.to_pandas()

    def dataset(self, target: str | None = None) -> PRepDataset:
        """As `Members.dataset`."""
        return self.members.dataset(target)


def _columns(group: ArchGroup) -> tuple[str, ...]:
    return (*(MEMBER.names or ()), *group.columns)


def _values(group: ArchGroup, column: str) -> np.ndarray:
    values: np.ndarray = group.columns[column] if column in group.columns else group.members[column]
    return values


def _scalar(value: Any) -> Any:
    """Return an entry of a table as a Python value, texts decoded."""
    plain = value.item()
    return plain.decode(errors="replace") if isinstance(plain, bytes) else plain
