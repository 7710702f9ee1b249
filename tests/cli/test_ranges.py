"""Numeric options: every one of every command refuses what is out of range by its name, before the command begins."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from helpers import refused

from netspace import archs, hardware
from netspace.cli.app import app
from netspace.cli.morph import parse_count, parse_widths
from netspace.cli.shared import parse_shape
from netspace.errors import NetspaceError, UsageError
from netspace.hardware import AllocationLimit, require_memory

Cli = Callable[..., Any]
COMMAND = typer.main.get_command(app)  # built once, for all calls
SIGNED = {"--gamma"}  # options with numbers below 0: of a wider network
OUTSIDE = ("-1", "1" + "0" * 30, "inf", "nan")


def commands(group: typer.Typer, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Callable[..., Any]]]:
    """All commands as the words that call them, with their functions."""
    for each in group.registered_commands:
        assert each.callback is not None
        yield (*words, each.name or each.callback.__name__), each.callback
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from commands(inner.typer_instance, (*words, str(inner.name)))


def options(function: Callable[..., Any]) -> Iterator[tuple[str, Any, list[str]]]:
    """The parameters of a command: name, type, and the words that give it a value if it is required."""
    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, info = typing.get_args(hints[name])[:2]
        long = next(
            (str(each) for each in (info.default, *(info.param_decls or ())) if str(each).startswith("--")),
            f"--{name.replace('_', '-')}",
        )
        required = parameter.default is parameter.empty
        words = [] if not required else ["x"] if "Argument" in type(info).__name__ else [long, "x"]
        yield long, kind, words


NUMERIC = [
    pytest.param(
        words, option, [word for *_, given in options(function) for word in given], id=f"{' '.join(words)} {option}"
    )
    for words, function in commands(app)
    for option, kind, _ in options(function)
    if {kind, *typing.get_args(kind)} & {int, float}
]


def test_commands_and_options_are_found() -> None:
    names = {each.id for each in NUMERIC}
    assert {"sample --count", "zoo verify --sample", "compress fit --ratio", "morph sample --width"} <= names
    assert len(NUMERIC) > 40


@pytest.mark.parametrize(("words", "option", "others"), NUMERIC)
def test_a_number_out_of_range_is_refused_by_the_option(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], option: str, others: list[str]
) -> None:
    monkeypatch.setattr("typer.main.get_command", lambda _: COMMAND)
    for value in OUTSIDE[option in SIGNED :]:
        refused(cli(*words, *others, f"{option}={value}"), 2, option)
    done = cli(*words, *others, f"{option}=0")  # in the range of some: then there is no run, zoo or file
    assert done.code in (1, 2) and done.sentence
    assert not list(Path().iterdir())


def test_an_option_says_what_it_expected(cli: Cli) -> None:
    found = refused(cli("sample", "--count", "1"), 2)
    expected = "--count 1 was given, but a whole number from 2 to 10,000 was expected: choose one in this range"
    assert found == expected
    assert "a number above 0 and up to 1000 was expected" in refused(cli("sample", "--width", "1e9"), 2, "--width")
    assert "Invalid value for '--steps'" in refused(cli("optimize", "--steps", "1e9"), 2, "netspace optimize --help")
    refused(cli("optimize", "--from", "best", "--run", "gone", "--set", "seed=-1"), 2, "seed", "-1", "or equal to 0")


def test_more_networks_than_memory_holds_are_refused(cli: Cli, run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "free_memory", lambda device: 40_000_000)
    for words in (["sample", "--count", "5000"], ["interpolate", "--from", "best", "--to", "worst", "--steps", "5000"]):
        told = refused(cli(*words, "--run", run_copy), 2, "5000 asks for 5,000 networks", "0.0 are free")
        most = int(told.rpartition(" ")[2].replace(",", ""))
        assert 100 < most < 5000
    require_memory(most, 1, "--count", torch.device("cpu"))


def test_a_batch_that_memory_does_not_hold_is_refused(cli: Cli, run_copy: Path) -> None:
    words = ["optimize", "--run", run_copy, "--from", "best", "--steps", "2", "--set", f"images={10**12}"]
    told = refused(cli(*words), 2, "a batch of 1,000,000,000,000 asks for 1,000,000,000,000 images, which take about")
    assert "ask for at most" in told


def test_an_architecture_larger_than_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archs, "free_memory", lambda device: 4 << 20)
    assert archs.build("lenetlike", width=1.0) is not None  # usual sizes are not counted
    with pytest.raises(UsageError, match=r"lenetlike\(width=1000\) takes more than a quarter of the 0\.0 GiB"):
        archs.build("lenetlike", width=1000)
    with pytest.raises(UsageError, match="depth=20000"):
        archs.build("resnet", depth=20_000)


def test_a_size_that_overflows_is_over_the_limit() -> None:
    with pytest.raises(NetspaceError, match="more than 100 bytes"), AllocationLimit(100):
        torch.empty(1 << 40, 1 << 40)


def test_sizes_in_texts_have_ranges_too() -> None:
    assert parse_shape(" 1, 8,08") == (1, 8, 8) and parse_widths("a=3") == {"a": 3}
    for text in ("99999,99999", "9" * 5000):
        with pytest.raises(UsageError, match="at most 100,000,000 values"):
            parse_shape(text)
    for text in ("0,3", "-1,3", "nan", "inf,1", "3,"):
        with pytest.raises(UsageError, match="whole numbers with commas"):
            parse_shape(text)
    for text in (f"a={'9' * 5000}", "a=-1", "a=nan"):
        with pytest.raises(UsageError, match="was expected to be GROUP=N"):
            parse_widths(text)
    for text in ("nan", "inf", "1e400", "-1", "0"):
        with pytest.raises(UsageError, match="--params '"):
            parse_count(text, "--params")
