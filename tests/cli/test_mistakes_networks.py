"""Networks and latents from elsewhere that `netspace zoo import`, `encode` and `decode` refuse, and code that is not run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import refused
from safetensors.torch import save_file

from netspace import archs
from netspace.commands.convert import resolve
from netspace.errors import NetspaceError
from netspace.io import read_json
from netspace.networks.spec import NetSpec
from netspace.space import Space
from netspace.training.setup import task_of, teacher
from netspace.zoo import Population, Zoo, write_zoo

Cli = Callable[..., Any]


def state_of(zoo: Path, **changes: Any) -> dict[str, torch.Tensor]:
    with Zoo(zoo) as opened:
        settings = {**opened.only().spec.settings, **changes}
    return dict(archs.build("lenetlike", **settings).state_dict())


def both(cli: Cli, zoo: Path, run: Path, file: str) -> list[Any]:
    before = zoo.read_bytes()
    done = [
        cli("zoo", "import", zoo, file, "--arch", "lenetlike"),
        cli("encode", file, "-o", "z.safetensors", "--run", run),
    ]
    assert zoo.read_bytes() == before and not Path("z.safetensors").exists()
    return done


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(cli: Cli, zoo_copy: Path, run_copy: Path, value: float) -> None:
    state = state_of(zoo_copy)
    state["fc2.bias"][3] = value
    save_file(state, "net.safetensors")
    for done in both(cli, zoo_copy, run_copy, "net.safetensors"):
        refused(done, 1, "fc2.bias", "finite")


def test_a_state_dict_of_another_shape(cli: Cli, zoo_copy: Path, run_copy: Path) -> None:
    save_file(state_of(zoo_copy, width=0.5), "wide.safetensors")
    torch.save({"a": torch.zeros(3)}, "other.pt")
    torch.save({"a": 3}, "none.pt")
    torch.save([torch.zeros(3)], "list.pt")
    Path("text.safetensors").write_text("hello")
    Path("empty.pt").write_bytes(b"")
    for file in ("wide.safetensors", "other.pt", "none.pt", "list.pt", "text.safetensors", "empty.pt"):
        for done in both(cli, zoo_copy, run_copy, file):
            refused(done, 1)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("ran",)


def test_a_pickle_that_would_run_code(cli: Cli, zoo_copy: Path, run_copy: Path) -> None:
    torch.save({"fc3.bias": Bomb()}, "bomb.pt")
    Path("bare.pt").write_bytes(pickle.dumps(Bomb()))
    Path("named.safetensors").write_bytes(pickle.dumps(Bomb()))
    for file in ("bomb.pt", "bare.pt", "named.safetensors"):
        for done in both(cli, zoo_copy, run_copy, file):
            refused(done, 1, file)
        assert not Path("ran").exists()
    shutil.copy("bomb.pt", run_copy / "checkpoints" / "last.pt")
    provenance = read_json(run_copy / "provenance.json", dict[str, Any])
    done = cli("train", run_copy / "config.yaml", "--zoo", provenance["zoo"], "--out", run_copy, "--resume")
    refused(done, 1, "last.pt")
    assert not Path("ran").exists()


def test_a_latent_that_does_not_fit(cli: Cli, run_copy: Path) -> None:
    bad = {
        "short": {"latent": torch.zeros(63)},
        "nan": {"latent": torch.full((64,), torch.nan)},
        "name": {"z": torch.zeros(64)},
    }
    for name, state in bad.items():
        save_file(state, f"{name}.safetensors")
    decode = ("decode", "-o", "net.safetensors", "--run", run_copy)
    refused(cli(*decode, "short.safetensors"), 1, "63", "64")
    refused(cli(*decode, "nan.safetensors"), 1, "finite")
    refused(cli(*decode, "name.safetensors"), 1, "latent", "z")
    refused(cli(*decode, "gone.safetensors"), 2, "gone.safetensors")
    assert not Path("net.safetensors").exists()


def test_a_member_that_diverged_has_no_weights(cli: Cli, tiny_zoo: Path, run_copy: Path) -> None:
    with Zoo(tiny_zoo) as zoo:
        group = zoo.only()
        preps, members = group.read(range(len(group))).numpy(), group.members.copy()
        preps[2] = 0
        members["status"][2], members["split"][2] = b"diverged", b""
        write_zoo(Path("zoo.h5"), zoo.header, {group.id: Population(group.spec, preps, members)})
    name, words = "lenetlike/0002", ("lenetlike/0002", "diverged", "no weights")
    shutil.copy("zoo.h5", tiny := Path("moved.h5"))
    refused(cli("diff", name, "best", "--zoo", tiny), 1, *words)
    refused(cli("zoo", "export", tiny, name, "-o", "net.safetensors"), 1, *words)
    refused(cli("compress", "fit", name, "--zoo", tiny, "-o", "small"), 1, *words)
    refused(cli("morph", "fit", name, "--zoo", tiny, "--recipe", "morph/digits", "-o", "morph"), 1, *words)
    with Zoo(tiny) as zoo:
        with pytest.raises(NetspaceError, match="diverged"):
            resolve(name, Space.load(run_copy), zoo)
        with pytest.raises(NetspaceError, match="diverged"):
            teacher(name, zoo, task_of(zoo, "cpu"))


# ---- code that a zoo names


STRANGER = """
from pathlib import Path
from torch import nn
Path("ran").touch()
def make(*, channels, classes, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size ** 2, classes))
"""


@pytest.fixture
def stranger(tmp_path: Path, tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo whose file names an architecture of a module that can be imported here."""
    (tmp_path / "stranger.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(archs, "_TRUSTED", set())
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    kwargs = (("channels", 1), ("classes", 10), ("image_size", 8))
    spec = NetSpec("stranger:make", kwargs, (1, 8, 8), ("1.weight", "1.bias"), ((10, 64), (10,)))
    with Zoo(tiny_zoo) as zoo:
        members = zoo.only().members[22:32].copy()
        preps = np.zeros((len(members), 4, 168), dtype=np.float32)
        write_zoo(tmp_path / "strange.h5", zoo.header, {"lenetlike": Population(spec, preps, members)})
    return tmp_path / "strange.h5"


def test_code_that_a_zoo_names_is_not_run(cli: Cli, stranger: Path, recipes: Path, run_copy: Path) -> None:
    assert cli("zoo", "info", stranger, "--json").json["archs"]["lenetlike"]["arch"] == "stranger:make"
    state = {"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)}
    save_file(state, "net.safetensors")
    for command in (
        ["zoo", "verify", stranger],
        ["train", recipes / "space.yaml", "--zoo", stranger, "--out", "run"],
        ["zoo", "import", stranger, "net.safetensors", "--arch", "lenetlike"],
    ):
        refused(cli(*command), 2, "--trust-arch", "stranger:make")
    space = read_json(run_copy / "space.json", dict[str, Any])
    space["archs"]["lenetlike"]["spec"]["arch"] = "stranger:make"
    (run_copy / "space.json").write_text(json.dumps(space))
    refused(cli("eval", run_copy), 2, "--trust-arch", "stranger:make")
    assert "stranger" not in sys.modules and not Path("ran").exists()


def test_trusted_code_is_run(cli: Cli, stranger: Path) -> None:
    done = cli("zoo", "verify", stranger, "--trust-arch", "stranger:make", "--sample", 2, "--json")
    assert "stranger" in sys.modules and Path("ran").exists()
    assert done.json["re_evaluated"] == 2 and "is stored as" in done.json["problems"][0]
