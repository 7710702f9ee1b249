"""How a command ends: alone, or as one of several processes that a launcher started."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import NoReturn

STOPPED = "stopped; nothing finished is lost: the same command (a training with --resume) goes on where it was"
PATIENCE = 15.0  # seconds for the first process to tell of a mistake too: a launcher ends all when one has ended


def fail(sentence: str, code: int) -> NoReturn:
    """Ends with one sentence of what went wrong; with --json the first process prints it as JSON too."""
    first = not int(os.environ.get("RANK", "0"))
    if "--json" in sys.argv and first:
        print(json.dumps({"error": sentence}))
    print(f"netspace: {sentence}", file=sys.stderr, flush=True)
    if not first and sentence != STOPPED:
        time.sleep(PATIENCE)
    leave(code)


def leave(code: int) -> NoReturn:
    """Exits; under a launcher of processes without Python's own shutdown.

    Threads of gloo outlive their group, and one that lets go of a tensor while Python shuts down aborts its process
    (pytorch/pytorch#179291), which the launcher takes for a failure of the whole start.
    """
    if "WORLD_SIZE" in os.environ:
        if not code and "torch" in sys.modules:
            from netspace import ranks

            ranks.end()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
