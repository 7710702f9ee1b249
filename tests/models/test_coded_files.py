"""Networks in small files: every way there and back, sizes, and damaged files."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from netspace import archs
from netspace.errors import NetspaceError, UsageError
from netspace.io import read_tensors, write_tensors
from netspace.models.coded import CODED, DATA, Coded, load_compressed
from netspace.networks.rounding import Codes, round_rows, round_step
from netspace.networks.spec import NetSpec


def network() -> tuple[dict[str, Tensor], dict[str, Codes]]:
    """Return a state dict with tensors of all kinds, and codes of some."""
    torch.manual_seed(0)
    state = {
        "conv.weight": torch.randn(8, 3, 3, 3) * 0.1,
        "conv.bias": torch.randn(8) * 0.01,
        "norm.num_batches_tracked": torch.tensor(5),
        "half.weight": (torch.randn(20, 30) * 0.1).half(),
        "double": torch.randn(5, dtype=torch.float64),
        "nothing": torch.empty(0, 3),
        "strided": torch.randn(6, 5).t(),
        "scalar": torch.tensor(0.3),
        "mask": torch.tensor([True, False]),
        "large": torch.tensor([1e30, 1.0]),
    }
    state["tied.weight"] = state["half.weight"]
    codes = {
        "conv.weight": round_step(state["conv.weight"], 0.02),
        "half.weight": round_rows(state["half.weight"], 4),
        "nothing": round_rows(state["nothing"], 3),
        "strided": round_rows(state["strided"], 3),
        "scalar": round_step(state["scalar"], 0.01),
    }
    return state, codes


@pytest.fixture
def file(tmp_path: Path) -> Path:
    Coded.of(*network(), {"half.weight": "rounded", "double": "half", "large": "half"}).save(
        tmp_path / "net.safetensors"
    )
    return tmp_path / "net.safetensors"


def test_every_way_comes_back(file: Path) -> None:
    state, codes = network()
    loaded = Coded.load(file)
    restored = loaded.reconstruct()
    assert list(restored) == list(state) and loaded.tied == {"tied.weight": "half.weight"}
    for name, value in state.items():
        assert (restored[name].dtype, restored[name].shape) == (value.dtype, value.shape)
        code = codes.get(loaded.tied.get(name, name))
        expected = value if code is None else code.restore(value.shape, value.dtype)
        expected = value.half().double() if name == "double" else expected
        assert torch.equal(restored[name], expected), name
    assert restored["tied.weight"] is restored["half.weight"]
    assert loaded.sizes() == {
        "parameters_original": sum(value.numel() for value in state.values()) - 600,
        "parameters_represented": 216 + 600 + 30 + 1,
    }


@pytest.mark.parametrize("way", ["rounded", "coded"])
def test_one_way_for_all(tmp_path: Path, way: Any) -> None:
    state, codes = network()
    Coded.of(state, codes, way).save(tmp_path / "net.safetensors")
    first, second = Coded.of(state, codes, way).reconstruct(), Coded.load(tmp_path / "net.safetensors").reconstruct()
    assert all(torch.equal(first[name], second[name]) for name in state)


def test_sizes_are_those_of_files(tmp_path: Path) -> None:
    state, codes = network()
    for chosen in ({}, codes):
        coded = Coded.of(state, chosen)
        coded.save(tmp_path / "net.safetensors")
        content = (tmp_path / "net.safetensors").read_bytes()
        assert len(content) == coded.file_bytes() == coded.file_bytes(coded.payload())
        assert int.from_bytes(content[:8], "little") < 300
    rounded = Coded.of(
        {"w": torch.zeros(64, 1000)},
        {"w": Codes(torch.arange(64000).view(64, 1000).int() % 8 - 4, torch.ones(64))},
        "rounded",
    )
    assert 64_000 * 3 // 8 < rounded.file_bytes() < 64_000 * 3 // 8 + 64 * 2 + 500


def test_the_architecture_comes_back(tmp_path: Path) -> None:
    module = archs.build("lenetlike", channels=1, image_size=16)
    spec = NetSpec.from_module(module, "lenetlike", {"channels": 1, "image_size": 16}, (1, 16, 16))
    state = {name: value.detach() for name, value in module.named_parameters()}
    for tensors in (state, {**state, "more": torch.ones(1)}):
        Coded.of(tensors, {}, spec=spec, notes={"way": "x"}).save(tmp_path / "net.safetensors")
        loaded = Coded.load(tmp_path / "net.safetensors")
        assert loaded.spec == spec and loaded.notes == {"way": "x"}


def test_two_savings_are_equal(file: Path) -> None:
    Coded.load(file).save(file.parent / "again.safetensors")
    assert file.read_bytes() == (file.parent / "again.safetensors").read_bytes()


def test_codes_that_do_not_fit_are_told() -> None:
    state, codes = network()
    for given, way, why in (
        ({"other": codes["strided"]}, "coded", "no such tensor"),
        ({"conv.weight": codes["strided"]}, "coded", r"codes of shape \(5, 6\) were given for conv.weight"),
        ({"mask": round_step(torch.ones(2), 1.0)}, "coded", "for mask, a tensor of torch.bool"),
        ({}, {"conv.weight": "coded"}, "conv.weight was to be stored as 'coded', but it has no codes"),
        ({}, {"conv.weight": "zip"}, "stored as 'zip', but tensors are stored as raw, half, rounded, coded"),
    ):
        with pytest.raises(UsageError, match=why):
            Coded.of(state, given, way)  # type: ignore[arg-type]


def test_damaged_and_other_files_are_told(file: Path) -> None:
    content = file.read_bytes()
    for damaged in (content[:-10], content[:100], b"", content[:-5] + b"12345"):
        file.write_bytes(damaged)
        with pytest.raises(
            NetspaceError, match=r"net\.safetensors (was expected to be a safetensors file|is not as netspace wrote it)"
        ):
            Coded.load(file)
    write_tensors(file, {DATA: torch.ones(3)}, **{CODED: "9"})
    with pytest.raises(NetspaceError, match="of version 9; this netspace reads version 1"):
        load_compressed(file)
    write_tensors(file, {DATA: torch.ones(3)})
    with pytest.raises(NetspaceError, match="was expected to be a compressed network"):
        Coded.load(file)
    for path, why in ((file.parent, "is a folder"), (file.parent / "none", "does not exist")):
        with pytest.raises(UsageError, match=why):
            Coded.load(path)


def _altered(file: Path, **changes: Any) -> None:
    """Write the file with another index, by who knows how to write the hash."""
    payload = read_tensors(file)[0][DATA].numpy().tobytes()
    length = int.from_bytes(payload[:4], "little")
    index = {**json.loads(zlib.decompress(payload[4 : 4 + length])), **changes}
    short = zlib.compress(json.dumps(index).encode())
    data = len(short).to_bytes(4, "little") + short + payload[4 + length :]
    write_tensors(file, {DATA: torch.frombuffer(bytearray(data), dtype=torch.uint8)}, **{CODED: "1"})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"shapes": [[10**6, 10**6]] * 10}, r"it claims 10,000,000,000,000 values, more than"),
        ({"shapes": [[-1, 3]] * 10}, "not those that it names"),
        ({"names": ["a"] * 10}, "not those that it names"),
        ({"ways": [[0, 10**12]]}, "not those that it names"),
        ({"ways": [[0, 11]]}, "not those that it names"),
        ({"ways": [[0, 10]], "steps": []}, "longer than it says|not as long"),
        ({"types": [["complex1", 10]]}, "complex1"),
        ({"sections": [1, 2, 3, 4]}, "lengths of its parts"),
        ({"bits": []}, "integers of 0 bits"),
        ({"bits": [4, 4]}, "more bytes than its tensors"),
        ({"bits": [40]}, "integers of 40 bits"),
        ({"tied": {"x": "y"}}, "not those that it names"),
        ({"spec": {"arch": 3}}, "not the JSON of a network's spec"),
    ],
)
def test_claims_that_do_not_fit_are_refused(file: Path, changes: dict[str, Any], why: str) -> None:
    _altered(file)
    Coded.load(file)
    _altered(file, **changes)
    tracemalloc.start()
    with pytest.raises(
        NetspaceError, match=rf"net\.safetensors was expected to be a network of coded weights: .*({why})"
    ):
        Coded.load(file)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
