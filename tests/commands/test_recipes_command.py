"""Recipes that come along, and their settings as the models have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import refused
from pydantic import BaseModel

from netspace.commands.recipes import KINDS, model_of, recipe, recipes, schema
from netspace.config import bundled_folder, bundled_names

Cli = Callable[..., Any]


def leaves(value: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings of a resolved recipe."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from leaves(value[0], f"{prefix}.N")
    else:
        yield prefix


@pytest.mark.parametrize("name", bundled_names())
def test_every_setting_of_a_recipe_is_in_its_schema(name: str) -> None:
    shown = recipe(name)
    settings = {each.name for each in schema(shown.kind)}
    archs = {*shown.settings.get("archs", ()), *((shown.settings.get("multi") or {}).get("declared", ()))}
    for leaf in leaves(shown.settings):
        parts = ["NAME" if part in archs else part for part in leaf.split(".")]
        assert any(".".join(parts[:count]) in settings for count in range(len(parts), 0, -1)), leaf
    assert yaml.safe_load(shown.text).keys() <= shown.settings.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_and_reasons_are_the_models(kind: str) -> None:
    settings = {each.name: each for each in schema(kind)}
    for name, field in model_of(kind).model_fields.items():
        if name in settings and not isinstance(field.default, BaseModel | tuple):
            assert settings[name].required is field.is_required()
            assert field.is_required() or settings[name].default == field.get_default(call_default_factory=True)
    assert [name for name, setting in settings.items() if not setting.help] == []


def test_what_a_setting_says() -> None:
    space, fit = ({each.name: each for each in schema(kind)} for kind in ("space", "compress"))
    assert space["optimizer.warmup"].help == "steps" and space["optimizer.warmup"].type == "whole number >= 0"
    assert space["optimizer.clip"].type == "number > 0 | none"
    assert space["decoder.kind"].type.startswith("conv | linear")
    assert fit["stages.N.optimizer.name"].default == "muon"  # the stage's own, not the optimiser's
    assert fit["stages.N.uniform"].help.startswith("p_uni")  # a comment on the line above


def test_the_command(cli: Cli) -> None:
    assert [each["name"] for each in cli("recipes", "--json").json["recipes"]] == bundled_names()
    assert cli("recipes").out == cli("recipes", "list").out
    assert cli("recipes", "show", "zoo/quickstart").out.strip() == (
        (bundled_folder() / "zoo" / "quickstart.yaml").read_text().strip()
    )
    assert cli("recipes", "show", "space/quickstart.yaml", "--json").json["settings"]["name"] == "quickstart"
    assert cli("recipes", "schema", "zoo", "--json").json["settings"][0]["name"] == "name"
    assert "archs (group by name; required)" in cli("recipes", "schema", "zoo").out
    Path("mine.yaml").write_text("name: mine")
    refused(cli("recipes", "show", "mine.yaml"), 2, "unknown bundled recipe 'mine'", "`netspace recipes` lists")
    refused(cli("recipes", "schema", "spaces"), 2, "unknown kind of recipe 'spaces': did you mean 'space'?")
    assert len(recipes()) == len(bundled_names())
