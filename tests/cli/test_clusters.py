"""Zoos built in shards by Ray and by submitit, on this machine, with workers that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import committing_at_once

from model_zoo import cluster
from model_zoo.recipe import ZooRecipe
from netspace.errors import NetspaceError, UsageError
from netspace.zoo import Zoo

Cli = Callable[..., Any]
PATIENCE = 600.0  # seconds until a test gives up waiting
# submitit's executor in this process leaves the files of its logs to the garbage collector
open_logs = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def divided(zoo_settings: dict[str, Any], recipes: Path) -> Path:
    """A recipe of 12 networks in single runs."""
    zoo_settings["members"] = {"train": 8, "val": 2, "test": 2}
    zoo_settings["fused"], zoo_settings["precision"] = 1, "float32"
    path = recipes / "cluster.yaml"
    path.write_text(yaml.safe_dump(zoo_settings))
    return path


def content_hash(path: Path | str) -> str:
    with Zoo(path) as zoo:
        assert zoo.complete and len(zoo) == 12
        return zoo.content_hash


@open_logs
def test_a_job_array_of_submitit(cli: Cli, divided: Path) -> None:
    words = ["zoo", "build", divided, "-o", "folder", "--slurm", "debug", "--shards", 2, "--json"]
    result = cli(*words).json
    assert result["shards"] == 2 and result["members"] == 12
    assert cli("zoo", "build", divided, "-o", "whole.h5", "--workers", 1).code == 0
    assert content_hash("folder") == content_hash("whole.h5")


def test_what_a_task_raises_is_one_sentence() -> None:
    class TaskError(Exception):
        cause: object = None

    for error, message in (
        (NetspaceError("the disk is full"), "the disk is full"),
        (TaskError("Traceback:\n  in build\nOSError: no space\n"), "a shard was not built: OSError: no space"),
        (TaskError(), "a shard was not built: TaskError"),
    ):
        with pytest.raises(NetspaceError) as caught, cluster._one_sentence():
            raise error
        assert str(caught.value) == message
    wrapped = TaskError("Traceback:\n...")
    wrapped.cause = NetspaceError("zoo.h5 is being built by another process")
    with pytest.raises(NetspaceError, match=r"^zoo\.h5 is being built by another process$"), cluster._one_sentence():
        raise wrapped


def test_mistakes_are_one_sentence(cli: Cli, divided: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*words: object) -> str:
        result = cli("zoo", "build", divided, "-o", "folder", *words)
        assert result.code == 2 and result.err.count("\n") == 1 and not Path("folder").exists()
        return str(result.err)

    assert "--slurm builds a number of shards: give it as --shards" in refused("--slurm", "debug")
    assert "give one of them" in refused("--slurm", "debug", "--ray", "local", "--shards", 2)
    assert "give one of them" in refused("--ray", "local", "--shard", "1/2")
    assert "13 shards were asked for of a zoo of 12 training runs" in refused("--slurm", "debug", "--shards", 13)
    assert "NAME=VALUE was expected" in refused("--slurm", "debug", "--shards", 2, "--slurm-set", "partition")
    for module, option, extra in (("ray", "--ray", "ray"), ("submitit", "--slurm", "slurm")):
        monkeypatch.setitem(sys.modules, module, None)
        assert f'pip install "netspace[{extra}]"' in refused(option, "local", "--shards", 2)


def test_trust_is_asked_for_before_anything_is_started(tmp_path: Path, divided: Path) -> None:
    settings = yaml.safe_load(divided.read_text())
    settings["archs"] = {"own": {"arch": "no_such_module:net"}}
    with pytest.raises(UsageError, match="is code outside netspace"):
        cluster.build_by_slurm(ZooRecipe.model_validate(settings), tmp_path / "folder", "debug", 2)
    assert not list(tmp_path.iterdir())


def workers() -> list[int]:
    """The processes in which Ray runs tasks of ours."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and b"ray::build_shard" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_a_worker_of_ray_that_is_killed_costs_nothing(cli: Cli, zoo_settings: dict[str, Any], tmp_path: Path) -> None:
    zoo_settings["members"] = {"train": 60, "val": 6, "test": 6}
    zoo_settings["fused"], zoo_settings["precision"] = 1, "float32"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(zoo_settings))
    before = set(workers())
    words = ["zoo", "build", str(tmp_path / "recipe.yaml"), "-o", "folder", "--ray", "local", "--shards", "4", "--json"]
    command = [sys.executable, "-m", "netspace", *words]
    environment = committing_at_once(tmp_path / "site")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    end, victim = time.monotonic() + PATIENCE, None
    while victim is None:
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        begun = list(Path("folder").glob("*.h5.parts/part-*.h5")) if Path("folder").exists() else []
        victim = next((pid for pid in workers() if pid not in before), None) if begun else None
        time.sleep(0.01)
    os.kill(victim, signal.SIGKILL)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert '"shards": 4' in out
    assert cli("zoo", "build", "recipe.yaml", "-o", "whole.h5", "--workers", 1).code == 0
    with Zoo("folder") as zoo, Zoo("whole.h5") as whole:
        assert zoo.complete and len(zoo) == 72 and zoo.content_hash == whole.content_hash
