"""Shapes in the report: what the page shows of them, and which files it refuses."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from shape_files import add_shapes, line, shape
from test_report import Reader

from netspace.errors import NetspaceError
from netspace.io import write_tensors
from netspace.report import report
from netspace.report.page import policy
from netspace.report.viewer import MAX_NARROW, stored
from netspace.surfaces import Surface, write_surfaces

MakeRun = Callable[..., Path]


@pytest.fixture
def run(make_run: MakeRun) -> Path:
    made = make_run(lines=0)
    add_shapes(made)
    return made


def page_of(run: Path) -> str:
    return Path(report(run).report).read_text(encoding="utf-8")


def test_the_page_shows_shapes(run: Path) -> None:
    result = report(run)
    assert {"shapes-test.png", "shapes-line-test.png"} < {Path(name).name for name in result.figures}
    html = Path(result.report).read_text(encoding="utf-8")
    page = Reader(html)
    assert page.loads == [] or all(each.startswith("data:image/png;base64,") for each in page.loads)
    assert page.tags.count("canvas") == 4  # target and predicted; latents and weights
    assert html.count("data-faces=") == 2 * 2 + 2 * 5
    frames = [json.loads(text.replace("&#34;", '"')) for text in re.findall(r'data-frames="(.*?)"', html)]
    assert frames[0] == ["lenetlike/0000: IoU 0.80", "lenetlike/0001: IoU 0.95"]
    assert frames[1] == ["γ 0.00", "γ 0.25", "γ 0.50", "γ 0.75", "γ 1.00"]
    assert "overlap with the target (IoU)0.91" in page.text and "shapes of one body, weight lines11.1 %" in page.text
    for words in ("0.91", "0.43", "97.5 %", "9 of 10", "0 of 10", "64 x 64 x 64", "latents 5 of 5 and weights 2 of 5"):
        assert words in page.text, words


@pytest.mark.usefixtures("words_alone")
def test_the_only_scripts_are_those_of_the_policy(run: Path, make_run: MakeRun) -> None:
    """That of the shapes is there only where there are shapes."""
    html = page_of(run)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert policy(script).replace("'", "&#39;") in html and "shapeOf" in script
    assert "shapeOf" not in page_of(make_run(name="plain"))


@pytest.mark.usefixtures("words_alone")
def test_a_shape_is_stored_as_it_is(run: Path) -> None:
    expected = shape(0.5, 0)
    vertices, faces = re.findall(r'data-vertices="(.*?)" data-faces="(.*?)"', page_of(run))[0]
    actual = np.frombuffer(b64decode(vertices), "<i2").reshape(-1, 3) / 32767
    assert np.abs(actual - expected.vertices[:, [0, 2, 1]] * [-1, 1, 1]).max() < 1e-4  # right is -x, up z, front y
    assert np.array_equal(np.frombuffer(b64decode(faces), "<u2"), expected.faces.reshape(-1))


def test_more_vertices_than_16_bits_tell_apart() -> None:
    shape = Surface(np.zeros((MAX_NARROW + 1, 3), np.float32), np.array([[0, 1, MAX_NARROW]], np.int32))
    text = stored(shape, np.eye(3))
    assert text.wide and np.frombuffer(b64decode(text.faces), "<u4").tolist() == [0, 1, MAX_NARROW]


@pytest.mark.usefixtures("words_alone")
def test_chosen_lines_are_shown_in_place_of_the_evaluations(run: Path) -> None:
    notes = {"from": "chair/0003", "to": "<b>chair</b>", "gamma": json.dumps([0, 0.25, 0.5, 0.75, 1])}
    (run / "interpolations").mkdir()
    write_surfaces(run / "interpolations" / "one--other.safetensors", line(), **notes)
    html = page_of(run)
    assert "From chair/0003 to &lt;b&gt;chair&lt;/b&gt;" in html and "<b>chair" not in html
    assert html.count("<canvas") == 4


@pytest.mark.usefixtures("words_alone")
def test_a_run_without_lines_of_shapes(make_run: MakeRun) -> None:
    run = make_run(lines=0)
    add_shapes(run, lines=False)
    assert page_of(run).count("<canvas") == 2


@pytest.mark.parametrize(
    ("notes", "words"),
    [
        ({"members": "[1, 2"}, "says nothing of its shapes that can be read"),
        ({"members": "[]"}, "a shape for every member and every point of its line"),
        ({"gamma": "[0.5]"}, "a shape for every member and every point of its line"),
        ({"upright": "north"}, "says nothing of its shapes that can be read"),
        ({"upright": "[1, 1]"}, "says nothing of its shapes that can be read"),
    ],
)
def test_a_broken_file_of_shapes_is_named(run: Path, notes: dict[str, str], words: str) -> None:
    file = run / "eval-test-shapes.safetensors"
    good = {"members": '["a", "b"]', "iou": "[0.5, 0.6]", "gamma": "[0, 0.25, 0.5, 0.75, 1]", "upright": "[2, 1]"}
    pairs = {f"{kind}.{row:02d}": shape(0.5, 1) for kind in ("target", "predicted") for row in range(2)}
    write_surfaces(file, {**pairs, **line()}, **{**good, **notes})
    with pytest.raises(NetspaceError, match=words) as error:
        report(run)
    assert str(file) in str(error.value)


def test_tensors_that_are_no_surfaces_are_refused(run: Path) -> None:
    file = run / "eval-test-shapes.safetensors"
    write_tensors(file, {"target.00.faces": torch.zeros(2, 3)})
    with pytest.raises(NetspaceError, match=r"was expected to hold surfaces, but 'target\.00' is none"):
        report(run)


SCORE = {"name": "within", "higher_is_better": True, "noun": "score", "inputs": "points", "own_targets": True}
SCORE |= {"meaning": "the fraction of points that are right", "loss": "mean squared difference of distances"}


@pytest.fixture
def scored(run: Path) -> Path:
    """`run`, with what its score is and what its members are called."""
    file = run / "eval-test.json"
    told = json.loads(file.read_text())
    told["score"], told["r2"], told["identity"] = SCORE, -731.5, {"own_minus_peers": 0.2}
    told["kl"] = told["baselines"]["average"]["kl"] = 3.84e-5
    told["detail"]["signal"] = [f"chair/{number:04d}" for number in range(len(told["detail"]["member"]))]
    file.write_text(json.dumps(told))
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [{**each, "val_merit": each["val_agreement"]} if "val_mae" in each else each for each in records]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_networks_that_each_hold_a_shape_have_no_r2_of_scores(scored: Path) -> None:
    page = Reader(page_of(scored))
    assert page.text.count("R²") == 1 and "so that there is no R² of them" in page.text and "731" not in page.text
    assert "mean squared difference of distances3.8e−05" in page.text and "KL" not in page.text
    assert "score: the fraction of points that are right" in page.text
    assert "of the same within" not in page.text and "mean score of targets" in page.text
    assert "over that with others of equal score" in page.text
    assert "in an organised space" not in page.text and "Spearman" not in page.text
    assert "the checkpoint with the highest agreement (circle)" in page.text


@pytest.mark.usefixtures("words_alone")
def test_members_are_called_by_their_shapes(scored: Path) -> None:
    html = page_of(scored)
    assert "chair/0001" in html and "lenetlike/0001 ·" not in html


@pytest.mark.usefixtures("words_alone")
def test_texts_are_worded_and_surfaces_are_not(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The letters of numbers may spell a word."""
    monkeypatch.setattr("netspace.report.viewer._text", lambda numbers: "+KL+image+accuracy")
    assert page_of(scored).count('data-vertices="+KL+image+accuracy" data-faces="+KL+image+accuracy"') == 2 * 2 + 2 * 5
