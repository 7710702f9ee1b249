"""Loops over points as machine code, compiled once a machine and kept in the cache folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numba

from netspace.runtime import cache_folder

# A cached function knows of changes in its own file alone, not in those of the functions it calls.
_SOURCES = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
numba.config.CACHE_DIR = str(cache_folder() / "numba" / hashlib.sha256(_SOURCES).hexdigest()[:12])  # type: ignore[attr-defined]

# Sums may be taken in vectors. Nothing here may make one distance come out differently in two places of a program.
IN_VECTORS = {"reassoc", "contract", "nsz", "nnan"}


def compiled(function: Any) -> Any:
    """The function, compiled when it is first called; other threads run while it does. Sums are taken as written."""
    return numba.njit(cache=True, nogil=True, error_model="numpy")(function)


def compiled_in_vectors(function: Any) -> Any:
    """As `compiled`, for values that are never NaN; sums may be taken in another order than is written."""
    return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=IN_VECTORS)(function)
