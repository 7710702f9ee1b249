"""Measures against slow definitions and the cases in which they are undefined."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from scipy import stats
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

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
    actual = metrics.divergence(predicted, target)
    for member in range(2):
        p, t = predicted[member].double().softmax(-1), target[member].double().softmax(-1)
        slow = sum(float((t[i] * (t[i] / p[i]).log()).sum()) for i in range(5)) / 5
        assert float(actual[member]) == pytest.approx(slow, rel=1e-12)
    assert not torch.allclose(actual, metrics.divergence(target, predicted), rtol=1e-2)
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


def test_linear_r2_is_that_of_the_fitted_line() -> None:
    random = np.random.default_rng(0)
    for _ in range(5):
        x, y = random.normal(size=(2, 9))
        line = np.polyval(np.polyfit(x, y, 1), x)
        assert metrics.linear_r2(x, y) == pytest.approx(metrics.r2(line, y), abs=1e-12)
    assert metrics.linear_r2(np.arange(5), 3 - 2 * np.arange(5)) == pytest.approx(1.0)
    assert math.isnan(metrics.linear_r2(np.arange(4), np.full(4, 0.1)))


def slow_identity(predicted: np.ndarray, target: np.ndarray, labels: np.ndarray, member: int) -> tuple[float, ...]:
    """One member's values from their definitions."""
    near = abs((target == labels).mean(1) - (target[member] == labels).mean()) <= 0.01 + 1e-12
    peers = [other for other in range(len(target)) if near[other] and other != member]

    def jaccard(other: int) -> float:
        first = {index for index, label in enumerate(labels) if predicted[member, index] != label}
        second = {index for index, label in enumerate(labels) if target[other, index] != label}
        return len(first & second) / len(first | second) if first | second else 1.0

    def same(other: int) -> float:
        return float((predicted[member] == target[other]).mean())

    means = [np.mean([measure(other) for other in peers]) if peers else math.nan for measure in (same, jaccard)]
    return same(member), means[0], jaccard(member), means[1]


@pytest.mark.parametrize("inputs", [40, 99, 300])
def test_identity_by_definition(inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "PEER_ROWS", 7)  # several parts, the last one smaller
    monkeypatch.setattr(metrics, "PEER_ELEMENTS", 3 * 7 * inputs)
    random = np.random.default_rng(inputs)
    labels = random.integers(0, 4, inputs)
    chance = random.uniform(0.2, 1.0, (30, 1))
    target = np.where(random.random((30, inputs)) < chance, labels, random.integers(0, 4, (30, inputs)))
    target[3] = labels  # makes no mistake
    predicted = np.where(random.random((30, inputs)) < 0.7, target, random.integers(0, 4, (30, inputs)))
    predicted[3] = labels
    actual = metrics.identity(*(torch.from_numpy(each) for each in (predicted, target, labels)))
    slow = np.array([slow_identity(predicted, target, labels, member) for member in range(30)]).T
    names = ("agreement_own", "agreement_peers", "jaccard_own", "jaccard_peers")
    for name, values in zip(names, slow, strict=True):
        np.testing.assert_allclose(getattr(actual, name), values, rtol=1e-12)
    result, known = actual.summary(), ~np.isnan(slow[1])
    assert 0 < known.sum() == result["members"] == 30 - result["without_peers"]  # type: ignore[operator]
    assert result["own_minus_peers"] == pytest.approx((slow[0] - slow[1])[known].mean())
    assert result["jaccard_own"] == pytest.approx(slow[2][known].mean())


def test_identity_of_members_without_peers_is_undefined() -> None:
    labels = torch.zeros(100, dtype=torch.int64)
    target = torch.stack([labels, 1 - labels])
    assert metrics.identity(target, target, labels).summary() == {
        "own_minus_peers": None,
        "agreement_own": None,
        "agreement_peers": None,
        "jaccard_own": None,
        "jaccard_peers": None,
        "members": 0,
        "without_peers": 2,
    }


def test_identity_tells_own_targets_from_equally_accurate_ones() -> None:
    torch.manual_seed(0)
    labels = torch.randint(10, (400,))
    target = labels.repeat(20, 1)
    for row in target:
        row[torch.randperm(400)[:100]] += 1  # 100 mistakes each, at places of its own
    own = metrics.identity(target, target, labels).summary()
    assert own["jaccard_own"] == 1.0 and own["own_minus_peers"] > 0.3  # type: ignore[operator]
    constant = metrics.identity(target[:1].expand(20, -1), target, labels).summary()
    assert abs(constant["own_minus_peers"]) < 0.05  # type: ignore[arg-type]


def test_diversity_is_the_mean_distance_of_all_pairs() -> None:
    torch.manual_seed(0)
    flat = torch.randn(5, 9)
    pairs = [float((flat[i] - flat[j]).norm()) for i in range(5) for j in range(i)]
    assert metrics.diversity(flat) == pytest.approx(sum(pairs) / 10, rel=1e-6)
    assert metrics.diversity(flat[[0, 0]]) == 0.0
    assert math.isnan(metrics.diversity(flat[:1]))


def test_nearest_by_search(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    queries, bank = torch.randn(6, 20), torch.randn(9, 20)
    slow = [min(range(9), key=lambda row: float((query - bank[row]).norm())) for query in queries]
    assert metrics.nearest(queries, bank).tolist() == slow
    monkeypatch.setattr(metrics, "COLUMNS", 7)  # parameters in parts
    assert metrics.nearest(queries, bank).tolist() == slow
    pairs = [float((a - b).norm()) for a, b in itertools.combinations(bank.double(), 2)]
    assert metrics.diversity(bank) == pytest.approx(np.mean(pairs), rel=1e-12)


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


def test_shapes_in_signatures_are_checked() -> None:
    """The tests run with shapes checked: three labels for four inputs do not pass."""
    with pytest.raises(TypeCheckError, match="labels"):
        metrics.accuracy(torch.zeros(2, 4, 5), torch.zeros(3, dtype=torch.int64))


def test_confusion_iou_and_f1_are_sklearns_for_each_network() -> None:
    """Classes that neither truth nor prediction has do not count."""
    torch.manual_seed(0)
    labels, predicted = torch.randint(4, (40,)), torch.randint(5, (2, 3, 40))
    predicted[0, 0].clamp_(max=3)
    counts = metrics.confusion(predicted, labels, 6)
    assert counts.shape == (2, 3, 6, 6) and (counts.sum((-2, -1)) == 40).all()
    for row in range(2):
        for column in range(3):
            pair = labels.numpy(), predicted[row, column].numpy()
            own = counts[row, column]
            assert np.array_equal(own, confusion_matrix(*pair, labels=range(6)))
            assert float(metrics.mean_iou(own)) == pytest.approx(jaccard_score(*pair, average="macro"), rel=1e-12)
            assert float(metrics.macro_f1(own)) == pytest.approx(f1_score(*pair, average="macro"), rel=1e-12)
    own_labels = torch.stack([labels, labels.flip(0)])[:, None].expand(2, 3, 40)
    assert torch.equal(metrics.confusion(predicted, own_labels, 6)[0], counts[0])
    assert not torch.equal(metrics.confusion(predicted, own_labels, 6)[1], counts[1])


def test_importance_weights_by_hand() -> None:
    """A loop over images, in plain numbers; more samples of the same weight change nothing."""
    torch.manual_seed(0)
    weights = torch.randn(2, 5, 3, dtype=torch.float64)
    found = metrics.importance_weighted_nll(weights)
    for member in range(2):
        slow = [math.log(sum(math.exp(weights[member, s, b]) for s in range(5)) / 5) for b in range(3)]
        assert float(found[member]) == pytest.approx(-sum(slow) / 3, rel=1e-12)
    torch.testing.assert_close(metrics.importance_weighted_nll(weights.repeat(1, 4, 1)), found)
    assert float(metrics.importance_weighted_nll(weights - 1000)[0]) == pytest.approx(float(found[0]) + 1000)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(size: int, seed: int = 1) -> torch.Tensor:
    return torch.linalg.qr(drawn(size, size, seed=seed))[0]


def slow_cka(first: np.ndarray, second: np.ndarray) -> float:
    """HSIC of linear kernels (Kornblith et al. 2019, Eq. 2 and 3)."""
    count = len(first)
    centre = np.eye(count) - 1 / count

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        return float(np.trace(k @ centre @ m @ centre)) / (count - 1) ** 2

    k, m = first @ first.T, second @ second.T
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


@pytest.mark.parametrize(("inputs", "left", "right"), [(30, 4, 7), (6, 20, 9), (8, 3, 12)])
def test_linear_cka_is_the_alignment_of_linear_kernels(inputs: int, left: int, right: int) -> None:
    first = drawn(inputs, left) + 2
    second = first @ drawn(left, right, seed=5) + drawn(inputs, right, seed=6) - 1
    assert metrics.linear_cka(first, second) == pytest.approx(slow_cka(first.numpy(), second.numpy()), rel=1e-10)


@settings(deadline=None, max_examples=30)
@given(st.integers(3, 40), st.integers(2, 12), st.floats(0.01, 100), st.floats(-5, 5))
def test_linear_cka_does_not_see_rotation_scale_and_shift(inputs: int, size: int, scale: float, shift: float) -> None:
    first, second = drawn(inputs, size), drawn(inputs, size, seed=9)
    assert metrics.linear_cka(first, first @ orthogonal(size) * scale + shift) == pytest.approx(1.0)
    result = metrics.linear_cka(first, second)
    assert 0 <= result <= 1 and metrics.linear_cka(second, first) == pytest.approx(result)
    assert metrics.linear_cka(first @ orthogonal(size, seed=4), second * scale + shift) == pytest.approx(
        result, abs=1e-9
    )


def test_linear_cka_sees_other_maps() -> None:
    first = drawn(50, 6)
    stretched = first * torch.tensor([10.0, 1, 1, 1, 1, 1], dtype=torch.float64)
    assert metrics.linear_cka(first, stretched) < 0.6
    assert metrics.linear_cka(first, first.square()) < 0.5
    assert math.isnan(metrics.linear_cka(first, torch.ones(50, 3)))
