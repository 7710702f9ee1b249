"""Every reader takes any bytes: it reads what netspace wrote as it was written, or refuses it in one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))

from damage import DAMAGES, damaged
from samples import FOREIGN, OURS, write_samples

READER = Path(__file__).with_name("reader.py")
KINDS = sorted(OURS | FOREIGN)
SHORT, LONG = 12, 850  # damages of each kind; the long ones are 20,000 together


def read_damaged(folder: Path, asked: list[str]) -> list[str]:
    """The verdict on each damage, a kind and a seed."""
    done = subprocess.run(
        [sys.executable, str(READER), str(folder)], input="\n".join(asked), capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    last = f"{lines[-1][:200] if lines else '?'}: ended by {done.returncode}\n{done.stderr[-2000:]}"
    assert (done.returncode, len(lines)) == (0, len(asked)), last
    return [line.removeprefix(f"{each}: ") for line, each in zip(lines, asked, strict=True)]


def check(folder: Path, kinds: list[str], seeds: range) -> None:
    write_samples(folder)
    asked = [f"{kind} {seed}" for kind in kinds for seed in seeds]
    verdicts = dict(zip(asked, read_damaged(folder, asked), strict=True))
    strange = {each: told for each, told in verdicts.items() if told != "right" and not told.startswith("refused: ")}
    assert not strange, f"{len(strange)} of {len(verdicts)}: {dict(list(strange.items())[:3])}"
    for kind in [kind for kind in kinds if kind in OURS and kind != "metrics"]:  # where most damage must be noticed
        refused = sum(verdicts[f"{kind} {seed}"].startswith("refused: ") for seed in seeds)
        assert refused > len(seeds) / 2, kind


def test_some_damage(tmp_path: Path) -> None:
    check(tmp_path, KINDS, range(SHORT))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_much_damage(tmp_path: Path, kind: str) -> None:
    check(tmp_path, [kind], range(1000, 1000 + LONG))


def test_damages_are_drawn_by_their_seed_and_are_of_every_kind() -> None:
    content = bytes(range(256)) * 4 + bytes(64) + b"0123456789"
    found = [damaged(content, seed) for seed in range(200)]
    assert found == [damaged(content, seed) for seed in range(200)]
    assert len(set(found)) > 190 and sum(each == content for each in found) < 10
    assert any(len(each) < len(content) for each in found) and any(len(each) > len(content) for each in found)
    assert len(DAMAGES) > 8 and damaged(b"", 0) is not None
