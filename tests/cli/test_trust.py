"""Recipes are files: the code that they name runs only if the user trusts it, and what they name stays in its folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import refused

from model_zoo.forward import Way
from model_zoo.recipe import ZooRecipe
from model_zoo.work import Plan
from netspace import archs
from netspace.config import load
from netspace.errors import UsageError
from netspace.zoo import Zoo, parts_folder

Cli = Callable[..., Any]
MINE = """
from pathlib import Path
from torch import nn
Path("ran").touch()
def make(*, channels, classes, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, classes))
"""


@pytest.fixture(autouse=True)
def nobody_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "recipe_code.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(archs, "_TRUSTED", set())
    monkeypatch.delitem(sys.modules, "recipe_code", raising=False)


def recipe(settings: dict[str, Any], **changes: Any) -> str:
    small = {"members": {"train": 2, "val": 0, "test": 0}, "epochs": {"first": 1, "last": 1}, "fused": 1}
    Path("mine.yaml").write_text(yaml.safe_dump({**settings, **small, **changes}))
    return "mine.yaml"


@pytest.mark.parametrize("name", ["recipe_code:make", "os:system"])
def test_code_that_a_recipe_names_is_not_run(cli: Cli, zoo_settings: dict[str, Any], name: str) -> None:
    entry = {"arch": name}
    for words in (
        ["build", recipe(zoo_settings, archs={"mine": entry}), "-o", "z.h5"],
        ["build", recipe(zoo_settings, teacher={**entry, "epochs": 1}), "-o", "z.h5"],
    ):
        refused(cli("zoo", *words), 2, f"architecture '{name}' is code outside netspace", f"--trust-arch {name}")
    assert not Path("ran").exists() and "recipe_code" not in sys.modules
    assert not list(Path().glob("z.h5*"))


def test_trusted_code_builds_a_zoo_in_every_worker(cli: Cli, zoo_settings: dict[str, Any]) -> None:
    words = ("zoo", "build", recipe(zoo_settings, archs={"mine": {"arch": "recipe_code:make"}}), "-o", "z.h5")
    done = cli(*words, "--trust-arch", "recipe_code:make", "--workers", "2", "--json")
    assert done.code == 0 and done.json["archs"]["mine"]["members"] == 2
    with Zoo("z.h5") as zoo:
        assert zoo.only().spec.arch == "recipe_code:make"


def test_a_worker_trusts_no_plan_that_lies_on_the_disk(zoo_settings: dict[str, Any]) -> None:
    made = ZooRecipe.model_validate({**zoo_settings, "archs": {"mine": {"arch": "recipe_code:make"}}})
    Plan(made, "ab" * 32, {"mine": Way()}).write(Path("z.h5"))
    assert (parts_folder(Path("z.h5")) / "plan.json").exists()
    done = subprocess.run([sys.executable, "-m", "model_zoo.work", "z.h5", "0", "1"], capture_output=True, text=True)
    assert done.returncode == 1 and "is code outside netspace" in done.stdout
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../out", "", ".", "a\x1b[2J"])
def test_a_recipes_name_stays_in_its_folder(
    cli: Cli, zoo_settings: dict[str, Any], space_settings: dict[str, Any], tiny_zoo: Path, name: str
) -> None:
    Path("space.yaml").write_text(yaml.safe_dump({**space_settings, "name": name}))
    for words in (["zoo", "build", recipe(zoo_settings, name=name)], ["train", "space.yaml", "--zoo", tiny_zoo]):
        refused(cli(*words), 2, "setting name in ", "a file's name that stays inside its folder is expected")
    assert sorted(path.name for path in Path().iterdir()) == ["mine.yaml", "recipe_code.py", "space.yaml"]


@pytest.mark.parametrize("name", ["a/b", "..", "a\x1b[2J"])
def test_an_id_that_no_zoo_could_hold(zoo_settings: dict[str, Any], name: str) -> None:
    with pytest.raises(UsageError, match="cannot be an architecture's id: leave slashes and control characters out"):
        load(ZooRecipe, {**zoo_settings, "archs": {name: {"arch": "resnet8"}}})
