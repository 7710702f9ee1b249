"""One worker process of `model_zoo.builder`: `python -m model_zoo.worker ZOO RANK WORLD_SIZE [TRUSTED_ARCH...]`.

Reads the plan that lies beside the zoo, trains its share on one thread, and prints the images it trained on,
a number a line; an error is a last line of JSON. It ends when the builder does.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from model_zoo.work import Plan, Worker
from netspace import archs
from netspace.errors import NetspaceError
from netspace.memory import keep_freed_memory


def main(arguments: list[str]) -> int:
    """Does the work; exit code 0 done, 1 failed."""
    path, place, shares = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    archs.trust(*arguments[3:])
    parent = os.getppid()

    def report(images: int) -> None:
        if os.getppid() != parent:  # the builder was killed: another start will go on
            raise SystemExit(1)
        print(images, flush=True)

    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        the_plan = Plan.read(path)
        if the_plan is None:
            raise NetspaceError(f"{path} is not being built: it has no plan beside it")
        Worker(the_plan, path).share(place, shares, report)
    except NetspaceError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    except (KeyboardInterrupt, BrokenPipeError):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
