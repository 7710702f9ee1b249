"""Mistakes with `netspace zoo`: wrong recipes, broken files, what is there already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from helpers import refused

Cli = Callable[..., Any]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("sede=1", ["sede", "seed"]),
        ("optimizer.learning_rat=1", ["learning_rat", "learning_rate"]),
        ("seed=often", ["seed", "often"]),
        ("seed", ["key=value", "seed"]),
        ("prep_width=100", ["prep_width", "8"]),
        ("members.train=-1", ["members.train"]),
        ("archs.lenetlike.arch=resnet9", ["resnet9", "resnet8"]),
        ("data.name=digit", ["digit", "digits"]),
        ("archs.lenetlike.width=0", ["width"]),
        ("epochs.first=9", ["epoch"]),
        ("optimizer.learning_rate=.inf", ["optimizer.learning_rate", "finite", "inf"]),
        ("optimizer.weight_decay=.nan", ["optimizer.weight_decay", "finite", "nan"]),
        ("optimizer.momentum=.inf", ["optimizer.momentum", "finite", "inf"]),
    ],
)
def test_wrong_zoo_settings(cli: Cli, recipes: Path, change: str, words: list[str]) -> None:
    refused(cli("zoo", "build", recipes / "zoo.yaml", "--out", "z.h5", "--set", change), 2, *words)
    assert not Path("z.h5").exists()


def test_a_build_that_cannot_begin_leaves_nothing(cli: Cli, recipes: Path) -> None:
    build = ("zoo", "build", recipes / "zoo.yaml", "--out", "new/z.h5", "--set")
    refused(cli(*build, "archs.lenetlike.kwargs.depth=3"), 2, "depth", "width")
    refused(cli(*build, "archs.lenetlike.kwargs.classes=3"), 2, "classes=3", "10 classes")
    refused(cli(*build, "teacher={arch: resnet8, kwargs: {depth: 3}}"), 2, "resnet8", "depth")
    assert not list(Path().iterdir())


def test_unknown_setting_in_yaml(cli: Cli, zoo_settings: dict[str, Any]) -> None:
    Path("zoo.yaml").write_text(yaml.safe_dump({**zoo_settings, "batchsize": 3}))
    refused(cli("zoo", "build", "zoo.yaml", "--out", "z.h5"), 2, "batchsize", "batch_size", "zoo.yaml")


@pytest.mark.parametrize("text", ["a: [1", "- just\n- a list", "!!python/object/apply:os.mkdir ['ran']", "\x00"])
def test_a_recipe_that_is_none(cli: Cli, text: str) -> None:
    Path("zoo.yaml").write_text(text)
    refused(cli("zoo", "build", "zoo.yaml", "--out", "z.h5"), 2, "zoo.yaml")
    assert not Path("ran").exists()


def test_another_recipe_at_the_same_place(cli: Cli, recipes: Path, zoo_copy: Path) -> None:
    before = zoo_copy.read_bytes()
    done = cli("zoo", "build", recipes / "zoo.yaml", "--out", zoo_copy, "--set", "seed=4")
    refused(done, 2, str(zoo_copy), "seed was 3 and is 4", "--out")
    assert zoo_copy.read_bytes() == before


def test_zoos_merged_from_nothing(cli: Cli, tiny_zoo: Path) -> None:
    refused(cli("zoo", "merge"), 2, "ZOO...")
    refused(cli("zoo", "merge", "-o", "out.h5"), 2, "ZOO...")
    refused(cli("zoo", "merge", "out.h5"), 2, "out.h5", "none was given")
    refused(cli("zoo", "merge", tiny_zoo), 2, str(tiny_zoo), "none was given")


def test_a_folder_in_place_of_the_file_to_write(cli: Cli, recipes: Path, tiny_zoo: Path) -> None:
    (folder := Path("folder")).mkdir()
    for out in (".", "/", folder):
        refused(cli("zoo", "build", recipes / "zoo.yaml", "-o", out), 1, f"{out} is a folder without finished shards")
        refused(cli("zoo", "merge", out, tiny_zoo), 2, f"{out} exists already")
        refused(cli("zoo", "align", tiny_zoo, "-o", out), 2, f"{out} exists already")
    assert [*Path().iterdir(), *folder.iterdir()] == [folder]


def test_options_of_clusters_without_a_cluster(cli: Cli, recipes: Path) -> None:
    build = ("zoo", "build", recipes / "zoo.yaml", "-o", "z.h5")
    refused(cli(*build, "--shards", 4), 2, "--shards is for the shards that --ray or --slurm deals out", "--shard I/N")
    refused(cli(*build, "--slurm-set", "a=b"), 2, "--slurm-set is for the shards that --ray or --slurm deals out")
    assert not list(Path().iterdir())


def test_zoos_of_different_data_are_not_merged(cli: Cli, tiny_zoo: Path, recipes: Path) -> None:
    small = ("--set", "data.limit=200", "--set", "members={train: 2, val: 1, test: 1}", "--set", "epochs.last=1")
    assert cli("zoo", "build", recipes / "zoo.yaml", "--out", "other.h5", "--workers", 1, *small).code == 0
    refused(cli("zoo", "merge", "both.h5", tiny_zoo, "other.h5"), 1, "other.h5", "merged")
    Path("both.h5").write_text("mine")
    refused(cli("zoo", "merge", "both.h5", tiny_zoo), 2, "both.h5", "exists")
    assert Path("both.h5").read_text() == "mine"


# ---- broken zoos


def test_zoo_of_another_version(cli: Cli, zoo_copy: Path) -> None:
    with h5py.File(zoo_copy, "r+") as file:
        file.attrs["netspace_zoo"] = 7
    refused(cli("zoo", "info", zoo_copy), 1, "version 1", "version 7")
    with h5py.File("plain.h5", "w") as file:
        file["x"] = 1
    refused(cli("zoo", "info", "plain.h5"), 1, "plain.h5", "no zoo")
    Path("text.h5").write_text("not HDF5")
    refused(cli("zoo", "info", "text.h5"), 1, "text.h5")


def test_truncated_zoo(cli: Cli, tiny_zoo: Path, recipes: Path) -> None:
    whole = tiny_zoo.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        Path("cut.h5").write_bytes(whole[:length])
        refused(cli("zoo", "info", "cut.h5"), 1, "cut.h5")
    refused(cli("train", recipes / "space.yaml", "--zoo", "cut.h5", "--out", "run"), 1, "cut.h5")
    refused(cli("zoo", "merge", "both.h5", tiny_zoo, "cut.h5"), 1, "cut.h5")
    assert not Path("both.h5").exists() and not Path("run").exists()


def test_byte_flipped_zoo(cli: Cli, tiny_zoo: Path, run_copy: Path) -> None:
    whole = bytearray(tiny_zoo.read_bytes())
    with h5py.File(tiny_zoo) as file:
        index = file["archs/lenetlike/preps"].id.get_chunk_info(35)
    whole[index.byte_offset + index.size // 2] ^= 4
    Path("flipped.h5").write_bytes(whole)
    done = cli("zoo", "verify", "flipped.h5", "--sample", 0, "--json")
    assert done.code == 1 and not done.json["ok"]
    assert len(done.json["problems"]) == 1 and "lenetlike/0035" in done.json["problems"][0]
    refused(cli("eval", run_copy, "--zoo", "flipped.h5"), 1, "lenetlike/0035", "corrupted")
    refused(cli("zoo", "merge", "both.h5", "flipped.h5"), 1, "lenetlike/0035")
    assert not Path("both.h5").exists()


@pytest.mark.parametrize("seed", range(3))
def test_flipped_bytes_anywhere_never_end_in_a_traceback(cli: Cli, tiny_zoo: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    whole = tiny_zoo.read_bytes()
    for index in random.integers(0, len(whole), 40):
        flipped = bytearray(whole)
        flipped[index] ^= 1 << int(random.integers(8))
        Path("flipped.h5").write_bytes(flipped)
        done = cli("zoo", "info", "flipped.h5")
        if done.code:
            refused(done, 1, "flipped.h5")
