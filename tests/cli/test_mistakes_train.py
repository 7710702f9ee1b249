"""Mistakes with `netspace train` and `optimize`: wrong recipes, a folder that holds another run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import refused

from netspace.io import HASH, SEALED
from netspace.zoo import Population, Zoo, write_zoo

Cli = Callable[..., Any]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("latent=100", ["latent", "100"]),
        ("encoder.kind=transformer", ["encoder.kind", "conv", "probe", "transformer"]),
        ("encoder.probs=4", ["probs", "probes"]),
        ("steps=0", ["steps", "0"]),
        ("precision=fp8", ["precision", "bf16"]),
        ("loss.behaviour=0", ["loss"]),
    ],
)
def test_wrong_space_settings(cli: Cli, recipes: Path, tiny_zoo: Path, change: str, words: list[str]) -> None:
    refused(cli("train", recipes / "space.yaml", "--zoo", tiny_zoo, "--out", "run", "--set", change), 2, *words)
    assert not Path("run").exists()


def test_unknown_recipe(cli: Cli, tiny_zoo: Path) -> None:
    refused(cli("zoo", "build", "zoo/quickstrat"), 2, "zoo/quickstrat", "zoo/quickstart")
    refused(cli("train", "nothing.yaml", "--zoo", tiny_zoo), 2, "nothing.yaml")


def test_a_start_that_fails_leaves_nothing(cli: Cli, recipes: Path, tiny_zoo: Path, multi_zoo: Path) -> None:
    train = ("train", recipes / "space.yaml", "--out", "runs/new/run")
    refused(cli(*train, "--zoo", multi_zoo), 2, "3 architectures", "multi")
    refused(cli(*train, "--zoo", tiny_zoo, "--set", "multi.teacher=best"), 2, "several architectures", "multi")
    refused(cli(*train, "--zoo", multi_zoo, "--set", "multi.teacher=lenet/0099"), 2, "lenet/0099")
    refused(cli(*train, "--zoo", "gone.h5"), 1, "gone.h5")
    assert not list(Path().iterdir())
    Path("mine").mkdir()
    refused(cli("train", recipes / "space.yaml", "--out", "mine", "--zoo", multi_zoo), 2, "multi")
    assert [path.name for path in Path().rglob("*")] == ["mine"]


def test_an_optimisation_that_cannot_begin_leaves_nothing(cli: Cli, run_copy: Path) -> None:
    before = sorted(Path().rglob("*"))
    optimize = ("optimize", "--run", run_copy, "--from")
    refused(cli(*optimize, "lenetlike/9999"), 2, "lenetlike/9999")
    refused(cli(*optimize, "best", "--teacher", "resnet8/0000"), 2, "resnet8")
    refused(cli(*optimize, "best", "--steps", 0), 2, "steps")
    refused(cli(*optimize, "best", "--out", "new/run", "--set", "alpha=2"), 2, "alpha")
    assert sorted(Path().rglob("*")) == before


def test_training_into_a_run_that_exists(
    cli: Cli, recipes: Path, tiny_zoo: Path, zoo_copy: Path, run_copy: Path
) -> None:
    before = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}
    train = ("train", recipes / "space.yaml", "--out", run_copy)
    refused(cli(*train, "--zoo", tiny_zoo), 2, str(run_copy), "--resume")
    refused(cli(*train, "--zoo", tiny_zoo, "--resume", "--set", "latent=144"), 2, "latent")
    with Zoo(tiny_zoo) as zoo:
        group = zoo.only()
        fewer = Population(group.spec, group.read(range(35)).numpy(), group.members[:35])
        write_zoo(Path("fewer.h5"), zoo.header, {"lenetlike": fewer})
    refused(cli(*train, "--zoo", "fewer.h5", "--resume"), 2, "another zoo")
    refused(cli("eval", run_copy, "--zoo", "fewer.h5"), 1, "fewer.h5", "--zoo")
    assert {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()} == before
    Path("folder").mkdir()
    Path("folder/mine.txt").write_text("mine")
    assert cli("train", recipes / "space.yaml", "--out", "folder", "--zoo", tiny_zoo, "--set", "steps=1").code == 0
    assert Path("folder/mine.txt").read_text() == "mine"


def test_a_run_is_resumed_by_its_own_settings(cli: Cli, recipes: Path, tiny_zoo: Path) -> None:
    """Neither the recipe, nor its changes, nor the zoo need be given again; what is given must not contradict."""
    begun = ("train", recipes / "space.yaml", "--zoo", tiny_zoo, "--out", "run")
    assert cli(*begun, "--set", "steps=2", "--set", "encoder.probes=5").code == 0
    (config,) = Path().rglob("config.yaml")
    before = config.read_text()
    assert cli("train", "--resume", "--out", "run").code == 0
    assert cli("train", "--resume", "--out", "run", "--set", "steps=2", "--device", "cpu").code == 0
    assert cli(*begun, "--resume").code == 0
    assert config.read_text() == before
    sentence = (
        "run was begun with another recipe: steps was 2 and is 3 now; resume it with its own (`netspace train --resume "
        "--out run`), or choose another --out"
    )
    refused(cli("train", "--resume", "--out", "run", "--set", "steps=3"), 2, sentence)
    refused(cli(*begun, "--resume", "--set", "steps=3"), 2, sentence)
    refused(cli("train", "space/multi-digits", "--zoo", tiny_zoo, "--resume", "--out", "run"), 2, "another recipe")


def test_a_refusal_repeats_where_a_moved_zoo_is(cli: Cli, recipes: Path, zoo_copy: Path) -> None:
    """The command that it prints works; without --zoo the run looks where the zoo was."""
    begun = ("train", recipes / "space.yaml", "--out", "run")
    assert cli(*begun, "--zoo", zoo_copy, "--set", "steps=2").code == 0
    moved = zoo_copy.rename(zoo_copy.with_name("moved zoo.h5"))
    command = f"netspace train --resume --out run --zoo '{moved}'"
    refused(cli(*begun, "--zoo", moved), 2, f"give --resume to go on with it (`{command}`)")
    assert cli(*shlex.split(command)[1:]).code == 0
    refused(cli("train", "--resume", "--out", "run"), 1, str(zoo_copy))


def test_a_run_of_before_its_changes_were_noted(cli: Cli, recipes: Path, tiny_zoo: Path) -> None:
    begun = ("train", recipes / "space.yaml", "--zoo", tiny_zoo, "--out", "run")
    assert cli(*begun, "--set", "steps=2").code == 0
    provenance = Path("run/provenance.json")
    result = json.loads(provenance.read_text())
    assert result.pop("changes") == ["steps=2"] and result.pop(HASH) and result.pop(SEALED)
    provenance.write_text(json.dumps(result))
    refused(
        cli(*begun, "--resume"),
        2,
        "steps was 2 and is 30 now; resume it with its own (`netspace train --resume --out run`)",
    )
    assert cli("train", "--resume", "--out", "run").code == 0


def test_nothing_that_says_what_to_train(cli: Cli, tiny_zoo: Path) -> None:
    refused(cli("train", "--zoo", tiny_zoo), 2, "RECIPE is missing: a training begins with a recipe (space/chairs, ")
    refused(cli("train", "--resume", "--out", "gone"), 2, "gone is no run that could be resumed: give RECIPE")
    refused(
        cli("train", "space/quickstart"), 2, "--zoo is missing: name the zoo to learn from (`netspace zoo build` makes"
    )
    refused(cli("train", "space/quickstart", "--resume", "-o", "gone"), 2, "--zoo is missing")


@pytest.mark.parametrize("change", ["steps=4", "spaces.steps=4", "space", "zoo"])
def test_quickstart_takes_settings_of_its_two_recipes(cli: Cli, change: str) -> None:
    refused(cli("quickstart", "--set", change), 2, "takes zoo.KEY=VALUE or space.KEY=VALUE (such as space.steps=400)")
    refused(cli("quickstart", "--set", "space.stepz=4"), 2, "unknown setting 'stepz'")
    refused(cli("quickstart", "--set", "zoo.member.train=4"), 2, "unknown setting 'member'")
    refused(cli("quickstart", "--device", "abacus"), 1, "abacus")
    assert not list(Path().iterdir())
