"""Latents are improved, alone; a search goes on where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from netspace.commands import optimize as app
from netspace.commands.convert import zoo_of
from netspace.commands.optimize import OptimizeConfig, optimize
from netspace.errors import NetspaceError, UsageError
from netspace.io import read_json
from netspace.run_folder import Provenance
from netspace.space import Space
from netspace.training.setup import task_of
from netspace.training.validation import accuracies


def config(*starts: str, **changes: Any) -> OptimizeConfig:
    small = {"steps": 30, "validate_every": 10, "learning_rate": 0.05, "alpha": 0.5, "temperature": 2.0}
    return OptimizeConfig.model_validate({"starts": starts or ("worst",), **small, **changes})


def test_the_worst_member_gets_better_and_the_space_stays_as_it_is(tiny_run: Path, tmp_path: Path) -> None:
    weights = (tiny_run / "checkpoints" / "best.safetensors").read_bytes()
    result = optimize(tiny_run, config("worst", "noise"), tmp_path / "out")
    assert result.accuracy_after[0] > result.accuracy_before[0] + 0.05
    assert [record.step for record in result.curve] == [0, 10, 20, 30] and result.steps == 30
    assert weights == (tiny_run / "checkpoints" / "best.safetensors").read_bytes()
    origin = read_json(tmp_path / "out" / "provenance.json", Provenance)
    assert (origin.kind, origin.run, origin.teacher) == ("optimisation", str(tiny_run), result.teacher)
    assert read_json(tiny_run / "provenance.json", Provenance).zoo_hash == origin.zoo_hash
    # what was written is what was told
    space = Space.load(tiny_run)
    latent = load_file(result.latent)["latent"]
    with zoo_of(tiny_run) as zoo:
        actual = accuracies(space.decode_all(latent[None]), task_of(zoo, "cpu"), "test")[0]
    assert actual == pytest.approx(result.accuracy_after[result.best])
    network = space.decode(latent)
    for name, value in load_file(result.network).items():
        torch.testing.assert_close(value, network.state_dict()[name])


def test_starts_are_improved_as_if_alone(tiny_run: Path, tmp_path: Path) -> None:
    both = optimize(tiny_run, config("worst", "best"), tmp_path / "both")
    alone = optimize(tiny_run, config("worst"), tmp_path / "alone")
    for one, two in zip(both.curve, alone.curve, strict=True):
        assert one.accuracy_val[0] == pytest.approx(two.accuracy_val[0], abs=0.01)


def test_validation_chooses(tiny_run: Path, tmp_path: Path) -> None:
    result = optimize(tiny_run, config("worst", learning_rate=30.0), tmp_path / "out")  # which makes it worse
    curve = [record.accuracy_val[0] for record in result.curve]
    space = Space.load(tiny_run)
    with zoo_of(tiny_run) as zoo:
        kept = load_file(result.latent)["latent"]
        actual = accuracies(space.decode_all(kept[None]), task_of(zoo, "cpu"), "val")[0]
    assert actual == pytest.approx(max(curve))


def test_a_search_that_finds_nothing_better_stops(tiny_run: Path, tmp_path: Path) -> None:
    """With steps that change no float32: with steps of its last digits rounding alone may find something better."""
    result = optimize(tiny_run, config("best", learning_rate=1e-30, patience=2), tmp_path / "out")
    assert result.steps == 20


def test_a_search_goes_on_exactly(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = optimize(tiny_run, config("worst", "noise"), tmp_path / "whole")
    save = app.write_torch

    def dying(path: Path, state: dict[str, Any]) -> None:
        save(path, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as inner, pytest.raises(KeyboardInterrupt):
        inner.setattr(app, "write_torch", dying)
        optimize(tiny_run, config("worst", "noise"), tmp_path / "out")
    with pytest.raises(UsageError, match=r"exists already: give --resume"):
        optimize(tiny_run, config("worst", "noise"), tmp_path / "out")
    with pytest.raises(UsageError, match=r"other settings: steps was 30 and is 31 now"):
        optimize(tiny_run, config("worst", "noise", steps=31), tmp_path / "out", resume=True)
    result = optimize(tiny_run, config("worst", "noise"), tmp_path / "out", resume=True)
    assert result.curve == whole.curve
    assert torch.equal(load_file(result.latent)["latent"], load_file(whole.latent)["latent"])


def test_a_teacher_that_is_not_there_leaves_nothing_behind(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(NetspaceError, match=r"nobody"):
        optimize(tiny_run, config("worst", teacher="nobody/0001"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_a_teacher_beside_the_zoo_its_best_member_teaches(tiny_run: Path, tmp_path: Path) -> None:
    result = optimize(tiny_run, config("worst", steps=1), tmp_path / "out")
    assert result.teacher == "best"
