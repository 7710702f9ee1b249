"""The token encoder: queries attend to tokens of weights with their coordinates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from netspace.models.encoder import Statistics
from netspace.models.token_encoder import TokenConfig, TokenEncoder
from netspace.networks.family import Family
from netspace.networks.prep import pack
from netspace.space import Space

SMALL = {"kind": "token", "width": 16, "heads": 2, "layers": 1, "queries": 5, "frequencies": 4}


@pytest.fixture(scope="module")
def family(multi_run: Path) -> Family:
    return Space.load(multi_run).family


def examples(family: Family, count: int = 8) -> dict[int, Tensor]:
    torch.manual_seed(0)
    return {class_id: pack(torch.randn(count, each.parameters), each.size) for class_id, each in enumerate(family)}


def build(family: Family, preps: dict[int, Tensor] | None = None, **more: object) -> TokenEncoder:
    torch.manual_seed(0)
    statistics = None if preps is None else Statistics(preps, family.ones(), None, family.ones())
    return TokenEncoder.build(32, TokenConfig.model_validate({**SMALL, **more}), family, None, statistics)


def test_one_set_of_weights_reads_all_architectures(family: Family) -> None:
    preps = examples(family)
    encoder = build(family, preps)
    latents = [encoder(preps[class_id], class_id) for class_id in range(len(family))]
    assert all(each.shape == (8, 32) for each in latents)
    torch.cat(latents).square().sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in encoder.parameters())
    counts = {arch.parameters for arch in family}
    assert not any(
        value.numel() in counts or len(family) in value.shape for value in encoder.parameters() if value.dim() > 1
    )


def test_padding_is_not_read_and_weights_are_in_units_of_their_spread(family: Family) -> None:
    preps, spread = examples(family), family.ones() * 3
    encoder = TokenEncoder(32, TokenConfig.model_validate(SMALL), family, spread)
    disturbed = preps[0].clone().flatten(1)
    disturbed[:, family[0].parameters :] = 7.0
    torch.testing.assert_close(encoder(disturbed.view_as(preps[0]), 0), encoder(preps[0], 0))
    cut = encoder.cut(preps[0], 0)
    assert cut.pow(2).sum(dtype=torch.float64).item() == pytest.approx(
        preps[0].double().pow(2).sum().item() / 9, rel=1e-5
    )


def test_hidden_tokens_are_not_looked_at(family: Family) -> None:
    encoder = build(family)
    values = encoder.cut(examples(family)[1], 1)
    hidden = torch.zeros(values.shape[:2], dtype=torch.bool)
    hidden[:, ::2] = True
    other = torch.where(hidden[..., None], torch.randn_like(values), values)
    torch.testing.assert_close(encoder.summary(values, 1, hidden), encoder.summary(other, 1, hidden))
    assert not torch.allclose(encoder.summary(values, 1), encoder.summary(other, 1))


def test_the_order_of_tokens_does_not_matter_and_their_coordinates_do(family: Family) -> None:
    encoder = build(family).double()
    values = encoder.cut(examples(family)[0].double(), 0)
    before = encoder.summary(values, 0)
    order = torch.randperm(values.shape[1])
    encoder.embedded_0 = encoder.embedded_0[order]  # type: ignore[operator, index]
    torch.testing.assert_close(encoder.summary(values[:, order], 0), before, rtol=1e-6, atol=1e-8)
    assert not torch.allclose(encoder.summary(values, 0), before)


def test_pre_training_learns_and_leaves_no_gradients(family: Family) -> None:
    plain, trained = build(family, examples(family)), build(family, examples(family), pretrain=3)
    assert not torch.equal(plain.queries, trained.queries)
    assert all(value.grad is None for value in trained.parameters())


def test_its_settings() -> None:
    config = TokenConfig.model_validate({**SMALL, "heads": 3})
    assert TokenEncoder.refusal(32, config) == "encoder.width (16) is a multiple of encoder.heads (3)"
    assert TokenEncoder.refusal(32, TokenConfig.model_validate(SMALL)) is None
