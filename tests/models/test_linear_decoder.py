"""The linear decoder: one matrix, or two factors, before every element's own scale and bias."""

from __future__ import annotations

import pytest
import torch

from netspace.models.decoders import DecoderConfig, LinearDecoder


@pytest.mark.parametrize("rank", [None, 3])
def test_it_is_a_matrix_scaled_and_shifted_element_by_element(rank: int | None) -> None:
    decoder = LinearDecoder(12, (4, 8), DecoderConfig(kind="linear", rank=rank)).double()
    latents = torch.randn(5, 12, dtype=torch.float64)
    matrix = decoder.emit.weight if decoder.reduce is None else decoder.emit.weight @ decoder.reduce.weight
    expected = (latents @ matrix.T).reshape(5, 4, 8) * decoder.scale + decoder.bias
    torch.testing.assert_close(decoder(latents), expected, rtol=1e-6, atol=1e-9)
    assert torch.linalg.matrix_rank(matrix) == (rank or 12)


@pytest.mark.parametrize("rank", [None, 8])
def test_decoded_networks_start_around_the_reference(rank: int | None) -> None:
    torch.manual_seed(0)
    decoder = LinearDecoder(64, (8, 40), DecoderConfig(kind="linear", start="reference", rank=rank, share=0.2))
    reference, spread, latents = torch.randn(8, 40), torch.rand(8, 40) + 0.5, torch.randn(256, 64)
    decoder.start_near(reference, spread, latents)
    away = (decoder(latents) - reference) / spread
    assert away.std().item() == pytest.approx(0.2, rel=1e-5)
    assert torch.equal(decoder(torch.zeros(1, 64))[0], reference)


def test_architectures_have_scales_and_biases_of_their_own() -> None:
    decoder = LinearDecoder(16, (4, 8), DecoderConfig(kind="linear", start="reference"), classes=3)
    references, spread = torch.randn(3, 4, 8), torch.ones(3, 4, 8)
    decoder.start_near(references, spread, torch.randn(9, 16))
    assert torch.equal(decoder(torch.zeros(3, 16), torch.tensor([2, 0, 1])), references[[2, 0, 1]])


def test_a_rank_keeps_large_networks_cheap() -> None:
    whole = LinearDecoder(256, (16, 10_000), DecoderConfig(kind="linear"))
    factors = LinearDecoder(256, (16, 10_000), DecoderConfig(kind="linear", rank=32))
    sizes = [sum(value.numel() for value in each.parameters()) for each in (whole, factors)]
    assert sizes == [258 * 160_000, 34 * 160_000 + 256 * 32]
