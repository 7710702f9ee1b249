"""`netspace compress fit` with a size from the command line: text, JSON, what goes on, sentences for mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import refused
from safetensors.torch import load_file, save_file
from torch import nn

Cli = Callable[..., Any]
SHORT = ("--set", "predictor_steps=2", "--set", "short_steps=0", "--set", "steps=0", "--set", "curve=[]")


@pytest.fixture
def model() -> str:
    torch.manual_seed(0)
    save_file(nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 5)).state_dict(), "net.safetensors")
    return "net.safetensors"


def test_text_json_and_the_network(cli: Cli, model: str) -> None:
    words = ("--bytes", "2KB", "-o", "c", *SHORT)
    result = cli("compress", "fit", model, *words, "--json").json
    assert {"way", "bytes_file", "accuracy_original", "accuracy_reconstructed", "agreement", "table"} <= set(result)
    assert all({"way", "bytes", "accuracy", "agreement", "relative_error"} <= set(row) for row in result["table"])
    assert result["bytes_file"] == Path("c/compressed.safetensors").stat().st_size <= 2000
    text = cli("compress", "fit", "--resume", "-o", "c").out
    (taken,) = (line for line in text.splitlines() if line.startswith("* ") and f"{result['bytes_file']:,}" in line)
    assert taken.split()[1] == result["way"] and f"{result['way']} is best by relative error of the weights" in text
    assert cli("compress", "reconstruct", "c/compressed.safetensors", "-o", "back.safetensors").code == 0
    before, after = load_file(model), load_file("back.safetensors")
    assert {name: value.shape for name, value in before.items()} == {name: value.shape for name, value in after.items()}
    measured = cli("compress", "eval", "c/compressed.safetensors", model, "--json").json
    assert measured["relative_error"] == pytest.approx(result["relative_error"], rel=1e-4)
    assert cli("report", "c", "--json").json["figures"] == ["c/figures/sizes.png"]


def test_a_ratio_is_one_of_the_weights_bytes(cli: Cli, model: str) -> None:
    result = cli("compress", "fit", model, "--ratio", "5", "--way", "coded", "-o", "c", *SHORT, "--json").json
    size = sum(4 * value.numel() for value in load_file(model).values())
    assert (result["bytes_budget"], result["bytes_original"], result["way"]) == (size // 5, size, "coded")


def test_options_of_a_resumed_fit_are_used_or_refused(cli: Cli, model: str) -> None:
    assert cli("compress", "fit", model, "--bytes", "2KB", "--way", "coded", "-o", "c", *SHORT).code == 0
    again = ("compress", "fit", "--resume", "-o", "c")
    for same in ((), ("--way", "coded"), ("--bytes", "2000"), ("--set", "seed=0")):
        assert cli(*again, *same).code == 0
    refused(cli(*again, "--way", "mixed"), 2, "way was 'coded' and is 'mixed' now")
    refused(cli(*again, "--rivals"), 2, "rivals was False and is True now")
    refused(cli(*again, "--ratio", "4"), 2, "budget.bytes was 2000 and is None now")
    refused(cli(*again, "--output", "1"), 2, "--output is about running the network")
    refused(cli("compress", "fit", model, *again[2:], "--seeds", 2), 2, "--seeds is about fits without a size")


def test_settings_out_of_range_and_recipes_that_are_none(cli: Cli, model: str) -> None:
    fit = ("compress", "fit", model, "-o", "d", "--bytes", "2KB")
    for value, what in ((".nan", "a finite number"), (".inf", "a finite number"), ("0", "greater than 0")):
        refused(cli(*fit, "--set", f"curve=[{value}]"), 2, "setting curve.0 in the settings", what)
    refused(
        cli(*fit, "--set", "input_shape=[-3, 8]"),
        2,
        "setting input_shape.0 in the settings",
        "greater than or equal to 1",
    )
    Path("list.yaml").write_text("- steps: 5\n- way: coded\n")
    refused(
        cli(*fit, "--config", "list.yaml"),
        2,
        "list.yaml was expected to be a recipe of `name: value` lines, but holds list",
    )
    assert not Path("d").exists()


def test_mistakes(cli: Cli, model: str) -> None:
    fit = ("compress", "fit", model, "-o", "d")
    refused(cli(*fit, "--bytes", "2KB", "--ratio", "3"), 2, "--bytes and --ratio each say how small the file is to be")
    refused(cli(*fit, "--bytes", "12 apples"), 2, "--bytes '12 apples' was expected to be a size", "as in 100KB")
    refused(cli(*fit, "--bytes", "2KB", "--way", "best"), 2, "'best'", "rounded, coded, pruned, coordinate, mixed")
    refused(cli(*fit, "--way", "coded"), 2, "--way is an option of a fit with a size: give --bytes, --ratio or")
    refused(cli(*fit, "--rivals", "--images", "d"), 2, "--rivals and --images are options of a fit with a size")
    refused(cli(*fit, "--bytes", "90"), 2, "no way holds net.safetensors in 90 bytes: the smallest file has")
    refused(cli(*fit, "--bytes", "2KB", "--set", "step=1"), 2, "unknown setting 'step': did you mean 'steps'?")
    refused(cli(*fit, "--bytes", "2KB", "--normalise", "none"), 2, "--normalise is about the pictures of --images")
    refused(cli(*fit, "--accuracy-drop", "1"), 2, "--accuracy-drop is about labelled images")
    assert not Path("d").exists()
    assert cli(*fit, "--bytes", "2KB", *SHORT).code == 0
    refused(cli(*fit, "--bytes", "2KB", *SHORT), 2, "d exists already: give --resume")
    refused(cli(*fit, "--bytes", "3KB", *SHORT, "--resume"), 2, "budget.bytes was 2000 and is 3000 now")
