"""`netspace morph ...` from the command line: one JSON object each, text that tells, sentences for mistakes, resuming alone."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import refused, train_and_die
from safetensors.torch import load_file, save_file

import netspace
from netspace import archs
from netspace.cli.morph import parse_count, parse_widths
from netspace.errors import UsageError
from netspace.io import read_json
from netspace.networks.widths import find_widths

Cli = Callable[..., Any]
SHORT = ("--set", "stages=[{steps: 8}]", "--set", "batch_size=16", "--set", "validate_every=4")
MORPH = "m/morph.safetensors"
OWN = """
from torch import nn
def make(wide=6):
    return nn.Sequential(nn.Conv2d(1, wide, 3), nn.BatchNorm2d(wide), nn.ReLU(), nn.Flatten(), nn.Linear(36 * wide, 10))
"""


@pytest.fixture
def fitted(cli: Cli, multi_zoo: Path) -> dict[str, Any]:
    result: dict[str, Any] = cli("morph", "fit", "best:resnet", "--zoo", multi_zoo, "-o", "m", *SHORT, "--json").json
    return result


def test_both_tell_json_and_text(cli: Cli, multi_zoo: Path, fitted: dict[str, Any]) -> None:
    expected = {
        "full_accuracy",
        "widths",
        "stored_parameters",
        "full_parameters",
        "groups",
        "narrowest",
        "total_variation",
    }
    assert expected <= set(fitted)
    assert read_json(Path("m/fit.json"), dict[str, Any])["widths"] == fitted["widths"]
    assert not (Path("m") / ".lock").is_dir()
    text = cli("morph", "fit", "--resume", "-o", "m").out
    assert f"{fitted['stored_parameters']:,} values give resnet8 at any width; trained for gamma 0 to 0.5" in text
    assert "the network itself" in text and "netspace morph eval m" in text and "total variation" in text
    result = cli("morph", "sample", "m", "--width", "0.75", "-o", "a.safetensors", "--json").json
    assert result["trained"] and list(result["widths"]) == list(fitted["groups"]) and 0 <= result["accuracy"] <= 1
    text = cli("morph", "sample", MORPH, "--params", f"{result['parameters'] / 1000}k", "-o", "b.safetensors").out
    assert f"{result['parameters']:,} parameters" in text and 'netspace.load_morphed("b.safetensors")' in text
    one, other = (netspace.load_morphed(name).state_dict() for name in ("a.safetensors", "b.safetensors"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_size_that_was_not_trained_is_a_warning_and_in_the_text(cli: Cli, fitted: dict[str, Any]) -> None:
    with warnings.catch_warnings(action="always"):  # printed as one line, by the command itself
        done = cli("morph", "sample", "m", "--widths", "conv1=1", "--depth", "8", "-o", "a.safetensors")
    assert done.code == 0
    assert done.err.startswith(
        "warning: the network is outside of the range of training, gamma 0 to 0.5: of the channels, "
    )
    assert done.err.count("warning") == 1
    assert "networks of this size were never trained" in done.out and "depth 8: blocks 0 of each stage" in done.out


def test_a_network_of_others_is_morphed_and_is_code_that_needs_trust(
    cli: Cli, multi_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archs, "_TRUSTED", set())
    Path("of_others.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    trust = ("--trust-arch", "of_others:make")
    scope: dict[str, Any] = {}
    exec(OWN, scope)
    save_file(scope["make"](5).state_dict(), "net.safetensors")
    words = ("--arch", "of_others:make", "--kwargs", '{"wide": 5}', "--zoo", multi_zoo, "-o", "m", *SHORT)
    refused(cli("morph", "fit", "net.safetensors", *words), 2, "trust it with --trust-arch of_others:make")
    assert cli("morph", "fit", "net.safetensors", *words, *trust).code == 0
    archs._TRUSTED.clear()
    refused(cli("morph", "sample", "m", "--width", "0.5", "-o", "a.safetensors"), 2, "trust it with")
    result = cli("morph", "sample", "m", "--width", "0.6", "-o", "a.safetensors", *trust, "--json").json
    assert result["widths"] == {"0": 3}
    assert cli("morph", "fit", "--resume", "-o", "m", *trust).code == 0
    origin = read_json(Path("m/provenance.json"), dict[str, Any])
    assert (origin["kind"], origin["arch"]["kwargs"]) == ("morph", {"wide": 5})


def test_from_nothing_and_resumed_alone(cli: Cli) -> None:
    nothing = ("--arch", "vanillacnn", "--kwargs", '{"width": 0.25}', "--set", "start=nothing")
    data = ("--set", "data.name=digits", "--set", "data.limit=300")
    done = cli("morph", "fit", *nothing, *data, "-o", "m", *SHORT)
    assert done.code == 0 and "the network itself" not in done.out
    assert cli("morph", "fit", "--resume", "-o", "m").out == done.out
    module = netspace.open_morph("m").module
    assert find_widths(module, torch.zeros(1, 1, 8, 8), "vanillacnn").full()[0] == 2


def test_a_run_that_was_killed_goes_on_to_the_same_weights(cli: Cli, multi_zoo: Path, fitted: dict[str, Any]) -> None:
    words = ["morph", "fit", "best:resnet", "--zoo", str(multi_zoo), "-o", "killed", *SHORT]
    train_and_die(words, Path("killed/last.pt"), 2)
    assert not Path("killed/morph.safetensors").exists()
    sentence = refused(cli(*words), 2, "killed exists already: give --resume")
    refused(cli("morph", "sample", "killed", "--width", "1", "-o", "a.safetensors"), 2, "let it finish")
    assert cli(*shlex.split(sentence.split("`")[1])[1:]).code == 0
    assert Path("killed/morph.safetensors").read_bytes() == Path(MORPH).read_bytes()
    assert not [path for path in Path("killed").iterdir() if path.suffix == ".tmp"]


def test_mistakes_are_one_sentence(cli: Cli, multi_zoo: Path, tiny_run: Path, fitted: dict[str, Any]) -> None:
    refused(cli("morph", "fit", "-o", "d"), 2, "MODEL is missing: give the network whose weights become a function")
    refused(cli("morph", "fit", "--resume", "-o", "d"), 2, "d is no morph that could be resumed")
    refused(cli("morph", "fit", "best", "-o", "d"), 2, "no zoo is at hand")
    refused(
        cli("morph", "fit", "best", "--zoo", multi_zoo, "-o", "d", "--recipe", "morph/digit"),
        2,
        "did you mean 'morph/digits'",
    )
    refused(
        cli("morph", "fit", "best", "--zoo", multi_zoo, "-o", "d", "--set", "width=3"), 2, "unknown setting 'width'"
    )
    refused(
        cli("morph", "sample", tiny_run, "--width", "1", "-o", "a.safetensors"),
        2,
        "is a folder without morph.safetensors",
    )
    refused(
        cli("morph", "sample", "m/network.safetensors", "--width", "1", "-o", "a.safetensors"),
        1,
        "was expected to be a morph",
    )
    refused(cli("morph", "sample", "m", "-o", "a.safetensors"), 2, "found none of them")
    for option, text in (
        ("--widths", "conv1"),
        ("--widths", "conv1=2,conv1=3"),
        ("--params", "many"),
        ("--flops", "0"),
    ):
        refused(cli("morph", "sample", "m", option, text, "-o", "a.safetensors"), 2, option)
    refused(cli("morph", "sample", "m", "--width", "1", "-o", MORPH), 2, "exists already")
    assert not Path("d").exists() and load_file(MORPH) and not Path("a.safetensors").exists()


def test_counts_and_widths_are_parsed() -> None:
    assert [parse_count(text, "--params") for text in ("50k", "1.5M", "2G", "7", " 3e2 ")] == [
        50_000,
        1_500_000,
        2 * 10**9,
        7,
        300,
    ]
    assert parse_count(None, "--params") is None and parse_widths(None) is None
    assert parse_widths("a.b=3, c=4") == {"a.b": 3, "c": 4}
    for text in ("", "k", "nan", "inf", "1e999", "-3", "0.2"):
        with pytest.raises(UsageError, match="--flops"):
            parse_count(text, "--flops")
