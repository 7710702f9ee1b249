"""Trainings under fire; how is told in `test_kills`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from campaign import LONGER_SPACE, TRAINING, Cli, Outcome, campaign, records, train_words
from helpers import flat
from safetensors.torch import load_file

from netspace.io import read_json, read_torch

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")


def kill_trainings(cli: Cli, recipe: Path, zoo: Path, kills: int, share: float, changes: dict[str, float]) -> Outcome:
    """Trains a space undisturbed and then under fire; lives last up to a `share` of the time it took undisturbed."""
    clock = time.monotonic()
    assert cli(*train_words(recipe, zoo, Path("whole"), changes)).code == 0
    took = time.monotonic() - clock
    wanted = records(Path("whole"))
    steps = int(changes.get("steps", 40))
    assert [each["step"] for each in wanted if "val_mae" not in each] == list(range(1, steps + 1))

    def begin(folder: Path) -> tuple[Callable[[], list[str]], Callable[[], object], Callable[[], None]]:
        run, reached = folder / "run", [0]
        last, best = run / "checkpoints" / "last.pt", run / "checkpoints" / "best.safetensors"

        def look() -> object:
            for path in run.glob("*.json"):
                read_json(path, dict[str, Any])
            if best.exists():
                assert load_file(best).keys() == load_file(Path("whole/checkpoints/best.safetensors")).keys()
            step = int(read_torch(last)["step"]) if last.exists() else 0
            found = records(run)
            assert found == wanted[: len(found)]  # in order, none twice, the same losses
            assert reached[0] <= step <= (found[-1]["step"] if found else 0)
            reached[0] = step
            return step

        def check() -> None:
            assert records(run) == wanted
            assert flat(read_torch(last)) == flat(read_torch(Path("whole/checkpoints/last.pt")))
            assert flat(load_file(best)) == flat(load_file(Path("whole/checkpoints/best.safetensors")))
            assert (run / "config.yaml").read_text() == Path("whole/config.yaml").read_text()

        return lambda: train_words(recipe, zoo, run, changes), look, check

    return campaign(begin, kills, share * took, 2)


def test_a_training_under_fire(
    cli: Cli, chaos_recipes: tuple[Path, Path], tiny_zoo: Path, sooner: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETSPACE_TEST_SOONER", TRAINING)
    assert kill_trainings(cli, chaos_recipes[1], tiny_zoo, 3, 0.6, {}).kills == 3


@pytest.mark.slow
def test_a_training_under_heavy_fire(
    cli: Cli, chaos_recipes: tuple[Path, Path], tiny_zoo: Path, sooner: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETSPACE_TEST_SOONER", TRAINING)
    assert kill_trainings(cli, chaos_recipes[1], tiny_zoo, 50, 0.2, LONGER_SPACE).kills == 50
