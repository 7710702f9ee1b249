"""A program of its own, since a library may hang or crash on a damaged file: reads files that are damaged one after another.

The argument is the folder of samples; standard input has a kind and a seed a line. Standard output repeats each and says 'right',
'refused: SENTENCE', 'wrong: ...' for a file that netspace wrote and that is read otherwise, or 'error: ...' for what is no
sentence. A read that is not done after PATIENCE seconds ends the program by a signal, and the last line is without a verdict.
"""

from __future__ import annotations

import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))

from damage import damaged
from samples import FOREIGN, OURS, Kind

from netspace.errors import NetspaceError

PATIENCE = 30  # seconds of computing; of waiting, on a machine that is shared, twenty times as many


def verdict(name: str, kind: Kind, folder: Path, right: Any) -> str:
    try:
        found = kind.read(folder)
    except NetspaceError as error:
        sentence = str(error)
        return f"refused: {sentence}" if sentence and "\n" not in sentence else f"error: no sentence: {sentence!r}"
    except Exception:
        return "error: " + " | ".join(traceback.format_exc().splitlines()[-7:])
    if name in FOREIGN or found == right:
        return "right"
    if name == "metrics":  # damaged lines are left out
        return "right" if all(record in right for record in found) else f"wrong: {found}"
    return f"wrong: {str(found)[:2000]}"


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    kinds = OURS | FOREIGN
    right = {name: kind.read(folder) for name, kind in kinds.items()}
    for line in sys.stdin:
        name, seed = line.rsplit(maxsplit=1)
        file = folder / kinds[name].file
        whole = file.read_bytes()
        file.write_bytes(damaged(whole, int(seed)))
        print(line.strip(), end=": ", flush=True)
        signal.setitimer(signal.ITIMER_PROF, PATIENCE)
        signal.alarm(20 * PATIENCE)
        told = verdict(name, kinds[name], folder, right[name])
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        print(printable(told), flush=True)
        file.write_bytes(whole)


def printable(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
