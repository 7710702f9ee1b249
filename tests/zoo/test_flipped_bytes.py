"""Any byte of a zoo file flipped: it is read as it was written, or refused in a sentence; HDF5 neither hangs nor crashes."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from zoo_files import LARGE, population, zoo_at

READER = Path(__file__).with_name("read_flipped.py")
MASKS = (0x01, 0x10, 0xFF)


def read_flipped(path: Path, flips: Iterable[tuple[int, int]]) -> list[str]:
    """The verdict on each (place, mask)."""
    asked = [f"{place} {mask}" for place, mask in flips]
    done = subprocess.run(
        [sys.executable, str(READER), str(path)], input="\n".join(asked), capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    last = f"byte and mask {lines[-1] if lines else '?'}: ended by {done.returncode}\n{done.stderr}"
    assert (done.returncode, done.stderr, len(lines)) == (0, "", len(asked)), last
    return [line.removeprefix(f"{flip} ") for line, flip in zip(lines, asked, strict=True)]


def check(path: Path, flips: list[tuple[int, int]]) -> None:
    verdicts = read_flipped(path, flips)
    strange = {
        flip: verdict
        for flip, verdict in zip(flips, verdicts, strict=True)
        if verdict != "right" and not verdict.startswith("refused: ")
    }
    assert not strange
    assert sum(verdict.startswith("refused: ") for verdict in verdicts) > len(verdicts) / 2


def test_some_bytes(tmp_path: Path) -> None:
    path = zoo_at(tmp_path / "z.h5", tiny=population(count=3))
    places = random.Random(0)
    check(path, [(places.randrange(path.stat().st_size), places.choice(MASKS)) for _ in range(300)])


@pytest.mark.slow
def test_every_byte(tmp_path: Path) -> None:
    path = zoo_at(tmp_path / "z.h5", tiny=population(count=3), large=population(LARGE, count=2))
    check(path, [(place, mask) for place in range(path.stat().st_size) for mask in MASKS])
