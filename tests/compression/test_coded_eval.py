"""`compress eval` and `reconstruct` of files of coded weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from netspace.compression.fit import evaluate, reconstruct
from netspace.models.coded import Coded
from netspace.networks.rounding import round_rows


def test_files_of_coded_weights_are_read(tmp_path: Path) -> None:
    state = {"conv.weight": torch.randn(8, 4, 3, 3), "conv.bias": torch.ones(8)}
    coded = Coded.of(state, {"conv.weight": round_rows(state["conv.weight"], 4)})
    coded.save(tmp_path / "small.safetensors")
    figures = evaluate(tmp_path / "small.safetensors")
    assert figures.bytes_file == coded.file_bytes() and figures.bytes_original == 296 * 4
    assert (figures.parameters_original, figures.parameters_represented) == (296, 288)
    unset = ("parameters_predictor", "bits", "order", "order_bytes_paper")
    assert all(key in figures.model_dump(exclude_unset=True) and getattr(figures, key) is None for key in unset)
    reconstruct(tmp_path / "small.safetensors", tmp_path / "net.safetensors")
    written = load_file(tmp_path / "net.safetensors")
    assert all(torch.equal(written[name], value) for name, value in coded.reconstruct().items())
