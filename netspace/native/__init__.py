"""Loops compiled to machine code by numba, once per machine, and cached in the cache folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numba

from netspace.hardware import cache_folder

# numba's cache notices changes in the file of a function only, not in the functions it calls: the folder is named after all files.
_TEXTS = [path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py"))]
_SOURCES = b"".join(text for text in _TEXTS if b"netspace.native import" in text or b"numba.njit" in text)
numba.config.CACHE_DIR = str(cache_folder() / "numba" / hashlib.sha256(_SOURCES).hexdigest()[:12])  # type: ignore[attr-defined]


# Flags that let sums be vectorised. None of them may let one distance differ between two calls.
IN_VECTORS = {"reassoc", "contract", "nsz"}


def compiled(function: Any) -> Any:
    """Return the function, compiled at its first call; it releases the GIL. Sums are evaluated in the order written."""
    return numba.njit(cache=True, nogil=True, error_model="numpy")(function)


def compiled_in_vectors(function: Any) -> Any:
    """Like `compiled`, but sums may be evaluated in another order. NaN stays NaN."""
    return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=IN_VECTORS)(function)


def compiled_without_nan(function: Any) -> Any:
    """Like `compiled_in_vectors`, for values that are never NaN: minima are vectorised too."""
    return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={*IN_VECTORS, "nnan"})(function)
