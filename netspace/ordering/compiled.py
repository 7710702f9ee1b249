"""Loops over points as machine code, compiled once a machine and kept in the cache folder."""

from __future__ import annotations

from typing import Any

import numba

from netspace.runtime import cache_folder

numba.config.CACHE_DIR = str(cache_folder() / "numba")  # type: ignore[attr-defined]


def compiled(function: Any) -> Any:
    """The function, compiled when it is first called."""
    return numba.njit(cache=True)(function)
