"""Embeddings and predictors against the paper's formulas."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from netspace.models import coordinate_network
from netspace.models.coordinate_network import (
    BASES,
    Distinct,
    Embedding,
    EmbeddingConfig,
    Predictor,
    PredictorConfig,
    embedded_size,
)
from netspace.networks.kernels import Kernels


@pytest.mark.parametrize("base", ["smooth", "rough", 1.5])
def test_an_embedding_is_eq_1(base: str | float) -> None:
    config = EmbeddingConfig(coordinates="normalised", base=base, count=5)  # type: ignore[arg-type]
    value = BASES[base] if isinstance(base, str) else base
    coordinates = torch.rand(4, 3)
    wanted = [
        [
            function(value**power * math.pi * float(v))
            for v in row
            for power in range(5)
            for function in (math.sin, math.cos)
        ]
        for row in coordinates
    ]
    torch.testing.assert_close(Embedding(config)(coordinates), torch.tensor(wanted), atol=1e-5, rtol=1e-5)
    assert embedded_size(config) == 30


@pytest.mark.parametrize("base", ["smooth", "rough", 1.6])
def test_the_embedding_of_large_integers_is_eq_1_in_float64(base: str | float) -> None:
    """Plain float32 is off by whole turns there: 1.25^39 * 511 * pi is ten million."""
    value = BASES[base] if isinstance(base, str) else base
    coordinates = torch.tensor([[0, 1, 511], [55, 300, 7]])
    angles = math.pi * value ** torch.arange(40, dtype=torch.float64) * coordinates[..., None]
    expected = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
    found = Embedding(EmbeddingConfig(base=base))(coordinates.float())  # type: ignore[arg-type]
    assert found.dtype == torch.float32 and found.shape == (2, 240)
    torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=0)


def test_the_papers_base_tells_raw_coordinates_apart_and_normalised_ones_not() -> None:
    """Effective rank (exponential of the entropy of singular values) of a 32 x 16 layer's embeddings."""
    kernels, ranks = Kernels.of({"a": torch.ones(32, 16, 3, 3)}), {}
    for coordinates in ("raw", "normalised"):
        config = EmbeddingConfig(coordinates=coordinates)  # type: ignore[arg-type]
        rows = Embedding(config)(kernels.coordinates(coordinates == "normalised")).double()
        fractions = torch.linalg.svdvals(rows - rows.mean(0))
        fractions = fractions / fractions.sum()
        ranks[coordinates] = float(torch.special.entr(fractions).sum().exp())
    assert ranks == pytest.approx({"raw": 29.6, "normalised": 4.0}, abs=0.1)


def test_the_papers_predictor_has_its_size() -> None:
    """Five layers, 240 inputs, hidden 160: 0.45 MB (NeRN, Table 1)."""
    size = sum(value.numel() for value in Predictor(PredictorConfig(hidden=160), 9).parameters())
    assert size == 240 * 160 + 160 + 3 * (160 * 160 + 160) + 160 * 9 + 9
    assert round(4 * size / 2**20, 2) == 0.45


@pytest.mark.parametrize("kind", ["plain", "skip", "residual", "nerf"])
def test_a_predictor_starts_with_the_targets_mean_and_spread(kind: str) -> None:
    torch.manual_seed(0)
    predictor = Predictor(PredictorConfig(hidden=32, kind=kind), 9)  # type: ignore[arg-type]
    coordinates, targets = torch.rand(500, 3), 0.02 * torch.randn(500, 9) + 0.01
    predictor.match(coordinates, targets)
    found = predictor(coordinates).detach()
    assert float(found.mean()) == pytest.approx(float(targets.mean()), rel=1e-3)
    assert float(found.std()) == pytest.approx(float(targets.std()), rel=1e-3)


def test_first_predictions_of_large_networks_are_made_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    whole = Predictor(PredictorConfig(hidden=16), 9)
    pieces, sizes = copy.deepcopy(whole), list[int]()
    coordinates, targets = torch.rand(50, 3), torch.randn(50, 9)
    whole.match(coordinates, targets)
    monkeypatch.setattr(coordinate_network, "CHUNK", 20)
    pieces.register_forward_pre_hook(lambda _module, inputs: sizes.append(len(inputs[0])))
    pieces.match(Distinct.of(coordinates), targets)
    assert sizes == [20, 20, 10]
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(pieces.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_kinds_differ_and_all_learn_from_every_layer() -> None:
    coordinates = torch.rand(10, 3)
    for kind in ("plain", "skip", "residual", "nerf"):
        torch.manual_seed(0)
        predictor = Predictor(PredictorConfig(hidden=16, kind=kind), 4)  # type: ignore[arg-type]
        predictor(coordinates).square().sum().backward()
        assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in predictor.parameters())
    nerf = Predictor(PredictorConfig(hidden=16, kind="nerf"), 4)
    assert [linear.in_features for linear in nerf.linears] == [240, 16, 16 + 240, 16, 16]


def test_the_authors_skip_is_a_single_one_and_an_earlier_residual_predictor_has_one_at_each_layer() -> None:
    torch.manual_seed(0)
    coordinates = torch.randint(9, (10, 3)).double()
    for kind in ("skip", "residual"):
        predictor = Predictor(PredictorConfig(hidden=16, kind=kind), 4).double()  # type: ignore[arg-type]
        a, b, c, d, e = predictor.linears
        first = a(predictor.embedding(coordinates))
        if kind == "skip":
            expected = e(d((c(b(first).relu()) + first).relu()).relu())
        else:
            x = first.relu()
            for layer in (b, c, d):
                x = x + layer(x).relu()
            expected = e(x)
        torch.testing.assert_close(predictor(coordinates), expected, rtol=1e-10, atol=1e-12)


def test_distinct_values_make_up_the_coordinates() -> None:
    coordinates = torch.cartesian_prod(torch.arange(3) / 3, torch.arange(5) / 5, torch.arange(3) / 3)[
        torch.randperm(45)
    ]
    distinct = Distinct.of(coordinates)
    assert [len(values) for values in distinct.values] == [3, 5, 3] and len(distinct) == 45
    assert torch.equal(torch.cat(distinct.values)[distinct.places], coordinates)
    assert torch.equal(distinct.take(torch.tensor([7, 3])).places, distinct.places[[7, 3]])
    assert torch.equal(torch.cat([piece.places for piece in distinct.split(20)]), distinct.places)


@pytest.mark.parametrize("kind", ["plain", "skip", "residual", "nerf"])
@pytest.mark.parametrize("layers", [2, 3, 5])
def test_distinct_coordinates_say_and_learn_what_coordinates_do(kind: str, layers: int) -> None:
    torch.manual_seed(0)
    predictor = Predictor(PredictorConfig(hidden=16, layers=layers, kind=kind), 4).double()  # type: ignore[arg-type]
    coordinates = torch.rand(6, 3, dtype=torch.float64)[torch.randint(6, (50,))]
    found = []
    for shown in (coordinates, Distinct.of(coordinates)):
        predictor.zero_grad()
        values = predictor(shown)
        values.square().sum().backward()
        found.append(
            [values.detach(), *(value.grad.clone() for value in predictor.parameters() if value.grad is not None)]
        )
    assert len(found[0]) == 1 + 2 * layers
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)
    for shown in (coordinates.float(), Distinct.of(coordinates.float())):
        with torch.autocast("cpu", torch.bfloat16):
            halved = predictor.float()(shown).detach()
        assert halved.dtype == torch.bfloat16
        assert float((halved - found[0][0]).norm() / found[0][0].norm()) < 0.02


def test_half_precision_loses_no_gradient_of_coordinates_that_share_values() -> None:
    """Thousands of coordinates of a few distinct values, as a network's are: their gradients are added up in float32."""
    torch.manual_seed(0)
    predictor = Predictor(PredictorConfig(hidden=32), 9)
    distinct = Distinct.of(torch.cartesian_prod(torch.arange(4) / 4, torch.arange(32) / 32, torch.arange(32) / 32))
    targets, found = torch.randn(len(distinct), 9), []
    for halved in (False, True):
        predictor.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=halved):
            values = predictor(distinct)
        (values.float() - targets).square().sum().backward()
        found.append([value.grad.clone() for value in predictor.parameters() if value.grad is not None])
    for wanted, gradient in zip(*found, strict=True):
        assert float((gradient - wanted).norm() / wanted.norm()) < 0.03
