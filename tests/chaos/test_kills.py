"""Chaos: the real commands, killed with SIGKILL at random moments and started again until they finish.

What they leave must be, bit by bit, what nobody disturbed would have left; and after every kill all that was finished
must be there and readable. The short versions kill three times each, the slow ones fifty times. What is left out:
kills at chosen places in the code (`tests/cli/test_crashes.py`, `tests/model_zoo/test_builder.py`).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from campaign import (
    BUILDING,
    LARGER_ZOO,
    PATIENCE,
    Cli,
    Outcome,
    campaign,
    processes,
    records,
    train_words,
    wait_for_the_end_of,
)
from helpers import flat

from model_zoo import work
from netspace.errors import NetspaceError
from netspace.io import hash_tensors, read_torch
from netspace.zoo import Zoo, parts_folder

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")

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


def test_a_zoo_under_fire(
    cli: Cli, chaos_recipes: tuple[Path, Path], sooner: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETSPACE_TEST_SOONER", BUILDING)
    assert kill_builds(cli, chaos_recipes[0], 3, 0.5, {}, range(1, 2)).kills == 3


@pytest.mark.slow
def test_a_zoo_under_heavy_fire(
    cli: Cli, chaos_recipes: tuple[Path, Path], sooner: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETSPACE_TEST_SOONER", BUILDING)
    assert kill_builds(cli, chaos_recipes[0], 50, 0.15, LARGER_ZOO, range(1, 4)).kills == 50


@pytest.mark.slow
def test_a_zoo_whose_workers_outlive_their_builder(
    cli: Cli, chaos_recipes: tuple[Path, Path], sooner: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETSPACE_TEST_SOONER", BUILDING)
    assert kill_builds(cli, chaos_recipes[0], 20, 0.15, LARGER_ZOO, range(2, 4), alone=True).kills == 20


def test_a_worker_that_is_killed_ends_the_build(
    cli: Cli, chaos_recipes: tuple[Path, Path], sooner: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETSPACE_TEST_SOONER", BUILDING)
    path = Path("zoo.h5")
    changes = {"members.train": 12}
    words = build_words(chaos_recipes[0], path, 2, changes)
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
    assert cli(*build_words(chaos_recipes[0], path, 1, changes)).code == 0
    assert cli(*build_words(chaos_recipes[0], Path("whole.h5"), 1, changes)).code == 0
    assert kept.items() <= members(path).items() and content_hash(path) == content_hash(Path("whole.h5"))


def test_another_seed_is_noticed(cli: Cli, chaos_recipes: tuple[Path, Path]) -> None:
    """The comparisons of these tests can fail."""
    for seed in (3, 4):
        assert (
            cli(
                *build_words(chaos_recipes[0], Path(f"{seed}.h5"), 1, {"seed": seed, "optimizer.learning_rate": 0.05})
            ).code
            == 0
        )
        assert (
            cli(*train_words(chaos_recipes[1], Path("3.h5"), Path(f"run{seed}"), {"seed": seed, "steps": 10})).code == 0
        )
    assert content_hash(Path("3.h5")) != content_hash(Path("4.h5"))
    assert not set(members(Path("3.h5")).values()) & set(members(Path("4.h5")).values())
    states = [read_torch(Path(f"run{seed}/checkpoints/last.pt")) for seed in (3, 4)]
    assert states[0].keys() == states[1].keys() and flat(states[0]) != flat(states[1])
    assert records(Path("run3")) != records(Path("run4"))


def test_death_in_the_midst_of_tidying_loses_no_member(
    cli: Cli, chaos_recipes: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The zoo is finished, and one of its parts is gone already: those left must not be taken for all there is."""

    def dying(folder: Path, **_: object) -> None:
        min(part for part in Path(folder).glob("part-*.h5") if "last" not in part.name).unlink()
        raise KeyboardInterrupt

    words = build_words(chaos_recipes[0], Path("zoo.h5"), 1, {"members.train": 2, "members.val": 1, "members.test": 1})
    monkeypatch.setattr(work, "COMMIT_EVERY", -1.0)
    with monkeypatch.context() as patch:
        patch.setattr("model_zoo.builder.shutil.rmtree", dying)
        assert cli(*words).code == 130
    before = members(Path("zoo.h5"))
    assert cli(*words).code == 0
    assert members(Path("zoo.h5")) == before and len(before) == 4
