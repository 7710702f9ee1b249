"""`tools/bench_coding.py`: a row for matrices, with the entropy that the coders are compared with."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def test_a_row_compares_coders_with_the_entropy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import bench_coding

    values = np.array([[0, 1, 2, 3] * 9] * 40, np.int32)
    np.random.default_rng(0).shuffle(values, axis=1)
    assert bench_coding.entropy([values, values]) == pytest.approx(2 * values.size * 2 / 8)
    bench_coding.measure("four values", [values], [9])
    cells = capsys.readouterr().out.strip().strip("|").split("|")
    assert [cell.strip() for cell in cells[:4]] == ["four values", "1,440", "25%", "360"] and len(cells) == 10
    sys.modules.pop("bench_coding")
