"""What networks that do not change say to images that do not change, remembered.

Axes: N images, B of them in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from netspace.runtime import send


class Remembered:
    """Rows by the place of an image among N, kept as they are first asked for."""

    def __init__(self, count: int) -> None:
        self.known = torch.zeros(count, dtype=torch.bool)  # of which images; on the CPU: no step waits for the device
        self.tables: list[Tensor] = []  # (N, ...) each, laid out as what was asked for

    def take(self, places: Tensor, ask: Callable[[], Sequence[Tensor]]) -> tuple[list[Tensor], Tensor]:
        """Tables (N, ...) that hold the rows of `places` (B,), which are on the CPU, and these places on the device.

        Where one of the rows is new, all (B, ...) are those that `ask` gives.
        """
        found = [] if self.known[places].all() else list(ask())
        if not self.tables:
            self.tables = [self._table(each) for each in found]
        there = send(places, self.tables[0].device)
        for table, each in zip(self.tables, found, strict=False):
            table[there] = each
        self.known[places] = True
        return self.tables, there

    def _table(self, rows: Tensor) -> Tensor:
        last = rows.dim() == 4 and rows.is_contiguous(memory_format=torch.channels_last)
        shape, layout = (len(self.known), *rows.shape[1:]), torch.channels_last if last else torch.contiguous_format
        return torch.empty(shape, dtype=rows.dtype, device=rows.device, memory_format=layout)
