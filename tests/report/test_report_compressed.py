"""`netspace report` of a compressed network: what it shows, what it says where parts are missing, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import change, read

from netspace.errors import NetspaceError
from netspace.io import write_json
from netspace.report import report

LAYERS = ["conv1.weight", "layer<1>.conv.weight", "layer2.conv.weight"]
FIT: dict[str, Any] = {
    "file": "c/compressed.safetensors",
    "accuracy_original": 0.9302,
    "accuracy_reconstructed": 0.9291,
    "agreement": 0.9913,
    "relative_error": 0.1577,
    "parameters_original": 271_402,
    "parameters_represented": 269_968,
    "parameters_predictor": 116_829,
    "bytes_original": 1_085_608,
    "bytes_file": 528_503,
    "order": "cross-filter",
    "curve": [
        {"stage": stage, "step": step, "relative_error": 1 / (1 + step), "accuracy_val": step / 100}
        for stage, steps in ((0, (0, 30, 60)), (2, (0, 20)))
        for step in steps
    ],
}
ROWS = [
    {"amount": amount, "accuracy": amount, "singular_ratio": 1 - amount / 3, "share": 1 - amount, "relative_error": 0.1}
    for amount in (1.0, 0.75, 0.5)
]
GAP = {"accuracy_train": 0.96, "accuracy_test": 0.93, "loss_train": 0.1, "loss_test": 0.2, "gap_loss": 0.1}
ANALYSIS: dict[str, Any] = {
    "layers": LAYERS,
    "singular_ratio": {"original": [0.6, 0.7, 0.8], "reconstructed": [0.7, 0.6, 0.9]},
    "low_pass": ROWS,
    "scale_small": ROWS,
    "generalisation": {"training_images": 10_000, **dict.fromkeys(("original", "reconstructed"), GAP)},
    "cka": {"images": 512, "reconstructed": [1.0, 0.99, None], "random": [0.9, 0.5, float("nan")]},
}
KERNELS: dict[str, Any] = {
    "layer": "layer<1>.conv.weight",
    "layers": 3,
    "relative_error": 0.1593,
    "count": 80,
    "original": (np.arange(64 * 9).reshape(64, 3, 3) / 576).tolist(),
    "reconstructed": (np.arange(64 * 9).reshape(64, 3, 3) / 576 + 0.25).tolist(),
}
ACTIVATIONS: dict[str, Any] = {
    "layer": "layer2.conv.weight",
    "count": 16,
    "images": 500,
    "best": {"filters": [3, 1], "relative_errors": [0.1, 0.2], "maps": np.full((2, 4, 5), 2.0).tolist()},
    "worst": {"filters": [7, 2], "relative_errors": [0.9, 0.7], "maps": np.full((2, 4, 5), 0.5).tolist()},
}
ANALYSIS["generalisation"]["original"] = {**GAP, "gap_accuracy": 0.03}
QUANTISED = {
    "bytes_original": 1000,
    "networks": {
        "original": {"bytes": 1000, "accuracy": 0.93},
        "quantised": {"bytes": 169, "relative_error": 0.167, "accuracy": 0.9272, "agreement": 0.981},
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As `compress fit`, `analyse`, `prune` and `quantise` leave it."""
    path = tmp_path / "a & b"
    path.mkdir()
    (path / "config.yaml").write_text("seed: 0\norder: <cross-filter>\n")
    result = {
        "fit": FIT,
        "kernels": KERNELS,
        "analysis": ANALYSIS,
        "network": {"hash": "ab12"},
        "prune": {"predictor": ROWS, "original": ROWS},
    }
    for name, value in {**result, "quantise-8": QUANTISED, "quantise-4": QUANTISED}.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return path


def test_a_full_folder_gives_page_and_figures(folder: Path) -> None:
    result = report(folder)
    names = ["course", "kernels", "singular", "cka", "low-pass", "scale-small", "pruning"]
    assert [Path(name).stem for name in result.figures] == names and result.missing == []
    page = read(result)
    assert len(page.alts) == 7 and all(page.alts) and all(each.startswith("data:image/png") for each in page.loads)
    for text in (
        "A predictor of 116,829 values represents 269,968 of the network's 271,402 parameters",
        "43.3 %",
        "48.7 %",
        "92.91 %",
        "Reconstruction raises it in 2 of 3 layers, on average from 0.700 to 0.733",
        "Its accuracy on test images is 100.0 % at 1, 75.0 % at 0.75, 50.0 % at 0.5",
        "Predictor: 100.0 % at 0 %, 75.0 % at 25 %, 50.0 % at 50 %; original, directly: 100.0 %",
        "3.00 points",
        "Kernels of layer<1>.conv.weight",
        "The first 64 of 80 kernels of the layer, filter by filter, 8 a row",
        "By relative error (0.159) it is the median of 3 layers",
        "reconstructed, predictor in 4 bits",
        "16.9 %",
        "a & b",
        "order: <cross-filter>",
        "ab12",
    ):
        assert text in page.text, text
    first = (folder / "report.html").read_bytes()
    report(folder)
    assert (folder / "report.html").read_bytes() == first


@pytest.mark.usefixtures("words_alone")
def test_what_is_missing_is_told_with_its_command(folder: Path) -> None:
    for name in ("analysis", "prune", "quantise-4"):
        (folder / f"{name}.json").unlink()
    result = report(folder)
    assert [Path(name).stem for name in result.figures] == ["course", "kernels"]
    commands = ("compress analyse", "compress prune", "compress quantise")
    assert [command in sentence for command, sentence in zip(commands, result.missing, strict=True)] == [True] * 3
    assert "--bits 4" in result.missing[2] and "a & b/compressed.safetensors'" in result.missing[0]
    assert "predictor in 8 bits" in read(result).text and "predictor in 4 bits" not in read(result).text


def test_a_folder_of_weights_alone(folder: Path) -> None:
    unknown = dict.fromkeys(("accuracy_original", "accuracy_reconstructed", "agreement"))
    course = [{**record, "accuracy_val": None} for record in FIT["curve"]]
    change(folder / "fit.json", **unknown, curve=course)
    change(folder / "analysis.json", **dict.fromkeys(("low_pass", "scale_small", "generalisation", "cka")))
    rows = [{**row, "accuracy": None} for row in ROWS]
    change(folder / "prune.json", predictor=rows, original=rows)
    result = report(folder)
    assert [Path(name).stem for name in result.figures] == ["course", "kernels", "singular", "pruning"]
    assert "only weights were known" in result.missing[0]
    text = read(result).text
    assert "accuracy, original" not in text and "Predictor: 0.100 at 0 %" in text and not re.search(r"\bnan\b", text)


@pytest.mark.usefixtures("words_alone")
def test_features_that_do_not_vary_leave_a_gap(folder: Path) -> None:
    nothing = [None] * 3
    change(folder / "analysis.json", cka={"reconstructed": nothing, "random": nothing})
    text = " ".join(read(report(folder)).alts)
    assert "Linear CKA with the original of – or more" in text


@pytest.mark.usefixtures("words_alone")
def test_stages_follow_one_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the course, and of the terms of the loss, where they were recorded."""
    from netspace.report import figures_compressed

    seen: list[Any] = []
    draw = figures_compressed.draw_course

    def course(*result: Any) -> Any:
        seen.extend(result)
        return draw(*result)

    monkeypatch.setattr(figures_compressed, "draw_course", course)
    report(folder)
    np.testing.assert_array_equal(seen[0], [0, 30, 60, 60, 80])
    assert seen[3] == [60] and len(seen[4]) == 0 and seen[5] == {}
    result = [
        {"stage": 0, "step": 60, "rate": 1.0, "steps_a_second": 2.0, "reconstruction": 0.5},
        {"stage": 2, "step": 0, "relative_error": 0.1},
        {"stage": 2, "step": 20, "rate": 1.0, "steps_a_second": 2.0, "reconstruction": 0.25, "features": 4.0},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in result))
    seen.clear()
    report(folder)
    np.testing.assert_array_equal(seen[4], [60, 80])
    assert seen[5].keys() == {"reconstruction", "features"}
    np.testing.assert_array_equal(seen[5]["reconstruction"], [0.5, 0.25])
    np.testing.assert_array_equal(seen[5]["features"], [np.nan, 4.0])


def test_activations_of_best_and_worst_filters_and_embeddings_are_drawn(folder: Path) -> None:
    (folder / "activations.json").write_text(json.dumps(ACTIVATIONS))
    embedding = {"coordinates": "normalised", "base": 1.6, "count": 16}
    (folder / "config.yaml").write_text(json.dumps({"predictor": {"embedding": embedding}}))
    result = report(folder)
    assert [Path(name).stem for name in result.figures][1:4] == ["kernels", "activations", "embeddings"]
    page = read(result)
    for text in (
        "Activations of the filters of layer2.conv.weight by their errors",
        "over 500 test images and over the 2 of 16 filters",
        "smallest (on average 0.150) and the largest (0.800) relative error: 2.000 where the error is smallest and 0.500",
        "Similarity of embeddings of channels",
    ):
        assert text in page.text, text
    change(folder / "activations.json", best={**ACTIVATIONS["best"], "filters": [3]})
    with pytest.raises(NetspaceError, match="a map of one shape for each filter"):
        report(folder)


def test_similarities_of_embeddings_are_those_of_the_equation() -> None:
    from netspace.models.coordinate_network import EmbeddingConfig
    from netspace.report.figures_nern import similarities

    for coordinates, base, count in (("raw", 0.76, 40), ("raw", 1.25, 12), ("normalised", 1.6, 16)):
        scale = 64 if coordinates == "normalised" else 1
        expected = [
            np.mean([np.cos(np.pi * base**power * (channel - 31) / scale) for power in range(count)])
            for channel in range(64)
        ]
        config = EmbeddingConfig.model_validate({"coordinates": coordinates, "base": base, "count": count})
        np.testing.assert_allclose(similarities(config), expected, atol=2e-3)


def test_many_layers(folder: Path) -> None:
    many = {"original": [0.6] * 130, "reconstructed": [0.7] * 130, "random": [0.5] * 130}
    change(folder / "analysis.json", layers=[f"block{n}.weight" for n in range(130)], singular_ratio=many, cka=many)
    assert len(report(folder).figures) == 7


def test_kernels_lie_side_by_side_on_one_scale() -> None:
    from netspace.report.drawing import styled, to_png
    from netspace.report.figures_compressed import draw_kernels, mosaic

    random = np.random.default_rng(0)
    for count, height, width in ((64, 3, 3), (9, 1, 3), (3, 5, 5), (10, 1, 1)):
        one = random.standard_normal((count, height, width))
        other = one + 0.1 * random.standard_normal(one.shape)
        with styled():
            figure = draw_kernels(one, other)
            assert len(to_png(figure)) > 1000
        images = [axes.get_images()[0] for axes in figure.axes[:3]]
        for image, values in zip(images, (one, other, other - one), strict=True):
            np.testing.assert_array_equal(np.ma.filled(image.get_array(), np.nan), mosaic(values))
            limit = max(np.abs(one).max(), np.abs(other).max())
            assert image.get_clim() == (-limit, limit)
        shown = mosaic(one)
        assert shown.shape == (-(-count // 8) * (height + 1) + 1, 8 * (width + 1) + 1)
        for index, kernel in enumerate(one):
            row, column = index // 8 * (height + 1) + 1, index % 8 * (width + 1) + 1
            np.testing.assert_array_equal(shown[row : row + height, column : column + width], kernel)
        assert np.isfinite(shown).sum() == one.size


@pytest.mark.usefixtures("words_alone")
def test_a_folder_from_before_kernels_were_kept(folder: Path) -> None:
    (folder / "kernels.json").unlink()
    result = report(folder)
    assert "kernels" not in [Path(name).stem for name in result.figures]
    assert len(result.missing) == 1 and result.missing[0].startswith(
        "There are no kernels to draw: 'netspace compress analyse"
    )


@pytest.mark.parametrize(
    ("name", "values", "sentence"),
    [
        (
            "analysis",
            {"layers": LAYERS[:2]},
            "one singular_ratio for each of 2 layers was expected; it was damaged or changed: run `netspace compress analyse`",
        ),
        (
            "analysis",
            {"low_pass": 3},
            "'low_pass' in it: Input should be a valid list; it was damaged or changed: run `netspace compress analyse`",
        ),
        ("prune", {"original": [1]}, "'original.0' in it: Input should be a valid dictionary"),
        (
            "kernels",
            {"reconstructed": KERNELS["original"][:3]},
            "kernels of a layer in both networks, all of one shape, were expected; it was damaged or changed: run",
        ),
        (
            "kernels",
            {"original": [[[1.0], [1.0, 2.0]]]},
            "kernels of a layer in both networks, all of one shape, were expected; it was damaged or changed: run",
        ),
        (
            "kernels",
            {"layers": None},
            "'layers' in it: Input should be a valid integer; it was damaged or changed: run `netspace compress analyse` again",
        ),
        ("fit", {"curve": [{"step": "x"}]}, "'curve.0.step' in it: Input should be a valid integer"),
    ],
)
def test_broken_files_are_named(folder: Path, name: str, values: dict[str, Any], sentence: str) -> None:
    change(folder / f"{name}.json", **values)
    with pytest.raises(NetspaceError) as actual:
        report(folder)
    assert sentence in str(actual.value) and f"{name}.json" in str(actual.value)


def test_a_fit_that_is_not_done_and_a_folder_of_nothing(folder: Path) -> None:
    (folder / "fit.json").unlink()
    words = f"compress fit MODEL --resume --out '{folder}'"  # an earlier version began it
    with pytest.raises(NetspaceError, match=rf"its fit is not done; go on with it \(`netspace {words}`\)"):
        report(folder)
    write_json(folder / "provenance.json", {"kind": "fit", "model": "best"})
    words = words.replace(" MODEL", "")
    with pytest.raises(NetspaceError, match=rf"its fit is not done; go on with it \(`netspace {words}`\)"):
        report(folder)
    (folder / "provenance.json").unlink()
    (folder / "network.json").unlink()
    with pytest.raises(NetspaceError, match="nor one that `netspace compress fit` wrote"):
        report(folder)
