"""Help texts: every recipe, command, option and setting that one names as an example is there."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from model_zoo.recipe import ZooRecipe
from netspace import archs
from netspace.cli.app import app
from netspace.compression.work import BudgetConfig
from netspace.config import load
from netspace.training.morph import MorphConfig
from netspace.training.recipe import FitConfig, SpaceRecipe

RECIPES: dict[str, Any] = {"zoo": ZooRecipe, "space": SpaceRecipe, "compress": FitConfig, "morph": MorphConfig}


def commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands, groups too, with the words that call them."""
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


COMMANDS = dict(commands(typer.main.get_command(app)))
OPTIONS = {option for command in COMMANDS.values() for each in command.params for option in each.opts} | {"--help"}


def texts(command: click.Command) -> list[str]:
    """What `--help` shows of a command and of its parameters."""
    return [command.help or "", *(str(getattr(each, "help", None) or "") for each in command.params)]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_what_help_names_is_there(words: tuple[str, ...]) -> None:
    for text in texts(COMMANDS[words]):
        for kind, name in re.findall(r"(?<![\w.-])(zoo|space|compress|morph)/([a-z0-9-]+)", text):
            load(RECIPES[kind], f"{kind}/{name}")
        for option in re.findall(r"(?<![\w-])--[a-z-]+", text):
            assert option in OPTIONS, (words, option)
        for called in re.findall(r"`(?:netspace )?((?:zoo |compress |morph |data )?[a-z]+)`", text):
            assert tuple(called.split()) in COMMANDS, (words, called)
        for arch in re.findall(r"\b([a-z0-9]+)/\d{4}", text):
            archs.build(arch)
        for kind, change in re.findall(r"\b(zoo|space)\.([a-z_.]+=[\w.]+)", text):
            load(RECIPES[kind], f"{kind}/quickstart", [change])
        for change in re.findall(r"--set ([a-z0-9_.]+=[\w.]*\w)", text):
            if words[:1] == ("morph",):
                load(MorphConfig, "morph/digits", [change])
            elif change.partition("=")[0] in FitConfig.model_fields:
                load(FitConfig, "compress/paper", [change])
            else:
                load(BudgetConfig, {"budget": {"bytes": 4000}}, [change])


@pytest.mark.parametrize("page", ["README.md", "docs/method.md", "docs/scale.md"])
def test_what_pages_name_is_there(page: str) -> None:
    """Recipes by their names, and every command of an indented line with its options."""
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w./-])(zoo|space|compress|morph)/([a-z0-9]+(?:-[a-z0-9]+)*)(?![\w./-])", text)
    assert named
    for kind, name in named:
        load(RECIPES[kind], f"{kind}/{name}")
    for line in re.findall(r"^    (?:.* -m )?netspace (.+)$", text, re.MULTILINE):
        words = line.split("#")[0].split()
        command = next(tuple(words[:count]) for count in (2, 1) if tuple(words[:count]) in COMMANDS)
        known = {option for each in COMMANDS[command].params for option in each.opts}
        assert {word for word in words if re.match(r"--?[a-z]", word)} <= known, line


def test_help_shows_recipes_at_all() -> None:
    shown = {name for command in COMMANDS.values() for text in texts(command) for name in re.findall(r"\w+/\w+", text)}
    assert {"zoo/quickstart", "space/quickstart", "compress/decoupled", "morph/digits"} <= shown


def test_commands_of_spaces_load_no_library_that_they_do_not_use() -> None:
    """Each takes a third of a second or more, in every process that is started."""
    libraries = "{'matplotlib', 'numba', 'pandas', 'scipy', 'sklearn', 'torchvision', 'trimesh'}"
    modules = "netspace.commands.evaluate, netspace.training.latent_space, model_zoo.work"
    code = f"import sys, {modules}; print(sorted({libraries} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
