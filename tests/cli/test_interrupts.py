"""Ctrl-C in a fit and in a training, each a process of its own: what is reached is saved, told truly, and gone on with."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import same_run
from safetensors.torch import load_file, save_file

from netspace.io import read_torch
from netspace.run_folder import read_metrics

Cli = Callable[..., Any]
PATIENCE = 240.0  # seconds, of a busy machine
STAGES = "stages=[{steps: 20, kernels: 16}, {steps: 30, kernels: 16}]"
FIT = ("--set", "predictor.hidden=16", "--set", STAGES, "--set", "log_every=1", "--set", "validate_every=10")


def interrupted(words: list[str], metrics: Path, step: int, stage: int = 0) -> str:
    """Sends a real SIGINT once `metrics` tells of a step, and returns the last line that the process wrote.

    Steps are slowed, so that there is something to interrupt.
    """
    slow = "from netspace.training import loop\nimport time\ntrue = loop.Loop._gradients\n"
    slow += (
        "def slowed(self, number):\n    time.sleep(0.1)\n    return true(self, number)\nloop.Loop._gradients = slowed\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", f"{slow}from netspace.cli.app import main\nmain()", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    end = time.monotonic() + PATIENCE
    while not any((record.get("stage", 0), record["step"]) >= (stage, step) for record in read_metrics(metrics)):
        assert process.poll() is None and time.monotonic() < end, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert "Traceback" not in err and "stopping after this step" in err
    sentence = err.splitlines()[-1].removeprefix("netspace: ")
    assert json.loads(out) == {"error": sentence}
    return sentence


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_fit_goes_on_where_it_says(cli: Cli, stage: int) -> None:
    draw = torch.Generator().manual_seed(0)
    save_file({f"{name}.weight": torch.randn(4, 4, 3, 3, generator=draw) for name in "ab"}, "net.safetensors")
    words = ["compress", "fit", "net.safetensors", *FIT, "--json", "-o"]
    assert cli(*words, "whole").code == 0
    sentence = interrupted([*words, "run"], Path("run/metrics.jsonl"), 5, stage)
    result = re.fullmatch(
        r"stopped after step (\d+) of (\d+) of stage (\d) of 2, which is saved in run/last.pt: .*", sentence
    )
    assert result is not None, sentence
    stored = read_torch(Path("run/last.pt"))
    assert (stored["step"], stored["stage"]) == (int(result[1]), int(result[3]) - 1) and stored["stage"] == stage
    assert 5 <= stored["step"] < int(result[2]) == (20, 30)[stage]
    assert not Path("run/compressed.safetensors").exists()
    assert cli("compress", "fit", "--resume", "-o", "run").code == 0
    files = [load_file(f"{folder}/compressed.safetensors") for folder in ("run", "whole")]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[1])
    steps = [
        [(each["stage"], each["step"]) for each in read_metrics(Path(f"{name}/metrics.jsonl"))]
        for name in ("run", "whole")
    ]
    assert steps[0] == steps[1]


def test_a_training_goes_on_where_it_says(cli: Cli, recipes: Path, tiny_zoo: Path, tiny_run: Path) -> None:
    words = ["train", str(recipes / "space.yaml"), "--zoo", str(tiny_zoo), "-o", "run"]
    sentence = interrupted([*words, "--json"], Path("run/metrics.jsonl"), 5)
    step = read_torch(Path("run/checkpoints/last.pt"))["step"]
    assert sentence.startswith(f"stopped after step {step} of 30, which is saved in run/checkpoints/last.pt: --resume")
    assert cli(*words, "--resume").code == 0
    same_run(Path("run"), tiny_run)
