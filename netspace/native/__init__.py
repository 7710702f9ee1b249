"""Loops as machine code, compiled once a machine and kept in the cache folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numba

from netspace.hardware import cache_folder

# A cached function knows of changes in its own file alone, not in those of the functions it calls.
_TEXTS = [path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py"))]


_SOURCES = b"".join(text for text in _TEXTS if b"netspace.native import" in text or b"numba.njit" in text)


numba.config.CACHE_DIR = str(cache_folder() / "numba" / hashlib.sha256(_SOURCES).hexdigest()[:12])  # type: ignore[attr-defined]


# Sums may be taken in vectors. Nothing here may make one distance come out differently in two places of a program.
IN_VECTORS = {"reassoc", "contract", "nsz"}


def compiled(function: Any) -> Any:
    """The function, compiled when it is first called; other threads run while it does. Sums are taken as written."""
    return numba.njit(cache=True, nogil=True, error_model="numpy")(function)


def compiled_in_vectors(function: Any) -> Any:
    """As `compiled`, but sums may be taken in another order than is written. NaN stays NaN."""
    return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=IN_VECTORS)(function)


def compiled_without_nan(function: Any) -> Any:
    """As `compiled_in_vectors`, for values that are never NaN: the least of many in vectors too."""
    return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={*IN_VECTORS, "nnan"})(function)
