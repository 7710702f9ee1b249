"""The command line on several architectures: from recipes to figures; a killed training goes on to the same space."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import same_run, train_and_die
from safetensors.torch import load_file

Cli = Callable[..., Any]


@pytest.fixture
def recipe(multi_settings: dict[str, Any]) -> Path:
    path = Path("space.yaml")
    path.write_text(yaml.safe_dump(multi_settings))
    return path


def test_from_recipes_to_figures(cli: Cli, multi_zoo_settings: dict[str, Any], recipe: Path) -> None:
    few = {"members": {"train": 2, "val": 1, "test": 2}}
    for config in multi_zoo_settings["archs"].values():
        config.pop("members", None)
    Path("zoo.yaml").write_text(yaml.safe_dump({**multi_zoo_settings, **few, "epochs": {"first": 1, "last": 1}}))
    built = cli("zoo", "build", "zoo.yaml", "--out", "zoo.h5", "--workers", 1, "--json")
    assert built.code == 0 and Path("zoo.teacher.h5").is_file()
    archs = built.json["archs"]
    assert {name: each["class_id"] for name, each in archs.items()} == {"lenet": 0, "vanilla": 1, "resnet": 2}
    assert cli("zoo", "verify", "zoo.h5", "--json").json["ok"]
    words = ["--set", "steps=4", "--set", "log_every=2", "--out", "runs/mine", "--json"]
    trained = cli("train", recipe, "--zoo", "zoo.h5", *words)
    assert trained.code == 0 and trained.json["best"]["step"] == 4
    assert trained.json["best"].keys() >= {"val_error", "val_classid", "val_between_vanilla", "val_accuracy_predicted"}
    result = cli("eval", "--json")
    assert result.code == 0 and result.json["members"] == 6 and list(result.json["per_class"]) == list(archs)
    assert 0 <= result.json["classid_accuracy"] <= 1 and sum(map(sum, result.json["confusion"])) == 6
    assert result.json["between"].keys() == {"vanilla"} and result.json["baselines"].keys() >= {
        "nearest",
        "noise",
        "average",
    }


def test_a_killed_training_goes_on_to_the_same_weights(
    cli: Cli, recipe: Path, multi_zoo: Path, multi_run: Path
) -> None:
    words = ["train", str(recipe), "--zoo", str(multi_zoo), "--out", "run"]
    train_and_die(words, Path("run/checkpoints/last.pt"), 13)
    assert cli(*words, "--resume").code == 0
    same_run(Path("run"), multi_run)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["eval"], "between the ends"),
        (["interpolate", "--from", "best:lenet", "--to", "best:resnet", "--steps", "3"], "architecture"),
        (["sample", "--arch", "declared", "--count", "3"], "not seen in training, at 0.667 between the ends"),
        (["optimize", "--from", "best:lenet", "--from", "noise:vanilla", "--steps", "2", "-o", "b"], "vanilla"),
    ],
)
def test_without_json_a_person_reads(cli: Cli, unseen_run: Path, tmp_path: Path, command: list[str], said: str) -> None:
    run = shutil.copytree(unseen_run, tmp_path / "runs" / "unseen")
    done = cli(*command, "--run", run)
    assert done.code == 0 and said in done.out and "{" not in done.out and "nan" not in done.out.lower()


def test_encode_and_decode_as_another_architecture(cli: Cli, multi_run: Path) -> None:
    assert cli("encode", "lenet/0000", "-o", "z.safetensors", "--run", multi_run).code == 0
    result = cli("decode", "z.safetensors", "-o", "net.safetensors", "--run", multi_run, "--arch", "vanilla", "--json")
    assert result.code == 0 and result.json["arch"] == "vanilla"
    assert sum(value.numel() for value in load_file("net.safetensors").values()) == result.json["parameters"] == 1933


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["sample"], 2, ["lenet, vanilla, resnet", "--arch"]),
        (["sample", "--arch", "resnet9"], 2, ["'resnet9'", "did you mean 'resnet'"]),
        (["optimize", "--from", "noise"], 2, ["noise:lenet"]),
        (["encode", "nobody/0000", "-o", "z.safetensors"], 2, ["'nobody'", "lenet, vanilla, resnet"]),
    ],
)
def test_mistakes(cli: Cli, multi_run: Path, words: list[str], code: int, said: list[str]) -> None:
    done = cli(*words, "--run", multi_run)
    assert done.code == code and all(word in done.sentence for word in said), done.sentence


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("multi.counts.vanila=2", ["'vanila'", "did you mean 'vanilla'"]),
        ("multi.counts.lenet=0", ["smallest architecture", "lenet, vanilla, resnet"]),
        ("multi.counts.vanilla=9", ["9 training members of vanilla", "has 5"]),
        ("multi.teacher=gone.h5", ["gone.h5", "does not exist"]),
        ("multi.alpha=2", ["multi.alpha"]),
        ("multi.batch=1", ["multi.batch", "batches"]),
        ("networks=4", ["networks (4)", "3 classes"]),
        ("loss.lines=1", ["loss.lines is for one architecture"]),
    ],
)
def test_wrong_settings(cli: Cli, recipe: Path, multi_zoo: Path, change: str, said: list[str]) -> None:
    done = cli("train", recipe, "--zoo", multi_zoo, "--out", "run", "--set", change)
    assert done.code in (1, 2) and all(word in done.sentence for word in said), done.sentence
    assert not Path("run/config.yaml").exists()
