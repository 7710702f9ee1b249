"""The cost of rebuilding a network: work counted by hand, memory of known tensors, every kind of file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fits import MEMBER, settings, state_of
from safetensors.torch import save_file

from netspace import archs
from netspace.archs import ArchConfig
from netspace.compression import rebuild
from netspace.compression.fit import begin, fit
from netspace.compression.originals import find_original
from netspace.compression.rebuild import measured, rebuild_cost
from netspace.errors import UsageError
from netspace.hardware import PeakMemory
from netspace.models.coded import Coded
from netspace.models.coded_predictor import CodedPredictor
from netspace.models.compressed import Compressed
from netspace.networks.rounding import round_rows, round_step

Cli = Callable[..., Any]


def by_hand(compressed: Compressed) -> int:
    """Multiply-adds of a plain predictor whose embedding is multiplied once for each value of a coordinate."""
    linears, coordinates = list(compressed.predictor.linears), compressed.kernels.coordinates()
    width = 2 * compressed.predictor.config.embedding.count
    distinct = sum(len(set(column.tolist())) for column in coordinates.T)
    work = distinct * width * linears[0].out_features
    return work + len(coordinates) * sum(each.in_features * each.out_features for each in linears[1:])


def test_multiply_adds_are_those_counted_by_hand(tmp_path: Path) -> None:
    compressed = begin(state_of(), settings(), None)
    compressed.save(tmp_path / "c.safetensors")
    cost = rebuild_cost(tmp_path / "c.safetensors", runs=1)
    assert cost.rebuild.multiply_adds == by_hand(compressed) > 0
    assert cost.inference == [] and cost.rebuild.seconds > 0


def test_an_inference_is_counted_by_hand(tmp_path: Path, multi_zoo: Path) -> None:
    fit(MEMBER, tmp_path / "c", settings(), multi_zoo)
    cost = rebuild_cost(tmp_path / "c" / "compressed.safetensors", MEMBER, multi_zoo, runs=1)
    alone = rebuild_cost(tmp_path / "c" / "compressed.safetensors", runs=1)  # the file names its architecture
    one, many = cost.inference
    assert (one.batch, many.batch) == (1, 500)  # of 500 test images
    assert many.multiply_adds == 500 * one.multiply_adds
    assert [each.batch for each in alone.inference] == [1, rebuild.PICTURES]
    assert alone.inference[0].multiply_adds == one.multiply_adds == _of_modules(multi_zoo)
    assert many.peak_bytes > 100 * one.peak_bytes > 0


def _of_modules(zoo: Path) -> int:
    """The multiply-adds of one input, by the shapes that its layers are called with."""
    original, _ = find_original(MEMBER, zoo)
    counts: list[int] = []

    def count(layer: Any, _inputs: Any, output: torch.Tensor) -> None:
        positions = output.shape[2] * output.shape[3] if output.dim() == 4 else 1
        counts.append(layer.weight.numel() * positions)

    module = copy.deepcopy(original.module)
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(count)
    module(torch.zeros(1, *original.input_shape))
    return sum(counts)


@pytest.mark.parametrize("kind", ["quantised", "coded", "rounded", "coded predictor"])
def test_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    file, state = tmp_path / "c.safetensors", state_of()
    compressed = begin(state, settings(), None)
    if kind == "quantised":
        compressed.bits = 8
        compressed.save(file)
    elif kind == "coded predictor":
        tensors = compressed.tensors(compressed.predictor.state_dict())
        codes = {name: round_step(each, 0.01) for name, each in tensors.items() if each.dim() > 1}
        CodedPredictor.of(compressed, codes, frozenset()).save(file)
    else:
        way = "coded" if kind == "coded" else "rounded"
        Coded.of(state, {"0.weight": round_rows(state["0.weight"], 4)}, way).save(file)
    cost = rebuild_cost(file, runs=1).rebuild
    assert cost.multiply_adds == (by_hand(compressed) if kind in ("quantised", "coded predictor") else 0)
    assert cost.peak_bytes >= sum(value.nbytes for value in state.values())


def test_peak_memory_of_known_tensors_and_arrays() -> None:
    before = torch.zeros(1000)
    with PeakMemory() as memory:
        first = torch.zeros(1_000_000)  # 4 MB
        second = first + 1  # 8 MB at once
        del first
        third = second.view(1000, 1000) * 2  # a view is no memory, the product is
        del second
        fourth = np.zeros(5_000_000, dtype=np.uint8)  # 4 MB and 5 MB
        assert memory.alive == third.nbytes
        before.add_(1)
    assert memory.peak == pytest.approx(9_000_000, abs=50_000) and len(fourth)
    with PeakMemory() as memory:
        shared = torch.from_numpy(np.zeros(1_000_000, dtype=np.uint8)).view(10, -1)  # counts once
    assert memory.peak == pytest.approx(1_000_000, abs=50_000) and len(shared)


def test_the_median_of_runs_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 10.0, 11.0, 20.0, 22.0])  # runs of 5, 1 and 2 seconds
    monkeypatch.setattr(rebuild, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    calls: list[int] = []
    assert measured(lambda: calls.append(1), 3).seconds == 2.0
    assert len(calls) == 6


def test_the_command_tells_costs(cli: Cli, tmp_path: Path, multi_zoo: Path) -> None:
    fit(MEMBER, tmp_path / "c", settings(), multi_zoo)
    file = tmp_path / "c" / "compressed.safetensors"
    words = ("compress", "eval", file, MEMBER, "--zoo", multi_zoo)
    plain = cli(*words, "--json").json
    assert "rebuild" not in plain
    costs = cli(*words, "--rebuild", "--json").json
    assert {key: value for key, value in costs.items() if key != "rebuild"} == plain
    assert [each["batch"] for each in costs["rebuild"]["inference"]] == [1, 500] and costs["rebuild"]["runs"] == 5
    text = cli(*words, "--rebuild").out
    assert f"{costs['rebuild']['rebuild']['multiply_adds']:,}" in text and "an inference of 500" in text
    assert "rebuilding takes as long as" in text


def test_what_is_not_known_is_told(cli: Cli, tmp_path: Path) -> None:
    state = state_of()
    begin(state, settings(), None).save(tmp_path / "c.safetensors")
    save_file(state, tmp_path / "net.safetensors")
    assert (
        "give MODEL, or its state dict and --arch"
        in cli("compress", "eval", tmp_path / "c.safetensors", "--rebuild").out
    )
    mistake = cli("compress", "eval", tmp_path / "c.safetensors", "--input-shape", "2,5,5")
    assert mistake.code == 2 and "name it as MODEL" in mistake.sentence


def test_the_shape_of_a_file_s_inputs_is_asked_for(tmp_path: Path) -> None:
    kwargs = {"channels": 1, "image_size": 8, "classes": 3, "width": 0.25}
    state = archs.build("vanillacnn", **kwargs).state_dict()
    save_file(state, tmp_path / "net.safetensors")
    begin(dict(state), settings(), None).save(tmp_path / "c.safetensors")
    arch = ArchConfig(arch="vanillacnn", kwargs=kwargs)
    of = (tmp_path / "c.safetensors", str(tmp_path / "net.safetensors"), None, arch)
    with pytest.raises(UsageError, match="give --input-shape C,H,W"):
        rebuild_cost(*of, runs=1)
    cost = rebuild_cost(*of, input_shape=(1, 8, 8), runs=1)
    assert [each.batch for each in cost.inference] == [1, rebuild.PICTURES]
