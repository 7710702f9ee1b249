"""Fits of a morph under fire; how is told in `test_kills`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from campaign import Cli, campaign, records

from netspace.io import read_torch
from netspace.training import loop

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")


def test_a_morph_under_fire(cli: Cli, sooner: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loop.CHECKPOINT_EVERY > 0  # this is still its name
    monkeypatch.setenv("NETSPACE_TEST_SOONER", "netspace.training.loop.CHECKPOINT_EVERY=0.1")
    settings = [
        "start=nothing",
        "data={name: digits, limit: 300}",
        "stages=[{steps: 40}, {steps: 40}]",
        "batch_size=16",
    ]
    words = [word for each in [*settings, "validate_every=20", "log_every=10"] for word in ("--set", each)]

    def fit(folder: Path) -> list[str]:
        return ["morph", "fit", "--arch", "lenetlike", "-o", str(folder / "run"), "--resume", *words]

    clock = time.monotonic()
    assert cli(*fit(Path("whole"))).code == 0
    took = time.monotonic() - clock
    wanted = Path("whole/run/morph.safetensors").read_bytes()

    def begin(folder: Path) -> tuple[Callable[[], list[str]], Callable[[], object], Callable[[], None]]:
        last, reached = folder / "run" / "last.pt", [(0, 0)]

        def look() -> object:
            held = read_torch(last) if last.exists() else {"stage": 0, "step": 0}
            place = int(held["stage"]), int(held["step"])
            assert place >= reached[0]
            reached[0] = place
            return place

        def check() -> None:
            assert (folder / "run" / "morph.safetensors").read_bytes() == wanted
            assert records(folder / "run") == records(Path("whole/run"))

        return lambda: fit(folder), look, check

    assert campaign(begin, 2, 0.6 * took, 4).kills == 2
