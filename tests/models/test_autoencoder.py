"""Encoder and decoder put together from settings; the layers' spread."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from netspace import archs
from netspace.models.autoencoder import AutoEncoder, build_autoencoder, layer_spread
from netspace.models.decoders import DecoderConfig
from netspace.models.encoders import ConvEncoder, EncoderConfig, ProbeEncoder
from netspace.networks.batch import NetBatch
from netspace.networks.family import ArchClass, Family
from netspace.networks.prep import height, pack, unflatten, unpack
from netspace.networks.spec import NetSpec

SETTINGS = {"channels": 1, "image_size": 8, "classes": 5, "width": 0.5}
WIDTH = 400


@pytest.fixture(scope="module")
def nets() -> NetBatch:
    skeleton = archs.skeleton("lenetlike", SETTINGS, (1, 8, 8))
    return NetBatch(skeleton, NetSpec.from_module(skeleton, "lenetlike", SETTINGS, (1, 8, 8)), "loop")


def example(nets: NetBatch, count: int = 5) -> Tensor:
    count_p = nets.spec.num_parameters
    flat = torch.randn(count, count_p, generator=torch.Generator().manual_seed(0)) * 0.1
    return pack(flat, (height(count_p, WIDTH), WIDTH))


def build(nets: NetBatch, kind: str, start: str, preps: Tensor | None, latent: int = 64, **more: object) -> AutoEncoder:
    torch.manual_seed(0)
    size = height(nets.spec.num_parameters, WIDTH), WIDTH
    return build_autoencoder(
        latent,
        EncoderConfig(kind=kind, probes=3, hidden=8, **more),  # type: ignore[arg-type]
        DecoderConfig(start=start),  # type: ignore[arg-type]
        Family([ArchClass("lenetlike", nets, size)]),
        probes=None if preps is None else torch.randn(3, 1, 8, 8),
        examples=None if preps is None else {0: preps},
        references=None if preps is None else {0: preps[0]},
    )


def both(model: AutoEncoder, preps: Tensor) -> tuple[Tensor, Tensor]:
    """Latents and decoded PReps."""
    latents = model.encoder(preps)
    return latents, model.decoder(latents)


def test_layer_spread_is_each_tensors_deviation_over_the_zoo(nets: NetBatch) -> None:
    preps = example(nets)
    spread = layer_spread(preps.double(), nets.spec)
    assert spread.shape == preps.shape[1:]
    held = unflatten(unpack(preps.double(), nets.spec.num_parameters), nets.spec)
    found = unflatten(unpack(spread, nets.spec.num_parameters), nets.spec)
    for name, values in held.items():
        slow = (values - values.mean()).square().mean().sqrt()
        torch.testing.assert_close(found[name], slow.expand(found[name].shape), rtol=1e-12, atol=1e-12)
    assert (spread.flatten()[nets.spec.num_parameters :] == 1).all()  # padding


def test_layer_spread_of_what_never_varies_is_1() -> None:
    spec = NetSpec("x", (), (1,), ("a", "b", "t"), ((2, 2), (3,), ()))
    flat = torch.tensor([[1.0, 1, 1, 1, 0, 2, 4, 5]] * 2)
    spread = layer_spread(pack(flat, (4, 8)), spec)
    assert spread[0, :4].tolist() == [1] * 4 and spread[0, 7] == 1 and spread[0, 4] == pytest.approx((8 / 3) ** 0.5)


def constant_biases(nets: NetBatch) -> tuple[Tensor, Tensor]:
    """Return networks whose biases are all 0, as PReps, and which of their parameters (P,) are biases."""
    preps, parameters = example(nets), nets.spec.num_parameters
    names = zip(nets.spec.names, nets.spec.sizes, strict=True)
    biases = torch.cat([torch.full((size,), name.endswith("bias")) for name, size in names])
    return pack(unpack(preps, parameters).masked_fill(biases, 0), preps.shape[1:]), biases


def test_networks_start_with_the_references_values_where_nothing_varies(nets: NetBatch) -> None:
    """Other tensors as if all varied: around the reference by a share of their spread."""
    preps, biases = constant_biases(nets)
    decoded = {}
    for name, each in (("constant", preps), ("varied", example(nets))):
        model = build(nets, "probe", "reference", each)
        flat = unpack(model.decoder(torch.randn(5, 64)), nets.spec.num_parameters).detach()
        decoded[name] = flat - unpack(each[0], nets.spec.num_parameters)
    assert (decoded["constant"][:, biases] == 0).all() and decoded["varied"][:, biases].std() > 0
    assert decoded["constant"][:, ~biases].std() == pytest.approx(float(decoded["varied"][:, ~biases].std()), rel=0.3)
    padding = model.decoder.scale.flatten()[nets.spec.num_parameters :]
    assert (padding > 0).all()  # as ever


@pytest.mark.parametrize("kind", ["conv", "probe"])
@pytest.mark.parametrize("start", ["small", "reference"])
def test_the_forward_pass_is_both_ways(nets: NetBatch, kind: str, start: str) -> None:
    preps = example(nets)
    model = build(nets, kind, start, preps)
    assert isinstance(model.encoder, {"conv": ConvEncoder, "probe": ProbeEncoder}[kind])
    latents = model.encoder(preps)
    none = torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0)
    decoded, logits = model([(0, preps)], *none, torch.zeros(5, dtype=torch.int64))
    assert latents.shape == (5, 64) and decoded.shape == preps.shape and logits is None
    torch.testing.assert_close(decoded, model.decoder(latents))
    assert model.class_ids(latents).tolist() == [0] * 5
    torch.testing.assert_close(model.spread, layer_spread(preps, nets.spec))
    decoded.square().sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in model.parameters())


def test_a_training_step_decodes_networks_and_what_lies_between_pairs(nets: NetBatch) -> None:
    preps = example(nets)
    model = build(nets, "conv", "reference", preps)
    pairs, gamma = torch.tensor([[0, 1], [2, 3]]), torch.tensor([0.0, 0.25])
    with torch.no_grad():
        both_kinds, _ = model([(0, preps)], pairs, gamma, torch.zeros(7, dtype=torch.int64))
        decoded, between = both_kinds[:5], both_kinds[5:]
        latents = model.encoder(preps)
        alone = model.decoder(latents)
        middle = model.decoder(0.75 * latents[1] + 0.25 * latents[3])
    torch.testing.assert_close(decoded, alone)
    torch.testing.assert_close(between[0], alone[0])
    torch.testing.assert_close(between[1], middle.squeeze(0))


def test_a_start_near_the_reference_lies_around_it(nets: NetBatch) -> None:
    preps = example(nets)
    with torch.no_grad():
        decoded = both(build(nets, "conv", "reference", preps), preps)[1]
    away = (decoded - preps[0]) / layer_spread(preps, nets.spec)
    assert float(away.std()) == pytest.approx(0.3, rel=0.05)


def test_weights_loaded_into_an_unmeasured_model_give_the_same(nets: NetBatch) -> None:
    preps = example(nets)
    for kind in ("conv", "probe"):
        first, second = build(nets, kind, "reference", preps), build(nets, kind, "reference", None)
        second.load_state_dict(first.state_dict())
        for a, b in zip(both(first, preps), both(second, preps), strict=True):
            assert torch.equal(a, b)


def test_standardising_can_be_left_out(nets: NetBatch) -> None:
    preps = example(nets)
    plain = build(nets, "conv", "small", preps, standardise=False)
    scaled = build(nets, "conv", "small", preps)
    assert plain.encoder.spread.unique().tolist() == [1.0]  # type: ignore[union-attr,operator]
    torch.testing.assert_close(scaled.encoder.spread, scaled.spread)
    plain.encoder.spread.copy_(torch.ones(1, 1))  # type: ignore[union-attr,operator]
    torch.testing.assert_close(scaled.encoder(preps), plain.encoder(preps / scaled.spread))
