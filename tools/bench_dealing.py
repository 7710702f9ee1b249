"""What it costs to deal out, commit and put together a zoo of 100,000 members, and to read it in shards.

    python tools/bench_dealing.py [--members 100000] [--shards 100]

One shard is really built, of networks that are trained for a single step each. Training and evaluation are timed apart; what
is left is what a build adds: loading the data, planning, dealing, committing, merging. The build's clock is simulated: each
training takes a second there, so that members are committed as often as they would be. Reading is of batches of 8 random members, in turn from one file and from 10 shards with the same members.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from model_zoo import work
from model_zoo.builder import build
from model_zoo.recipe import ZooRecipe
from model_zoo.trainer import Group
from model_zoo.work import Worker
from netspace.networks.spec import NetSpec
from netspace.zoo import MEMBER, Header, Population, Shard, Zoo, write_zoo

TASK = 1.0  # seconds of training for a member
ROUNDS, BATCHES = 40, 25


class Clock:
    """The clock of a build, in seconds, and the processor time that its training really took."""

    def __init__(self) -> None:
        self.now = self.training = 0.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the block as training."""
        began = time.process_time()
        yield
        self.training += time.process_time() - began


def dealing(members: int, shards: int) -> None:
    """Print the processor time that a shard adds to its members' training and evaluation."""
    clock = Clock()

    class TimedGroup(Group):
        """A group whose training takes `TASK` on the clock."""

        def __init__(self, *arguments: Any) -> None:
            with clock.timed():
                super().__init__(*arguments)

        def epochs(self) -> Iterator[Any]:
            """Yield what a group yields."""
            epochs = super().epochs()
            while True:
                with clock.timed():
                    epoch = next(epochs, None)
                if epoch is None:
                    return
                clock.now += TASK
                yield epoch

    def timed_members(worker: Worker, *arguments: Any) -> Any:
        with clock.timed():
            return members_of(worker, *arguments)

    members_of = Worker._members
    tenth = members // 10
    recipe = ZooRecipe.model_validate(
        {
            "data": {"name": "digits", "limit": 50},
            "archs": {"lenetlike": {"arch": "lenetlike", "width": 0.25}},
            "members": {"train": members - 2 * tenth, "val": tenth, "test": tenth},
            "epochs": {"first": 1, "last": 1},
            "batch_size": 50,
            "fused": 1,
            "precision": "float32",
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        patches = (
            patch.object(work, "time", clock),
            patch.object(work, "Group", TimedGroup),
            patch.object(Worker, "_members", timed_members),
        )
        began = time.process_time()
        with patches[0], patches[1], patches[2]:
            path = build(recipe, Path(folder) / "zoo", 1, Shard(1, shards))
        seconds = time.process_time() - began - clock.training
        with Zoo(path) as zoo:
            count = len(zoo)
    print(
        f"{members:,} members in {shards} shards; one of {count:,}: {seconds:.1f} s of processor time beside training and evaluation,"
    )
    print(f"{1000 * seconds / count:.1f} ms a member, {100 * seconds / (count * TASK):.2f} % of tasks of {TASK:.0f} s")


def reading(members: int = 2000, parameters: int = 20_480) -> None:
    """Print how long reading takes from shards, as a ratio to one file."""
    spec = NetSpec("random", (), (1,), ("w",), ((parameters,),))
    random = np.random.default_rng(0)
    table = np.zeros(members, MEMBER)
    table["run"], table["status"], table["split"] = np.arange(members), b"ok", b"train"
    preps = random.standard_normal((members, 8, parameters // 8), dtype=np.float32)
    header = Header({"name": "random"}, "", {})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_zoo(folder / "one.h5", header, {"a": Population(spec, preps, table)})
        for index in range(10):
            part = Population(spec, preps[index::10], table[index::10])
            write_zoo(folder / "ten" / f"{index}.h5", header, {"a": part}, Shard(index + 1, 10))
        seconds: dict[str, list[float]] = {"one.h5": [], "ten": []}
        with Zoo(folder / "one.h5") as one, Zoo(folder / "ten") as ten:
            assert one.content_hash == ten.content_hash
            for _ in range(ROUNDS):
                rows = random.integers(members, size=(BATCHES, 8))
                for zoo, into in zip((one, ten), seconds.values(), strict=True):
                    began = time.process_time()
                    for batch in rows:
                        zoo.only().read(batch)
                    into.append((time.process_time() - began) / BATCHES)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = statistics.median(b / a for a, b in zip(*seconds.values(), strict=True))
    print(f"a batch of 8 members of {parameters:,} parameters: {1000 * medians['one.h5']:.2f} ms from one file,")
    print(
        f"{1000 * medians['ten']:.2f} ms from 10 shards; ratio {ratio:.3f} (median of {ROUNDS} rounds, processor time)"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=100)
    arguments = parser.parse_args()
    reading()
    dealing(arguments.members, arguments.shards)
