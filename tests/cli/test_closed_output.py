"""Output that nobody reads any more ends a command as SIGPIPE ends other programs: status 141, and not a word."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "words",
    [
        ["zoo", "list", "{zoo}", "--json"],
        ["zoo", "list", "{zoo}"],
        ["recipes", "list"],
        ["recipes"],
        ["search", "{zoo}", "--target", "accuracy=0.9"],
        ["zoo", "info", "gone.h5", "--json"],
        ["zoo", "--help"],
        ["--version"],
    ],
    ids=" ".join,
)
def test_a_closed_output_is_no_failure_to_speak_of(words: list[str], tiny_zoo: Path) -> None:
    read, write = os.pipe()
    os.close(read)  # the reader is gone, as `head -1` is after a line
    command = [sys.executable, "-m", "netspace", *(word.format(zoo=tiny_zoo) for word in words)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    if "gone.h5" in words:  # a mistake is still told on standard error, with its own status
        assert done.returncode == 1 and done.stderr.startswith("netspace: gone.h5") and done.stderr.count("\n") == 1
    else:
        assert (done.returncode, done.stderr) == (141, "")


def test_a_reader_that_leaves_after_a_line(tiny_zoo: Path) -> None:
    command = f"set -o pipefail; {sys.executable} -m netspace zoo list {tiny_zoo} --limit 36 | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode in (0, 141) and done.stderr == ""  # 0: all of it was written before
    assert done.stdout.count("\n") == 1 and "member" in done.stdout
