"""The decoder with hidden layers, against a few independent lines; where it starts; what it refuses."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from netspace.config import validate
from netspace.errors import UsageError
from netspace.models.decoders import DecoderConfig, MLPConfig, MLPDecoder
from netspace.training.recipe import SpaceRecipe


@pytest.mark.parametrize("depth", [1, 3])
def test_it_is_relu_layers_and_a_matrix_scaled_and_shifted_element_by_element(depth: int) -> None:
    decoder = MLPDecoder(12, (4, 8), MLPConfig(kind="mlp", hidden=20, depth=depth)).double()
    latents = torch.randn(5, 12, dtype=torch.float64)
    values = latents
    for layer in decoder.inner:
        values = torch.relu(values @ layer.weight.T + layer.bias)  # type: ignore[operator, union-attr]
    expected = (values @ decoder.emit.weight.T).reshape(5, 4, 8) * decoder.scale + decoder.bias
    torch.testing.assert_close(decoder(latents), expected, rtol=1e-6, atol=1e-9)
    assert len(decoder.inner) == depth


def test_decoded_networks_start_around_the_reference() -> None:
    torch.manual_seed(0)
    decoder = MLPDecoder(64, (8, 40), MLPConfig(kind="mlp", start="reference", share=0.2))
    reference, spread, latents = torch.randn(8, 40), torch.rand(8, 40) + 0.5, torch.randn(256, 64)
    decoder.start_near(reference, spread, latents)
    away = (decoder(latents) - reference) / spread
    assert away.std().item() == pytest.approx(0.2, rel=1e-5)
    assert torch.equal(decoder(torch.zeros(1, 64))[0], reference)


def test_settings_of_other_decoders_are_refused() -> None:
    with pytest.raises(UsageError, match=r"decoder\.rank is for decoder.kind linear"):
        MLPDecoder(12, (4, 8), MLPConfig(kind="mlp", rank=3))
    with pytest.raises(UsageError, match=r"start emitted is for decoder\.kind coordinate"):
        MLPDecoder(12, (4, 8), MLPConfig(kind="mlp", start="emitted"))
    assert MLPDecoder.refusal(13, DecoderConfig()) is None
    with pytest.raises((UsageError, ValidationError), match="hidden"):
        validate(
            SpaceRecipe,
            {"latent": 64, "encoder": {"kind": "probe"}, "decoder": {"kind": "linear", "hidden": 3}},
            "here",
        )
