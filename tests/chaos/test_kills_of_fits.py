"""Fits of a network under fire; how is told in `test_kills`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from campaign import Cli, campaign, records
from helpers import flat
from safetensors.torch import load_file, save_file

from netspace.io import read_torch
from netspace.training import loop

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
STAGES = "stages=[{steps: 400, kernels: 64}, {steps: 200, rounds: 2, kernels: 64}]"


def test_a_fit_under_fire(cli: Cli, sooner: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loop.CHECKPOINT_EVERY > 0  # this is still its name
    monkeypatch.setenv("NETSPACE_TEST_SOONER", "netspace.training.loop.CHECKPOINT_EVERY=0.1")
    draw = torch.Generator().manual_seed(0)
    save_file({f"{name}.weight": torch.randn(8, 8, 3, 3, generator=draw) for name in "abc"}, "net.safetensors")
    settings = ["--set", "predictor.hidden=32", "--set", "validate_every=50", "--set", STAGES]

    def words(folder: Path) -> list[str]:
        return ["compress", "fit", "net.safetensors", "-o", str(folder / "run"), "--resume", *settings]

    clock = time.monotonic()
    assert cli(*words(Path("whole"))).code == 0
    took = time.monotonic() - clock
    wanted = load_file("whole/run/compressed.safetensors")

    def begin(folder: Path) -> tuple[Callable[[], list[str]], Callable[[], object], Callable[[], None]]:
        last, reached = folder / "run" / "last.pt", [(0, 0)]

        def look() -> object:
            held = read_torch(last) if last.exists() else {"stage": 0, "step": 0}
            place = int(held["stage"]), int(held["step"])
            assert place >= reached[0]
            reached[0] = place
            return place

        def check() -> None:
            assert flat(load_file(folder / "run" / "compressed.safetensors")) == flat(wanted)
            assert records(folder / "run") == records(Path("whole/run"))

        return lambda: words(folder), look, check

    assert campaign(begin, 3, 0.6 * took, 4).kills == 3
