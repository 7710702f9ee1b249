"""Threads wait without spinning, and are as many as this process may use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from netspace import process

SHOW = "from netspace.process import settle_threads; settle_threads(); import torch; print(torch.get_num_threads())"


def started(**environment: str) -> subprocess.CompletedProcess[str]:
    """A process that settles its threads and then loads torch; OpenMP says on standard error what it goes by."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    return subprocess.run(
        [sys.executable, "-c", SHOW],
        env={**kept, "OMP_DISPLAY_ENV": "verbose", **environment},
        cwd=Path(process.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is torch's OpenMP on Linux")
def test_openmp_hardly_spins_unless_the_user_says_otherwise() -> None:
    assert "GOMP_SPINCOUNT = '1000'" in started().stderr
    assert "GOMP_SPINCOUNT = '1000'" not in started(OMP_WAIT_POLICY="ACTIVE").stderr
    assert "GOMP_SPINCOUNT = '77'" in started(GOMP_SPINCOUNT="77").stderr


def test_the_users_number_of_threads_stays() -> None:
    assert started(OMP_NUM_THREADS="1").stdout.strip() == "1"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "broken"}, None),
        ({}, None),
    ],
)
def test_a_containers_quota(
    files: dict[str, str], cores: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(process, "CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(64)), raising=False)
    assert process.available_cores() == (cores or 64)
