"""The table of decoders and encoders: every cell is a recipe, and one is trained and told on a tiny zoo."""

from __future__ import annotations

import importlib
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest

from netspace.config import load
from netspace.training.recipe import SpaceRecipe

ROOT = Path(__file__).parent.parent


@pytest.fixture
def grid(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("space_grid")


def test_every_cell_is_a_recipe(grid: ModuleType) -> None:
    for decoder, changes in grid.DECODERS.items():
        for encoder, others in grid.ENCODERS.items():
            recipe = load(SpaceRecipe, "space/quickstart", [*changes, *others])
            assert recipe.decoder.kind in (decoder, "coordinate") and encoder.startswith(recipe.encoder.kind)


def test_a_cell_is_trained_and_told(grid: ModuleType, tiny_zoo: Path, tmp_path: Path) -> None:
    small = ["latent=32", "networks=4", "images=8", "noise=0", "encoder.probes=4", "loss.lines=0"]
    given = Namespace(zoo=tiny_zoo, out=tmp_path, recipe="space/quickstart", seconds=0.01, set=small)
    grid.TRIAL = 10
    found = grid.cell("linear,probe", given)
    again = grid.cell("linear,probe", given)
    assert found["steps"] == again["steps"] >= 1 and found["result"]["agreement"] == again["result"]["agreement"]
    line = grid.row(found)
    assert line.startswith("| linear | probe | ") and line.count("|") == 11
