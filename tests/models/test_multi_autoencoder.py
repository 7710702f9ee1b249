"""Encoder, decoder and ClassId head for several architectures: what a step and what a user gets from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from netspace.models.autoencoder import AutoEncoder, build_autoencoder, layer_spread
from netspace.models.decoders import DecoderConfig
from netspace.models.encoders import ConvEncoder, EncoderConfig
from netspace.networks.family import ArchClass, Family
from netspace.networks.prep import pack, unpack
from netspace.space import Space

KINDS = [(kind, start) for kind in ("conv", "probe") for start in ("small", "reference")]


@pytest.fixture(scope="module")
def family(unseen_run: Path) -> Family:
    """Four architectures; the two in the middle never shown."""
    return Space.load(unseen_run).family


def examples(family: Family) -> dict[int, Tensor]:
    torch.manual_seed(0)
    return {place: pack(torch.randn(6, each.parameters) * 0.1, each.size) for place, each in enumerate(family)}


def build(family: Family, kind: str, start: str, preps: dict[int, Tensor] | None, seed: int = 0) -> AutoEncoder:
    torch.manual_seed(seed)
    model = build_autoencoder(
        64,
        EncoderConfig(kind=kind, probes=3, hidden=8),
        DecoderConfig(start=start),
        family,
        probes=None if preps is None else torch.randn(3, 1, 8, 8),
        examples=preps,
        references=None if preps is None else {place: each[0] for place, each in preps.items()},
    )
    assert model.head is not None
    return model


@pytest.mark.parametrize(("kind", "start"), KINDS)
def test_a_step_decodes_networks_and_points_between(family: Family, kind: str, start: str) -> None:
    preps = examples(family)
    model = build(family, kind, start, preps)
    groups = [(0, preps[0][:2]), (3, preps[3][:3])]
    pairs, share = torch.tensor([[0, 1, 1], [2, 4, 4]]), torch.tensor([1 / 3, 2 / 3, 0.0])
    ids = torch.tensor([0, 0, 3, 3, 3, 1, 2, 0])
    decoded, logits = model(groups, pairs, share, ids)
    assert decoded.shape == (8, *family.size) and logits.shape == (8, 4)
    latents = torch.cat([model.encoder(preps[0][:2], 0), model.encoder(preps[3][:3], 3)])
    slow = [latents[a] * (1 - gamma) + latents[b] * gamma for a, b, gamma in zip(*pairs.tolist(), share, strict=True)]
    points = torch.cat([latents, torch.stack(slow)])
    torch.testing.assert_close(decoded, model.decoder(points, ids), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(logits, model.head(points), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(logits[7], logits[1])  # a share of 0 is the first of the pair
    (decoded.square().sum() + logits.square().sum()).backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in model.parameters())


def test_without_pairs_there_are_the_networks_alone(family: Family) -> None:
    preps = examples(family)
    model = build(family, "probe", "reference", preps)
    none = torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0)
    decoded, logits = model([(3, preps[3])], *none, torch.full((6,), 3))
    assert decoded.shape == (6, *family.size) and logits.shape == (6, 4)


def test_the_head_reads_class_ids_and_the_largest_logit_wins(family: Family) -> None:
    model = build(family, "conv", "small", examples(family))
    latents = torch.randn(5, 64)
    assert model.head is not None
    assert torch.equal(model.class_ids(latents), model.head(latents).argmax(-1))


@pytest.mark.parametrize("kind", ["conv", "probe"])
def test_each_class_has_the_spread_of_its_own_layers(family: Family, kind: str) -> None:
    preps = examples(family)
    model = build(family, kind, "reference", preps)
    assert model.spread.shape == (4, *family.size)
    for place, each in enumerate(family):
        wanted = layer_spread(preps[place], each.spec)
        torch.testing.assert_close(model.spread[place, : each.size[0]], wanted)
        assert (model.spread[place].flatten()[each.parameters :] == 1).all()  # padding and rows below


def test_networks_start_around_the_reference_of_their_class(family: Family) -> None:
    """Of those never shown too: around the reference that they were given."""
    preps = examples(family)
    model = build(family, "probe", "reference", preps)
    with torch.no_grad():
        latents = torch.cat([model.encoder(preps[place], place) for place in (0, 3)])
        for place, each in enumerate(family):
            decoded = unpack(model.decoder(latents, torch.full((12,), place)), each.parameters)
            spread = unpack(model.spread[place], each.parameters)
            away = (decoded - unpack(preps[place][0], each.parameters)) / spread
            assert 0.2 < float(away.std()) < 0.4


def test_what_was_never_shown_sets_no_scale_of_the_encoder(family: Family) -> None:
    preps = examples(family)
    other = {**preps, 1: preps[1] * 7, 2: preps[2] + 1}
    first, second = (build(family, "probe", "reference", each) for each in (preps, other))
    for name, value in first.encoder.state_dict().items():
        assert torch.equal(value, second.encoder.state_dict()[name]), name


def test_weights_loaded_into_an_unmeasured_model_give_the_same(family: Family) -> None:
    preps = examples(family)
    for kind in ("conv", "probe"):
        first, second = build(family, kind, "reference", preps), build(family, kind, "reference", None, 1)
        second.load_state_dict(first.state_dict())
        latents = [model.encoder(preps[3], 3) for model in (first, second)]
        assert torch.equal(*latents)
        ids = torch.tensor([0, 1, 2, 3, 3, 3])
        assert torch.equal(first.decoder(latents[0], ids), second.decoder(latents[0], ids))
        assert torch.equal(first.head(latents[0]), second.head(latents[0]))


def test_a_family_of_one_needs_no_head(family: Family) -> None:
    alone = Family([ArchClass(family[0].id, family[0].nets, family[0].size)])
    model = build_autoencoder(64, EncoderConfig(), DecoderConfig(), alone)
    assert model.head is None and model.spread.shape == alone.size


@pytest.mark.parametrize("pad", [True, False])
def test_preps_of_several_architectures_are_padded_to_the_largest_height(family: Family, pad: bool) -> None:
    model = build_autoencoder(64, EncoderConfig(pad=pad), DecoderConfig(), family)
    assert isinstance(model.encoder, ConvEncoder) and model.encoder.rows == (family.rows if pad else None)
    alone = build_autoencoder(64, EncoderConfig(pad=pad), DecoderConfig(), Family([family[0]]))
    assert isinstance(alone.encoder, ConvEncoder) and alone.encoder.rows is None
