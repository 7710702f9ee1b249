"""Chaos: the real commands, killed with SIGKILL at random moments and started again until they finish.

What they leave must be, bit by bit, what nobody disturbed would have left; and after every kill all that was finished
must be there and readable. The short versions kill three times each, the slow ones fifty times. What is left out:
kills at chosen places in the code (`tests/cli/test_crashes.py`, `tests/model_zoo/test_builder.py`).
"""

from __future__ import annotations

import json
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

import pytest
import torch
from safetensors.torch import load_file

from model_zoo import work
from netspace.errors import NetspaceError
from netspace.runtime import hash_tensors, read_metrics, read_torch
from netspace.store import Zoo, parts_folder
from netspace.training import loop

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")

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


@pytest.fixture
def recipes() -> tuple[Path, Path]:
    """The recipes of a small zoo and of a space."""
    Path("zoo.yaml").write_text(ZOO)
    Path("space.yaml").write_text(SPACE)
    return Path("zoo.yaml"), Path("space.yaml")


@pytest.fixture
def sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that a test starts commit and checkpoint sooner, so that short lives get somewhere."""
    assert min(work.COMMIT_EVERY, work.CHECKPOINT_EVERY, loop.CHECKPOINT_EVERY) > 0  # these are still their names
    Path("site").mkdir()
    Path("site/sitecustomize.py").write_text(SOONER)
    path = [str(Path("site").resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))


# a campaign of kills


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


# zoos

Key = tuple[str, int, int, int]  # architecture, run, epochs, seed


def members(path: Path) -> dict[Key, bytes]:
    """All that a zoo, or a part of one, says of its members: table and weights, as bytes."""
    with Zoo(path) as zoo:
        found = {
            (group.id, *(int(row[name]) for name in ("run", "epochs", "seed"))): row.tobytes() + prep.tobytes()
            for group in zoo.archs.values()
            for row, prep in zip(group.members, group.read(range(len(group))).numpy(), strict=True)
        }
        assert len(found) == len(zoo)  # none twice
    return found


def content_hash(path: Path) -> str:
    with Zoo(path) as zoo:
        assert zoo.complete
        return zoo.content_hash


def build_words(recipe: Path, path: Path, workers: int, changes: dict[str, float]) -> list[str]:
    settings = [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]
    return ["zoo", "build", str(recipe), "--out", str(path), "--workers", str(workers), *settings]


def kill_builds(
    cli: Cli, recipe: Path, kills: int, share: float, changes: dict[str, float], workers: range, alone: bool = False
) -> Outcome:
    """Builds a zoo undisturbed and then under fire; lives last up to a `share` of the time it took undisturbed."""
    clock = time.monotonic()
    assert cli(*build_words(recipe, Path("whole.h5"), 1, changes)).code == 0
    took = time.monotonic() - clock
    wanted, wanted_hash = members(Path("whole.h5")), content_hash(Path("whole.h5"))
    with Zoo("whole.h5") as zoo:
        ok = zoo.only().members["status"] == b"ok"
        assert 0.4 < ok.mean() < 1
    draw = random.Random(1)

    def begin(folder: Path) -> tuple[Callable[[], list[str]], Callable[[], object], Callable[[], None]]:
        path, safe = folder / "zoo.h5", set[Key]()

        def look() -> object:
            parts = sorted(parts_folder(path).glob("part-*.h5"))
            found = {key: value for part in parts for key, value in members(part).items()}
            if path.exists() or (parts and draw.random() < 0.5):  # reading puts an unfinished zoo together
                whole = members(path)
                assert found.items() <= whole.items()
                found |= whole
            elif not parts:
                with pytest.raises(NetspaceError, match="does not exist"):
                    Zoo(path)
            assert found.items() <= wanted.items()
            assert safe <= found.keys()  # what was finished once stays
            safe.update(found)
            checkpoints = sorted(parts_folder(path).glob("group-*.pt"))
            return len(found), [hash_tensors(read_torch(each)["flat"]) for each in checkpoints]

        def check() -> None:
            assert content_hash(path) == wanted_hash and members(path) == wanted
            assert [each.name for each in folder.iterdir() if not each.name.startswith(".")] == ["zoo.h5"]

        return lambda: build_words(recipe, path, draw.choice(workers), changes), look, check

    return campaign(begin, kills, share * took, 2, alone)  # one of the first three kills is early


def test_a_zoo_under_fire(cli: Cli, recipes: tuple[Path, Path], sooner: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETSPACE_TEST_SOONER", BUILDING)
    assert kill_builds(cli, recipes[0], 3, 0.5, {}, range(1, 2)).kills == 3


@pytest.mark.slow
def test_a_zoo_under_heavy_fire(
    cli: Cli, recipes: tuple[Path, Path], sooner: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETSPACE_TEST_SOONER", BUILDING)
    assert kill_builds(cli, recipes[0], 50, 0.15, LARGER_ZOO, range(1, 4)).kills == 50


@pytest.mark.slow
def test_a_zoo_whose_workers_outlive_their_builder(
    cli: Cli, recipes: tuple[Path, Path], sooner: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETSPACE_TEST_SOONER", BUILDING)
    assert kill_builds(cli, recipes[0], 20, 0.15, LARGER_ZOO, range(2, 4), alone=True).kills == 20


def test_a_worker_that_is_killed_ends_the_build(
    cli: Cli, recipes: tuple[Path, Path], sooner: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETSPACE_TEST_SOONER", BUILDING)
    path = Path("zoo.h5")
    changes = {"members.train": 12}
    words = build_words(recipes[0], path, 2, changes)
    process = subprocess.Popen(
        [sys.executable, "-m", "netspace", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not list(parts_folder(path).glob("part-*.h5")):
        time.sleep(0.005)
    workers = [each for each, parent, _ in processes() if parent == process.pid]
    assert len(workers) == 2
    os.kill(random.Random(0).choice(workers), signal.SIGKILL)
    out, err = process.communicate(timeout=PATIENCE)
    wait_for_the_end_of(process.pid)  # the other worker ends, too
    lines = [line for line in err.splitlines() if line.startswith("netspace: ")]
    assert (process.returncode, out) == (1, "") and "Traceback" not in err
    assert lines == err.splitlines()[-1:] and "worker process ended with code -9" in lines[0]
    kept = {key: value for part in parts_folder(path).glob("part-*.h5") for key, value in members(part).items()}
    assert kept
    assert cli(*build_words(recipes[0], path, 1, changes)).code == 0
    assert cli(*build_words(recipes[0], Path("whole.h5"), 1, changes)).code == 0
    assert kept.items() <= members(path).items() and content_hash(path) == content_hash(Path("whole.h5"))


def test_another_seed_is_noticed(cli: Cli, recipes: tuple[Path, Path]) -> None:
    """The comparisons of these tests can fail."""
    for seed in (3, 4):
        assert (
            cli(*build_words(recipes[0], Path(f"{seed}.h5"), 1, {"seed": seed, "optimizer.learning_rate": 0.05})).code
            == 0
        )
        assert cli(*train_words(recipes[1], Path("3.h5"), Path(f"run{seed}"), {"seed": seed, "steps": 10})).code == 0
    assert content_hash(Path("3.h5")) != content_hash(Path("4.h5"))
    assert not set(members(Path("3.h5")).values()) & set(members(Path("4.h5")).values())
    states = [read_torch(Path(f"run{seed}/checkpoints/last.pt")) for seed in (3, 4)]
    assert states[0].keys() == states[1].keys() and flat(states[0]) != flat(states[1])
    assert records(Path("run3")) != records(Path("run4"))


def test_death_in_the_midst_of_tidying_loses_no_member(
    cli: Cli, recipes: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The zoo is finished, and one of its parts is gone already: those left must not be taken for all there is."""

    def dying(folder: Path, **_: object) -> None:
        min(part for part in Path(folder).glob("part-*.h5") if "last" not in part.name).unlink()
        raise KeyboardInterrupt

    words = build_words(recipes[0], Path("zoo.h5"), 1, {"members.train": 2, "members.val": 1, "members.test": 1})
    monkeypatch.setattr(work, "COMMIT_EVERY", -1.0)
    with monkeypatch.context() as patch:
        patch.setattr("model_zoo.builder.shutil.rmtree", dying)
        assert cli(*words).code == 1
    before = members(Path("zoo.h5"))
    assert cli(*words).code == 0
    assert members(Path("zoo.h5")) == before and len(before) == 4


# trainings


def flat(value: Any) -> Any:
    """Nested values with tensors as bytes, so that == compares bit by bit."""
    if isinstance(value, dict):
        return {key: flat(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [flat(inner) for inner in value]
    return value.numpy().tobytes() if isinstance(value, torch.Tensor) else value


def records(run: Path) -> list[dict[str, Any]]:
    """The records of a run but for its speed."""
    return [
        {key: value for key, value in record.items() if key != "steps_a_second"}
        for record in read_metrics(run / "metrics.jsonl")
    ]


def train_words(recipe: Path, zoo: Path, run: Path, changes: dict[str, float]) -> list[str]:
    settings = [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]
    return ["train", str(recipe), "--zoo", str(zoo), "--out", str(run), "--resume", *settings]


def kill_trainings(cli: Cli, recipe: Path, zoo: Path, kills: int, share: float, changes: dict[str, float]) -> Outcome:
    """Trains a space undisturbed and then under fire; lives last up to a `share` of the time it took undisturbed."""
    clock = time.monotonic()
    assert cli(*train_words(recipe, zoo, Path("whole"), changes)).code == 0
    took = time.monotonic() - clock
    wanted = records(Path("whole"))
    steps = int(changes.get("steps", 40))
    assert [each["step"] for each in wanted if "val_mae" not in each] == list(range(1, steps + 1))

    def begin(folder: Path) -> tuple[Callable[[], list[str]], Callable[[], object], Callable[[], None]]:
        run, reached = folder / "run", [0]
        last, best = run / "checkpoints" / "last.pt", run / "checkpoints" / "best.safetensors"

        def look() -> object:
            for path in run.glob("*.json"):
                json.loads(path.read_text())
            if best.exists():
                assert load_file(best).keys() == load_file(Path("whole/checkpoints/best.safetensors")).keys()
            step = int(read_torch(last)["step"]) if last.exists() else 0
            found = records(run)
            assert found == wanted[: len(found)]  # in order, none twice, the same losses
            assert reached[0] <= step <= (found[-1]["step"] if found else 0)
            reached[0] = step
            return step

        def check() -> None:
            assert records(run) == wanted
            assert flat(read_torch(last)) == flat(read_torch(Path("whole/checkpoints/last.pt")))
            assert flat(load_file(best)) == flat(load_file(Path("whole/checkpoints/best.safetensors")))
            assert (run / "config.yaml").read_text() == Path("whole/config.yaml").read_text()

        return lambda: train_words(recipe, zoo, run, changes), look, check

    return campaign(begin, kills, share * took, 2)


def test_a_training_under_fire(
    cli: Cli, recipes: tuple[Path, Path], tiny_zoo: Path, sooner: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETSPACE_TEST_SOONER", TRAINING)
    assert kill_trainings(cli, recipes[1], tiny_zoo, 3, 0.6, {}).kills == 3


@pytest.mark.slow
def test_a_training_under_heavy_fire(
    cli: Cli, recipes: tuple[Path, Path], tiny_zoo: Path, sooner: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETSPACE_TEST_SOONER", TRAINING)
    assert kill_trainings(cli, recipes[1], tiny_zoo, 50, 0.2, LONGER_SPACE).kills == 50
