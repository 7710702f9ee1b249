"""Zoos of networks that are hard to represent: built, verified, trained on and decoded, or refused in one sentence."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import networks_that_go_wrong as networks
import numpy as np
import pytest
import torch

from model_zoo.builder import build
from model_zoo.recipe import ZooRecipe
from model_zoo.verify import verify
from netspace import Space, archs
from netspace.errors import NetspaceError
from netspace.zoo import Zoo

HERE = "networks_that_go_wrong"
KINDS = ("attribute", "buffer", "non-persistent")


def recipe(zoo_settings: dict[str, Any], name: str, fused: int | None = None, **kwargs: Any) -> ZooRecipe:
    archs.trust(f"{HERE}:{name}")
    changes = {
        "archs": {"net": {"arch": f"{HERE}:{name}", "kwargs": kwargs}},
        "members": {"train": 4, "val": 1, "test": 1},
        "epochs": {"first": 1, "last": 1},
        "fused": fused,
    }
    return ZooRecipe.model_validate({**zoo_settings, **changes})


WORKING = [
    ("recurrent", None, {}),
    ("no_momentum", None, {}),
    ("functional_dropout", 4, {}),
    ("timmlike", 4, {}),
    ("mobile_like", 4, {}),
    ("postact", 4, {}),
    ("with_position", 4, {}),
    ("index_table", 4, {}),
    *(("constant", 4, {"kind": kind, "drawn": False}) for kind in KINDS),
]


@pytest.mark.parametrize(("name", "fused", "kwargs"), WORKING, ids=lambda value: str(value))
def test_zoos_that_can_be_built(
    zoo_settings: dict[str, Any], tmp_path: Path, name: str, fused: int | None, kwargs: dict[str, Any]
) -> None:
    path = build(recipe(zoo_settings, name, fused, **kwargs), tmp_path / "zoo.h5", workers=1)
    result = verify(path, sample=6, device="cpu")
    assert result.ok and result.re_evaluated == 6, result.problems
    with Zoo(path) as zoo:
        assert float(np.mean(zoo.only().members["accuracy_train"])) > 0.15  # trained as what is evaluated


def test_networks_that_print_are_trained_by_processes_as_others(
    zoo_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join((str(Path(networks.__file__).parent), os.environ.get("PYTHONPATH", "")))
    )
    path = build(recipe(zoo_settings, "talking", 1), tmp_path / "zoo.h5", workers=2)
    with Zoo(path) as zoo:
        assert zoo.complete and len(zoo) == 6


REFUSED = [
    ("two_heads", {}, r"gives a tuple of 2 in training, where one tensor of logits \(B, 10\) is needed: wrap it"),
    ("two_heads", {"always": True}, r"gives a tuple of 2 in evaluation"),
    ("tied", {}, r"down\.weight and up\.weight are one tensor"),
    ("spectral", {}, r"^w of .*spectral holds complex64 values"),
    *(("constant", {"kind": kind}, r"same parameters give different outputs.* \(table\): make") for kind in KINDS),
    ("noisy", {}, r"same parameters give different outputs, so its parameters are not all that decides: "),
    ("own_statistics", {}, r"same parameters give different outputs.*\(n\.running_mean, n\.running_var\)"),
    ("postact", {"classes": 4}, "classes=4 but meets 10 classes"),
]


@pytest.mark.parametrize(("name", "kwargs", "words"), REFUSED, ids=lambda value: str(value)[:20])
def test_zoos_that_cannot_be_built(
    zoo_settings: dict[str, Any], tmp_path: Path, name: str, kwargs: dict[str, Any], words: str
) -> None:
    with pytest.raises(NetspaceError, match=words) as caught:
        build(recipe(zoo_settings, name, 4, **kwargs), tmp_path / "zoo.h5", workers=1)
    assert "\n" not in str(caught.value) and not (tmp_path / "zoo.h5").exists()


def test_networks_that_cannot_be_stacked_say_so(zoo_settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        NetspaceError, match=r"recurrent cannot be trained 4 at once \(.*\): set fused to 1, or leave it out"
    ):
        build(recipe(zoo_settings, "recurrent", 4), tmp_path / "zoo.h5", workers=1)


@pytest.mark.parametrize("name", ["with_position", "index_table", "timmlike", "mobile_like"])
def test_fixed_tables_go_through_training_and_decoding(
    zoo_settings: dict[str, Any], space_settings: dict[str, Any], tmp_path: Path, name: str
) -> None:
    from netspace.commands.evaluate import evaluate
    from netspace.training.latent_space import train
    from netspace.training.recipe import SpaceRecipe

    path = build(recipe(zoo_settings, name, 4), tmp_path / "zoo.h5", workers=1)
    settings = {**space_settings, "networks": 2, "steps": 2, "validate_every": 2, "log_every": 1}
    run = train(SpaceRecipe.model_validate(settings), path, tmp_path / "runs" / "run")
    space = Space.load(run)
    with Zoo(path) as zoo:
        prep = zoo.only().read([0])[0]
    latent = space.encode(prep)
    network = space.decode(latent)
    images = torch.randn(3, 1, 8, 8)
    flat = space.decode_flat(latent[None])
    with torch.no_grad():
        torch.testing.assert_close(network(images), space.family[0].nets(flat, images)[0])
    torch.testing.assert_close(space.encode(network), space.encode(network.state_dict()))
    assert evaluate(run).agreement is not None


def test_verify_says_why_old_zoos_of_drawn_constants_score_otherwise_every_time(
    zoo_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_zoo.work.check_identity", lambda *_: None)  # as they were built once
    path = build(recipe(zoo_settings, "constant", 4), tmp_path / "zoo.h5", workers=1)
    result = verify(path, sample=6, device="cpu")
    (problem,) = result.problems
    assert problem.startswith(
        "net: two networks of networks_that_go_wrong:constant with the same parameters give different"
    )
    assert result.re_evaluated == 0 and not result.ok
