"""The coordinate decoder: a network from coordinates of tokens to weights, conditioned on a latent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from netspace.errors import UsageError
from netspace.models.autoencoder import AutoEncoder, build_autoencoder
from netspace.models.decoders import CoordinateConfig, CoordinateDecoder
from netspace.models.encoders import EncoderConfig
from netspace.networks.family import ArchClass, Family
from netspace.networks.prep import pack, unpack
from netspace.networks.tokens import POSITIONS, SIZES
from netspace.space import Space

SETTINGS = [(start, way) for start in ("reference", "emitted") for way in ("basis", "modulated")]


@pytest.fixture(scope="module")
def family(multi_run: Path) -> Family:
    return Space.load(multi_run).family


def examples(family: Family, count: int = 6) -> dict[int, Tensor]:
    torch.manual_seed(0)
    return {
        class_id: pack(torch.randn(count, each.parameters) * 0.1, each.size) for class_id, each in enumerate(family)
    }


def build(family: Family, start: str, way: str, preps: dict[int, Tensor] | None = None, **more: object) -> AutoEncoder:
    torch.manual_seed(0)
    preps = examples(family) if preps is None else preps
    config = CoordinateConfig.model_validate(
        {"kind": "coordinate", "start": start, "conditioning": way, "hidden": 16, "reference_steps": 5, **more}
    )
    references = {class_id: each[0] for class_id, each in preps.items()}
    encoder = EncoderConfig(kind="probe", probes=3, hidden=8)
    return build_autoencoder(64, encoder, config, family, torch.randn(3, 1, 8, 8), preps, references)


def decoder_of(model: AutoEncoder) -> CoordinateDecoder:
    assert isinstance(model.decoder, CoordinateDecoder)
    return model.decoder


@pytest.mark.parametrize(("start", "way"), SETTINGS)
def test_a_network_decodes_alike_alone_and_among_others(family: Family, start: str, way: str) -> None:
    decoder = decoder_of(build(family, start, way)).double()
    latents, ids = torch.randn(5, 64, dtype=torch.float64), torch.tensor([2, 0, 2, 1, 2])
    together = decoder(latents, ids)
    assert together.shape == (5, *family.size)
    for row, class_id in enumerate(ids.tolist()):
        alone = decoder(latents[row : row + 1], torch.tensor([class_id]))[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-9, atol=1e-12)
    (together.square().sum()).backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in decoder.parameters())


def test_a_basis_is_a_product_of_features_and_a_matrix_that_is_linear_in_the_latent(family: Family) -> None:
    decoder = decoder_of(build(family, "reference", "basis")).double()
    latents = torch.randn(2, 64, dtype=torch.float64)
    tokens, embedded = decoder._tokens(1)
    features = decoder.trunk(embedded.double())
    matrix = decoder.head.weight.view(decoder.side**2, 16, 64)  # value, feature, latent
    values = torch.einsum("nd,tde,me->mtn", features, matrix, latents)
    flat = torch.stack([each.flatten()[tokens.index] for each in values])
    assert decoder.bias is not None
    expected = pack(flat, family.size) * decoder.scale[1] + decoder.bias[1]
    torch.testing.assert_close(decoder(latents, torch.tensor([1, 1])), expected, rtol=1e-6, atol=1e-8)


def test_a_rank_bounds_the_coefficients(family: Family) -> None:
    decoder = decoder_of(build(family, "emitted", "basis", rank=3)).double()
    latents = torch.randn(20, 64, dtype=torch.float64)
    decoded = unpack(decoder(latents, torch.zeros(20, dtype=torch.int64)), family[0].parameters)
    reference = unpack(decoder(torch.zeros_like(latents[:1]), torch.tensor([0])), family[0].parameters)
    assert torch.linalg.matrix_rank(decoded - reference, rtol=1e-4) == 3  # values are float32


def test_modulation_is_film_of_every_normalised_input(family: Family) -> None:
    decoder = decoder_of(build(family, "reference", "modulated", blocks=1)).double()
    latents, trunk = torch.randn(2, 64, dtype=torch.float64), decoder.trunk
    _, embedded = decoder._tokens(0)
    features = []
    for latent in latents:
        x = trunk.first(embedded.double())
        for index in range(2):
            scale, shift = trunk.films[index](latent).chunk(2)
            normed = torch.nn.functional.layer_norm(x, (16,), trunk.norms[index].weight, trunk.norms[index].bias)
            y = torch.relu(normed * (1 + scale) + shift)
            x = x + trunk.blocks[0](y) if index == 0 else y
        features.append(x)
    torch.testing.assert_close(trunk(embedded.double(), latents), torch.stack(features), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("way", ["basis", "modulated"])
def test_decoded_networks_start_around_the_references(family: Family, way: str) -> None:
    preps = examples(family, 64)
    model = build(family, "reference", way, preps, share=0.2)
    for class_id, arch in enumerate(family):
        latents = model.encoder(preps[class_id], class_id)
        decoded = model.decoder(latents, torch.full((64,), class_id))
        away = unpack(decoded, arch.parameters) - unpack(preps[class_id][0], arch.parameters)
        assert 0.05 < (away / 0.1).std().item() < 0.6  # the examples have a standard deviation of 0.1


@pytest.mark.parametrize("start", ["reference", "emitted"])
def test_tensors_that_never_vary_do_not_widen_the_start(family: Family, start: str) -> None:
    """Numbers of 0 in all networks: decoded to the reference's own, and no reason to go further from it elsewhere."""
    preps, constant = examples(family, 64), {}
    for class_id, arch in enumerate(family):
        names = zip(arch.spec.names, arch.spec.sizes, strict=True)
        biases = torch.cat([torch.full((size,), name.endswith("bias")) for name, size in names])
        constant[class_id] = pack(unpack(preps[class_id], arch.parameters).masked_fill(biases, 0), arch.size)
    decoders = [decoder_of(build(family, start, "basis", each)) for each in (preps, constant)]
    if start == "emitted":
        assert float(decoders[1].scale.detach()) == pytest.approx(float(decoders[0].scale.detach()), rel=0.3)
        return
    flat = unpack(decoders[1](torch.randn(8, 64), torch.full((8,), class_id)), arch.parameters)
    assert (flat[:, biases] == 0).all() and flat[:, ~biases].std() > 0


def test_an_emitted_reference_comes_near_the_references(family: Family) -> None:
    preps = {class_id: each[:1].expand(6, -1, -1) for class_id, each in examples(family).items()}
    model = build(family, "emitted", "basis", preps, hidden=64, reference_steps=400, share=1e-6)
    missed, whole = 0.0, 0.0
    for class_id, arch in enumerate(family):
        decoded = unpack(model.decoder(torch.zeros(1, 64), torch.tensor([class_id])), arch.parameters)
        target = unpack(preps[class_id][:1], arch.parameters)
        missed, whole = missed + (decoded - target).square().sum().item(), whole + target.square().sum().item()
    assert missed < 0.5 * whole


def test_an_emitted_reference_has_nothing_of_one_architecture(family: Family) -> None:
    model = build(family, "emitted", "basis")
    sizes = {family.size[0] * family.size[1], *(arch.parameters for arch in family)}
    assert not any(value.numel() in sizes or len(family) in value.shape for value in model.decoder.parameters())
    assert not model.decoder.elementwise()


def alone(arch: ArchClass) -> Family:
    return Family([replace(arch, trained=False)])


def test_an_architecture_of_the_family_decodes_alike_by_its_size(family: Family) -> None:
    decoder = decoder_of(build(family, "emitted", "basis"))
    latents = torch.randn(2, 64)
    by_class = unpack(decoder(latents, torch.tensor([1, 1])), family[1].parameters)
    resized = decoder.resized(alone(family[1]))
    torch.testing.assert_close(unpack(resized(latents), family[1].parameters), by_class)
    assert resized.outside(family[1], [family[1]]) is None
    problem = resized.outside(family[2], [family[0]])
    assert problem is not None and problem.startswith("sizes outside the trained range (")


def test_a_table_of_references_knows_no_other_sizes(family: Family) -> None:
    decoder = decoder_of(build(family, "reference", "basis"))
    with pytest.raises(
        UsageError, match=r"need decoder.start: emitted, but this space was trained with start: reference"
    ):
        decoder.resized(alone(family[0]))


def test_its_settings() -> None:
    def refused(**settings: object) -> str | None:
        return CoordinateDecoder.refusal(64, CoordinateConfig.model_validate({"kind": "coordinate", **settings}))

    assert refused(start="reference") is None and refused(start="emitted") is None
    assert refused(start="small") == "decoder.kind coordinate takes start: reference or emitted"
    assert refused(start="reference", rank=4) is None
    problem = "decoder.rank is at most latent, and not for conditioning: modulated"
    assert refused(start="reference", rank=65) == refused(start="emitted", rank=4, conditioning="modulated") == problem


def test_frequencies_of_relative_positions_and_sizes_are_settings(family: Family) -> None:
    """More of them tell more apart: a reference is emitted more exactly."""
    few, more = (
        decoder_of(build(family, "emitted", "basis", **each))
        for each in ({}, {"relative_frequencies": 24, "size_frequencies": 24})
    )
    positions, sizes = len(POSITIONS), len(SIZES)
    assert more.embedding.size - few.embedding.size == 2 * ((24 - 8) * positions + (24 - 4) * sizes)
    tokens, embedded = more.tokens_for(family[2])
    assert embedded.shape == (len(tokens.coordinates), more.embedding.size)
