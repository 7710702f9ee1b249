"""Results: what is printed is what was set, what is written is read back, and what contradicts itself is named."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from netspace.errors import NetspaceError
from netspace.results import Result
from netspace.results.compressed import Compression, FitResult, KernelSamples, NetworkFigures, StoredNetwork
from netspace.results.spaces import (
    Baseline,
    Evaluation,
    Interpolation,
    MemberFigures,
    Optimization,
    Sampling,
    SavedEvaluation,
)

LINE = Interpolation(start="a/0", end="a/1", gamma=[0.0, 1.0], latent_accuracy=[0.5, None], spearman=math.nan)


def test_only_what_was_set_is_printed_by_its_name_in_json() -> None:
    assert LINE.payload().keys() == {"from", "to", "gamma", "latent_accuracy", "spearman"}
    assert Baseline().payload() == {} and Baseline(r2=None).payload() == {"r2": None}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    evaluation = Evaluation(run="r", members=1, baselines={"nearest": Baseline(r2=0.5), "noise": None}, between={})
    detail = MemberFigures(member=["a/0"], accuracy_target=[0.25], accuracy_predicted=[0.5])
    saved = evaluation.extended(SavedEvaluation, detail=detail)
    saved.write(tmp_path / "eval-test.json")
    again = SavedEvaluation.read(tmp_path / "eval-test.json")
    assert again.payload() == saved.payload()
    assert saved.payload() == {**evaluation.payload(), "detail": detail.payload()}
    assert "detail" not in evaluation.payload()


def test_a_number_that_was_not_measured_stays_what_it_is(tmp_path: Path) -> None:
    LINE.write(tmp_path / "line.json")
    again = Interpolation.read(tmp_path / "line.json")
    assert again.spearman is not None and math.isnan(again.spearman) and again.latent_accuracy == [0.5, None]


def test_fields_of_other_versions_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "fit.json"
    file.write_text(json.dumps({"file": "c", "of_tomorrow": [1]}))
    actual = FitResult.read(file)
    assert actual.larger is None and actual.curve == [] and actual.payload() == {"file": "c", "of_tomorrow": [1]}


def test_a_wider_result_has_all_of_the_narrower() -> None:
    row = NetworkFigures(relative_error=0.5).extended(StoredNetwork, bytes=3)
    assert row.payload() == {"relative_error": 0.5, "bytes": 3}
    assert isinstance(Compression(file="c").extended(FitResult, seconds=None), FitResult)


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (Interpolation, {"gamma": [0, 1], "latent_accuracy": [1]}, "one accuracy for each gamma"),
        (Interpolation, {"gamma": [], "latent_accuracy": []}, "'gamma' in it"),
        (Evaluation, {"archs": ["a", "b"], "confusion": [[1, -1], [0, 1]]}, "2 x 2 counts"),
        (Evaluation, {"archs": ["a", "b"], "confusion": [[1, 1], [0]]}, "2 x 2 counts"),
        (SavedEvaluation, {"detail": {"member": [], "accuracy_target": [], "accuracy_predicted": []}}, "detail.member"),
        (SavedEvaluation, {}, "'detail' in it: Field required"),
        (Optimization, {"from": ["a"], "accuracy_before": [1], "accuracy_after": [1], "curve": []}, "'curve' in it"),
        (Sampling, {"sampled": {}}, "'count' in it: Field required"),
        (KernelSamples, {"original": [[[]]], "reconstructed": [[[]]]}, "'layer' in it"),
    ],
)
def test_what_contradicts_itself_is_named(tmp_path: Path, kind: type[Result], value: object, words: str) -> None:
    file = tmp_path / "some.json"
    file.write_text(json.dumps(value))
    with pytest.raises(NetspaceError) as raised:
        kind.read(file)
    text = str(raised.value)
    assert text.startswith(f"{file} ") and words in text and "\n" not in text
    assert text.endswith(f"run `netspace {kind.command}` again")
