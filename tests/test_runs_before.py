"""Run folders that earlier versions wrote are read, and decode to the same networks.

`runs_before/` holds two of them, written when one and several architectures had models and steps of their own: `one` by the
convolutional encoder, `multi` by the probe encoder and with a ClassId head. `expected.safetensors` is what that version
said of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from netspace.space import Space

RUNS = Path(__file__).parent / "runs_before"


@pytest.mark.parametrize("name", ["one", "multi"])
def test_an_earlier_run_decodes_and_encodes_as_it_did(name: str) -> None:
    expected, space = load_file(RUNS / name / "expected.safetensors"), Space.load(RUNS / name)
    networks = space.decode_all(expected["latents"])
    assert torch.equal(networks.class_ids, expected["class_ids"])
    torch.testing.assert_close(networks.preps, expected["preps"])
    arch = space.family[0]
    latent = space.encode_preps(torch.full((1, *arch.size), 0.1), arch.id)
    torch.testing.assert_close(latent, expected["encoded"])
