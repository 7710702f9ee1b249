"""`netspace compress quantise` and `prune` from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netspace.io import read_json

Cli = Callable[..., Any]
FILE = "c/compressed.safetensors"


@pytest.fixture
def fitted(cli: Cli, multi_zoo: Path) -> tuple[object, ...]:
    words = ("--set", "predictor.hidden=16", "--set", "stages=[{steps: 20, kernels: 64}]")
    assert cli("compress", "fit", "best:resnet", "--zoo", multi_zoo, "-o", "c", *words).code == 0
    return ("best:resnet", "--zoo", multi_zoo)


def test_quantise_writes_a_file_that_all_commands_take(cli: Cli, fitted: tuple[object, ...]) -> None:
    result = cli("compress", "quantise", FILE, *fitted, "-o", "four.safetensors", "--bits", 4, "--json").json
    assert result["bits"] == 4 and result == read_json(Path("c/quantise-4.json"), dict[str, Any])
    assert result["networks"].keys() == {"original", "original_quantised", "reconstructed", "quantised"}
    cli("compress", "quantise", FILE, "-o", "again.safetensors", "--bits", 4)
    assert result == read_json(Path("c/quantise-4.json"), dict[str, Any]), "figures without MODEL are kept apart"
    assert read_json(Path("c/quantise-4-alone.json"), dict[str, Any])["networks"].keys() == {
        "reconstructed",
        "quantised",
    }
    text = cli("compress", "quantise", FILE, "-o", "eight.safetensors").out
    assert "reconstructed, predictor in 8 bits" in text and "eight.safetensors: quantising moves the weights by" in text
    text = cli("compress", "eval", "eight.safetensors", *fitted).out
    assert f"a predictor of {result['parameters_predictor']:,} values in 8 bits for" in text
    assert cli("compress", "reconstruct", "eight.safetensors", "-o", "net.safetensors").code == 0
    assert "relative error" in cli("compress", "importance", "four.safetensors", *fitted).out
    assert cli("compress", "prune", "four.safetensors", *fitted, "--shares", "0.5").code == 0


def test_prune_tells_the_curve(cli: Cli, fitted: tuple[object, ...]) -> None:
    result = cli("compress", "prune", FILE, *fitted, "--shares", "0,0.25,0.5", "--json").json
    assert (
        [row["share"] for row in result["predictor"]] == [row["share"] for row in result["original"]] == [0, 0.25, 0.5]
    )
    assert result == read_json(Path("c/prune.json"), dict[str, Any])
    text = cli("compress", "prune", FILE, *fitted, "--shares", "0,0.25").out
    assert "25.0 %" in text and f"{result['predictor'][1]['weights']:,}" in text and "original's weights" in text
    assert len(cli("compress", "prune", FILE, *fitted, "--json").json["predictor"]) == 12


def test_mistakes_are_one_sentence(cli: Cli, fitted: tuple[object, ...]) -> None:
    for words, code, said in (
        (("quantise", FILE, "-o", "x.safetensors", "--bits", 5), 2, "weights of 5 bits were asked for"),
        (("quantise", FILE, "-o", FILE), 2, "choose another --out"),
        (("quantise", FILE, "lenet/0000", *fitted[1:], "-o", "x.safetensors"), 1, "another network than lenet/0000"),
        (("prune", FILE, *fitted, "--shares", "0,1"), 2, "a share of 1 of the weights"),
        (("prune", FILE, *fitted, "--shares", "0;1"), 2, "numbers with commas between"),
        (("prune", FILE, "lenet/0000", *fitted[1:]), 1, "another network than lenet/0000"),
        (("prune", "none.safetensors", *fitted), 2, "none.safetensors does not exist"),
    ):
        actual = cli("compress", *words)
        assert actual.code == code and said in actual.sentence, actual.sentence
    assert not Path("x.safetensors").exists() and not Path("c/prune.json").exists()
