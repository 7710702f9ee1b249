"""Reports of runs of several architectures: figures, tables and sentences, and files that contradict each other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from netspace.errors import NetspaceError
from netspace.report import report
from netspace.report.drawing import ARCH_COLOURS, looks, styled, to_png
from netspace.report.figures_behaviour import draw_confusion, draw_members
from netspace.report.figures_latents import draw_latent_map
from netspace.report.figures_lines import draw_line_through
from netspace.report.figures_training import draw_training
from netspace.report.line_data import Line, factors
from netspace.results.spaces import ReportFiles

MakeRun = Callable[..., Path]


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def text_of(told: ReportFiles) -> str:
    """What a reader sees: without images, tags and style."""
    html = Path(str(told.report)).read_text(encoding="utf-8").split("</style>")[1]
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", re.sub(r'src="[^"]*"', "", html))))


def names(told: ReportFiles) -> set[str]:
    return {Path(str(name)).name for name in told.figures}


def test_a_run_of_several_architectures_is_shown(make_several: MakeRun) -> None:
    result = report(make_several(unseen=("vanillacnn",)))
    assert names(result) == {
        "members-test.png",
        "scatter-test.png",
        "confusion-test.png",
        "baselines-test.png",
        "classes-test.png",
        "interpolation-through.png",
        "optimized-descent.png",
        "preps-test.png",
        "latents.png",
        "training.png",
    }
    assert result.missing == []
    text = text_of(result)
    for words in (
        "trained lenetlike, resnet8 and resnet20 networks of 800 to 3,200 parameters",
        "No network of vanillacnn was seen in training.",
        "17 of them (94.4 %) as their own architecture",
        "within single architectures from −1.50 to 1.50",
        "where Eq. 12 puts vanillacnn, not seen in training, 90.0 % of latents are read as such; networks decoded there score 71.0 %",
        "vanillacnn (unseen) 0.33 90.0 % 71.0 % 80.0 % 0.900",
        "resnet8 0.67 90.0 % 71.0 % 80.0 % 0.900",
        "resnet8 2,400 6",
        "lenetlike/0001 vanillacnn/0001 (unseen) noise-2:vanillacnn (unseen)",
        "the network 11.1 % 22.2 % – decoded 20.0 % 20.0 % 20.0 % optimised 50.0 % 50.0 % 50.0 %",
        "vanillacnn (unseen) 16 kde 77.7 % 80.0 % – 95.0 %",
        "Decoded as another: 1 resnet20 as resnet8. Of vanillacnn the evaluation has no members.",
        "Not seen in training: vanillacnn. NetSpace, Fig. 5, right.",
        "They are of resnet20, the largest architecture that was evaluated.",
        "the best by validation is vanillacnn/0001",
    ):
        assert words in text, words
    assert "follow the targets'" not in text and not re.search(r"\bnan\b", text.lower())


@pytest.mark.usefixtures("words_alone")
def test_where_all_were_shown_nothing_says_otherwise(make_several: MakeRun) -> None:
    text = text_of(report(make_several()))
    assert (
        "not seen in training" not in text.replace("an architecture not seen in training", "")
        and "(unseen)" not in text
    )
    assert "NetSpace, Fig. 5, centre." in text and "where Eq. 12 puts vanillacnn and resnet8, 90.0 % of" in text


@pytest.mark.parametrize("archs", [2, 8])
def test_few_and_many_architectures(make_several: MakeRun, archs: int) -> None:
    from matplotlib.image import imread

    result = report(make_several(archs=archs, splits=("test", "train") if archs == 8 else ("test",), members=20))
    for name in result.figures:
        pixels = imread(name)[..., :3]
        assert pixels.shape[1] == 960 and pixels.shape[0] > 400 and pixels.std() > 0.02
    text = text_of(result)
    assert ("Between the ends" in text) == (archs > 2)
    assert "classes-test.png" in names(result)


def test_the_same_run_gives_the_same_page(make_several: MakeRun) -> None:
    run = make_several(archs=3)
    first = Path(report(run).report).read_bytes()
    assert Path(report(run).report).read_bytes() == first


@pytest.mark.usefixtures("words_alone")
def test_a_run_only_trained_is_told_where_to_go_on(make_several: MakeRun) -> None:
    run = make_several(splits=())
    (run / "interpolations" / "through.json").unlink()
    result = report(run)
    command = f"netspace interpolate --from worst:lenetlike --to best:resnet20 --steps 31 --run {run}"
    assert any(command in sentence for sentence in result.missing)
    assert "latent space of lenetlike, vanillacnn, resnet8 and resnet20 networks" in text_of(result)


@pytest.mark.usefixtures("words_alone")
def test_an_evaluation_without_ends_says_so(make_several: MakeRun) -> None:
    run = make_several()
    stored = json.loads((run / "eval-test.json").read_text())
    del stored["between"], stored["line"]
    (run / "eval-test.json").write_text(json.dumps(stored))
    result = report(run)
    assert any("no members of both lenetlike and resnet20" in sentence for sentence in result.missing)
    assert "classes-test.png" not in names(result) and "Between the ends" not in text_of(result)


@pytest.mark.usefixtures("words_alone")
def test_without_space_json_the_evaluation_tells_the_architectures(make_several: MakeRun) -> None:
    run = make_several(unseen=("resnet8",))
    (run / "space.json").unlink()
    text = text_of(report(run))
    assert "No network of resnet8 was seen in training." in text and "Not seen in training: resnet8." in text


@pytest.mark.usefixtures("words_alone")
def test_numbers_that_are_not_there_read_as_dashes(make_several: MakeRun) -> None:
    run = make_several()
    stored = json.loads((run / "eval-test.json").read_text())
    stored["between"]["vanillacnn"] |= {"accuracy_zoo": None, "ratio": None}
    stored["between"]["resnet8"] = {}
    stored["per_class"]["resnet8"] = {}
    stored["line"]["accuracy"][3] = None
    change(run / "eval-test.json", **stored)
    text = text_of(report(run))
    assert "vanillacnn 0.33 90.0 % 71.0 % – –" in text and "resnet8 – – – – –" in text
    assert (
        "where Eq. 12 puts vanillacnn, 90.0 % of latents are read as such; networks decoded there score 71.0 %." in text
    )
    assert not re.search(r"\bnan\b", text.lower())


@pytest.mark.usefixtures("words_alone")
def test_a_line_inside_one_architecture_is_the_usual_one(make_several: MakeRun) -> None:
    run = make_several()
    file = run / "interpolations" / "through.json"
    points = len(json.loads(file.read_text())["gamma"])
    change(file, arch=["resnet8"] * points, weight_accuracy=[0.5] * points, weight_spearman=None)
    text = text_of(report(run))
    assert "Blue squares are networks whose weights were interpolated directly." in text


def test_a_line_out_of_an_architecture_and_back_has_weights_too(make_several: MakeRun) -> None:
    run = make_several()
    file = run / "interpolations" / "through.json"
    points = len(json.loads(file.read_text())["gamma"])
    arch = ["lenetlike", *["resnet8"] * (points - 2), "lenetlike"]
    change(file, arch=arch, weight_accuracy=[0.5] * points, aligned_accuracy=[0.625] * points)
    html = Path(report(run).report).read_text(encoding="utf-8")
    assert "weights were interpolated directly, that of dashes and dots the same with aligned weights." in html
    assert ">weights</text>" in html and ">aligned weights</text>" in html
    assert 'data-name="aligned weights" data-text="γ 0.00; accuracy 62.5 %"' in html
    assert 'data-name="latents" data-text="γ 0.03, resnet8; accuracy ' in html


@pytest.mark.usefixtures("words_alone")
def test_a_prediction_of_another_architecture_is_cut_as_that(make_several: MakeRun) -> None:
    run = make_several()
    stored = load_file(run / "eval-test.safetensors")
    decoded = stored["decoded"].copy()
    decoded[:, 10 * 3 :] = np.nan  # the last member was read as resnet8, of 2,400 parameters
    decoded[:-1] = stored["preps"][:-1]
    save_file({**stored, "decoded": decoded}, run / "eval-test.safetensors")
    text = text_of(report(run))
    assert "0.00 times the target's norm on average" in text  # of those of one architecture


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("eval-test.json", {"detail": None}, "'detail' in it: Input should be"),
        ("eval-test.json", {"confusion": [[1, 2]]}, "'confusion' was expected to hold 4 x 4 counts"),
        ("eval-test.json", {"confusion": None}, "'confusion' in it: Input should be a valid list"),
        (
            "eval-test.json",
            {"archs": ["a", "b"], "confusion": [[1, 0], [0, 1]], "line": None, "between": {}},
            "'arch' was expected to have every member's architecture, one of a, b",
        ),
        ("eval-test.json", {"archs": 3}, "'archs' in it: Input should be a valid list"),
        (
            "eval-test.json",
            {"line": {"gamma": [0, 1], "accuracy": [1], "arch": ["a"]}},
            "one accuracy and one architecture",
        ),
        (
            "eval-test.json",
            {"line": {"gamma": [0], "accuracy": ["x"], "arch": ["a"]}},
            "'line.accuracy.0' in it: Input should be a valid number",
        ),
        ("interpolations/through.json", {"arch": ["lenetlike"]}, "one architecture for each gamma"),
        ("optimized/descent/optimize.json", {"accuracy_network": [0.1]}, "every start's architecture"),
        ("optimized/descent/optimize.json", {"arch": []}, "every start's architecture"),
        ("samples/vanillacnn-kde-0.json", {"count": None}, "'count' in it: Input should be a valid integer"),
        ("samples/vanillacnn-kde-0.json", {"sampled": 3}, "'sampled' in it: Input should be"),
    ],
)
def test_what_contradicts_itself_is_named(
    make_several: MakeRun, file: str, values: dict[str, object], words: str
) -> None:
    run = make_several()
    change(run / file, **values)
    with pytest.raises(NetspaceError) as raised:
        report(run)
    assert str(run / file) in str(raised.value) and words in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.usefixtures("words_alone")
def test_hostile_names_stay_text(make_several: MakeRun) -> None:
    run = make_several(unseen=("vanillacnn",))
    for file in (run / "eval-test.json", run / "space.json", run / "metrics.jsonl"):
        file.write_text(file.read_text().replace("vanillacnn", "<b>$x_1$ 网"))
    html = Path(report(run).report).read_text()
    assert "&lt;b&gt;$x_1$ 网" in html and "<b>" not in html


def test_architectures_differ_in_look() -> None:
    actual = looks([str(index) for index in range(64)])
    assert len(set(actual.values())) == 64
    assert [look.colour for look in list(actual.values())[:8]] == list(ARCH_COLOURS)
    assert len({look.marker for look in list(actual.values())[:8]}) == 8


def test_factors_are_those_of_the_paper() -> None:
    assert factors(["a", "b", "c", "d"]) == [(1 / 3, "b"), (2 / 3, "c")]
    assert factors(["a", "b", "c", "d"], backwards=True) == [(1 / 3, "c"), (2 / 3, "b")]
    assert factors(["a", "b"]) == []


def test_odd_data_can_be_drawn() -> None:
    nothing = np.full(3, np.nan)
    odd = Line("a", "b", np.array([0.0, 0.5, 1.0]), nothing, nothing, ("a", "?", "b"), ((0.4, "gone"),))
    ids = np.array([0, 0, 1])
    records = [
        {"step": 1, "classid": 0.0, "val_between_x_classid": 1.0, "val_between_x": 0.5},
        {"step": 2, "classid": 1e-9, "val_error": 0.5, "val_classid": 0.5, "val_mae": None},
    ]
    with styled():
        drawn = [
            draw_line_through(odd, looks(["a", "b", "?"]), ["?"], 0.1),
            draw_members(np.ones(3), np.ones(3), ids, ids, ["a", "$"]),
            draw_confusion(np.zeros((2, 2)), ["a" * 40, "b"], [1]),
            draw_latent_map([("x", np.zeros((3, 2)), ids)], ["a", "b"], (0.0, 0.0)),
            draw_training(records, ["x"]),
        ]
        assert all(to_png(figure).startswith(b"\x89PNG") for figure in drawn)


@pytest.mark.usefixtures("words_alone")
def test_controls_of_architectures_never_shown_stand_beside_them(make_several: MakeRun) -> None:
    run = make_several(unseen=("vanillacnn",))
    stored = json.loads((run / "eval-test.json").read_text())
    stored["between"]["vanillacnn"] |= {"accuracy_scale_zero": 0.432, "accuracy_distilled": 0.765}
    stored["line"]["end_differences"] = [0.011, -0.022]
    stored["per_class"]["resnet8"] |= {"diversity": 1.234, "zoo_diversity": 29.6, "diversity_ratio": 0.0417}
    stored["per_class"]["resnet8"] |= {"bias": 0.013, "identity": {"own_minus_peers": -0.012, "jaccard_own": 0.4}}
    (run / "eval-test.json").write_text(json.dumps(stored))
    text = text_of(report(run))
    assert "vanillacnn (unseen) 0.33 90.0 % 71.0 % 80.0 % 0.900 43.2 % 76.5 %" in text
    assert "resnet8 +1.3 points −1.2 points 40.0 % – 1.23 29.60 0.04" in text
    assert "accuracy minus their targets' is +1.1 points at the start and −2.2 points at the end." in text


@pytest.mark.usefixtures("words_alone")
def test_bias_identity_and_straight_lines_are_shown(make_run: MakeRun) -> None:
    """Of one architecture; a baseline that is missing is said to be."""
    run = make_run()
    file = run / "eval-test.json"
    stored = json.loads(file.read_text())
    own = {"r2": 0.9, "mae": 0.0301, "agreement": 0.8, "bias": -0.0241}
    stored["baselines"] |= {"five_nearest": own, "aligned_average": None}
    identity = {
        "own_minus_peers": 0.0812,
        "jaccard_own": 0.4321,
        "jaccard_peers": 0.3,
        "members": 38,
        "without_peers": 2,
    }
    stored |= {"bias": 0.0123, "identity": identity, "diversity_ratio": 0.765}
    stored["interpolation"] |= {
        "linear_r2_latent": 0.876,
        "linear_r2_weights": 0.12,
        "end_differences": [0.031, -0.012],
    }
    file.write_text(json.dumps(stored))
    line = next((run / "interpolations").glob("*.json"))
    single = {"linear_r2": 0.911, "weight_linear_r2": 0.2, "end_differences": [None, 0.005]}
    line.write_text(json.dumps({**json.loads(line.read_text()), **single}))
    text = text_of(report(run))
    for words in (
        "bias: mean of predicted minus target accuracy +1.2 points",
        "agreement with the own target over that with others as accurate +8.1 points",
        "overlap of mistakes with the own target (Jaccard) 43.2 %",
        "left out of these 2",
        "five_nearest 0.900 3.0 points −2.4 points 80.0 %",
        "aligned_average (missing) – – – –",
        "The mean R² of straight lines through the accuracies is 0.88 of the latents', 0.12 of the weights'.",
        "Decoded networks' accuracy minus their targets' is on average +3.1 points at the start and −1.2 points at the end.",
        "The R² of a straight line through the accuracies is 0.91 of the latents', 0.20 of the weights'.",
        "Decoded networks' accuracy minus their targets' is +0.5 points at the end.",
    ):
        assert words in text, words
