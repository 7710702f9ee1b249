"""Measures against slow definitions and the cases in which they are undefined."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from netspace import metrics


def test_accuracy_and_agreement_by_counting() -> None:
    torch.manual_seed(0)
    logits, other = torch.randn(2, 3, 7, 4)
    labels = torch.randint(4, (7,))
    for member in range(3):
        right = sum(int(row.argmax()) == int(label) for row, label in zip(logits[member], labels, strict=True))
        assert float(metrics.accuracy(logits, labels)[member]) == right / 7
        same = sum(int(a.argmax()) == int(b.argmax()) for a, b in zip(logits[member], other[member], strict=True))
        assert float(metrics.agreement(logits, other)[member]) == same / 7
    assert metrics.accuracy(logits[0], labels).shape == () and metrics.accuracy(logits, labels).shape == (3,)


def test_divergence_by_definition_and_direction() -> None:
    torch.manual_seed(0)
    predicted, target = torch.randn(2, 2, 5, 3) * 2
    found = metrics.divergence(predicted, target)
    for member in range(2):
        p, t = predicted[member].double().softmax(-1), target[member].double().softmax(-1)
        slow = sum(float((t[i] * (t[i] / p[i]).log()).sum()) for i in range(5)) / 5
        assert float(found[member]) == pytest.approx(slow, rel=1e-12)
    assert not torch.allclose(found, metrics.divergence(target, predicted), rtol=1e-2)
    torch.testing.assert_close(metrics.divergence(target, target), torch.zeros(2, dtype=torch.float64))


def test_r2_at_its_landmarks() -> None:
    target = np.array([0.1, 0.5, 0.6])
    assert metrics.r2(target, target) == 1.0
    assert metrics.r2(np.full(3, target.mean()), target) == pytest.approx(0.0)
    assert metrics.r2(target[::-1], target) < 0


@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 1 / 3])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_r2_of_targets_that_do_not_vary_is_undefined_whatever_rounding_does(value: float, count: int) -> None:
    assert math.isnan(metrics.r2(np.full(count, 0.2), np.full(count, value)))


def test_mean_absolute_error() -> None:
    assert metrics.mean_absolute_error(np.array([0.5, 0.1]), np.array([0.25, 0.2])) == pytest.approx(0.175)


def test_spearman_is_scipys_with_ties_and_undefined_for_constants() -> None:
    random = np.random.default_rng(0)
    for _ in range(10):
        a, b = random.integers(0, 5, (2, 12))
        if np.ptp(a) and np.ptp(b):
            assert metrics.spearman(a, b) == pytest.approx(float(stats.spearmanr(a, b).statistic), abs=1e-12)
    assert metrics.spearman(np.arange(5), np.arange(5) ** 3) == pytest.approx(1.0)
    assert metrics.spearman(np.arange(5), -np.exp(np.arange(5))) == pytest.approx(-1.0)
    assert math.isnan(metrics.spearman(np.arange(4), np.full(4, 0.1)))


def test_diversity_is_the_mean_distance_of_all_pairs() -> None:
    torch.manual_seed(0)
    flat = torch.randn(5, 9)
    pairs = [float((flat[i] - flat[j]).norm()) for i in range(5) for j in range(i)]
    assert metrics.diversity(flat) == pytest.approx(sum(pairs) / 10, rel=1e-6)
    assert metrics.diversity(flat[[0, 0]]) == 0.0
    assert math.isnan(metrics.diversity(flat[:1]))


def test_nearest_by_search() -> None:
    torch.manual_seed(0)
    queries, bank = torch.randn(6, 20), torch.randn(9, 20)
    slow = [min(range(9), key=lambda row: float((query - bank[row]).norm())) for query in queries]
    assert metrics.nearest(queries, bank).tolist() == slow


def test_nearest_tells_snapshots_of_one_run_apart() -> None:
    """Networks of a norm of 100 that differ by 0.01 a step, more of them than cdist computes without a product."""
    torch.manual_seed(0)
    base, step = torch.randn(10_000), torch.randn(10_000) * 1e-4
    bank = torch.stack([base + number * step for number in range(40)])
    assert metrics.nearest(bank, bank).tolist() == list(range(40))


def test_overlap_and_cosine_by_counting() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 3, 7, 9)
    for member in range(3):
        pairs = [list(pair) for pair in zip(first[member], second[member], strict=True)]
        shared = sum(len(set(a.topk(4).indices.tolist()) & set(b.topk(4).indices.tolist())) for a, b in pairs)
        assert float(metrics.overlap(first, second, 4)[member]) == pytest.approx(shared / 28)
        angles = [float(a.double() @ b.double() / (a.double().norm() * b.double().norm())) for a, b in pairs]
        assert float(metrics.cosine(first, second)[member]) == pytest.approx(sum(angles) / 7)
    assert float(metrics.overlap(first[0], second[0], 20)) == 1.0, "fewer classes than are asked for"
