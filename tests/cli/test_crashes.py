"""Kills: what was finished is kept, and the same command goes on to the same result, bit by bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
import yaml
from helpers import committing_at_once, same_run, train_and_die

from netspace.zoo import Zoo

Cli = Callable[..., Any]
PATIENCE = 120.0  # seconds until a test gives up waiting


@pytest.fixture
def longer(zoo_settings: dict[str, Any], recipes: Path) -> Path:
    """A recipe of a zoo that takes several seconds in single networks, so that there is something to interrupt."""
    zoo_settings["members"] = {"train": 64, "val": 4, "test": 4}
    zoo_settings["fused"] = 1
    path = recipes / "longer.yaml"
    path.write_text(yaml.safe_dump(zoo_settings))
    return path


def start(recipe: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "netspace", "zoo", "build", str(recipe), "--out", "zoo.h5", "--workers", "2"]
    return subprocess.Popen(
        command,
        env=committing_at_once(recipe.parent / "site"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )


def parts() -> list[Path]:
    return sorted(Path("zoo.h5.parts").glob("part-*.h5"))


def wait_for_parts(count: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while len(parts()) < count:
        assert process.poll() is None and time.monotonic() < end, process.communicate()[1]
        time.sleep(0.005)


def wait_for_the_end_of(group: int) -> None:
    """Workers notice that their builder is gone, and end by themselves."""
    end = time.monotonic() + PATIENCE
    while any(_group(entry) == group for entry in Path("/proc").iterdir() if entry.name.isdecimal()):
        assert time.monotonic() < end, "workers of a killed builder go on"
        time.sleep(0.02)


def _group(entry: Path) -> int:
    try:
        state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
    except OSError:
        return -1
    return -1 if state == "Z" else int(group)


def finished() -> set[bytes]:
    """The seeds of the members that lie in parts."""
    actual = set()
    for part in parts():
        with h5py.File(part) as file:
            for group in file["archs"].values():
                actual |= {row["seed"].tobytes() for row in group["members"][:]}
    return actual


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_a_killed_builder_goes_on_to_the_same_zoo(cli: Cli, longer: Path) -> None:
    process = start(longer)
    wait_for_parts(6, process)
    process.kill()
    process.communicate()
    wait_for_the_end_of(process.pid)
    there = finished()
    assert len(there) >= 6
    result = cli("zoo", "info", "zoo.h5", "--json")
    assert result.code == 0 and not result.json["complete"]
    with Zoo("zoo.h5") as zoo:
        assert {row["seed"].tobytes() for row in zoo.only().members} == there
    wrong = cli("zoo", "verify", "zoo.h5", "--sample", 2, "--json").json["problems"]
    assert len(wrong) == 1 and "not complete" in wrong[0]
    process = start(longer)
    _, result = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, result
    assert cli("zoo", "build", longer, "--out", "whole.h5", "--workers", 1).code == 0
    with Zoo("zoo.h5") as zoo, Zoo("whole.h5") as whole:
        assert zoo.complete and len(zoo) == len(whole) == 72
        assert zoo.content_hash == whole.content_hash
    assert sorted(path.name for path in Path().iterdir()) == ["whole.h5", "zoo.h5"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_ctrl_c_is_told_in_one_sentence(cli: Cli, longer: Path) -> None:
    recipe = yaml.safe_load(longer.read_text())
    longer.write_text(
        yaml.safe_dump({**recipe, "epochs": {"first": 60, "last": 60}})
    )  # outlasts what is done meanwhile
    process = start(longer)
    wait_for_parts(1, process)
    other = cli("zoo", "build", longer, "--out", "zoo.h5")  # meanwhile, somebody else
    assert other.code == 1 and "another process" in other.sentence
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and out == ""
    assert "Traceback" not in err and err.splitlines()[-1].startswith("netspace: stopped")
    wait_for_the_end_of(process.pid)
    assert cli("zoo", "info", "zoo.h5", "--json").json["members"] >= 1


@pytest.mark.parametrize("at", [3, 17])  # before and after the first validation
def test_a_killed_training_goes_on_to_the_same_weights(
    cli: Cli, recipes: Path, tiny_zoo: Path, tiny_run: Path, at: int
) -> None:
    words = ["train", str(recipes / "space.yaml"), "--zoo", str(tiny_zoo), "--out", "run"]
    train_and_die(words, Path("run/checkpoints/last.pt"), at)
    assert cli(*words, "--resume").code == 0
    same_run(Path("run"), tiny_run)


@pytest.mark.parametrize("step", [1, 10, 29])
def test_an_interrupted_training_goes_on_to_the_same_weights(
    cli: Cli, recipes: Path, tiny_zoo: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    from netspace.training import latent_space as space
    from netspace.training import loop

    class Stopped(space.Step):
        def __call__(self, model: torch.nn.Module, number: int, part: int = 0) -> dict[str, torch.Tensor]:
            if number == step:
                raise KeyboardInterrupt
            return super().__call__(model, number, part)

    words = ["train", recipes / "space.yaml", "--zoo", tiny_zoo, "--out", "run"]
    with monkeypatch.context() as patch:
        patch.setattr(space, "Step", Stopped)
        patch.setattr(loop, "CHECKPOINT_EVERY", -1.0)
        stopped = cli(*words)
        assert stopped.code == 130 and stopped.sentence.startswith("stopped")
    done = cli(*words, "--resume", "--json")
    assert done.code == 0 and done.json["steps"] == 30
    same_run(Path("run"), tiny_run)
    again = cli(*words, "--resume", "--json")  # nothing is left to do
    assert again.json == done.json
    same_run(Path("run"), tiny_run)
