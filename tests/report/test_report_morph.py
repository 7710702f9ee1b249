"""`netspace report` of a morph: what it shows, what it says where parts are missing, and what it refuses."""

from __future__ import annotations

import json
import math
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from netspace.errors import NetspaceError
from netspace.io import write_json, write_tensors
from netspace.report import report
from netspace.report.figures_morph import LOOKS, draw_widths
from netspace.results.spaces import ReportFiles

PARAMETERS = (272_474, 153_434, 68_554, 17_354)
METHODS = ("individual", "us_net", "pruned_l1", "pruned_taylor", "pruned_random", "resampled")
FIT: dict[str, Any] = {
    "run": "m",
    "file": "m/morph.safetensors",
    "arch": "resnet<20>",
    "groups": {"conv1": 16, "layer1.0.conv1": 16},
    "narrowest": 0.5,
    "full_parameters": 272_474,
    "stored_parameters": 272_474,
    "full_accuracy": 0.9321,
    "total_variation": {"before": 5000.0, "after": 3210.0, "greedy": 3400.0},
    "seconds": 600.0,
}


def width(index: int) -> dict[str, Any]:
    """The figures of a width: the narrower, the worse, most of all where channels are chosen at random."""
    baselines = {name: 0.93 - 0.02 * index - 0.1 * index * order for order, name in enumerate(METHODS)}
    return {
        "gamma": index / 4,
        "parameters": PARAMETERS[index],
        "trained": index < 3,
        "accuracy": 0.925 - 0.02 * index,
        "sampled_accuracy": 0.924 - 0.02 * index,
        "agreement": 0.97 - 0.03 * index,
        "baselines": {name: max(value, 0.1) for name, value in baselines.items()},
    }


EVALUATION: dict[str, Any] = {
    "run": "m",
    "seeds": 1,
    "training": {"epochs": 6},
    "us_net_start": "network",
    "draws": 50,
    "narrowest": 0.5,
    "full_parameters": 272_474,
    "stored_parameters": 272_474,
    "full_accuracy": 0.9321,
    "widths": [width(index) for index in range(4)],
    "inputs": 512,
    "cka": {name: [1.0, 0.98, 0.95, 0.8] for name in ("morph", "individual", "us_net")},
    "divergence": {
        name: [[scale * abs(one - two) for two in range(4)] for one in range(4)]
        for name, scale in (("morph", 0.02), ("individual", 0.11), ("us_net", 0.4))
    },
    "seconds": {"morph": 600.0, "individual": [200.0, 180.0, 160.0, 150.0], "us_net": 640.0},
}


def write_run(path: Path, evaluation: dict[str, Any] | None = None, records: bool = True, **fit: Any) -> Path:
    """As `morph fit` and `morph eval` leave it."""
    path.mkdir()
    (path / "config.yaml").write_text("name: <morph>\nseed: 0\n")
    write_json(path / "provenance.json", {"kind": "morph", "command": "netspace morph fit", "torch": "2.9", "seed": 0})
    write_json(path / "network.json", {"hash": "ab12"})
    write_json(path / "fit.json", {**FIT, **fit})
    if evaluation is not None:
        write_json(path / "eval.json", evaluation)
    lines: list[dict[str, Any]] = []
    for stage, learns in enumerate(("weights", "widths") if records else ()):
        for step in range(50, 501, 50):
            terms = {"reconstruction": 3 / step} if learns == "weights" else {"task": 0.4, "distillation": 9 / step}
            scores = {f"val_score_{index}": 0.9 - 0.02 * index - 1 / step for index in range(3)}
            lines += [{"stage": stage, "step": step, "rate": 1.0, "steps_a_second": 9.0, **terms}]
            lines += [{"stage": stage, "step": step, "weight_error": 1 / step, **(scores if stage else {})}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def text_of(result: ReportFiles) -> str:
    """The page, with what is escaped in it as it is read."""
    return unescape(Path(result.report).read_text())


def test_everything_is_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a & b", EVALUATION)
    result = report(run)
    html = text_of(result)
    assert [Path(file).stem for file in result.figures] == ["widths", "alignment", "divergence", "course"]
    assert result.missing == [] and all(Path(file).stat().st_size > 5_000 for file in result.figures)
    for text in (
        "gives the weights of resnet<20>",
        "narrower than any in training, scores 86.5 %; a network trained at this width alone scores 87.0 %",
        "<dd>100.0 %</dd>",  # stored values
        "<dd>64.2 %</dd>",  # total variation
        "<dd>3.0</dd>",  # training, in times of one network's
        "γ 0.75 (unseen)",
        "153,434",
        "pruned (Taylor)",
        "US-Net from the network",
        "the morph, mean of 50 draws",
        "shaded widths are those of the morph's training, γ 0 to 0.50",
        "greedy: to the nearest channel left",
        "trained at this width alone",
        "name: <morph>",
        "512 test images",
    ):
        assert text and text in html, text
    assert "±" not in html and text_of(report(run)) == html  # the same folder gives the same page


def test_the_larger_panel_of_scores_is_of_trained_widths() -> None:
    gammas, unknown = np.arange(4) / 4, np.full(4, np.nan)
    good, bad = np.array([0.9, 0.89, 0.88, 0.1]), np.array([0.9, 0.7, 0.3, 0.1])
    curves = [("good", good, unknown, LOOKS["morph"]), ("bad", bad, unknown, LOOKS["resampled"])]
    large, small = draw_widths(gammas, PARAMETERS, curves, 0.5, (0.87, 0.91)).axes
    assert large.get_ylim() == pytest.approx((87, 91)) and small.get_ylim()[0] < 10
    assert [len(line.get_xdata()) for axes in (large, small) for line in axes.lines] == [3, 3, 4, 4]
    assert large.get_subplotspec().get_position(large.figure).height > 1.5 * small.get_position().height
    assert len(draw_widths(gammas, PARAMETERS, curves, 0.2, (0.87, 0.91)).axes) == 1  # one trained width is no line


@pytest.mark.usefixtures("words_alone")
def test_several_seeds_have_their_spread(tmp_path: Path) -> None:
    several = [
        {**each, "accuracy_std": 0.004, "baselines_std": dict.fromkeys(METHODS, 0.0123)}
        for each in EVALUATION["widths"]
    ]
    html = text_of(report(write_run(tmp_path / "m", {**EVALUATION, "seeds": 3, "widths": several})))
    for text in ("92.5 % ± 0.4", "93.0 % ± 1.2", "means of 3 seeds", "Bars are standard deviations over seeds"):
        assert text in html, text


def test_the_score_of_another_task_is_named(tmp_path: Path) -> None:
    """Lower is better; measures of the task and pictures, which the figures' texts name."""
    score = {"name": "error", "higher_is_better": False}
    measured = [{**each, "measures": {"nll": {"morph": 88.125, "individual": 90.0}}} for each in EVALUATION["widths"]]
    run = write_run(tmp_path / "m", {**EVALUATION, "score": score, "widths": measured}, score=score)
    images = torch.arange(2 * 8 * 8 * 3, dtype=torch.int64).remainder(256).to(torch.uint8).view(2, 8, 8, 3)
    write_tensors(run / "eval.safetensors", {"00 image": images, "01 prediction, γ 0": images + 1})
    result = report(run)
    html = text_of(result)
    assert "pictures" in [Path(file).stem for file in result.figures]
    for text in (
        "88.125",
        "A further measure on the test inputs: nll",
        "On the test inputs the morph's network of 272,474 parameters scores 92.5 %",
        "error on test inputs, %",
    ):
        assert text in html, text
    assert "accuracy" not in html.partition("<script>")[0].lower() and "Rows of 2 inputs" in html


def test_what_is_missing_is_said_with_the_command(tmp_path: Path) -> None:
    result = report(write_run(tmp_path / "m", records=False))
    assert "netspace morph eval" in result.missing[0] and "no metrics.jsonl" in result.missing[1]
    assert result.figures == [] and "not been compared with other methods yet" in text_of(result)


def test_a_morph_alone_at_one_width(tmp_path: Path) -> None:
    (one, *_), nan = EVALUATION["widths"], math.nan
    alone = {**one, "baselines": {}, "accuracy": 0.9, "sampled_accuracy": nan, "agreement": None}
    few = {"cka": {"morph": [1.0]}, "divergence": {"morph": [[0.0]]}, "seconds": {}}
    result = report(write_run(tmp_path / "m", {**EVALUATION, "widths": [alone], **few}, total_variation=None))
    html = text_of(result)
    assert [Path(file).stem for file in result.figures] == ["widths", "course"]
    assert "How long trainings took" not in html and "order of channels" not in html


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "m", EVALUATION)
    write_json(run / "eval.json", {**EVALUATION, "cka": {"morph": [1.0]}})
    with pytest.raises(NetspaceError, match=r"one value for each of 4 widths was expected.*netspace morph eval"):
        report(run)
    write_json(run / "eval.json", EVALUATION)
    write_tensors(run / "eval.safetensors", {"00 image": torch.zeros(2, 3)})
    with pytest.raises(NetspaceError, match="was expected to hold rows of images"):
        report(run)
    (run / "fit.json").unlink()
    with pytest.raises(NetspaceError, match=r"its fit is not done; go on with it \(`netspace morph fit --resume --out"):
        report(run)
