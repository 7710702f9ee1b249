"""What the named architectures share: how settings are checked and how `width` scales channels."""

from __future__ import annotations

import math

from netspace.errors import UsageError

# Every architecture is defined between these sides of a square image, in pixels.
SMALLEST, LARGEST = 8, 224

# LeakyReLU's slope for negative inputs, in all of them.
SLOPE = 0.01


def scaled(channels: int, width: float) -> int:
    """`channels * width`, rounded half up, at least 2; `channels` itself for width 1.

    >>> [scaled(5, width) for width in (1.0, 0.5, 0.1)]
    [5, 3, 2]
    """
    return channels if width == 1 else max(2, math.floor(channels * width + 0.5))


def check(arch: str, channels: int, classes: int, image_size: int, width: float) -> None:
    """Raises `UsageError` for a setting that no architecture accepts."""

    def whole(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    for name, value in (("channels", channels), ("classes", classes)):
        if not whole(value) or value < 1:
            raise UsageError(f"{arch} needs {name} to be a whole number of at least 1, not {value!r}.")
    if not whole(image_size) or not SMALLEST <= image_size <= LARGEST:
        raise UsageError(
            f"{arch} takes square images of {SMALLEST} to {LARGEST} pixels a side, not "
            f"image_size={image_size!r}: resize the images."
        )
    if isinstance(width, bool) or not isinstance(width, (int, float)) or not 0 < width < math.inf:
        raise UsageError(f"{arch} needs width to be a number above 0 (1 is the original), not {width!r}.")
