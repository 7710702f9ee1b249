"""A campaign of kills: a command is started, killed with SIGKILL at random moments and started again until it ends."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netspace.run_folder import read_metrics

ZOO = """
name: chaos
seed: 3
data: {name: digits, limit: 300}
archs:
  lenetlike: {arch: lenetlike, width: 0.25}
members: {train: 6, val: 2, test: 2}
epochs: {first: 1, last: 8}
optimizer: {name: sgd, learning_rate: [0.02, 3.0]} # some of them diverge
batch_size: 25
prep_width: 128
fused: 2
"""
SPACE = """
name: chaos
latent: 64
encoder: {kind: probe, probes: 16, hidden: 32}
decoder: {start: reference, share: 0.3}
loss: {behaviour: 1.0, temperature: 1.0}
optimizer: {name: muon, learning_rate: 0.001, muon_rate: 0.01, schedule: cosine, ema: 0.9}
networks: 4
images: 32
steps: 40
validate_every: 8
log_every: 1
"""
LARGER_ZOO = {"members.train": 24, "members.val": 6, "members.test": 6, "epochs.last": 20}
LONGER_SPACE = {"steps": 600, "validate_every": 25}

SOONER = """
import importlib, os
for told in os.environ.get("NETSPACE_TEST_SOONER", "").split():
    place, _, seconds = told.partition("=")
    module, _, name = place.rpartition(".")
    setattr(importlib.import_module(module), name, float(seconds))
"""
BUILDING = "model_zoo.work.COMMIT_EVERY=0.1 model_zoo.work.CHECKPOINT_EVERY=0.3"  # seconds
TRAINING = "netspace.training.loop.CHECKPOINT_EVERY=0.2"

STARTUP = 3.0  # seconds in which a start mostly imports: some kills fall there
EARLY = 0.2  # the share of kills that do
IDLE = 3  # kills in a row without progress after which lives become longer
PATIENCE = 600.0  # seconds until a test gives up waiting

Cli = Callable[..., Any]


@dataclass
class Outcome:
    """What a campaign came to."""

    kills: int = 0
    rounds: int = 0  # builds, or trainings, that were finished
    early: int = 0  # kills before there was anything to see
    seconds: float = field(default_factory=lambda: -time.monotonic())

    def __str__(self) -> str:
        return f"{self.kills} kills ({self.early} early) over {self.rounds} rounds in {self.seconds:.0f} s"


def campaign(
    begin: Callable[[Path], tuple[Callable[[], list[str]], Callable[[], object], Callable[[], None]]],
    kills: int,
    span: float,
    seed: int,
    alone: bool = False,
) -> Outcome:
    """Rounds of lives that end at random moments, until there were so many kills; the last round then finishes.

    `begin` prepares a round in a folder: the words of its next start, a look at what there is after a kill (its
    value tells progress), and the check of the finished thing. Lives last up to `span` seconds from their first
    trace in the folder; longer ones where there is no progress. With `alone` the command dies without the processes
    it started, and the next start often does not wait for their end.
    """
    draw, outcome = random.Random(seed), Outcome()
    while outcome.kills < kills:
        folder = Path(f"round-{outcome.rounds}")
        folder.mkdir()
        words, look, check = begin(folder)
        before, idle = look(), 0
        while True:
            log = folder.with_suffix(".log")
            with open(log, "wb") as told:
                process = subprocess.Popen(
                    [sys.executable, "-m", "netspace", *words()], stdout=told, stderr=told, start_new_session=True
                )
            try:
                if outcome.kills < kills:
                    outcome.early += wait_for_the_moment(process, folder, span, draw)
                else:
                    process.wait(PATIENCE)
            finally:
                ended = process.poll()
                if ended is None:
                    (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
                process.wait()
                hurried = alone and ended is None and draw.random() < 0.5  # the next start finds workers that go on
                if not hurried:
                    wait_for_the_end_of(process.pid)
            if ended is not None:
                assert ended == 0, log.read_text()
                break
            outcome.kills += 1
            if hurried:
                continue
            seen = look()
            idle = 0 if seen != before else idle + 1
            if idle == IDLE:
                span, idle = 1.5 * span, 0
            before = seen
        check()
        outcome.rounds += 1
    outcome.seconds += time.monotonic()
    print(f"\n{outcome}")
    return outcome


def wait_for_the_moment(process: subprocess.Popen[bytes], folder: Path, span: float, draw: random.Random) -> bool:
    """Until a random moment of a life, or its end; whether it came before there was anything to see."""
    before, early = traces(folder), draw.random() < EARLY
    end = time.monotonic() + PATIENCE
    if not early:
        while traces(folder) == before and process.poll() is None:
            assert time.monotonic() < end, "nothing is written"
            time.sleep(0.005)
    end = time.monotonic() + draw.uniform(0, STARTUP if early else span)
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.002)
    return traces(folder) == before


def traces(folder: Path) -> set[tuple[str, int]]:
    """The files in a folder and when they were written."""
    found = set()
    for path in folder.rglob("*"):
        try:
            found.add((str(path), path.stat().st_mtime_ns))
        except FileNotFoundError:
            continue
    return found


def processes() -> Iterator[tuple[int, int, int]]:
    """Process id, parent and group of all that run."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, parent, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if state != "Z":
                yield int(entry.name), int(parent), int(group)


def wait_for_the_end_of(group: int) -> None:
    """Until no process of a group is left."""
    end = time.monotonic() + PATIENCE
    while any(each[2] == group for each in processes()):
        assert time.monotonic() < end, "processes go on"
        time.sleep(0.01)


def records(run: Path) -> list[dict[str, Any]]:
    """The records of a run but for its speed."""
    return [
        {key: value for key, value in record.items() if key != "steps_a_second"}
        for record in read_metrics(run / "metrics.jsonl")
    ]


def train_words(recipe: Path, zoo: Path, run: Path, changes: dict[str, float]) -> list[str]:
    settings = [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]
    return ["train", str(recipe), "--zoo", str(zoo), "--out", str(run), "--resume", *settings]
