"""Runs that are unfinished, not evaluated, odd or broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from netspace.errors import NetspaceError
from netspace.report import report
from netspace.results.spaces import ReportFiles

MakeRun = Callable[..., Path]
NAN = float("nan")


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def names(told: ReportFiles) -> set[str]:
    return {Path(str(name)).name for name in told.figures}


@pytest.mark.usefixtures("words_alone")
def test_a_run_only_trained_tells_the_commands_that_go_on(make_run: MakeRun) -> None:
    run = make_run(splits=(), lines=0)
    result = report(run)
    assert names(result) == {"training.png"}
    page = Path(result.report).read_text()
    for command in (f"netspace eval {run}", f"netspace interpolate --from worst --to best --run {run}"):
        assert any(command in sentence for sentence in result.missing)
        assert f"<code>{command}</code>" in page
    assert "has not been evaluated yet" in page and "dl class" not in page


@pytest.mark.usefixtures("words_alone")
def test_unfinished_training_is_said(make_run: MakeRun) -> None:
    run = make_run(lines=0)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(lines[:20]) + '\n{"step": 2000, "behav')
    assert "Its training is at step 950 of 4,000." in Path(report(run).report).read_text()


def test_an_evaluation_without_records_or_tensors_is_shown(make_run: MakeRun) -> None:
    run = make_run(records=False)
    (run / "eval-test.safetensors").unlink()
    result = report(run)
    assert not names(result) & {"training.png", "latents.png", "preps-test.png"}
    assert any(f"netspace eval {run} --split test" in sentence for sentence in result.missing)
    assert any("metrics.jsonl" in sentence for sentence in result.missing)


@pytest.mark.usefixtures("words_alone")
def test_tensors_of_another_evaluation_are_left_out(make_run: MakeRun) -> None:
    run = make_run()
    stored = load_file(run / "eval-test.safetensors")
    save_file({**stored, "latents": stored["latents"][:7].copy()}, run / "eval-test.safetensors")
    result = report(run)
    assert "latents.png" not in names(result) and len(result.missing) == 1


def test_numbers_that_are_not_there_read_as_dashes(make_run: MakeRun) -> None:
    run = make_run(members=3)
    stored = json.loads((run / "eval-test.json").read_text())
    line = {**stored["interpolation"], "spearman_latent": NAN, "spearman_weights": None}
    more = {"r2": NAN, "diversity": None, "interpolation": line, "kl": float("inf")}
    change(run / "eval-test.json", **more, baselines={"nearest": {"r2": None, "mae": NAN}, "average": {}})
    result = report(run)
    page = Path(result.report).read_text()
    assert "R² = –" in page and "nan" not in page.split("</style>")[1].split("data:image")[0].lower()
    assert "baselines-test.png" in names(result)


@pytest.mark.usefixtures("words_alone")
def test_few_members_and_no_lines(make_run: MakeRun) -> None:
    run = make_run(members=1, lines=0)
    change(run / "eval-test.json", interpolation={"pairs": 0, "spearman_latent": None, "spearman_weights": None})
    result = report(run)
    assert names(result) >= {"members-test.png", "scatter-test.png", "preps-test.png"}
    assert not names(result) & {"latents.png", "interpolation-mean-test.png"}
    assert "1 network of the test split" in Path(result.report).read_text()


@pytest.mark.usefixtures("words_alone")
def test_a_line_from_a_latent_file_has_no_weights(make_run: MakeRun) -> None:
    run = make_run(lines=1)
    (file,) = (run / "interpolations").iterdir()
    change(file, weight_accuracy=None, aligned_accuracy=None, spearman=None, weight_spearman=None)
    change(run / "eval-test.json", interpolation={"pairs": 0})
    page = Path(report(run).report).read_text()
    assert "Spearman): latents –" in page and "Blue squares" not in page and "ligned weights" not in page


@pytest.mark.usefixtures("words_alone")
def test_only_the_newest_lines_are_shown(make_run: MakeRun) -> None:
    result = report(make_run(lines=8))
    assert result.interpolations == [f"lenetlike-{number:04d}--lenetlike-0099" for number in range(6)]


@pytest.mark.usefixtures("words_alone")
def test_refined_latents_are_told_where_there_are_some(make_run: MakeRun) -> None:
    run = make_run()
    assert "steps of descent" not in Path(report(run).report).read_text()
    change(run / "eval-test.json", refined={"steps": 200, "r2": 0.992, "mae": 0.0125, "agreement": 0.931})
    expected = (
        "by what the networks answer to training inputs: R² 0.99, a mean difference of 1.2 points and agreement 93.1"
    )
    assert f"After 200 steps of descent on the latents, {expected}" in Path(report(run).report).read_text()


@pytest.mark.usefixtures("words_alone")
def test_latents_that_were_corrected_as_they_were_read_say_so(make_run: MakeRun) -> None:
    run = make_run()
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("{kind: attention}", "{kind: probe, refine: 40}"))
    page = Path(report(run).report).read_text()
    assert "Latents were read with 40 steps of descent on what the decoded network answers" in page
    assert "on the latents, by what" not in page  # those that are refined on training inputs are others


@pytest.mark.usefixtures("words_alone")
def test_a_comparison_on_few_images_is_said(make_run: MakeRun) -> None:
    run, said = make_run(), "Networks are compared on the first 40 validation and test images alone."
    assert said not in Path(report(run).report).read_text()
    change(run / "eval-test.json", images=40)
    assert said in Path(report(run).report).read_text()


@pytest.mark.usefixtures("words_alone")
def test_better_baselines_are_said(make_run: MakeRun) -> None:
    run = make_run()
    stored = json.loads((run / "eval-test.json").read_text())
    page = Path(report(run).report).read_text()
    assert "One baseline does better than the space: the training network with the nearest weights (nearest; in" in page
    many = {f"lookup{number}": {"r2": 0.999 + number / 1e5, "mae": 0.5, "agreement": 0.1} for number in range(4)}
    change(run / "eval-test.json", baselines={**stored["baselines"], **many})
    page = Path(report(run).report).read_text()
    rivals = 4 + (stored["r2"] < 0.991)  # nearest too
    assert (
        f"Baselines do better than the space: {rivals} in R² (the best: lookup3) and 1 in the mean difference" in page
    )
    change(run / "eval-test.json", baselines={"average": stored["baselines"]["average"]})
    assert "No baseline does better" in Path(report(run).report).read_text()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("eval-test.json", "{"),
        ("eval-test.json", "[1]"),
        ("eval-test.json", "{}"),
        (
            "eval-test.json",
            '{"detail": {"member": ["a"], "accuracy_target": ["x"], "accuracy_predicted": [1]}}',
        ),
        (
            "eval-test.json",
            '{"detail": {"member": ["a"], "accuracy_target": [null], "accuracy_predicted": [1]}}',
        ),
        ("eval-test.safetensors", "nothing"),
        ("provenance.json", "nothing"),
        ("space.json", "nothing"),
        ("config.yaml", "a: [1"),
        ("interpolations/x.json", '{"gamma": [0, 1], "latent_accuracy": [1]}'),
    ],
)
def test_a_broken_file_is_named(make_run: MakeRun, file: str, text: str) -> None:
    run = make_run()
    (run / file).write_text(text)
    with pytest.raises(NetspaceError) as raised:
        report(run)
    assert str(run / file) in str(raised.value) and "\n" not in str(raised.value)
    assert not (run / "report.html").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NetspaceError, match=r"is not a run folder \(config.yaml and provenance.json were expected"):
        report(tmp_path)


def test_a_run_without_anything_is_refused(make_run: MakeRun) -> None:
    with pytest.raises(NetspaceError, match=r"holds no results to report.*netspace train"):
        report(make_run(splits=(), lines=0, records=False))


@pytest.mark.usefixtures("words_alone")
def test_a_folder_that_cannot_be_written_is_said(make_run: MakeRun) -> None:
    run = make_run()
    (run / "figures").write_text("in the way")
    with pytest.raises(NetspaceError, match="could not be written"):
        report(run)


@pytest.mark.usefixtures("words_alone")
def test_optimisations_are_shown(make_run: MakeRun) -> None:
    result = report(make_run(climbs=2))
    assert "optimized-climb-0.png" in names(result) and "optimized-climb-1.png" in names(result)
    page = Path(str(result.report)).read_text()
    assert "lenetlike/0003 from 20.0 % to 50.0 %" in page and "taught by best" in page


def test_a_broken_optimisation_is_named(make_run: MakeRun) -> None:
    run = make_run(climbs=1)
    change(run / "optimized" / "climb-0" / "optimize.json", curve=[{"step": 0, "accuracy_val": [0.1]}])
    with pytest.raises(
        NetspaceError,
        match=r"optimize.json does not hold .* every start's accuracies were expected; .*run `netspace optimize` again",
    ):
        report(run)
