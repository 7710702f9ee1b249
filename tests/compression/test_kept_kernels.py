"""Kernels that are kept for a compressed network's report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from netspace.compression.analyse import analyse
from netspace.compression.fit import fit
from netspace.compression.originals import save_kernels
from netspace.io import read_json
from netspace.models.compressed import Compressed
from netspace.networks.kernels import Kernels
from netspace.training.recipe import FitConfig


def test_of_a_large_network_only_the_kernels_of_one_layer_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, state = list[str](), {f"{name}.weight": torch.randn(6, 4, 3, 3) for name in "abc"}
    whole = Kernels._cut
    monkeypatch.setattr(
        Kernels, "_cut", lambda self, layer, weight: cut.append(layer.name) or whole(self, layer, weight)
    )
    save_kernels(tmp_path, Kernels.of(state), state, {name: value + 0.1 for name, value in state.items()})
    assert len(cut) == 2 and len({*cut}) == 1


def test_the_layer_of_the_median_error_is_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shapes = {"a": (4, 3, 3, 3), "b": (5, 20, 3, 3), "c": (6, 1, 1, 1), "d": (7, 2, 3)}
    state = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    kernels = Kernels.of(state)
    for errors, name, kept in (
        ({"a": 0.3, "b": 0.2, "c": 0.4, "d": 0.1}, "b", (64, 3, 3)),
        ({"a": 0.1, "b": 0.3, "c": 0.2, "d": 0.4}, "c", (6, 1, 1)),
        ({"a": 0.1, "b": 0.3, "c": 0.4, "d": 0.2}, "d", (14, 1, 3)),
    ):
        other = {key: value * (1 + errors[key[0]]) for key, value in state.items()}
        save_kernels(tmp_path, kernels, state, other)
        result = read_json((tmp_path / "kernels.json"), dict[str, Any])
        weight = state[f"{name}.weight"]
        assert result["layer"] == f"{name}.weight" and result["layers"] == 4
        assert abs(result["relative_error"] - errors[name]) < 1e-6
        assert result["count"] == weight.shape[0] * weight.shape[1]
        expected = weight.reshape(-1, *kept[1:])[: kept[0]]
        assert torch.equal(torch.tensor(result["original"]), expected)
        assert torch.equal(
            torch.tensor(result["reconstructed"]), other[f"{name}.weight"].reshape(-1, *kept[1:])[: kept[0]]
        )


def test_a_fit_and_an_analysis_keep_the_same(multi_zoo: Path, tmp_path: Path) -> None:
    config = FitConfig.model_validate({"predictor": {"hidden": 8}, "stages": [{"steps": 3, "kernels": 16}]})
    fit("best:resnet", tmp_path / "c", config, multi_zoo)
    file = tmp_path / "c" / "kernels.json"
    result = file.read_text()
    layer = json.loads(result)["layer"]
    state = Compressed.load(tmp_path / "c" / "compressed.safetensors").reconstruct()
    first = torch.tensor(json.loads(result)["reconstructed"][0])
    torch.testing.assert_close(first, state[layer][0, 0].view_as(first))
    file.unlink()
    analyse(tmp_path / "c" / "compressed.safetensors", "best:resnet", multi_zoo)
    again = read_json(file, dict[str, Any])
    assert again["layer"] == layer and again["original"] == json.loads(result)["original"]
