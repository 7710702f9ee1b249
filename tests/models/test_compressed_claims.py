"""Compressed files that claim sizes which their own bytes cannot stand for: refused before anything of such a size is made."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from netspace.compression.fit import begin
from netspace.errors import NetspaceError
from netspace.io import read_tensors, write_tensors
from netspace.models.compressed import NOTE, Compressed
from netspace.training.recipe import FitConfig


@pytest.mark.parametrize(
    ("claim", "why"),
    [
        ({"predictor": {"hidden": 60_000}}, r"its predictor claims [\d,]+ values, more than its [\d,]+ bytes hold"),
        ({"predictor": {"layers": 10_000_000}}, "its predictor claims 10000000 layers, more than it has tensors"),
        (
            {"layers": [["conv.weight", [100_000, 100_000, 3, 3], False]]},
            r"its layers claim 90,000,000,000 values, 10000 times",
        ),
    ],
)
def test_what_a_file_cannot_hold_is_refused_before_it_is_made(tmp_path: Path, claim: dict[str, Any], why: str) -> None:
    path = tmp_path / "c.safetensors"
    state = {"conv.weight": torch.randn(4, 3, 3, 3), "conv.bias": torch.ones(4)}
    begin(state, FitConfig.model_validate({"predictor": {"hidden": 5}}), None).save(path)
    assert Compressed.load(path).reconstruct().keys() == state.keys()
    tensors, notes = read_tensors(path)
    note = json.loads(notes[NOTE])
    for key, value in claim.items():
        note[key] = {**note[key], **value} if isinstance(value, dict) else value
    write_tensors(path, tensors, **{NOTE: json.dumps(note)})  # by who knows how to write the hash
    tracemalloc.start()
    with pytest.raises(NetspaceError, match=rf"c\.safetensors was expected to be a compressed network, .*: {why}"):
        Compressed.load(path)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
