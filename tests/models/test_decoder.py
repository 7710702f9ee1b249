"""The decoder: the paper's size, its shapes at every step, and where decoded networks start."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from netspace.errors import UsageError
from netspace.models.decoders import ConvDecoder, DecoderConfig


@pytest.mark.parametrize(("rows", "parameters"), [(8, 2_875_394), (88, 4_680_194)])
def test_the_paper_decoder_has_its_number_of_parameters(rows: int, parameters: int) -> None:
    """NetSpace, for PReps of 8 x 10,000 (one architecture, CIFAR-10) and 88 x 10,000 (several) at E = 4096."""
    decoder = ConvDecoder(4096, (rows, 10_000))
    assert sum(value.numel() for value in decoder.parameters()) == parameters


@pytest.mark.parametrize("latent", [16, 64, 144, 256])
@pytest.mark.parametrize("size", [(4, 8), (8, 40), (12, 16)])
def test_any_prep_of_any_latent(latent: int, size: tuple[int, int]) -> None:
    preps = ConvDecoder(latent, size)(torch.randn(3, latent))
    assert preps.shape == (3, *size) and preps.isfinite().all()


def test_the_decoder_by_hand_in_float64() -> None:
    torch.manual_seed(0)
    latent, (rows, width) = 64, (8, 24)
    decoder = ConvDecoder(latent, (rows, width)).double()
    z = torch.randn(2, latent, dtype=torch.float64)

    def layer(x: torch.Tensor, conv: torch.nn.Conv2d) -> torch.Tensor:
        return F.leaky_relu(F.conv2d(x, conv.weight, conv.bias, stride=conv.stride, padding=1), 0.01)

    x = layer(z.reshape(2, 1, 8, 8), decoder.deepen)
    assert x.shape == (2, 256 * rows, 4, 4)
    x = layer(x.reshape(2, 128, rows, latent // 2), decoder.widen)
    assert x.shape == (2, width // 8, rows // 2, latent // 4)
    x = layer(x.reshape(2, latent // 8, rows // 2, width // 4), decoder.fill)
    assert x.shape == (2, 256, rows // 4, width // 8)
    x = F.conv2d(x, decoder.emit.weight, decoder.emit.bias, padding=1).reshape(2, rows, width)
    torch.testing.assert_close(decoder.values(z), x, rtol=1e-12, atol=1e-12)
    expected = x.float() * decoder.scale + decoder.bias  # the element-wise step is in float32 at least
    torch.testing.assert_close(decoder(z), expected, rtol=1e-6, atol=1e-9)


def test_members_of_a_batch_do_not_meet() -> None:
    torch.manual_seed(0)
    decoder, latents = ConvDecoder(64, (8, 24)).double(), torch.randn(4, 64).double()
    one_by_one = torch.cat([decoder.values(z[None]) for z in latents])
    torch.testing.assert_close(decoder.values(latents), one_by_one, rtol=1e-12, atol=1e-12)


def test_a_small_start_is_the_authors() -> None:
    torch.manual_seed(0)
    decoder = ConvDecoder(64, (16, 800))
    scale, bias = decoder.scale.detach(), decoder.bias.detach()
    assert float(scale.std()) == pytest.approx(1e-3, rel=0.05) and abs(float(scale.mean())) < 1e-4
    assert float(bias.min()) >= 0 and float(bias.max()) <= 1e-2
    assert float(bias.mean()) == pytest.approx(5e-3, rel=0.05)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_start_near_a_reference_is_so_far_around_it(share: float) -> None:
    torch.manual_seed(0)
    decoder = ConvDecoder(64, (8, 40), DecoderConfig(start="reference", share=share))
    reference, spread, latents = torch.randn(8, 40), torch.rand(8, 40) + 0.1, torch.randn(200, 64)
    with torch.no_grad():
        decoder.start_near(reference, spread, latents)
        away = (decoder(latents) - reference) / spread
    assert float(away.std()) == pytest.approx(share, rel=1e-3)
    assert torch.equal(decoder.bias, reference)
    assert float((away[0] - away[1]).abs().mean()) > 0.1 * share  # latents differ, networks too


@pytest.mark.parametrize("latent", [0, -16, 4, 32, 36, 100, 4095])
def test_other_latent_sizes_are_refused(latent: int) -> None:
    with pytest.raises(UsageError, match=rf"the square of a multiple of 4 \(16, 64, .*\), not {latent}"):
        ConvDecoder(latent, (4, 8))


def test_a_latent_of_another_space_is_refused() -> None:
    with pytest.raises(UsageError, match="a latent of 16 values was given; this space's have 64"):
        ConvDecoder(64, (4, 8))(torch.zeros(2, 16))


def test_its_settings_are_closed() -> None:
    for wrong in ({"start": "big"}, {"share": 0.0}, {"shear": 1.0}):
        with pytest.raises(ValidationError):
            DecoderConfig(**wrong)  # type: ignore[arg-type]


def test_recomputed_activations_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    decoder, latents = ConvDecoder(64, (8, 40)).double(), torch.randn(3, 64, dtype=torch.float64)
    gradients = []
    for recompute in (False, True):
        decoder.recompute = recompute
        gradients.append(torch.autograd.grad(decoder(latents).square().sum(), list(decoder.parameters())))
    for kept, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, kept, rtol=1e-12, atol=1e-12)


# ---- several architectures


def near(classes: int, size: tuple[int, int] = (8, 40)) -> ConvDecoder:
    torch.manual_seed(0)
    return ConvDecoder(64, size, DecoderConfig(start="reference"), classes)


def test_each_class_has_a_scale_and_bias_of_its_own() -> None:
    decoder, latents = near(3), torch.randn(5, 64)
    assert decoder.scale.shape == decoder.bias.shape == (3, 8, 40)
    ids = torch.tensor([2, 0, 1, 2, 0])
    decoded = decoder(latents, ids)
    for place, class_id in enumerate(ids.tolist()):  # as a decoder of that class alone
        alone = near(1)
        alone.load_state_dict(
            {**decoder.state_dict(), "scale": decoder.scale[class_id], "bias": decoder.bias[class_id]}
        )
        torch.testing.assert_close(decoded[place], alone(latents[place : place + 1])[0])
    others = decoder(latents, (ids + 1) % 3)
    assert all(not torch.allclose(one, two) for one, two in zip(decoded, others, strict=True))


def test_a_class_learns_its_own_scale_and_bias() -> None:
    decoder = near(3)
    decoder(torch.randn(4, 64), torch.tensor([0, 2, 2, 0])).square().sum().backward()
    for value in (decoder.scale, decoder.bias):
        assert value.grad is not None
        assert value.grad[0].any() and value.grad[2].any() and not value.grad[1].any()


def test_a_small_start_has_one_scale_for_all_as_the_paper() -> None:
    torch.manual_seed(0)
    several = ConvDecoder(64, (8, 40), classes=3)
    torch.manual_seed(0)
    single = ConvDecoder(64, (8, 40))
    assert several.scale.shape == several.bias.shape == (8, 40)
    latents = torch.randn(3, 64)
    for ids in (torch.tensor([0, 1, 2]), torch.tensor([2, 2, 2])):  # the architecture cuts out its own part
        assert torch.equal(several(latents, ids), single(latents))


def test_a_start_near_a_reference_of_each_class() -> None:
    decoder = near(2)
    reference, spread, latents = torch.randn(2, 8, 40), torch.rand(2, 8, 40) + 0.1, torch.randn(200, 64)
    with torch.no_grad():
        decoder.start_near(reference, spread, latents)
        for class_id in range(2):
            decoded = decoder(latents, torch.full((200,), class_id))
            away = (decoded - reference[class_id]) / spread[class_id]
            assert float(away.std()) == pytest.approx(0.3, rel=1e-3)
    assert torch.equal(decoder.bias, reference)
