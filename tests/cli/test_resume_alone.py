"""`--resume --out FOLDER` is enough for every long command, and what cannot be gone on with says the command that can.

That of `train` is tested in `test_mistakes_train.py`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import refused
from safetensors.torch import load_file, save_file

from netspace import archs
from netspace.io import read_json, write_json

Cli = Callable[..., Any]
SHORT = ("--set", "predictor.hidden=16", "--set", "stages=[{steps: 6, kernels: 64}]", "--set", "validate_every=3")
EARLIER = "was begun by an earlier version of netspace, which did not record its options: give them again,"


@pytest.fixture(autouse=True)
def nobody_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archs, "_TRUSTED", set())


def command_of(sentence: str) -> list[str]:
    """The words of the command that a refusal names, without the program's own."""
    return shlex.split(sentence.split("`")[1])[1:]


def test_a_fit_of_a_member(cli: Cli, multi_zoo: Path) -> None:
    words = ("compress", "fit", "best:resnet", "--zoo", multi_zoo, "-o", "c")
    result = cli(*words, *SHORT, "--json").json
    alone = ("compress", "fit", "--resume", "--out", "c")
    assert cli(*alone, "--json").json["curve"] == result["curve"]
    for more in ((), ("--set", "predictor.hidden=16")):
        assert cli(*alone, *more).code == cli(*words, "--resume", *more).code == 0
    sentence = refused(cli(*words, "--resume", "--set", "predictor.hidden=17"), 2)
    assert sentence == (
        "c was begun with other settings: predictor.hidden was 16 and is 17 now; resume it with its own (`netspace compress fit "
        "--resume --out c`), or choose another --out"
    )
    for other in (words, (*words[:2], "worst:resnet", *words[3:], "--resume", *SHORT)):
        assert command_of(refused(cli(*other), 2)) == list(alone)
    assert cli(*command_of(sentence)).code == 0


def test_a_fit_of_a_file_with_all_that_it_was_given(cli: Cli, foreign_file: tuple[str, ...]) -> None:
    name, *words = foreign_file
    trust = ("--trust-arch", words[1])
    assert cli("compress", "fit", name, *words, *trust, *SHORT, "-o", "my fit").code == 0
    origin = read_json(Path("my fit/provenance.json"), dict[str, Any])
    assert (origin["kind"], origin["model"], origin["input_shape"]) == ("fit", str(Path(name).resolve()), [3, 33, 33])
    alone = ("compress", "fit", "--resume", "--out", "my fit")
    sentence = refused(cli(*alone, *trust, "--set", "seed=9"), 2)
    assert command_of(sentence) == [*alone, *trust]
    archs._TRUSTED.clear()  # what a folder names is not trusted for it
    refused(cli(*alone), 2, f"trust it with --trust-arch {words[1]}")
    assert cli(*command_of(sentence)).code == 0


@pytest.fixture
def foreign_file() -> tuple[str, ...]:
    """A file of a network of torchvision's, and the options that its fit needs to distil by noise."""
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.mobilenet_v2(num_classes=7, width_mult=0.1).state_dict(), "net.pth")
    stages = "stages=[{steps: 2, kernels: 64, images: 2, distillation: 1.0, inputs: noise}]"
    more = ("--kwargs", '{"num_classes": 7, "width_mult": 0.1}', "--input-shape", "3,33,33", "--set", stages)
    return ("net.pth", "--arch", "torchvision.models:mobilenet_v2", *more, "--set", "pointwise=tiles")


def test_a_fit_that_is_not_there_or_of_before_its_network_was_recorded(cli: Cli, run_copy: Path) -> None:
    save_file({"a.weight": torch.randn(4, 4, 3, 3)}, "net.safetensors")
    fit = ("compress", "fit", "net.safetensors", *SHORT, "-o", "c")
    refused(
        cli("compress", "fit", "-o", "c"), 2, "MODEL is missing: give the network to represent; only --resume takes"
    )
    for folder in ("c", run_copy):
        result = refused(cli("compress", "fit", "--resume", "-o", folder), 2)
        assert result == f"{folder} is no fit that could be resumed: give MODEL, the network to represent"
    assert cli(*fit).code == 0
    Path("c/provenance.json").unlink()
    result = refused(cli("compress", "fit", "--resume", "-o", "c"), 2)
    assert result == f"c {EARLIER} MODEL (the network to represent) among them"
    before = command_of(refused(cli(*fit), 2, "exists already"))
    assert before == ["compress", "fit", "net.safetensors", "--resume", "--out", "c"] and cli(*before).code == 0
    assert not Path("c/provenance.json").exists()


def test_an_optimisation(cli: Cli, run_copy: Path) -> None:
    words = ("optimize", "--run", run_copy, "--from", "worst", "--from", "noise", "--steps", 4, "-o", "better")
    result = cli(*words, "--json").json
    latent = load_file("better/latent.safetensors")["latent"]
    alone = ("optimize", "--resume", "--out", "better")
    assert cli(*alone, "--json").json == result
    assert torch.equal(load_file("better/latent.safetensors")["latent"], latent)
    for again in (words, (*words, "--resume", "--lr", 0.5), (*alone, "--steps", 9)):
        assert command_of(refused(cli(*again), 2)) == list(alone)


def test_an_optimisation_is_not_resumed_in_another_space(
    cli: Cli, run_copy: Path, recipes: Path, tiny_zoo: Path
) -> None:
    assert cli("train", recipes / "space.yaml", "--zoo", tiny_zoo, "-o", "runs/other", "--set", "steps=2").code == 0
    words = ("optimize", "--from", "worst", "--steps", 2, "-o", "better")  # in the newest run
    assert cli(*words, "--run", run_copy).code == 0
    sentence = refused(cli(*words, "--resume", "--run", "runs/other"), 2, "in another space than that of runs/other")
    assert cli(*command_of(sentence)).code == 0


def test_an_optimisation_that_is_not_there_or_of_before_its_run_was_recorded(cli: Cli, run_copy: Path) -> None:
    refused(cli("optimize", "--run", run_copy), 2, "--from is missing: give the networks to start from; only --resume")
    refused(cli("optimize", "--resume"), 2, "--out is missing: name the folder of the optimisation to resume")
    result = refused(cli("optimize", "--resume", "-o", "gone"), 2)
    assert result == "gone is no optimisation that could be resumed: give --from, the networks to start from"
    words = ("optimize", "--run", run_copy, "--from", "worst", "--steps", 2, "-o", "better")
    assert cli(*words).code == 0
    origin = read_json(Path("better/provenance.json"), dict[str, Any])
    Path("better/provenance.json").unlink()
    result = refused(cli("optimize", "--resume", "-o", "better"), 2)
    assert result == f"better {EARLIER} --from (the networks to start from) among them"
    before = command_of(refused(cli(*words), 2))
    assert before == ["optimize", "--run", str(run_copy), "--from", "worst", "--resume", "--out", "better"]
    assert cli(*before).code == 0
    write_json(Path("better/provenance.json"), {**origin, "teacher_hash": "another"})
    refused(cli("optimize", "--resume", "-o", "better"), 2, "with another teacher than best: resume it with its own")
