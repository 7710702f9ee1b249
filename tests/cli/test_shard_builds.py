"""Shards that are built by themselves, one of them killed, and read by every command as one zoo."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import same_run

from netspace.zoo import Population, Shard, Zoo, parts_folder, write_zoo

Cli = Callable[..., Any]
PATIENCE = 120.0  # seconds until a test gives up waiting


@pytest.fixture
def divided(zoo_settings: dict[str, Any], recipes: Path) -> Path:
    """A recipe of 18 networks in single runs."""
    zoo_settings["members"] = {"train": 14, "val": 2, "test": 2}
    zoo_settings["epochs"] = {"first": 1, "last": 3}
    zoo_settings["fused"], zoo_settings["precision"] = 1, "float32"
    path = recipes / "divided.yaml"
    path.write_text(yaml.safe_dump(zoo_settings))
    return path


def test_shards_are_built_apart_and_are_the_whole_zoo(cli: Cli, divided: Path, tmp_path: Path) -> None:
    folder, killed = Path("folder"), Path("folder/shard-2-of-3.h5")
    for index in (3, 1):
        result = cli("zoo", "build", divided, "--shard", f"{index}/3", "-o", folder, "--workers", 1, "--json").json
        assert result["shard"] == f"{index}/3" and result["complete"] and result["members"] == 6
        assert result["path"] == f"folder/shard-{index}-of-3.h5"
    words = ["zoo", "build", str(divided), "--shard", "2/3", "-o", str(folder), "--workers", "1"]
    process = subprocess.Popen([sys.executable, "-m", "netspace", *words], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + PATIENCE
    while not list(parts_folder(killed).glob("part-*.h5")):
        assert process.poll() is None and time.monotonic() < end, process.communicate()[1]
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not killed.exists()
    refused = cli("zoo", "info", folder)
    assert refused.code == 1 and "shard-2-of-3.h5 of folder is not finished" in refused.err
    partial = cli("zoo", "info", folder, "--partial", "--json").json
    assert partial["members"] == 12 and partial["shards"] == 2 and not partial["complete"]
    assert cli(*words).code == 0
    assert cli("zoo", "build", divided, "-o", "whole.h5", "--workers", 1).code == 0
    with Zoo("whole.h5") as whole, Zoo(folder) as zoo:
        assert zoo.content_hash == whole.content_hash and len(zoo) == 18
        for group, same in zip(zoo.archs.values(), whole.archs.values(), strict=True):
            np.testing.assert_array_equal(group.read(range(len(group))), same.read(range(len(same))))
    assert sorted(path.name for path in folder.iterdir()) == [f"shard-{index}-of-3.h5" for index in (1, 2, 3)]
    info = cli("zoo", "info", folder, "--json").json
    assert info["shards"] == 3 and info["complete"] and info["splits"] == {"train": 14, "val": 2, "test": 2}
    assert ", 3 shards" in cli("zoo", "info", folder).out
    verified = cli("zoo", "verify", folder, "--sample", 2, "--json").json
    assert verified["ok"] and verified["checked"] == 18
    assert cli("zoo", "merge", "merged.h5", folder, "--json").json["content_hash"] == info["content_hash"]
    assert cli(*words, "--json").json["shard"] == "2/3"  # nothing is left to do


def test_a_space_of_a_folder_is_that_of_the_file(cli: Cli, recipes: Path, tiny_zoo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with Zoo(tiny_zoo) as zoo:
        group = zoo.only()
        for index in range(3):
            rows, shard = np.arange(index, len(group), 3), Shard(index + 1, 3)
            part = Population(group.spec, group.read(rows).numpy(), group.members[rows])
            write_zoo(folder / shard.file_name, zoo.header, {group.id: part}, shard)
    for zoo_path, run in ((folder, "of-folder"), (tiny_zoo, "of-file")):
        words = ["--zoo", zoo_path, "--out", run, "--set", "steps=2", "--set", "validate_every=2"]
        assert cli("train", recipes / "space.yaml", *words).code == 0
    same_run(Path("of-folder"), Path("of-file"))


def test_shards_that_cannot_be_built_are_one_sentence(cli: Cli, divided: Path) -> None:
    def refused(*words: object) -> str:
        result = cli("zoo", "build", divided, *words)
        assert result.code == 2 and result.err.count("\n") == 1
        assert not Path("folder").exists()
        return str(result.err)

    for text in ("0/3", "4/3", "3", "a/b", "/"):
        assert f"a shard is I/N, from 1/N to N/N, such as 3/10; found {text!r}" in refused(
            "--shard", text, "-o", "folder"
        )
    assert "41 shards were asked for of a zoo of 18 training runs: ask for at most 18" in refused(
        "--shard", "1/41", "-o", "folder"
    )
    assert "only a whole zoo can be aligned" in refused("--shard", "1/2", "-o", "folder", "--set", "align=true")
    Path("file").write_text("")
    assert "file is a file, but a shard is written into a folder" in refused("--shard", "1/2", "-o", "file")
