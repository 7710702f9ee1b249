"""A program of its own, since HDF5 may hang or crash: reads a zoo file once for each byte flipped in it.

Standard input has lines 'place mask'; standard output repeats each and says 'right' or 'refused: SENTENCE'. A read that
is not done after PATIENCE seconds ends the program by a signal, and the last line is without a verdict. A zoo that is
read, but not as it was written, is 'wrong'.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

from zoo_files import contents

from netspace.errors import NetspaceError
from netspace.zoo import Zoo

PATIENCE = 20  # seconds


def everything(path: Path) -> tuple[Any, ...]:
    with Zoo(path) as zoo:
        groups = [(group.id, group.class_id, group.spec) for group in zoo.archs.values()]
        return contents(path), groups, zoo.header, zoo.complete, zoo.parts, zoo.content_hash


def main(source: Path) -> None:
    whole, right = source.read_bytes(), everything(source)
    path = source.with_name("flipped.h5")
    for line in sys.stdin:
        place, mask = map(int, line.split())
        flipped = bytearray(whole)
        flipped[place] ^= mask
        path.write_bytes(flipped)
        print(place, mask, end=" ", flush=True)
        signal.alarm(PATIENCE)
        try:
            verdict = "right" if everything(path) == right else "wrong"
        except NetspaceError as error:
            verdict = f"refused: {error}"
        signal.alarm(0)
        print(verdict, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
