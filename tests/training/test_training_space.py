"""`train`: what a run folder holds, that the loss falls, that the best is kept; resumption is in tests/cli."""

from __future__ import annotations

import json
import math
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from netspace.config import read_back, to_yaml
from netspace.errors import NetspaceError, UsageError
from netspace.files import locked
from netspace.io import read_torch
from netspace.run_folder import read_metrics
from netspace.space import Space
from netspace.training import latent_space
from netspace.training.recipe import SpaceRecipe
from netspace.training.setup import task_of
from netspace.training.validation import accuracies, compare
from netspace.zoo import Population, Zoo, write_zoo


def made(settings: dict[str, Any], **changes: Any) -> SpaceRecipe:
    return SpaceRecipe.model_validate({**settings, **changes})


def test_what_a_run_folder_holds(tiny_run: Path, tiny_zoo: Path, space_settings: dict[str, Any]) -> None:
    held = yaml.safe_load((tiny_run / "config.yaml").read_text())
    assert SpaceRecipe.model_validate(held) == made(space_settings)  # resolved, and complete
    told = json.loads((tiny_run / "provenance.json").read_text())
    with Zoo(tiny_zoo) as zoo:
        assert (told["zoo"], told["zoo_hash"], told["seed"]) == (str(tiny_zoo), zoo.content_hash, 0)
        entry = json.loads((tiny_run / "space.json").read_text())["archs"]["lenetlike"]
        assert entry["prep"] == [12, 128] and entry["spec"] == json.loads(zoo.only().spec.to_json())
    assert {"torch", "numpy", "h5py", "machine", "command", "commit"} <= told.keys()
    assert not [path for path in tiny_run.rglob("*") if path.name.endswith(".tmp")]


def test_records(tiny_run: Path) -> None:
    records = read_metrics(tiny_run / "metrics.jsonl")
    losses = {record["step"]: record["behaviour"] for record in records if "behaviour" in record}
    checks = {record["step"]: record for record in records if "val_mae" in record}
    assert list(losses) == [5, 10, 15, 20, 25, 30] and list(checks) == [10, 20, 30]
    assert losses[30] < losses[5] / 2
    assert all(0 <= check["val_agreement"] <= 1 for check in checks.values())


def test_the_best_validation_is_kept(tiny_run: Path, tiny_zoo: Path) -> None:
    checks = [record for record in read_metrics(tiny_run / "metrics.jsonl") if "val_mae" in record]
    best = min(checks, key=lambda record: record["val_mae"])
    space = Space.load(tiny_run)
    with Zoo(tiny_zoo) as zoo:
        task, group = task_of(zoo, "cpu"), zoo.only()
        preps = group.read(group.rows("val"))
    target, predicted = space.networks(preps), space.decode_all(space.encode_preps(preps))
    found = compare(target, predicted, task, "val").summary()
    for name, value in found.items():
        assert value == pytest.approx(best[f"val_{name}"], rel=1e-6, abs=1e-9)
    # the validation's targets are the zoo's accuracies
    stored = group.members["accuracy_val"][24:30]
    np.testing.assert_allclose(accuracies(target, task, "val"), stored, atol=1e-9)


def test_training_ends_at_an_agreement_and_stays_at_its_end(
    tiny_zoo: Path, space_settings: dict[str, Any], tmp_path: Path
) -> None:
    recipe = made(space_settings, stop_at=1e-6)
    run = latent_space.train(recipe, tiny_zoo, tmp_path / "run")
    records = read_metrics(run / "metrics.jsonl")
    assert max(record["step"] for record in records) == 10  # the first validation, of 30 steps
    assert read_torch(run / "checkpoints" / "last.pt")["step"] == 10
    latent_space.train(recipe, tiny_zoo, run, resume=True)
    assert read_metrics(run / "metrics.jsonl") == records
    whole = latent_space.train(made(space_settings, stop_at=1.0), tiny_zoo, tmp_path / "whole")
    assert read_torch(whole / "checkpoints" / "last.pt")["step"] == 30


def test_without_averaging_the_last_weights_are_the_models(
    tiny_zoo: Path, space_settings: dict[str, Any], tmp_path: Path
) -> None:
    space_settings["optimizer"] = {"name": "adam", "learning_rate": 1e-3}
    run = latent_space.train(made(space_settings, steps=3, encoder={"kind": "conv"}), tiny_zoo, tmp_path / "run")
    best, last = load_file(run / "checkpoints" / "best.safetensors"), read_torch(run / "checkpoints" / "last.pt")
    assert last["step"] == 3 and all(torch.equal(best[name], last["model"][name]) for name in best)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": {"behaviour": 0, "weights": 1}},
        {"loss": {"behaviour": 1, "weights": 0.1, "relative": True}},
        {"loss": {"behaviour": 1, "lines": 0.5}},
        {"precision": "bf16"},
        {"remember_targets": False},
        {"decoder": {"start": "small"}, "encoder": {"kind": "conv"}},
    ],
)
def test_other_settings_train_and_load(
    tiny_zoo: Path, space_settings: dict[str, Any], tmp_path: Path, changes: dict[str, Any]
) -> None:
    run = latent_space.train(made(space_settings, steps=2, log_every=1, **changes), tiny_zoo, tmp_path / "run")
    terms = next(set(record) - {"step", "rate", "steps_a_second"} for record in read_metrics(run / "metrics.jsonl"))
    wanted = {"behaviour": {"behaviour": 1.0}, **changes}.get("loss", {"behaviour": 1.0})
    assert terms == {name for name in ("behaviour", "weights", "lines") if wanted.get(name)}
    network = Space.load(run).decode(torch.zeros(64))
    assert all(value.isfinite().all() for value in network.parameters())


def test_a_loss_that_is_not_finite_stops_the_run(
    tiny_zoo: Path, space_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = latent_space.Step.__call__

    def exploding(self: Any, model: torch.nn.Module, number: int, part: int = 0) -> dict[str, torch.Tensor]:
        return {name: value * (math.inf if number == 6 else 1) for name, value in step(self, model, number).items()}

    monkeypatch.setattr(latent_space.Step, "__call__", exploding)
    with pytest.raises(NetspaceError, match=r"not finite at step 7 \(behaviour inf\)"):
        latent_space.train(made(space_settings, log_every=1), tiny_zoo, tmp_path / "run")
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]


def test_a_zoo_without_validation_members(tiny_zoo: Path, space_settings: dict[str, Any], tmp_path: Path) -> None:
    with Zoo(tiny_zoo) as zoo:
        group = zoo.only()
        only = Population(group.spec, group.read(range(24)).numpy(), group.members[:24])
        write_zoo(tmp_path / "train.h5", zoo.header, {"lenetlike": only})
    with pytest.raises(NetspaceError, match="no members in its val split"):
        latent_space.train(made(space_settings), tmp_path / "train.h5", tmp_path / "run")


def test_two_architectures_are_one_too_many(tiny_zoo: Path, space_settings: dict[str, Any], tmp_path: Path) -> None:
    with Zoo(tiny_zoo) as zoo:
        group = zoo.only()
        one = Population(group.spec, group.read(range(36)).numpy(), group.members)
        write_zoo(tmp_path / "two.h5", zoo.header, {"a": one, "b": one})
    with pytest.raises(UsageError, match="2 architectures"):
        latent_space.train(made(space_settings), tmp_path / "two.h5", tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_training_leaves_the_zoo_and_the_callers_precision_alone(
    tiny_zoo: Path, space_settings: dict[str, Any], tmp_path: Path
) -> None:
    before = tiny_zoo.read_bytes()
    latent_space.train(made(space_settings, steps=1), tiny_zoo, tmp_path / "run")
    assert tiny_zoo.read_bytes() == before and torch.get_default_dtype() == torch.float32


def test_a_run_goes_on_with_its_own_recipe_alone(
    run_copy: Path, tiny_zoo: Path, space_settings: dict[str, Any]
) -> None:
    other = made({**space_settings, "loss": {"behaviour": 2.0}})
    with pytest.raises(
        UsageError, match=r"another recipe: loss.behaviour was 1.0 and is 2.0 now; resume it with its own"
    ):
        latent_space.train(other, tiny_zoo, run_copy, resume=True)


def test_two_trainings_in_one_folder(tiny_zoo: Path, space_settings: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with (
        locked(run / ".lock", "busy"),
        pytest.raises(NetspaceError, match=r"run is being trained by another process: wait"),
    ):
        latent_space.train(made(space_settings), tiny_zoo, run)
    assert not run.exists()


def test_a_batch_in_parts_trains_the_same_space(tiny_zoo: Path, space_settings: dict[str, Any], tmp_path: Path) -> None:
    changes: dict[str, Any] = {"steps": 8, "log_every": 1, "optimizer": {"name": "adam"}, "networks": 8}
    for name, accumulate in (("whole", 1), ("parts", 2)):
        recipe = made(space_settings, **changes, accumulate=accumulate, recompute=accumulate > 1)
        latent_space.train(recipe, tiny_zoo, tmp_path / name)
    whole, parts = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
    for one, two in zip(whole, parts, strict=True):
        assert "behaviour" not in one or two["behaviour"] == pytest.approx(one["behaviour"], rel=1e-4)


@pytest.mark.parametrize(
    ("term", "smallest", "changes"),
    [
        ("multi.interpolation", 4, {"multi": {"batches": "members"}}),
        ("loss.contrastive", 12, {"networks": 6, "loss": {"contrastive": 1.0}, "multi": {"interpolation": 0.0}}),
        ("loss.contrastive", 4, {"loss": {"behaviour": 0.0, "contrastive": 1.0}}),
        ("loss.lines", 4, {"loss": {"behaviour": 0.0, "lines": 1.0}}),
    ],
)
def test_terms_between_networks_need_two_in_each_part_of_a_batch(
    request: pytest.FixtureRequest, tmp_path: Path, term: str, smallest: int, changes: dict[str, Any]
) -> None:
    """With fewer they would be 0, and nothing would be learnt from them."""
    kind = "multi" if "multi" in changes else "tiny"
    settings, zoo = request.getfixturevalue({"multi": "multi_settings", "tiny": "space_settings"}[kind]), f"{kind}_zoo"
    short = {"networks": 2, "accumulate": 2, "steps": 1, "validate_every": 1, "log_every": 1, **changes}
    with pytest.raises(
        UsageError, match=rf"^{term} compares networks .* 2 parts .*: choose {smallest} networks or more"
    ):
        latent_space.train(made(settings, **short), request.getfixturevalue(zoo), tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()
    run = latent_space.train(
        made(settings, **short | {"networks": smallest}), request.getfixturevalue(zoo), tmp_path / "run"
    )
    assert read_metrics(run / "metrics.jsonl")[0][term.partition(".")[2]] >= 0


def test_a_part_of_one_network_is_enough_where_none_are_compared(
    multi_zoo: Path, multi_settings: dict[str, Any], tmp_path: Path
) -> None:
    multi = {"batches": "members", "interpolation": 0.0}
    recipe = made(multi_settings, multi=multi, networks=2, accumulate=2, steps=1, validate_every=1, log_every=1)
    assert latent_space.train(recipe, multi_zoo, tmp_path / "run").is_dir()


@pytest.mark.slow
@pytest.mark.skipif(which("c++") is None, reason="torch.compile needs a compiler here")
@pytest.mark.parametrize("encoder", [{"kind": "conv"}, {"kind": "probe", "probes": 4}])
def test_a_compiled_model_trains_the_same_space(
    tiny_zoo: Path, space_settings: dict[str, Any], tmp_path: Path, encoder: dict[str, Any]
) -> None:
    changes: dict[str, Any] = {"steps": 4, "log_every": 1, "optimizer": {"name": "adam"}, "encoder": encoder}
    for name, compiled in (("plain", False), ("compiled", True)):
        latent_space.train(made(space_settings, **changes, compile=compiled), tiny_zoo, tmp_path / name)
    plain, compiled_records = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("plain", "compiled"))
    for one, two in zip(plain, compiled_records, strict=True):
        assert "behaviour" not in one or two["behaviour"] == pytest.approx(one["behaviour"], rel=1e-3)
    Space.load(tmp_path / "compiled")


@pytest.mark.parametrize(
    ("kind", "multi", "pad"), [("conv", {}, False), ("conv", None, True), ("probe", {}, True), ("probe", None, True)]
)
def test_runs_from_before_padding_read_preps_at_their_own_height(
    tmp_path: Path, kind: str, multi: dict[str, Any] | None, pad: bool
) -> None:
    """A run's config.yaml holds every setting there was; a recipe that a user writes has the default."""
    settings = {"encoder": {"kind": kind}, "multi": multi}
    recipe = SpaceRecipe.model_validate(settings)
    assert recipe.encoder.pad
    held = recipe.model_dump(mode="json")
    del held["encoder"]["pad"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(held))
    assert read_back(SpaceRecipe, tmp_path / "config.yaml").encoder.pad is pad
    (tmp_path / "config.yaml").write_text(to_yaml(recipe))
    assert read_back(SpaceRecipe, tmp_path / "config.yaml") == recipe


def test_a_space_of_several_architectures_with_the_papers_encoder(
    multi_zoo: Path, multi_settings: dict[str, Any], tmp_path: Path
) -> None:
    """Read back, it encodes networks of every height as it did in training, and as it did before padding."""
    settings = {**multi_settings, "steps": 2, "encoder": {"kind": "conv"}}
    run = latent_space.train(SpaceRecipe.model_validate(settings), multi_zoo, tmp_path / "run")
    padded = Space.load(run)
    held = yaml.safe_load((run / "config.yaml").read_text())
    del held["encoder"]["pad"]
    (run / "config.yaml").write_text(yaml.safe_dump(held))
    own = Space.load(run)
    with Zoo(multi_zoo) as zoo:
        for class_id, arch in enumerate(padded.family):
            preps = zoo.group(arch.id).read([0, 1])
            full = torch.nn.functional.pad(preps, (0, 0, 0, padded.family.rows - arch.size[0]))
            found = padded.model.encoder(preps, class_id)
            torch.testing.assert_close(found, own.model.encoder(full, class_id), rtol=1e-5, atol=1e-6)
            same = torch.allclose(found, own.model.encoder(preps, class_id), rtol=1e-5, atol=1e-6)
            assert same == (arch.size[0] == padded.family.rows)
