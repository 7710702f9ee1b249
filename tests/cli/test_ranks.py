"""Under a launcher two processes do the work of one, and give the same networks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import launch
from safetensors.torch import load_file

from netspace.io import read_json
from netspace.run_folder import read_metrics
from netspace.zoo import Zoo


def test_two_processes_build_the_same_zoo(recipes: Path, tiny_zoo: Path) -> None:
    done = launch("zoo", "build", recipes / "zoo.yaml", "--out", "zoo.h5", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["members"] == 36 and result["complete"]
    with Zoo(tiny_zoo) as one, Zoo("zoo.h5") as two:
        assert result["content_hash"] == one.content_hash == two.content_hash
    assert [path.name for path in Path().iterdir()] == ["zoo.h5"]


def test_two_processes_train_the_same_space(cli: Callable[..., Any], recipes: Path, tiny_zoo: Path) -> None:
    words = ["train", recipes / "space.yaml", "--zoo", tiny_zoo, "--json"]
    for change in ("steps=12", "log_every=1", "validate_every=6", "optimizer.name=adam"):  # Muon rounds to bf16
        words += ["--set", change]
    assert cli(*words, "--out", "one").code == 0
    done = launch(*words, "--out", "two")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 12
    alone, shared = (read_metrics(Path(run) / "metrics.jsonl") for run in ("one", "two"))
    assert [record["step"] for record in alone] == [record["step"] for record in shared]  # written once
    for one, two in zip(alone, shared, strict=True):
        assert one.keys() == two.keys()
        if "behaviour" in one:
            assert two["behaviour"] == pytest.approx(one["behaviour"], rel=1e-4)
    first, second = (load_file(f"{run}/checkpoints/best.safetensors") for run in ("one", "two"))
    assert first.keys() == second.keys()  # no wrapper's names: the run opens anywhere
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-4)


def test_two_processes_fit_the_same_predictor(cli: Callable[..., Any], multi_zoo: Path) -> None:
    adam = "optimizer: {name: adam, learning_rate: 0.002}"
    taught = f"{{steps: 4, rounds: 2, kernels: 64, images: 16, distillation: 1, features: 0.5, {adam}}}"
    words = ["compress", "fit", "resnet/0000", "--zoo", multi_zoo, "--json", "--set", "predictor.hidden=24"]
    for change in (
        f"stages=[{{steps: 6, kernels: 64, {adam}}}, {taught}]",
        "log_every=1",
        "validate_every=3",
        "precision=float32",
    ):
        words += ["--set", change]
    assert cli(*words, "--out", "one").code == 0
    done = launch(*words, "--out", "two")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["curve"] == read_json(Path("two/fit.json"), dict[str, Any])["curve"]
    alone, shared = (read_metrics(Path(run) / "metrics.jsonl") for run in ("one", "two"))
    assert len(alone) == len(shared) == 14 + 9  # written once
    for one, two in zip(alone, shared, strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() - {"steps_a_second"}:
            assert two[name] == pytest.approx(one[name], rel=1e-4), name
    assert {path.name for path in Path("one").iterdir()} == {path.name for path in Path("two").iterdir()}
    first, second = (load_file(f"{run}/compressed.safetensors") for run in ("one", "two"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-5)


def test_a_batch_of_a_fit_that_cannot_be_shared_is_a_mistake(multi_zoo: Path) -> None:
    odd = ("--set", "stages=[{distillation: 1, images: 15}]")
    done = launch("compress", "fit", "resnet/0000", "--zoo", multi_zoo, "--json", "--out", "run", *odd)
    assert done.returncode and "images (15) cannot be shared evenly by 2 processes" in json.loads(done.stdout)["error"]
    assert not Path("run").exists()


def test_two_processes_evaluate_as_one_does(cli: Callable[..., Any], run_copy: Path) -> None:
    alone = json.loads(cli("eval", run_copy, "--json").out)
    kept = (run_copy / "eval-test.json").read_bytes()
    done = launch("eval", run_copy, "--json")
    assert done.returncode == 0, done.stderr
    shared = json.loads(done.stdout)
    for name in ("accuracy_predicted", "r2", "mae", "agreement", "diversity"):
        assert shared[name] == pytest.approx(alone[name], rel=1e-6), name
    for name, actual in alone["baselines"].items():
        assert shared["baselines"][name] == (actual and pytest.approx(actual, rel=1e-5)), name
    assert shared["identity"] == pytest.approx(alone["identity"], rel=1e-6)
    assert shared["interpolation"]["latent_accuracy"] == pytest.approx(alone["interpolation"]["latent_accuracy"])
    assert (
        json.loads(kept)["detail"]["member"]
        == read_json((run_copy / "eval-test.json"), dict[str, Any])["detail"]["member"]
    )


def test_a_mistake_is_told_by_every_process_and_ends_them_all(recipes: Path, tiny_zoo: Path) -> None:
    odd = ("--set", "networks=7")
    done = launch("train", recipes / "space.yaml", "--zoo", tiny_zoo, "--out", "run", "--json", *odd)
    assert done.returncode == 1
    assert "networks (7) cannot be shared evenly by 2 processes" in json.loads(done.stdout)["error"]
    assert not Path("run/config.yaml").exists()


def test_more_processes_than_runs_is_a_mistake(recipes: Path) -> None:
    one = [
        word
        for split, count in (("train", 1), ("val", 0), ("test", 0))
        for word in ("--set", f"members.{split}={count}")
    ]
    done = launch("zoo", "build", recipes / "zoo.yaml", "--out", "zoo.h5", "--json", *one)
    assert done.returncode
    assert json.loads(done.stdout)["error"] == (
        "2 processes were started for a zoo of 1 training runs: start at most 1"
    )
    assert not Path("zoo.h5").exists()


DYING = """
import os, signal
if os.environ.get("RANK") == "1":
    from model_zoo import work
    write, written = work.write_zoo, []
    def dying(*rest):
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(rest)
        write(*rest)
    work.write_zoo, work.COMMIT_EVERY = dying, -1.0
"""


def test_a_process_that_dies_costs_no_member(
    recipes: Path, tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies in the middle of its share; started again, both finish: no member twice, none missing."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DYING)
    words = ("zoo", "build", recipes / "zoo.yaml", "--out", "zoo.h5", "--json")
    with monkeypatch.context() as patch:
        places = [str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(places))
        assert launch(*words).returncode
    assert not Path("zoo.h5").exists()
    with Zoo("zoo.h5") as zoo:  # what there is of it
        kept = {(int(row["run"]), row.tobytes()) for row in zoo.only().members}
        assert not zoo.complete and 2 <= len(kept) == len(zoo) < 36
    done = launch(*words)
    assert done.returncode == 0, done.stderr
    with Zoo(tiny_zoo) as one, Zoo("zoo.h5") as two:
        assert two.complete and two.content_hash == one.content_hash
        assert kept <= {(int(row["run"]), row.tobytes()) for row in two.only().members}
    assert sorted(path.name for path in Path().iterdir()) == ["site", "zoo.h5"]
