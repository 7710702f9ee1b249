"""The ways of `compress fit` that are trained: short to be compared, whole if they are the best."""

from __future__ import annotations

from collections.abc import Sequence

from netspace.compression.coordinate import ORDERS, way_of
from netspace.compression.ways import Make
from netspace.compression.work import Work
from netspace.results.budget import Tried

Makes = dict[str, tuple[str, Make]]  # by the name of a file: the name of the way, and what makes it


def short_fits(work: Work, names: Sequence[str]) -> Makes:
    """Return the ways that are trained a little, to be compared with the others."""
    return {}


def whole_fits(work: Work, names: Sequence[str], best: Tried) -> Makes:
    """Return what is trained whole, given the best of what was tried."""
    if best.way == "coordinate":
        order = next(order for order in ORDERS if best.setting.startswith(f"{order},"))
        return {f"coordinate-{order}-whole": ("coordinate", way_of(order, whole=True))}
    return {}
