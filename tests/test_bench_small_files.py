"""The networks and the comparison of tools/bench_small_files.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from netspace.results.budget import BudgetFit, WayRow

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    import bench_small_files

    return bench_small_files


def test_the_networks_have_the_shapes_that_they_name(bench: ModuleType) -> None:
    with torch.no_grad():
        face, box, landmarks = bench.ONetLike().eval()(torch.zeros(2, *bench.ONET_SHAPE))
        assert (face.shape, box.shape, landmarks.shape) == ((2, 2), (2, 4), (2, 10))
        assert bench.vgg_like(image_size=16, classes=7, width=0.25).eval()(torch.zeros(3, 1, 16, 16)).shape == (3, 7)
    assert sum(value.numel() for value in bench.ONetLike().parameters()) == 389_040  # by hand, layer by layer


def fitted(error: float | None, agreement: float | None, *coded: tuple[int, float]) -> BudgetFit:
    taken = WayRow(way="mixed", bytes=900, steps=5, chosen=True, output_error_val=error, agreement_val=agreement)
    kind = "agreement_val" if error is None else "output_error_val"
    rows = [WayRow(way="coded", bytes=size, **{kind: value}) for size, value in coded]
    return BudgetFit(way="mixed", bytes_budget=1_000, table=[taken, *rows[:1]], sizes=rows[1:])


def test_the_smallest_file_that_is_as_like_is_found(bench: ModuleType) -> None:
    coded = ((800, 0.9), (1_000, 0.96), (1_200, 0.99), (1_500, 0.98))
    figures = fitted(None, 0.97, *coded)
    found = bench.equal(figures.table[0], figures)
    assert found is not None and found.bytes == 1_200 and "| 97.0 % | 1,200 |" in bench.line("net", figures, figures)
    assert bench.equal(fitted(None, 0.995).table[0], figures) is None
    errors = fitted(0.1, None, (800, 0.2), (1_300, 0.1), (1_200, 0.11))
    assert bench.line("net", errors, errors) == "| net | 1,000 | 900 (mixed, 5 steps) | 0.1000 | 1,300 |"
    worse = fitted(0.05, None, (800, 0.2), (1_200, 0.11))
    assert "more than 1,200" in bench.line("net", worse, worse)


@pytest.mark.slow
def test_the_tool_runs(tmp_path: Path) -> None:
    small = ["--width", "0.1", "--steps", "4", "--images", "16", "--epochs", "1", "--bits", "2"]
    done = subprocess.run(
        [sys.executable, TOOLS / "bench_small_files.py", tmp_path, *small], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = [row for row in done.stdout.splitlines() if "-like, " in row]
    assert len(rows) == 2 and all(row.count("|") == 6 for row in rows)
