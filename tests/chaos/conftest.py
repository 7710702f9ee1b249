"""Recipes for the chaos, and processes that save sooner."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from campaign import SOONER, SPACE, ZOO

from model_zoo import work
from netspace.training import loop


@pytest.fixture
def chaos_recipes() -> tuple[Path, Path]:
    """The recipes of a small zoo and of a space."""
    Path("zoo.yaml").write_text(ZOO)
    Path("space.yaml").write_text(SPACE)
    return Path("zoo.yaml"), Path("space.yaml")


@pytest.fixture
def sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that a test starts commit and checkpoint sooner, so that short lives get somewhere."""
    assert min(work.COMMIT_EVERY, work.CHECKPOINT_EVERY, loop.CHECKPOINT_EVERY) > 0  # these are still their names
    Path("site").mkdir()
    Path("site/sitecustomize.py").write_text(SOONER)
    path = [str(Path("site").resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
