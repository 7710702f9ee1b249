"""`netspace compress ...` from the command line: one JSON object each, text that tells, sentences for mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from netspace import archs
from netspace.io import read_json
from netspace.zoo import Zoo

Cli = Callable[..., Any]
SHORT = (
    "stages=[{steps: 20, kernels: 64, optimizer: {name: muon, muon_rate: 0.02}}, "
    "{steps: 2, reconstruction: 0.0, distillation: 1.0, images: 8}]"
)
FILE = "c/compressed.safetensors"


@pytest.fixture
def fitted(cli: Cli, multi_zoo: Path) -> dict[str, Any]:
    words = ("--zoo", multi_zoo, "-o", "c", "--set", "predictor.hidden=16", "--set", SHORT)
    result: dict[str, Any] = cli("compress", "fit", "best:resnet", *words, "--json").json
    return result


def test_every_command_tells_json(cli: Cli, multi_zoo: Path, fitted: dict[str, Any]) -> None:
    expected = {
        "accuracy_original",
        "accuracy_reconstructed",
        "agreement",
        "parameters_original",
        "parameters_represented",
        "parameters_predictor",
        "bytes_original",
        "bytes_file",
        "larger",
    }
    assert expected <= set(fitted) and [record["stage"] for record in fitted["curve"]] == [0, 0, 1, 1]
    result = cli("compress", "eval", FILE, "best:resnet", "--zoo", multi_zoo, "--json").json
    assert result == {key: value for key, value in fitted.items() if key not in {"curve", "seconds", "precision"}}
    assert cli("compress", "eval", FILE, "--json").json["accuracy_original"] is None
    assert (
        len(
            cli("compress", "importance", FILE, "best:resnet", "--zoo", multi_zoo, "--top", 3, "--json").json["filters"]
        )
        == 3
    )
    result = cli("compress", "reconstruct", FILE, "-o", "net.safetensors", "--json").json
    assert result["tensors"] == len(load_file("net.safetensors"))


def test_a_reconstructed_network_loads_into_the_plain_architecture(
    cli: Cli, multi_zoo: Path, fitted: dict[str, Any]
) -> None:
    assert cli("compress", "reconstruct", FILE, "-o", "net.safetensors").code == 0
    with Zoo(multi_zoo) as zoo:
        spec = zoo.group("resnet").spec
    network = archs.skeleton(spec.arch, spec.settings, spec.input_shape)
    network.load_state_dict(load_file("net.safetensors"))
    assert bool(torch.isfinite(network(torch.zeros(2, *spec.input_shape))).all())


def test_texts(cli: Cli, multi_zoo: Path, fitted: dict[str, Any]) -> None:
    result = cli("compress", "eval", FILE, "best:resnet", "--zoo", multi_zoo).out
    assert f"a predictor of {fitted['parameters_predictor']:,} values for" in result and "same answer" in result
    assert "relative error" in cli("compress", "importance", FILE, "best:resnet", "--zoo", multi_zoo).out


def test_analyse_tells_and_keeps(cli: Cli, multi_zoo: Path, fitted: dict[str, Any]) -> None:
    result = cli("compress", "analyse", FILE, "best:resnet", "--zoo", multi_zoo).out
    for word in ("S_ratio", "CKA random", "fraction of frequencies kept", "on 300 training images"):
        assert word in result
    assert len(result.splitlines()) < 45
    kept = read_json(Path("c/analysis.json"), dict[str, Any])
    assert kept["generalisation"]["original"]["accuracy_test"] == fitted["accuracy_original"]


def test_mistakes_are_one_sentence(cli: Cli, multi_zoo: Path, fitted: dict[str, Any]) -> None:
    actual = cli("compress", "fit", "best", "-o", "d")
    assert actual.code == 2 and "but no zoo is at hand: give --zoo" in actual.sentence
    actual = cli("compress", "fit", "best:resnet", "--zoo", multi_zoo, "-o", "d", "--set", "layers=['conv9*']")
    assert actual.code == 2 and "no weight matches 'conv9*'; there are: conv1.weight" in actual.sentence
    torch.save({"a": torch.nn.Linear(2, 2)}, "model.pt")
    actual = cli("compress", "fit", "model.pt", "-o", "d")
    assert actual.code == 1 and "model.pt" in actual.sentence
    actual = cli("compress", "eval", "net.safetensors")
    assert (
        actual.code == 2
        and "net.safetensors does not exist: give a file that `netspace compress fit` wrote" in actual.sentence
    )
    actual = cli(
        "compress", "fit", "best:resnet", "--zoo", multi_zoo, "-o", "d", "--set", "stages=[{steps: 1, sampling: most}]"
    )
    assert actual.code == 2 and "sampling" in actual.sentence


@pytest.mark.parametrize("recipe", ["paper", "decoupled", "pretrained"])
def test_bundled_recipes_take_steps(cli: Cli, multi_zoo: Path, recipe: str) -> None:
    from netspace.config import load
    from netspace.training.recipe import FitConfig

    config = load(FitConfig, f"compress/{recipe}")
    assert config.predictor.hidden == {"paper": 160, "decoupled": 180, "pretrained": 224}[recipe]
    stages = [
        f"{{steps: 2, images: 4, distillation: {stage.distillation}, features: {stage.features}}}"
        for stage in config.stages
    ]
    words = ("--recipe", f"compress/{recipe}", "--set", f"stages=[{', '.join(stages)}]", "--zoo", multi_zoo, "-o", "c")
    assert cli("compress", "fit", "best:resnet", *words, "--json").json["relative_error"] > 0
