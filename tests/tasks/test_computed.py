"""Arrays that are computed once: by other processes, which may be killed, and from scripts without a main guard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import netspace
from netspace.errors import NetspaceError
from netspace.tasks import computed
from netspace.tasks.computed import Entry, Job, compute

ROOT = Path(netspace.__file__).parents[1]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for each test."""
    monkeypatch.setenv("NETSPACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def square(number: int) -> Entry:
    """An entry of one array and a note, with the process that computed it."""
    return Entry({"square": np.array([number**2])}, {"process": str(os.getpid())})


def fall(number: int) -> Entry:
    """End the process, as a system without memory does."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError(number)


def jobs(count: int, seconds: float) -> list[Job]:
    return [Job(f"square of {number}", square, (number,), seconds) for number in range(count)]


def test_small_work_is_done_here_and_once() -> None:
    first = list(computed.computed(jobs(5, 0.1), "squares"))
    assert [int(entry.arrays["square"][0]) for entry in first] == [0, 1, 4, 9, 16]
    assert {entry.notes["process"] for entry in first} == {str(os.getpid())}
    assert compute(jobs(5, 0.1)[3]).notes == first[3].notes
    assert not list(computed.computed([], "nothing"))


def test_large_work_is_done_by_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the jobs, among them some from the cache."""
    monkeypatch.setattr(computed, "available_cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    here = compute(jobs(5, 0)[2])
    entries = list(computed.computed(jobs(5, 100), "squares"))
    assert [int(entry.arrays["square"][0]) for entry in entries] == [0, 1, 4, 9, 16]
    assert [entry.notes["process"] == str(os.getpid()) for entry in entries] == [False, False, True, False, False]
    assert entries[2].notes == here.notes


@pytest.mark.slow
def test_a_process_that_is_killed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computed, "available_cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(
        NetspaceError, match=r"^falling: a process was ended, most likely because memory ran out; leave out"
    ):
        list(computed.computed([Job(f"fall {number}", fall, (number,), 100) for number in range(2)], "falling"))


@pytest.mark.slow
def test_a_script_without_a_main_guard(tmp_path: Path) -> None:
    """The processes do not run the user's script again."""
    (tmp_path / "script.py").write_text(
        "import sys\n"
        f"sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]\n"
        "from netspace.tasks import computed\n"
        "from test_computed import jobs\n"
        "computed.available_cores = computed.torch.get_num_threads = lambda: 2\n"
        "print('begin')\n"
        "print([int(each.arrays['square'][0]) for each in computed.computed(jobs(3, 100), 'squares')])\n"
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "begin\n[0, 1, 4]\n" and done.returncode == 0, done.stderr
