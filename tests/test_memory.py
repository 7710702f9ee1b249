"""Freed memory stays with the process: seen as page faults of a process that makes and frees the same tensor."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT = """
import resource, sys, torch
from netspace.process import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    for _ in range(10):
        torch.ones(40 << 20, dtype=torch.uint8)
work()
before = faults()
work()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is meant")
def test_the_same_memory_is_not_fetched_twice() -> None:
    counts = {}
    for way in ("keep", "default"):
        actual = subprocess.run([sys.executable, "-c", COUNT, way], capture_output=True, text=True, check=True)
        counts[way] = int(actual.stdout)
    assert counts["keep"] < 100
    assert counts["default"] > 1000, "the allocator keeps memory by itself: this module is not needed any more"
