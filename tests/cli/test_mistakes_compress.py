"""Mistakes with `netspace compress`: files that are none, what does not go together, outputs that exist, full disks."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import refused, small_disk
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from netspace.compression.fit import reconstruct
from netspace.compression.originals import find_original
from netspace.io import read_tensors, write_tensors

Cli = Callable[..., Any]
FILE = "c/compressed.safetensors"
SHORT = ("--set", "predictor.hidden=8", "--set", "stages=[{steps: 2, kernels: 16}]")


@pytest.fixture(scope="module")
def fitted(multi_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small fit's folder, which no test writes into."""
    from netspace.compression.fit import fit
    from netspace.training.recipe import FitConfig

    out = tmp_path_factory.mktemp("fit") / "c"
    settings = {"predictor": {"hidden": 8}, "stages": [{"steps": 2, "kernels": 16}]}
    fit("best:resnet", out, FitConfig.model_validate(settings), multi_zoo)
    return out


@pytest.fixture(autouse=True)
def here(fitted: Path) -> Iterator[None]:
    """The fit's folder as `c`; it is the same afterwards."""
    Path("c").symlink_to(fitted)
    before = {path.name: path.read_bytes() for path in fitted.iterdir()}
    yield
    assert {path.name: path.read_bytes() for path in fitted.iterdir()} == before


@pytest.fixture
def network(multi_zoo: Path) -> dict[str, torch.Tensor]:
    return find_original("best:resnet", multi_zoo)[0].state


def test_files_that_are_cut_or_something_else(cli: Cli, fitted: Path, network: dict[str, torch.Tensor]) -> None:
    whole = (fitted / "compressed.safetensors").read_bytes()
    for length in (0, 8, 300, len(whole) // 2, len(whole) - 1):
        Path("cut.safetensors").write_bytes(whole[:length])
        refused(cli("compress", "reconstruct", "cut.safetensors", "-o", "out.safetensors"), 1, "cut.safetensors")
    save_file(network, "plain.safetensors")
    result = refused(cli("compress", "eval", "plain.safetensors"), 1, "plain.safetensors")
    assert result.endswith("as `netspace compress fit` writes: it has no 'netspace_compressed'")
    refused(
        cli("compress", "eval", "c"), 2, "c is a folder: give the compressed network in it, c/compressed.safetensors"
    )
    assert not Path("out.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "9"}, "a compressed network of version 9; this reads 1, 2, 3 and 4"),
        ({"version": None}, "it has no 'version'"),
        ({"layers": []}, "it has no layers"),
        ({"kind": "random"}, "'random' is no order of kernels"),
        ({"names": ["conv1.weight"]}, "its tensors are not those that it names"),
        ({"predictor": {"width": 3}}, "was not written by this version of netspace: unknown setting 'width'"),
        ({"spec": "{}"}, "was not written by this version of netspace: not the JSON of a network's spec"),
        ({"side": 5}, "Error(s) in loading state_dict for Predictor"),
    ],
)
def test_notes_that_do_not_fit_the_tensors(cli: Cli, change: dict[str, Any], words: str) -> None:
    with safe_open(FILE, "pt") as file:
        note = json.loads(file.metadata()["netspace_compressed"]) | change
    note = {key: value for key, value in note.items() if key != "version" or value is not None}
    save_file(load_file(FILE), "odd.safetensors", metadata={"netspace_compressed": json.dumps(note)})
    refused(cli("compress", "reconstruct", "odd.safetensors", "-o", "out.safetensors"), 1, "odd.safetensors", words)
    assert not Path("out.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("predictor.linears.0.bias", torch.full((8,), torch.nan), "linears.0.bias holds values that are not finite"),
        ("norm.conv1.weight", torch.ones(2), "conv1.weight has 3 filters and norms of another number"),
        ("order.conv1.weight", torch.tensor([255], dtype=torch.uint8), "the order of conv1.weight leaves kernels out"),
        ("rest.conv1.bias", None, "its tensors are not those that it names"),
    ],
)
def test_tensors_that_cannot_be(cli: Cli, name: str, value: torch.Tensor | None, words: str) -> None:
    tensors, notes = read_tensors(FILE)
    assert name in tensors
    tensors = {
        key: value if key == name else stored for key, stored in tensors.items() if key != name or value is not None
    }
    write_tensors(Path("odd.safetensors"), tensors, **notes)
    refused(cli("compress", "eval", "odd.safetensors"), 1, "odd.safetensors", words)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("ran",)


def test_networks_that_are_none(cli: Cli, network: dict[str, torch.Tensor]) -> None:
    torch.save({"a": Bomb()}, "bomb.pt")
    Path("bare.pt").write_bytes(pickle.dumps(Bomb()))
    torch.save({"state_dict": network, "ema": network}, "checkpoint.pt")
    save_file({**network, "fc.bias": network["fc.bias"] * torch.nan}, "nan.safetensors")
    fit = ("compress", "fit", "-o", "d", *SHORT)
    for file in ("bomb.pt", "bare.pt"):
        result = refused(cli(*fit, file), 1, file, "of which nothing was run", "save `model.state_dict()` alone")
        assert "weights_only" not in result and not Path("ran").exists()
    refused(cli(*fit, "checkpoint.pt"), 1, "holds 2 of them (state_dict, ema): name one of them by --key")
    refused(cli(*fit, "nan.safetensors"), 1, "fc.bias of nan.safetensors holds values that are not finite")
    refused(cli("compress", "analyse", FILE, "nan.safetensors"), 1, "fc.bias of nan.safetensors")
    refused(
        cli(*fit, FILE), 2, "is a compressed network: give a network, or what `netspace compress reconstruct` makes"
    )
    refused(cli(*fit, "model.ckpt"), 2, "no zoo is at hand", "a state-dict file (.safetensors, .pt, .pth)")
    assert not Path("d").exists()


def test_a_mask_of_minus_infinity_is_a_value(cli: Cli, network: dict[str, torch.Tensor]) -> None:
    save_file({**network, "mask": torch.full((2, 2), -torch.inf)}, "masked.safetensors")
    assert cli("compress", "fit", "masked.safetensors", "-o", "d", *SHORT).code == 0
    reconstruct(Path("d/compressed.safetensors"), Path("back.safetensors"))
    assert (load_file("back.safetensors")["mask"] == -torch.inf).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("layers=['conv9*']", ["no weight matches 'conv9*'", "conv1.weight"]),
        ("stages=[]", ["setting stages", "a list of at least 1 is expected (found: [])"]),
        ("stages=[{steps: 1, reconstruction: 0}]", ["setting stages.0", "all terms of a stage are 0"]),
        ("seed=99999999999999999999", ["setting seed", "less than"]),
        (
            "predictor.embedding.base=0",
            ["setting predictor.embedding.base", "a number above 0, or one of smooth, rough"],
        ),
        ("predictor.embedding.base=.inf", ["predictor.embedding.base", "a number above 0"]),
        ("predictor.embedding.base=ruogh", ["predictor.embedding.base", "one of smooth, rough", "'ruogh'"]),
    ],
)
def test_settings_that_cannot_be(cli: Cli, multi_zoo: Path, change: str, words: list[str]) -> None:
    fit = ("compress", "fit", "best:resnet", "--zoo", multi_zoo, "-o", "new/d", *SHORT)
    result = refused(cli(*fit, "--set", change), 2, *words)
    assert "group of" not in result and not Path("new").exists()


def test_outputs_that_exist_are_kept(cli: Cli) -> None:
    Path("mine.safetensors").write_text("mine")
    for command in ("reconstruct", "quantise"):
        for out in ("mine.safetensors", FILE, "c"):
            result = refused(cli("compress", command, FILE, "-o", out), 2)
            assert result == f"{out} exists already: choose another --out, so that nothing is lost"
    refused(cli("compress", "reconstruct", FILE, "-o", "net.pt"), 2, "name it net.safetensors")
    refused(cli("compress", "reconstruct", FILE, "-o", "mine.safetensors/x"), 1, "mine.safetensors/x", "written")
    assert Path("mine.safetensors").read_text() == "mine" and not Path("net.pt").exists()


def test_a_full_disk_leaves_nothing_half_written(cli: Cli, multi_zoo: Path) -> None:
    with small_disk(512):
        refused(cli("compress", "reconstruct", FILE, "-o", "net.safetensors"), 1, "net.safetensors", "too large")
        refused(cli("compress", "quantise", FILE, "-o", "q.safetensors"), 1, "q.safetensors", "too large")
        refused(cli("compress", "fit", "best:resnet", "--zoo", multi_zoo, "-o", "d", *SHORT), 1, "d/", "too large")
    assert sorted(path.name for path in Path().iterdir()) == ["c", "d"]
    assert [path.name for path in Path("d").iterdir()] == ["network.json"]
    assert cli("compress", "fit", "best:resnet", "--zoo", multi_zoo, "-o", "d", *SHORT).code == 0


def test_memory_that_runs_out(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(_path: Path) -> None:
        torch.empty(1 << 50)

    monkeypatch.setattr("netspace.models.compressed.Compressed.load", greedy)
    refused(cli("compress", "eval", FILE), 1, "memory ran out", "take fewer at once")
