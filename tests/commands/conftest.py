"""Runs of several architectures that a test may write into."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def run(multi_run: Path, tmp_path: Path) -> Path:
    """`multi_run`, to be written into."""
    return Path(shutil.copytree(multi_run, tmp_path / "runs" / "multi"))


@pytest.fixture
def unseen(unseen_run: Path, tmp_path: Path) -> Path:
    """`unseen_run`, to be written into."""
    return Path(shutil.copytree(unseen_run, tmp_path / "runs" / "unseen"))
