"""What a user can do wrong: one sentence on standard error, the right exit code, nothing run and nothing overwritten."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from netspace import archs
from netspace.spec import NetSpec
from netspace.store import Population, Zoo, write_zoo

Cli = Callable[..., Any]


def refused(done: Any, code: int, *words: str) -> str:
    """Checks that a command was refused in one sentence that has `words`."""
    sentence = str(done.sentence)
    assert done.code == code, (done.code, sentence)
    for word in words:
        assert word in sentence, sentence
    assert len(sentence) < 700
    return sentence


# ---- recipes and names


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
    ],
)
def test_wrong_zoo_settings(cli: Cli, recipes: Path, change: str, words: list[str]) -> None:
    refused(cli("zoo", "build", recipes / "zoo.yaml", "--out", "z.h5", "--set", change), 2, *words)
    assert not Path("z.h5").exists()


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


def test_unknown_setting_in_yaml(cli: Cli, zoo_settings: dict[str, Any]) -> None:
    Path("zoo.yaml").write_text(yaml.safe_dump({**zoo_settings, "batchsize": 3}))
    refused(cli("zoo", "build", "zoo.yaml", "--out", "z.h5"), 2, "batchsize", "batch_size", "zoo.yaml")


@pytest.mark.parametrize("text", ["a: [1", "- just\n- a list", "!!python/object/apply:os.mkdir ['ran']", "\x00"])
def test_a_recipe_that_is_none(cli: Cli, text: str) -> None:
    Path("zoo.yaml").write_text(text)
    refused(cli("zoo", "build", "zoo.yaml", "--out", "z.h5"), 2, "zoo.yaml")
    assert not Path("ran").exists()


def test_unknown_recipe(cli: Cli, tiny_zoo: Path) -> None:
    refused(cli("zoo", "build", "zoo/quickstrat"), 2, "zoo/quickstrat", "zoo/quickstart")
    refused(cli("train", "nothing.yaml", "--zoo", tiny_zoo), 2, "nothing.yaml")


def test_unknown_members_and_runs(cli: Cli, run_copy: Path) -> None:
    encode = ("encode", "-o", "z.safetensors", "--run", run_copy)
    refused(cli(*encode, "lenetlike/9999"), 2, "lenetlike/9999", "0035")
    refused(cli(*encode, "resnet8/0000"), 2, "resnet8", "lenetlike")
    refused(cli(*encode, "best:resnet8"), 2, "resnet8", "lenetlike")
    refused(cli(*encode, "finest"), 2, "finest", "lenetlike/0000")
    refused(cli(*encode, "gone.safetensors"), 2, "gone.safetensors")
    refused(cli("eval", run_copy, "--split", "tset"), 2, "tset", "test")
    refused(cli("interpolate", "--from", "best", "--to", "worst", "--steps", "1"), 2, "2 steps")
    refused(cli("eval", "runs/other"), 1, "runs/other", "run")
    refused(cli("report", "runs/other"), 1, "runs/other")
    refused(cli("eval", run_copy, "--zoo", "gone.h5"), 1, "gone.h5")
    refused(cli("eval", run_copy, "--device", "tpu"), 1, "tpu")
    assert not Path("z.safetensors").exists()


@pytest.mark.parametrize("command", ["eval", "report"])
def test_a_run_that_is_named_twice(cli: Cli, command: str) -> None:
    told = refused(cli(command, "one", "--run", "two"), 2, "one", "two")
    assert told == "the run was given twice, as one and as --run two: give it once"


def test_zoos_merged_from_nothing(cli: Cli, tiny_zoo: Path) -> None:
    refused(cli("zoo", "merge"), 2, "ZOO...")
    refused(cli("zoo", "merge", "-o", "out.h5"), 2, "ZOO...")
    refused(cli("zoo", "merge", "out.h5"), 2, "out.h5", "none was given")
    refused(cli("zoo", "merge", tiny_zoo), 2, str(tiny_zoo), "none was given")


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
        place = file["archs/lenetlike/preps"].id.get_chunk_info(35)
    whole[place.byte_offset + place.size // 2] ^= 4
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
    for place in random.integers(0, len(whole), 40):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(random.integers(8))
        Path("flipped.h5").write_bytes(flipped)
        done = cli("zoo", "info", "flipped.h5")
        if done.code:
            refused(done, 1, "flipped.h5")


def test_zoos_of_different_data_are_not_merged(cli: Cli, tiny_zoo: Path, recipes: Path) -> None:
    small = ("--set", "data.limit=200", "--set", "members={train: 2, val: 1, test: 1}", "--set", "epochs.last=1")
    assert cli("zoo", "build", recipes / "zoo.yaml", "--out", "other.h5", "--workers", 1, *small).code == 0
    refused(cli("zoo", "merge", "both.h5", tiny_zoo, "other.h5"), 1, "other.h5", "merged")
    Path("both.h5").write_text("mine")
    refused(cli("zoo", "merge", "both.h5", tiny_zoo), 2, "both.h5", "exists")
    assert Path("both.h5").read_text() == "mine"


# ---- networks from elsewhere


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
    provenance = json.loads((run_copy / "provenance.json").read_text())
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
    space = json.loads((run_copy / "space.json").read_text())
    space["archs"]["lenetlike"]["spec"]["arch"] = "stranger:make"
    (run_copy / "space.json").write_text(json.dumps(space))
    refused(cli("eval", run_copy), 2, "--trust-arch", "stranger:make")
    assert "stranger" not in sys.modules and not Path("ran").exists()


def test_trusted_code_is_run(cli: Cli, stranger: Path) -> None:
    done = cli("zoo", "verify", stranger, "--trust-arch", "stranger:make", "--sample", 2, "--json")
    assert "stranger" in sys.modules and Path("ran").exists()
    assert done.json["re_evaluated"] == 2 and "is stored as" in done.json["problems"][0]


# ---- what is there already, and what cannot be written


def test_another_recipe_at_the_same_place(cli: Cli, recipes: Path, zoo_copy: Path) -> None:
    before = zoo_copy.read_bytes()
    done = cli("zoo", "build", recipes / "zoo.yaml", "--out", zoo_copy, "--set", "seed=4")
    refused(done, 2, str(zoo_copy), "seed was 3 and is 4", "--out")
    assert zoo_copy.read_bytes() == before


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


def test_a_full_disk(cli: Cli, tiny_zoo: Path, run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("encode", "best", "-o", "z.safetensors").code == 0
    before = load_file("z.safetensors")["latent"]

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("netspace.runtime.os.fsync", full)
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
