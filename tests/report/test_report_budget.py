"""`netspace report` of a fit with a size: the picture, the table, and what is drawn without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import read

from netspace.report import report
from netspace.report.budgets import size_pictures, size_tables
from netspace.results.budget import BudgetFit


def row(way: str, size: int | None, value: float | None, **more: Any) -> dict[str, Any]:
    figures = {"accuracy": value, "agreement": value, "accuracy_val": value, "agreement_val": value}
    error = None if value is None else 1 - value
    return {"way": way, "bytes": size, "relative_error": error, "setting": "4 bits", **figures, **more}


TABLE = [
    row("rounded", 80_000, 0.85),
    row("coded", 84_900, 0.925),
    row("coded", 84_990, 0.928, chosen=True, steps=1_000),
    row("coordinate", 84_000, 0.6),
    row("nncodec", 84_500, 0.92, rival=True),
    row("torch-int8", None, None, rival=True, note="it holds <linear> layers alone"),
]
SIZES = [row(way, size, 0.6 + size / 5e5) for way in ("rounded", "coded") for size in (42_000, 120_000)]


def figures(inputs: str = "task") -> BudgetFit:
    whole = {"file": "c/compressed.safetensors", "bytes_original": 1_085_608, "bytes_file": 84_990, "agreement": 0.96}
    accuracies = {"accuracy_original": 0.93, "accuracy_original_val": 0.931, "accuracy_reconstructed": 0.928}
    return BudgetFit.model_validate(
        {**whole, **accuracies, "way": "coded", "why": "coded is best", "inputs": inputs, "bytes_budget": 85_000}
        | {"relative_error": 0.1, "table": TABLE, "sizes": SIZES}
    )


def test_the_page(tmp_path: Path) -> None:
    figures().write(tmp_path / "fit.json")
    result = report(tmp_path)
    assert [Path(file).name for file in result.figures] == ["sizes.png"] and result.missing == []
    reader = read(result)
    page = reader.text
    for text in (
        "Accuracy and bytes",
        "12.8 times as many. Coded is best.",
        "coded (taken)",
        "nncodec (rival)",
        "92.80 %",
    ):
        assert text in page
    assert "it holds <linear> layers alone" in page and "linear" not in reader.tags
    assert "predictor of" not in page


def test_lines_are_of_files_without_training() -> None:
    (picture,) = size_pictures(figures())
    (axes,) = picture.figure.axes
    lines = {tuple(line.get_xdata()): np.asarray(line.get_ydata()) for line in axes.lines}
    assert lines[42_000, 84_900, 120_000] == pytest.approx([68.4, 92.5, 84.0])
    assert lines[42_000, 80_000, 120_000] == pytest.approx([68.4, 85.0, 84.0])
    assert [line.get_markersize() for line in axes.lines if list(line.get_xdata()) == [84_990]] == [
        9,
        14,
    ]  # and the ring
    assert lines[(0, 1)] == pytest.approx([93.1, 93.1])  # the original
    assert "rounded: 68.4 % in 42,000, 84.0 % in 120,000" in picture.caption
    assert "coded, trained: 92.8 % in 84,990" in picture.caption
    assert "Rivals, of the same bytes: nncodec." in picture.caption


@pytest.mark.parametrize(
    ("inputs", "title"), [("noise", "same answers as the original, %"), ("weights", "relative error of the weights")]
)
def test_without_labels(inputs: str, title: str) -> None:
    (picture,) = size_pictures(figures(inputs))
    (axes,) = picture.figure.axes
    assert axes.get_title(loc="left") == title and (0, 1) not in {tuple(line.get_xdata()) for line in axes.lines}
    (table,) = size_tables(figures(inputs))
    assert table.head[-1] == "same answer, to choose by" and len(table.rows) == len(TABLE)
