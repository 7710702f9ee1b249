"""`tools/shapes_table.py`: the table of docs/benchmarks-shapes.md, from an evaluation of a space of shapes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from netspace.commands.evaluate import evaluate

TOOL = Path(__file__).parent.parent / "tools" / "shapes_table.py"
OWN = {"within": 0.8987, "score_predicted": 0.847, "kl": 3.84e-05, "iou": 0.8841, "chamfer": 0.00941, "valid": 0.84}
FIGURES: dict[str, Any] = {
    **OWN,
    "members": 50,
    "split": "test",
    "score_target": 0.9051,
    "identity": {"own_minus_peers": 0.7851},
    "shapes": {
        "target": {"valid": 1.0},
        "lines": {
            "lines": 10,
            "steps": 9,
            "latent": {"valid": 0.6556, "empty": 0.0111, "valid_lines": 4},
            "weights": {"valid": 0.02, "empty": 0.26, "valid_lines": 0},
        },
    },
    "refined": {**OWN, "within": 0.95, "steps": 300},
    "baselines": {
        "mean": {
            **OWN,
            "within": 0.005,
            "kl": 0.17,
            "iou": 0.0,
            "chamfer": None,
            "valid": 0.0,
            "score_predicted": 0.005,
        },
        "deepsdf": {**OWN, "within": 0.9631, "kl": 2.0e-05, "steps": 2053, "parameters": 300_123},
        "aligned_average": None,
        "constant": {**OWN},
    },
    "completion": {
        "points": 64,
        "members": 32,
        "iou": 0.814,
        "iou_scratch": 0.116,
        "iou_nearest": 0.641,
        "iou_target": 0.88,
    },
}


def run(file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TOOL), str(file)], capture_output=True, text=True)


def test_rows_and_what_is_better(tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text(json.dumps(FIGURES))
    done = run(tmp_path / "eval.json")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("| 50 test networks | within 0.01 of the target's | within 0.01 of the shape's |")
    assert lines[2:7] == [
        "| targets | 100.0 % | 90.5 % | 0.0 | 1.000 | 0.0000 | 100.0 % |",
        "| **the space** | 89.9 % | 84.7 % | 3.8e-05 | 0.884 | 0.0094 | 84.0 % |",
        "| the space, latents refined by 300 steps | 95.0 %, better | 84.7 % | 3.8e-05 | 0.884 | 0.0094 | 84.0 % |",
        "| the mean of all weights | 0.5 % | 0.5 % | 0.17 | 0.000 | - | 0.0 % |",
        "| **DeepSDF**: one auto-decoder for all shapes, 300,123 parameters, 2,053 steps | 96.3 %, better | 84.7 % "
        "| 2.0e-05, better | 0.884 | 0.0094 | 84.0 % |",
    ]
    rest = "\n".join(lines[7:])
    assert "78.5 points more" in rest and "between weights 2.0 % of shapes are in one piece and 26.0 % empty" in rest
    assert (
        "On 10 lines, 9 steps each: between latents 65.6 % of shapes are in one piece and 1.1 % empty (4 whole" in rest
    )
    assert "From 64 points, 32 members: IoU 0.814 (from scratch 0.116, nearest 0.641, the member 0.880)." in rest


def test_what_eval_leaves_in_a_run_is_read(chairs_copy: Path) -> None:
    evaluate(chairs_copy)
    done = run(chairs_copy / "eval-test.json")
    assert done.returncode == 0, done.stderr
    assert "| nearest training network by its outputs (shared points) |" in done.stdout


@pytest.mark.parametrize("figures", [{}, {"members": 3, "shapes": None}])
def test_another_evaluation_is_refused(figures: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text(json.dumps(figures))
    done = run(tmp_path / "eval.json")
    assert done.returncode == 2 and "no evaluation of a space of shapes" in done.stderr
