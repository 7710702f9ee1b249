"""Under a launcher two processes train and evaluate the same space of several architectures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import launch
from safetensors.torch import load_file

from netspace.run_folder import read_metrics


def test_two_processes_train_the_same_space(
    cli: Callable[..., Any], multi_settings: dict[str, Any], multi_zoo: Path
) -> None:
    """With 2 networks of each class, the i-th of both ends make a pair, in one process as in two."""
    changes = {"steps": 8, "log_every": 1, "validate_every": 4, "optimizer": {"name": "adam"}}
    Path("space.yaml").write_text(yaml.safe_dump({**multi_settings, **changes}))  # Muon rounds to bf16
    words = ["train", "space.yaml", "--zoo", multi_zoo, "--json"]
    assert cli(*words, "--out", "one").code == 0
    done = launch(*words, "--out", "two")
    assert done.returncode == 0, done.stderr
    alone, shared = (read_metrics(Path(run) / "metrics.jsonl") for run in ("one", "two"))
    assert [record["step"] for record in alone] == [record["step"] for record in shared]  # written once
    for one, two in zip(alone, shared, strict=True):
        assert one.keys() == two.keys()
        for name in {"classid", "distillation", "interpolation"} & one.keys():
            assert two[name] == pytest.approx(one[name], rel=1e-3), name
    first, second = (load_file(f"{run}/checkpoints/best.safetensors") for run in ("one", "two"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-2, atol=1e-3)


def test_a_mistake_of_another_process_leaves_the_first_time_to_tell() -> None:
    """The launcher ends all processes when one has ended: what the first one prints is what is read."""
    begin = "from netspace.cli import app, shared; shared.PATIENCE = 100.0; app.main()"
    with subprocess.Popen(
        [sys.executable, "-c", begin, "zoo", "info", "none.h5", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "WORLD_SIZE": "2", "RANK": "1"},
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert "none.h5 does not exist" in process.stderr.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.terminate()
        assert process.wait(10) < 0 and not process.stdout.read()


def test_two_processes_evaluate_as_one_does(cli: Callable[..., Any], multi_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(multi_run, tmp_path / "runs" / "multi")
    alone = json.loads(cli("eval", run, "--json").out)
    done = launch("eval", run, "--json")
    assert done.returncode == 0, done.stderr
    shared = json.loads(done.stdout)
    for name in ("accuracy_predicted", "classid_accuracy", "agreement", "confusion", "between", "line"):
        assert shared[name] == alone[name], name


@pytest.mark.parametrize(("words", "code"), [(["zoo", "--help"], 0), (["zoo", "info", "none.h5"], 1)])
@pytest.mark.parametrize("launched", [{}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "2"}], ids=["alone", "one", "two"])
def test_launched_processes_leave_without_pythons_shutdown(
    words: list[str], code: int, launched: dict[str, str]
) -> None:
    """gloo's threads may abort a process in it, which fails the whole start; nothing that was said is lost."""
    begin = "import atexit, sys; atexit.register(print, 'shut down', file=sys.stderr); from netspace.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", begin, *words],
        capture_output=True,
        text=True,
        env={**os.environ, **launched},
    )
    assert done.returncode == code, done.stderr
    assert ("shut down" in done.stderr) == (not launched)
    assert "Usage" in done.stdout if code == 0 else "none.h5" in done.stderr
