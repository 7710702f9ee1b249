"""Every loss against its definition, written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from netspace import losses
from netspace.losses import (
    blend,
    class_loss,
    distillation_loss,
    feature_loss,
    prediction_loss,
    reconstruction_loss,
    weight_loss,
)


def slow_distillation(predicted: torch.Tensor, target: torch.Tensor, temperature: float) -> float:
    """KL(softmax(t / T) || softmax(p / T)) T^2, a sum at a time."""
    total, count = 0.0, 0
    for p, t in zip(predicted.flatten(0, -2).tolist(), target.flatten(0, -2).tolist(), strict=True):

        def share(row: list[float]) -> list[float]:
            powers = [math.exp(value / temperature) for value in row]
            return [power / sum(powers) for power in powers]

        total += sum(a * math.log(a / b) for a, b in zip(share(t), share(p), strict=True))
        count += 1
    return total / count * temperature**2


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 3), (2, 2, 4, 7)])
def test_prediction_loss_is_its_definition(shape: tuple[int, ...], temperature: float) -> None:
    torch.manual_seed(0)
    predicted, target = torch.randn(2, *shape, dtype=torch.float64) * 3
    actual = float(prediction_loss(predicted, target, temperature))
    assert actual == pytest.approx(slow_distillation(predicted, target, temperature), rel=1e-5)


def test_prediction_loss_has_the_target_as_reference() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 6, 4) * 3
    assert float(prediction_loss(a, b, 1.0)) != pytest.approx(float(prediction_loss(b, a, 1.0)), rel=1e-2)


def test_prediction_loss_ignores_what_softmax_ignores_and_nothing_else() -> None:
    torch.manual_seed(0)
    predicted, target = torch.randn(2, 3, 6, 4)
    loss = prediction_loss(predicted, target, 4.0)
    shifted = prediction_loss(predicted + torch.randn(3, 6, 1), target + 2, 4.0)
    torch.testing.assert_close(shifted, loss, rtol=1e-4, atol=1e-6)
    assert not torch.isclose(prediction_loss(predicted * 1.5, target, 4.0), loss, rtol=1e-2)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(prediction_loss(predicted[..., order], target[..., order], 4.0), loss)
    assert not torch.isclose(prediction_loss(predicted[..., order], target, 4.0), loss, rtol=1e-2)


def test_temperature_squared_keeps_the_gradients_size() -> None:
    """For hot softmaxes the loss tends to the squared difference of centred logits over 2 C (Hinton et al., 2015)."""
    torch.manual_seed(0)
    predicted, target = torch.randn(2, 8, 5)
    gap = predicted - target
    gap = gap - gap.mean(-1, keepdim=True)
    limit = gap.square().sum(-1).mean() / (2 * 5)
    assert float(prediction_loss(predicted, target, 50.0)) == pytest.approx(float(limit), rel=0.05)


def test_equal_logits_cost_nothing_and_half_precision_is_computed_in_float32() -> None:
    logits = torch.randn(2, 5, 3)
    assert float(prediction_loss(logits, logits.clone(), 4.0)) == 0.0
    loss = prediction_loss(logits.bfloat16(), logits, 4.0)
    assert loss.dtype == torch.float32 and loss >= 0


def test_gradients_reach_the_prediction() -> None:
    predicted = torch.randn(2, 5, 3, requires_grad=True)
    prediction_loss(predicted, torch.randn(2, 5, 3), 4.0).backward()
    assert predicted.grad is not None and predicted.grad.abs().sum() > 0
    torch.testing.assert_close(predicted.grad.sum(-1), torch.zeros(2, 5), atol=1e-6, rtol=0)  # softmax's symmetry


def test_weight_loss() -> None:
    a, b = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    mean = sum((x - y) ** 2 for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)) / a.numel()
    assert float(weight_loss(a, b)) == pytest.approx(mean, rel=1e-5)
    assert float(weight_loss(a, a)) == 0.0


def test_relative_temperatures_count_in_spreads_of_each_targets_logits() -> None:
    """Networks that are sure of themselves and others weigh the same; without `relative` they do not."""
    torch.manual_seed(0)
    predicted, target = torch.randn(2, 3, 6, 4)
    louder = torch.tensor([0.01, 1.0, 30.0])[:, None, None]
    loss = prediction_loss(predicted, target, 4.0, relative=True)
    torch.testing.assert_close(prediction_loss(predicted * louder, target * louder, 4.0, relative=True), loss)
    plain = prediction_loss(predicted, target, 4.0)
    assert not torch.isclose(prediction_loss(predicted * louder, target * louder, 4.0), plain, rtol=0.1)
    spread = [float(member.double().std()) for member in target]
    slow = [slow_distillation(predicted[m] / spread[m], target[m] / spread[m], 4.0) for m in range(3)]
    assert float(loss) == pytest.approx(sum(slow) / 3, rel=1e-4)
    constant = prediction_loss(predicted, torch.zeros_like(target), 4.0, relative=True)
    assert constant.isfinite()


def test_relative_temperature_makes_the_loss_blind_to_the_size_of_the_logits() -> None:
    target, predicted = torch.randn(2, 3, 7, 4, dtype=torch.float64)
    whole = prediction_loss(predicted, target, 0.5, relative=True)
    tiny = prediction_loss(1e-2 * predicted, 1e-2 * target, 0.5, relative=True)
    torch.testing.assert_close(whole, tiny, rtol=1e-4, atol=1e-6)
    assert prediction_loss(1e-2 * predicted, 1e-2 * target, 0.5) < 0.1 * prediction_loss(predicted, target, 0.5)


def test_a_blend_moves_from_the_first_to_the_second_at_equal_voices() -> None:
    first, second = torch.randn(2, 3, 7, 4)
    share = torch.tensor([0.0, 0.5, 1.0])
    mixed = blend(first, second, share)
    torch.testing.assert_close(mixed[0], first[0])
    torch.testing.assert_close(mixed[2], second[2])
    loud = blend(first, 100 * second, share)  # a network that is surer of itself has no stronger voice
    assert torch.equal(loud[1].argmax(-1), mixed[1].argmax(-1))


@pytest.mark.parametrize("alpha", [0.0, 0.9, 1.0])
def test_distillation_is_its_definition_for_each_network(alpha: float) -> None:
    """NetSpace, Eq. 3 to 5."""
    torch.manual_seed(0)
    predicted, teacher, labels = torch.randn(3, 5, 4), torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    actual = distillation_loss(predicted, teacher, labels, 4.0, alpha)
    for index, logits in enumerate(predicted.double()):
        result = slow_distillation(logits[None], teacher.double()[None], 4.0)
        task = sum(
            math.log(sum(math.exp(value) for value in row)) - row[label]
            for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
        )
        assert float(actual[index]) == pytest.approx(alpha * result + (1 - alpha) * task / 5, rel=1e-5)


# ---- several architectures (NetSpace, Eq. 6 to 12)


def slow_class_loss(logits: list[float], class_id: int) -> float:
    """-log of softmax's share, Eq. 6."""
    return math.log(sum(math.exp(value) for value in logits)) - logits[class_id]


def test_class_loss_is_the_cross_entropy_of_each_network() -> None:
    torch.manual_seed(0)
    logits, ids = torch.randn(6, 4, dtype=torch.float64) * 3, torch.tensor([0, 3, 1, 1, 2, 0])
    actual = class_loss(logits, ids)
    assert actual.shape == (6,)
    for index, (row, class_id) in enumerate(zip(logits.tolist(), ids.tolist(), strict=True)):
        assert float(actual[index]) == pytest.approx(slow_class_loss(row, class_id), rel=1e-5)


def test_reconstruction_is_the_root_of_the_mean_over_weights_alone() -> None:
    torch.manual_seed(0)
    predicted, target, mask = torch.randn(5, 9), torch.randn(5, 9), (torch.rand(5, 9) < 0.6).float()
    squares = [float(predicted[i, j] - target[i, j]) ** 2 for i in range(5) for j in range(9) if mask[i, j]]
    actual = reconstruction_loss(predicted, target, mask)
    assert float(actual) == pytest.approx((sum(squares) / len(squares)) ** 0.5, rel=1e-5)


def test_reconstruction_of_a_sample_has_the_gradient_of_the_loss_over_all_weights() -> None:
    """Where the sample's mean error is the others' too, it is that loss and its gradient exactly."""
    torch.manual_seed(0)
    part, target, mask = torch.randn(4, 9, dtype=torch.float64), torch.randn(4, 9), (torch.rand(4, 9) < 0.6).float()
    predicted = part.float().requires_grad_()
    actual = reconstruction_loss(predicted, target, mask, weights=3 * int(mask.sum()))
    actual.backward()
    every = part.repeat(3, 1).requires_grad_()
    loss = ((every - target.double().repeat(3, 1)) * mask.repeat(3, 1)).norm() / (3 * mask.sum()).sqrt()
    loss.backward()
    assert predicted.grad is not None and every.grad is not None
    assert float(actual.detach()) == pytest.approx(float(loss.detach()), rel=1e-6)
    torch.testing.assert_close(predicted.grad.double(), every.grad[:4], rtol=1e-5, atol=1e-8)


def test_feature_maps_are_compared_on_the_unit_sphere() -> None:
    torch.manual_seed(0)
    first, second = [torch.randn(3, 2, 4, 4), torch.randn(3, 5)], [torch.randn(3, 2, 4, 4), torch.randn(3, 5)]
    expected = 0.0
    for one, two in zip(first, second, strict=True):
        units = [each.double().flatten(1) / each.double().flatten(1).norm(dim=1, keepdim=True) for each in (one, two)]
        expected += float((units[0] - units[1]).norm(dim=1).mean())
    assert float(feature_loss(first, second)) == pytest.approx(expected, rel=1e-5)
    larger = [7 * maps for maps in first]
    assert float(feature_loss(larger, second)) == pytest.approx(expected, rel=1e-5)  # size does not count


@pytest.mark.parametrize("near", [2.0, 0.3, 1e-3])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("cached", [1 << 18, 100], ids=["whole", "pieces"])
def test_feature_loss_and_its_gradient_are_float64s(
    near: float, form: torch.memory_format, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CACHE_VALUES", cached)
    torch.manual_seed(0)
    target = [3 * torch.randn(6, 4, 5, 5), torch.randn(6, 20)]
    first = [(maps + near * torch.randn_like(maps)).requires_grad_() for maps in target]
    first[0] = first[0].detach().contiguous(memory_format=form).requires_grad_()
    exact = [maps.detach().double().requires_grad_() for maps in first]
    units = [[F.normalize(each.double().flatten(1), dim=1) for each in maps] for maps in (exact, target)]
    expected = torch.stack([(one - two).norm(dim=1).mean() for one, two in zip(*units, strict=True)]).sum()
    actual = feature_loss(first, target)
    assert float(actual.detach()) == pytest.approx(float(expected.detach()), rel=1e-6 + 1e-7 / near)
    (5 * actual).backward()
    (5 * expected).backward()
    for one, two in zip(first, exact, strict=True):
        assert one.grad is not None and two.grad is not None
        away = (one.grad - two.grad).norm() / two.grad.norm()
        assert float(away) < 1e-5 + 1e-6 / near


def test_feature_loss_of_half_maps_rounds_only_its_gradient() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 300, 4, 16, 16).bfloat16()
    first.requires_grad_()
    exact = first.detach().float().requires_grad_()
    actual, expected = feature_loss([first], [second]), feature_loss([exact], [second.float()])
    assert actual.dtype == torch.float32 and float(actual.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    actual.backward()
    expected.backward()
    assert first.grad is not None and exact.grad is not None and first.grad.dtype == torch.bfloat16
    torch.testing.assert_close(first.grad, exact.grad.bfloat16())


@pytest.mark.parametrize("threads", [1, 2])
def test_half_maps_may_hold_rows_of_zeros_equal_rows_and_nan(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0], [3.0, -4.0]]).bfloat16().requires_grad_()
        second = torch.tensor([[1.0, 0.0], [1.0, 2.0], [0.0, 0.0], [-3.0, 4.0]]).bfloat16()
        loss = feature_loss([first], [second])
        loss.backward()
        assert float(loss.detach()) == pytest.approx((1 + 0 + 1 + 2) / 4)
        assert first.grad is not None and not first.grad[:3].any() and bool(first.grad.isfinite().all())
        second[0, 0] = float("nan")
        assert bool(feature_loss([first], [second]).isnan())
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_target_maps_may_be_rows_of_a_table_and_the_loss_has_a_weight(
    dtype: torch.dtype, form: torch.memory_format
) -> None:
    torch.manual_seed(0)
    table = torch.randn(9, 4, 5, 5, dtype=dtype).contiguous(memory_format=form)
    first = torch.randn(3, 4, 5, 5, dtype=dtype).contiguous(memory_format=form)
    places, actual = torch.tensor([7, 0, 7]), []
    for target, rows in ((table[places].contiguous(memory_format=form), None), (table, places)):
        maps = first.clone().requires_grad_()
        loss = feature_loss([maps], [target], 0.5, rows)
        loss.backward()
        assert maps.grad is not None
        actual.append((loss.detach(), maps.grad))
    assert torch.equal(actual[0][0], actual[1][0]) and torch.equal(actual[0][1], actual[1][1])
    assert float(actual[0][0]) == pytest.approx(0.5 * float(feature_loss([first], [table[places]])), rel=1e-6)
    maps = first.clone().requires_grad_()
    (feature_loss([maps], [table], 0.5, places) / 3).backward()
    assert maps.grad is not None
    torch.testing.assert_close(maps.grad, actual[0][1] / 3)
    ratio = maps.grad.double().norm() / actual[0][1].double().norm()
    assert float(ratio) == pytest.approx(1 / 3, rel=3e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maps_may_have_numbers_of_rows_of_their_own(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    maps = [torch.randn(rows, 30, dtype=dtype).requires_grad_() for rows in (8, 2, 800)]
    targets = [torch.randn(rows, 30, dtype=dtype) for rows in (8, 2, 800)]
    feature_loss(maps, targets).backward()
    for one, two in zip(maps, targets, strict=True):
        alone = one.detach().clone().requires_grad_()
        feature_loss([alone], [two]).backward()
        assert one.grad is not None and alone.grad is not None and torch.equal(one.grad, alone.grad)


def test_maps_that_are_equal_or_zero_have_no_gradient() -> None:
    first = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    loss = feature_loss([first], [torch.tensor([[1.0, 0.0], [1.0, 2.0], [0.0, 0.0]])])
    loss.backward()
    assert float(loss.detach()) == pytest.approx(2 / 3) and first.grad is not None and not first.grad.any()


def test_the_contrastive_loss_is_infonce_of_centred_outputs() -> None:
    """Against loops in float64; it is 0 for one network, and its gradient draws a network to its own target."""
    torch.manual_seed(0)
    target, predicted = torch.randn(3, 5, 2), torch.randn(3, 5, 2)
    mean = target.double().mean(0)
    ours, theirs = ([(each.double() - mean).flatten() for each in outputs] for outputs in (predicted, target))
    rows = []
    for index, own in enumerate(ours):
        cosines = torch.stack([own @ other / own.norm() / other.norm() for other in theirs]) / 0.2
        rows.append(torch.logsumexp(cosines, 0) - cosines[index])
    assert float(losses.contrastive_loss(predicted, target, 0.2)) == pytest.approx(
        float(torch.stack(rows).mean()), rel=1e-5
    )
    assert float(losses.contrastive_loss(predicted[:1], target[:1], 0.2)) == 0
