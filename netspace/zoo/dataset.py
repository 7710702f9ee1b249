"""A PyTorch data set of the PReps of some members of a zoo, read from the file when they are used.

Axes: M members (networks), H W of a PRep.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from torch.utils.data import Dataset

from netspace.errors import NetspaceError, UsageError
from netspace.zoo.file import ZooFile


class PRepDataset(Dataset[Any]):
    """PReps of members of a zoo, for `torch.utils.data.DataLoader`; processes of a loader open the file themselves.

    >>> from netspace.zoo import Zoo
    >>> with Zoo(zoo) as opened:
    ...     loader = torch.utils.data.DataLoader(opened.split("test").dataset(target="accuracy"), batch_size=4)
    >>> [preps.shape for preps, accuracies in loader]
    [torch.Size([4, 12, 128]), torch.Size([2, 12, 128])]
    """

    def __init__(
        self, zoo: ZooFile, class_ids: np.ndarray, rows: np.ndarray, targets: np.ndarray | None = None
    ) -> None:
        """`class_ids` (M,), `rows` (M,) and `targets` (M,) are those of the members. Raises `UsageError` for PReps of several sizes."""
        groups = list(zoo.archs.values())
        used = [groups[class_id] for class_id in np.unique(class_ids)]
        if len({group.size for group in used}) > 1:
            sizes = ", ".join(f"{group.id} {group.size[0]} x {group.size[1]}" for group in used)
            raise UsageError(
                f"a data set of PReps of one size was asked for, but the members' differ ({sizes}): choose with filter(arch=...)"
            )
        self.size = used[0].size if used else (0, 0)
        self.kind, self.arguments, self.content_hash = type(zoo), zoo.arguments, zoo.content_hash
        self.class_ids, self.rows = class_ids, rows
        self.targets = None if targets is None else torch.from_numpy(np.array(targets))
        self._opened: tuple[int, ZooFile] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        """Return the PRep (H, W) of a member, or a pair of it and its target. Raises `NetspaceError` if it is corrupted."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return those of several members, read at once; a `DataLoader` calls this for a batch."""
        preps = self.preps(np.asarray(indices))
        if self.targets is None:
            return list(preps)
        return list(zip(preps, self.targets[list(indices)], strict=True))

    def preps(self, indices: np.ndarray) -> Float32[Tensor, "M H W"]:
        """Return the PReps of members by index, read from the file. Raises `IndexError`, or `NetspaceError` as `Zoo`."""
        groups = list(self._zoo().archs.values())
        class_ids, rows = self.class_ids[indices], self.rows[indices]
        out = torch.empty(len(indices), *self.size)
        for class_id in np.unique(class_ids):
            mine = class_ids == class_id
            out[torch.from_numpy(mine)] = groups[class_id].read(rows[mine])
        return out

    def close(self) -> None:
        """Close the file, which the next access opens again."""
        if self._opened is not None:
            self._opened[1].close()
            self._opened = None

    def _zoo(self) -> ZooFile:
        """Return the zoo, opened by this process: HDF5 files do not survive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            zoo = self.kind(*self.arguments)
            if zoo.content_hash != self.content_hash:
                zoo.close()
                raise NetspaceError(f"{zoo.path} was replaced while its PReps were read: make the data set again")
            self._opened = (os.getpid(), zoo)
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}
