"""Trouble that is not a crash: disks that fill up, folders in use, networks that diverge.

What is left out, being tested elsewhere: two builders at one zoo (`tests/cli/test_crashes.py`), a read-only folder for
a zoo (`tests/cli/test_mistakes.py`), single files on a full disk (`tests/test_runtime.py`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import small_disk
from safetensors.torch import load_file

from netspace.run_folder import read_metrics
from netspace.zoo import Zoo, parts_folder

Cli = Callable[..., Any]
PATIENCE = 120.0  # seconds until a test gives up waiting


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# disks that fill up


def test_a_disk_that_fills_up_while_building(
    cli: Cli, recipes: Path, tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_zoo.work.COMMIT_EVERY", -1.0)  # parts of few members
    words = ("zoo", "build", recipes / "zoo.yaml", "--out", "zoo.h5", "--workers", 1)
    with small_disk(8192):  # enough for the plan, too little for a part
        told = cli(*words)
    assert told.code == 1 and "part-" in told.sentence and "File too large" in told.sentence
    assert files(Path()) == {"zoo.h5.parts/plan.json"}
    with small_disk(2 * tiny_zoo.stat().st_size // 3):  # enough for the parts, too little for the zoo
        told = cli(*words)
    assert told.code == 1 and told.sentence.startswith("zoo.h5 could not be written: File too large")
    parts = len(list(parts_folder(Path("zoo.h5")).glob("part-*.h5")))
    assert parts and len(files(Path())) == parts + 1  # what was finished is kept, and nothing half-written
    assert cli(*words).code == 0
    with Zoo("zoo.h5") as zoo, Zoo(tiny_zoo) as whole:
        assert zoo.content_hash == whole.content_hash
    assert files(Path()) == {"zoo.h5"}


@pytest.mark.parametrize("name", ["last.pt", "best.safetensors"])
def test_a_disk_that_fills_up_while_training(
    cli: Cli, recipes: Path, tiny_zoo: Path, tiny_run: Path, name: str
) -> None:
    words = ("train", recipes / "space.yaml", "--zoo", tiny_zoo, "--out", "run", "--resume")
    with small_disk((tiny_run / "checkpoints" / name).stat().st_size - 4096):
        told = cli(*words)
    assert told.code == 1 and name in told.sentence and "could not be written" in told.sentence
    assert not [path for path in files(Path("run")) if path.endswith((".tmp", name))]
    assert cli(*words).code == 0
    same_training(Path("run"), tiny_run)


def same_training(run: Path, other: Path) -> None:
    found, wanted = (load_file(each / "checkpoints" / "best.safetensors") for each in (run, other))
    assert found.keys() == wanted.keys() and all((found[key] == wanted[key]).all() for key in found)
    records = [
        [{key: value for key, value in record.items() if key != "steps_a_second"} for record in read_metrics(path)]
        for path in (run / "metrics.jsonl", other / "metrics.jsonl")
    ]
    assert records[0] == records[1]


FULL = """
mount -t tmpfs -o size="$1" none disk; shift
"$@" 2> told
echo $? > code
find disk -name '.*.tmp' > litter
mount -o remount,size=20m disk
"$@" 2> again && cp -r disk kept
"""
MOUNTS = subprocess.run(
    ["unshare", "-rm", "sh", "-c", "d=$(mktemp -d) && mount -t tmpfs none $d"], capture_output=True, check=False
)


def fill(size: int, *words: object) -> str:
    """Runs a command on a real disk of `size` bytes, too little, and again with more; what it said at first.

    What the second run left is in `kept`.
    """
    Path("disk").mkdir()
    command = [sys.executable, "-m", "netspace", *map(str, words)]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", FULL, "sh", str(size), *command], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + Path("again").read_text()
    assert Path("code").read_text() == "1\n" and Path("litter").read_text() == ""
    return Path("told").read_text()


def sentence(told: str) -> str:
    """The one line a mistake is told in, at the end."""
    assert "Traceback" not in told
    lines = [line for line in told.splitlines() if line.startswith("netspace: ")]
    assert len(lines) == 1 and lines == told.splitlines()[-1:]
    return lines[0]


@pytest.mark.slow
@pytest.mark.skipif(MOUNTS.returncode != 0, reason="no small disk can be mounted here")
@pytest.mark.parametrize(("size", "workers"), [(8192, 1), (49_152, 2)])
def test_a_disk_that_is_full_for_building(recipes: Path, tiny_zoo: Path, size: int, workers: int) -> None:
    told = fill(size, "zoo", "build", recipes / "zoo.yaml", "--out", "disk/zoo.h5", "--workers", workers)
    assert "could not be written: No space left on device" in sentence(told)
    with Zoo("kept/zoo.h5") as zoo, Zoo(tiny_zoo) as whole:
        assert zoo.content_hash == whole.content_hash


@pytest.mark.slow
@pytest.mark.skipif(MOUNTS.returncode != 0, reason="no small disk can be mounted here")
@pytest.mark.parametrize("what", ["description", "tensorboard", "records", "best.safetensors", "last.pt"])
def test_a_disk_that_is_full_for_training(recipes: Path, tiny_zoo: Path, tiny_run: Path, what: str) -> None:
    best = (tiny_run / "checkpoints" / "best.safetensors").stat().st_size
    sizes = {"description": 4096, "tensorboard": 12_288, "records": 16_384}  # the files before are a page each
    size = {**sizes, "best.safetensors": best // 2, "last.pt": 3 * best}[what]  # the best twice while it is replaced
    told = sentence(fill(size, "train", recipes / "space.yaml", "--zoo", tiny_zoo, "--out", "disk/run", "--resume"))
    assert "No space left on device" in told and (what not in ("best.safetensors", "last.pt") or what in told)
    same_training(Path("kept/run"), tiny_run)


# folders in use, or closed


def test_two_trainings_into_one_run(cli: Cli, recipes: Path, tiny_zoo: Path) -> None:
    more = ("--set", "steps=80", "--set", "log_every=1", "--set", "validate_every=80")
    words = ["train", recipes / "space.yaml", "--zoo", tiny_zoo, "--out", "run", "--resume", *more]
    first = subprocess.Popen([sys.executable, "-m", "netspace", *map(str, words)], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + PATIENCE
        while not Path("run/metrics.jsonl").exists():
            assert first.poll() is None and time.monotonic() < end
            time.sleep(0.005)
        told = cli(*words)
        assert told.code == 1 and "run" in told.sentence and "another process" in told.sentence
        assert first.wait(PATIENCE) == 0
        steps = [record["step"] for record in read_metrics(Path("run/metrics.jsonl")) if "val_mae" not in record]
        assert steps == list(range(1, 81))
    finally:
        first.kill()
        first.wait()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_for_a_training(cli: Cli, recipes: Path, tiny_zoo: Path) -> None:
    Path("closed").mkdir(mode=0o555)
    told = cli("train", recipes / "space.yaml", "--zoo", tiny_zoo, "--out", "closed/run")
    assert told.code == 1 and "closed" in told.sentence
    assert files(Path("closed")) == set()


@pytest.mark.slow
@pytest.mark.skipif(MOUNTS.returncode != 0, reason="no read-only disk can be mounted here")
@pytest.mark.parametrize("what", ["zoo", "run"])
def test_a_read_only_disk(recipes: Path, tiny_zoo: Path, what: str) -> None:
    """Closed for root too."""
    Path("closed").mkdir()
    words = {
        "zoo": ["zoo", "build", recipes / "zoo.yaml", "--out", "closed/zoo.h5"],
        "run": ["train", recipes / "space.yaml", "--zoo", tiny_zoo, "--out", "closed/run"],
    }[what]
    close = 'mount --bind closed closed && mount -o remount,bind,ro closed && "$@"'
    command = ["unshare", "-rm", "sh", "-c", close, "sh", sys.executable, "-m", "netspace", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "closed" in sentence(done.stderr) and "Read-only" in sentence(done.stderr)
    assert files(Path("closed")) == set()


# networks that diverge


@pytest.mark.parametrize("fused", [1, 4])
def test_a_network_that_diverges_leaves_the_others_alone(cli: Cli, zoo_settings: dict[str, Any], fused: int) -> None:
    """Rates from sensible to 1e10, network by network: the seeds decide whose is whose."""
    zoo_settings["fused"] = fused
    zoo_settings["members"] = {"train": 8, "val": 2, "test": 2}
    zoo_settings["epochs"] = {"first": 3, "last": 6}
    zoo_settings["optimizer"] = {"name": "sgd", "learning_rate": [0.02, 1e10]}
    Path("zoo.yaml").write_text(yaml.safe_dump(zoo_settings))
    assert cli("zoo", "build", "zoo.yaml", "--out", "zoo.h5", "--workers", 1).code == 0
    told = cli("zoo", "info", "zoo.h5", "--json").json
    with Zoo("zoo.h5") as zoo:
        group = zoo.only()
        ok = group.members["status"] == b"ok"
        assert zoo.complete and len(group) == 12 and 0 < ok.sum() < 12
        assert told["archs"]["lenetlike"]["diverged"] == 12 - ok.sum()
        assert (group.members["status"][group.members["learning_rate"] > 1e6] == b"diverged").all()
        assert ok[group.members["learning_rate"] < 0.1].all()
        assert not group.read(np.flatnonzero(~ok)).any() and (group.members["split"][~ok] == b"").all()
        assert np.isnan(group.members["accuracy_val"][~ok]).all()
        assert np.isfinite(group.members["accuracy_val"][ok]).all() and group.members["accuracy_val"][ok].max() > 0.3
    assert cli("zoo", "verify", "zoo.h5").code == 0
