"""Mistakes that any command tells alike: one sentence on standard error, the right exit code, nothing overwritten.

Those with a command of its own are in `test_mistakes_*.py` beside.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import refused
from safetensors.torch import load_file

Cli = Callable[..., Any]


def test_unknown_members_and_runs(cli: Cli, run_copy: Path) -> None:
    encode = ("encode", "-o", "z.safetensors", "--run", run_copy)
    refused(cli(*encode, "lenetlike/9999"), 2, "lenetlike/9999", "0035")
    refused(cli(*encode, "resnet8/0000"), 2, "resnet8", "lenetlike")
    refused(cli(*encode, "best:resnet8"), 2, "resnet8", "lenetlike")
    refused(cli(*encode, "finest"), 2, "finest", "lenetlike/0000")
    refused(cli(*encode, "gone.safetensors"), 2, "gone.safetensors")
    refused(cli("eval", run_copy, "--split", "tset"), 2, "tset", "test")
    refused(cli("interpolate", "--from", "best", "--to", "worst", "--steps", "1"), 2, "--steps 1", "from 2 to")
    refused(cli("eval", "runs/other"), 1, "runs/other", "run")
    refused(cli("report", "runs/other"), 1, "runs/other")
    refused(cli("eval", run_copy, "--zoo", "gone.h5"), 1, "gone.h5")
    refused(cli("eval", run_copy, "--device", "tpu"), 1, "tpu")
    assert not Path("z.safetensors").exists()


@pytest.mark.parametrize("command", ["eval", "report"])
def test_a_run_that_is_named_twice(cli: Cli, command: str) -> None:
    result = refused(cli(command, "one", "--run", "two"), 2, "one", "two")
    assert result == "the run was given twice, as one and as --run two: give it once"


def test_no_run_at_all(cli: Cli) -> None:
    refused(cli("eval"), 1, "netspace train")
    refused(cli("encode", "best", "-o", "z.safetensors"), 1, "netspace train")


def test_json_tells_the_mistake_too(cli: Cli) -> None:
    done = cli("zoo", "info", "gone.h5", "--json")
    assert done.code == 1 and done.json == {"error": done.sentence}


def test_missing_arguments_and_options(cli: Cli) -> None:
    refused(cli("train", "space/quickstart"), 2, "--zoo")
    refused(cli("zoo", "info"), 2, "ZOO")
    refused(cli("zoo", "info", "x.h5", "--jsno"), 2, "--jsno")
    refused(cli("decode", "z.safetensors"), 2, "--out")


# ---- what cannot be written


def test_a_full_disk(cli: Cli, tiny_zoo: Path, run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("encode", "best", "-o", "z.safetensors").code == 0
    before = load_file("z.safetensors")["latent"]

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("netspace.files.os.fsync", full)
    refused(cli("encode", "worst", "-o", "z.safetensors"), 1, "z.safetensors", "No space left")
    refused(cli("zoo", "merge", "both.h5", tiny_zoo), 1, "both.h5", "No space left")
    refused(cli("decode", "z.safetensors", "-o", "net.safetensors"), 1, "net.safetensors", "No space left")
    assert torch.equal(load_file("z.safetensors")["latent"], before)
    assert sorted(path.name for path in Path().iterdir()) == ["runs", "z.safetensors"]


def test_a_place_that_cannot_be_written(cli: Cli, recipes: Path, tiny_zoo: Path, run_copy: Path) -> None:
    Path("file").write_text("mine")
    refused(cli("zoo", "build", recipes / "zoo.yaml", "--out", "file/z.h5"), 1, "file")
    refused(cli("zoo", "merge", "file/z.h5", tiny_zoo), 1, "file")
    refused(cli("encode", "best", "-o", "file/z.safetensors"), 1, "file")
    refused(cli("train", recipes / "space.yaml", "--zoo", tiny_zoo, "--out", "file"), 1, "file")
    refused(cli("train", recipes / "space.yaml", "--zoo", tiny_zoo, "--out", "file/run"), 1, "file")
    assert Path("file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(cli: Cli, recipes: Path, run_copy: Path) -> None:
    Path("closed").mkdir(mode=0o555)
    refused(cli("zoo", "build", recipes / "zoo.yaml", "--out", "closed/z.h5"), 1, "closed")
    refused(cli("encode", "best", "-o", "closed/z.safetensors"), 1, "closed")
