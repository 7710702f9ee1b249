"""The step of a fit: whose gradients flow, what is drawn, what teaches, what is remembered, in which precision."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fits import MEMBER, distilling, loss_of, settings, state_of, stepping
from helpers import no_waiting

from netspace.compression.fit import begin
from netspace.compression.fit import fit as fit_network
from netspace.compression.originals import find_original
from netspace.errors import UsageError
from netspace.networks.kernels import Kernels
from netspace.networks.state_dict import run_with_maps
from netspace.training import fit
from netspace.training.fit import NernStep, Original
from netspace.training.recipe import FitConfig


def test_half_precision_of_the_predictor_is_of_its_steps_alone() -> None:
    torch.manual_seed(0)
    step = stepping(settings(), begin(state_of(), settings(), None), Original(state_of()))
    exact, values = loss_of(step, 0), step.all()
    step.config = settings(predictor_precision="bf16")
    rounded = loss_of(step, 0)
    assert rounded.dtype == torch.float32 and 0 < abs(rounded.item() / exact.item() - 1) < 0.02
    assert torch.equal(values, step.all())


def test_gradients_flow_through_the_chosen_kernels_alone(multi_zoo: Path) -> None:
    original, spec = find_original(MEMBER, multi_zoo)
    stage = {"steps": 1, "reconstruction": 0.0, "distillation": 1.0, "features": 0.5, "images": 8, "kernels": 16}
    config = settings(stages=[stage])
    torch.manual_seed(0)
    step = stepping(config, begin(original.state, config, spec), original)
    chosen = step.chosen(0)
    assert chosen is not None and len(chosen) == 16
    assert step.images is not None
    loss_of(step, 0).backward()
    found = [value.grad.clone() for value in step.predictor.parameters() if value.grad is not None]
    step.predictor.zero_grad()

    values = step.all()
    values = torch.where(torch.isin(torch.arange(len(values)), chosen)[:, None], values, values.detach())
    shown, _ = step.images.take(0, 8)
    state = {**original.state, **step.compressed.weights(values)}
    with torch.no_grad():
        wanted, maps = step.run(original.state, shown, True)
    logits, seen = step.run(state, shown, True)
    divergence = (wanted.softmax(-1) * (wanted.log_softmax(-1) - logits.log_softmax(-1))).sum(-1).mean()
    distance = torch.zeros(())
    for one, two in zip(seen, maps, strict=True):
        units = [each.flatten(1) / each.flatten(1).norm(dim=1, keepdim=True) for each in (one, two)]
        distance = distance + (units[0] - units[1]).norm(dim=1).mean()
    (divergence + 0.5 * distance).backward()
    for one, value in zip(found, step.predictor.parameters(), strict=True):
        assert value.grad is not None
        torch.testing.assert_close(one, value.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("inputs", ["task", "noise"])
def test_the_shares_of_processes_make_up_the_step(multi_zoo: Path, inputs: str) -> None:
    stage = {"steps": 1, "distillation": 1.0, "features": 0.5, "inputs": inputs, "images": 8, "kernels": 64}
    whole, *shares = (distilling(multi_zoo, *told, stages=[stage]) for told in ((), (0, 2), (1, 2)))
    for number in range(3):
        wanted, found = whole(whole.predictor, number), [step(step.predictor, number) for step in shares]
        assert wanted.keys() == {"reconstruction", "distillation", "features"}
        for name, value in wanted.items():
            torch.testing.assert_close((found[0][name] + found[1][name]) / 2, value, rtol=1e-5, atol=1e-7)
            assert name == "reconstruction" or found[0][name] != found[1][name]


def test_half_precision_keeps_the_loss_and_its_direction(multi_zoo: Path) -> None:
    stage = {"steps": 1, "distillation": 1.0, "features": 0.5, "images": 8, "kernels": 64}
    found = []
    for precision in ("float32", "bf16"):
        step = distilling(multi_zoo, stages=[stage], precision=precision)
        loss = loss_of(step, 0)
        loss.backward()
        gradients = [value.grad.flatten() for value in step.predictor.parameters() if value.grad is not None]
        found.append((float(loss.detach()), torch.cat(gradients)))
    assert found[0][0] != found[1][0] and found[1][0] == pytest.approx(found[0][0], rel=0.02)
    assert float(torch.cosine_similarity(found[0][1], found[1][1], dim=0)) > 0.99


def counted_runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[NernStep, bool]]:
    """Whose networks run from now on, and whether as they are."""
    runs, run = [], NernStep.run

    def counted(self: NernStep, state: Any, *told: Any) -> Any:
        runs.append((self, state is self.fast_state))
        return run(self, state, *told)

    monkeypatch.setattr(NernStep, "run", counted)
    return runs


def test_what_the_network_answers_to_still_images_is_asked_once(
    multi_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = {"steps": 1, "reconstruction": 0.0, "distillation": 1.0, "images": 8, "kernels": 64}
    step = distilling(multi_zoo, stages=[stage])
    assert step.images is not None and step.images.fixed is not None
    runs = counted_runs(monkeypatch)
    first, again = loss_of(step, 0), loss_of(step, 0)
    assert [own for _, own in runs] == [True, False, False] and torch.equal(first, again)
    other = step.images.task.train.images.shape[0] // 8 - 1
    loss_of(step, other)
    assert [own for _, own in runs[3:]] == [True, False]
    assert step.teacher_logits is not None
    assert step.teacher_logits.known.sum() == 16 and step.teacher_logits.known.device.type == "cpu"


@pytest.mark.parametrize("features", [0.0, 0.5])
def test_a_teacher_is_learnt_from_in_place_of_the_network(multi_zoo: Path, features: float) -> None:
    stage = {"steps": 1, "reconstruction": 0.0, "distillation": 1.0, "features": features, "images": 8, "kernels": 64}
    own, taught = (distilling(multi_zoo, stages=[stage]) for _ in range(2))
    shift = torch.linspace(0, 3, 10)
    taught.original.teachers = {"it": lambda shown: taught.run(taught.state, shown, False)[0] + shift}
    taught.begin(own.stage.model_copy(update={"teacher": "it"}), 0)
    for _ in range(2):  # asked, and remembered
        with torch.no_grad():
            terms = [step(step.predictor, 0) for step in (own, taught)]
        assert float(terms[0]["distillation"]) != pytest.approx(float(terms[1]["distillation"]))
        assert features == 0.0 or torch.equal(terms[0]["features"], terms[1]["features"])  # the network's own
    inputs, index = taught._inputs(0)
    torch.testing.assert_close(taught._logits(inputs, index), own._targets(inputs, index)[0] + shift)
    taught.begin(own.stage, 0)
    torch.testing.assert_close(
        taught._logits(inputs, index), own._targets(inputs, index)[0]
    )  # what was remembered is gone


@pytest.mark.parametrize("sampling", ["all", "layer", "uniform", "weighted"])
def test_kernels_are_drawn_as_asked(sampling: str) -> None:
    config = settings(stages=[{"steps": 1, "kernels": 8, "sampling": sampling, "uniform": 0.0}])
    step = stepping(config, begin(state_of(), config, None), Original(state_of()))
    step.norm[:10] = 0
    drawn = [step.chosen(number) for number in range(20)]
    if sampling == "all":
        assert drawn == [None] * 20
        return
    layers = {tuple(each.tolist()) for each in drawn if each is not None}
    if sampling == "layer":
        assert layers == {tuple(range(12)), tuple(range(12, 36))}
    else:
        assert all(len(each) == 8 for each in layers)
        assert all(len({*each}) == 8 for each in layers) is (sampling == "uniform")  # by norm: with replacement
        assert any(place < 10 for each in layers for place in each) is (sampling == "uniform")
        step.norm[:] = 0  # nothing to be drawn by: uniform
        drawn = step.chosen(0)
        assert drawn is not None and len({*drawn.tolist()}) == 8


def test_kernels_are_drawn_by_their_norms() -> None:
    config = settings(stages=[{"steps": 1, "kernels": 30, "sampling": "weighted", "uniform": 0.0}])
    step = stepping(config, begin(state_of(), config, None), Original(state_of()))
    step.norm = torch.arange(36.0)
    counts = torch.zeros(36)
    for number in range(400):
        drawn = step.chosen(number)
        assert drawn is not None
        counts += torch.bincount(drawn, minlength=36)
    torch.testing.assert_close(counts / counts.sum(), step.norm / step.norm.sum(), atol=0.005, rtol=0)


@pytest.mark.parametrize("terms", ["all", "reconstruction"])
@pytest.mark.parametrize("sampling", ["all", "uniform", "weighted"])
def test_eq_3_is_over_all_weights_with_the_gradient_through_the_drawn_ones(
    multi_zoo: Path, terms: str, sampling: str
) -> None:
    """As often as they were drawn; where the others are not predicted, up to the ratio of both errors."""
    more = {"distillation": 1.0, "images": 8} if terms == "all" else {}
    stage = {"steps": 1, "kernels": 64, "sampling": sampling, "uniform": 0.0, **more}
    step = distilling(multi_zoo, stages=[stage])
    drawn = step.chosen(0)
    found = step(step.predictor, 0)["reconstruction"]
    found.backward()
    gradients = [value.grad.clone() for value in step.predictor.parameters() if value.grad is not None]
    step.predictor.zero_grad()

    with torch.random.fork_rng():
        oracle = copy.deepcopy(step.predictor).double()
    values = oracle(step.compressed.kernels.coordinates().double())
    mask = step.mask.double()
    count = torch.ones(len(values)) if drawn is None else torch.bincount(drawn, minlength=len(values))
    values = values.detach() + count[:, None] * (values - values.detach())
    squares = ((values - step.target.double()) * mask).square()
    loss = (squares.sum() / mask.sum()).sqrt()
    loss.backward()
    ratio = 1.0
    if terms == "reconstruction" and drawn is not None:
        sample = (squares.detach()[drawn].sum() / mask[drawn].sum()).sqrt()
        ratio = float(loss.detach() / sample)
        assert float(found.detach()) == pytest.approx(float(sample), rel=1e-4)
    else:
        assert float(found.detach()) == pytest.approx(float(loss.detach()), rel=1e-4)
    for one, value in zip(gradients, oracle.parameters(), strict=True):
        assert value.grad is not None
        assert float((one - ratio * value.grad).norm() / value.grad.norm()) < 2e-3


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_maps_of_a_pool_are_asked_once_and_are_the_networks(
    multi_zoo: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = {"steps": 1, "distillation": 1.0, "features": 0.5, "images": 8, "kernels": 64, "pool": 16}
    step = distilling(multi_zoo, stages=[stage], precision=precision)
    fresh = distilling(multi_zoo, stages=[stage], precision=precision)
    asked = counted_runs(monkeypatch)
    for number in range(6):
        fresh.maps = None
        terms, wanted = (each(each.predictor, number) for each in (step, fresh))
        assert {name: float(term.detach()) for name, term in terms.items()} == pytest.approx(
            {name: float(term.detach()) for name, term in wanted.items()}, rel=1e-6
        )
    assert step.maps is not None and step.maps.known.all()
    assert sum(own for of, own in asked if of is step) == 2  # 16 images, 8 in each batch
    shown = {tuple(step._inputs(number)[0].flatten(1).sum(1).tolist()) for number in range(6)}
    assert len({value for batch in shown for value in batch}) <= 16


def test_a_pool_is_the_same_for_the_same_seed_and_all_images_where_it_is_large(multi_zoo: Path) -> None:
    original, _ = find_original(MEMBER, multi_zoo)
    task = original.task
    assert task is not None
    one, same, other = (task.subset(16, seed).train.images for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other) and len(one) == 16
    assert task.subset(10**6, 0) is task


def test_what_a_pool_cannot_remember_is_told_before_the_start(multi_zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, _ = find_original(MEMBER, multi_zoo)
    stage = {"steps": 1, "features": 0.5, "pool": 16}
    config, cpu = settings(stages=[{"steps": 1}, stage]), torch.device("cpu")
    kernels = Kernels.of(original.state)
    fit.check_pools(config, original, kernels, cpu)
    monkeypatch.setattr(fit, "free_memory", lambda device: 1000)
    with pytest.raises(UsageError, match=r"stage 1 caches the feature maps of the 16 images.*: leave it out"):
        fit.check_pools(config, original, kernels, cpu)
    assert original.task is not None
    original.task = replace(original.task, flip=True)
    with pytest.raises(UsageError, match=r"stage 1 draws its images from a pool.*augmented.*leave out 'pool'"):
        fit.check_pools(config, original, kernels, cpu)
    original.task = replace(original.task, flip=False)
    monkeypatch.setattr(fit, "run_with_maps", lambda *_: (torch.zeros(1, 10), [torch.zeros(4, 7)]))
    with pytest.raises(UsageError, match=r"stage 1 .*folds other axes into that of the images: leave out 'pool'"):
        fit.check_pools(config, original, kernels, cpu)
    for wrong in ({"inputs": "noise"}, {"features": 0.0}):
        with pytest.raises(ValueError, match="a pool holds images of the task"):
            FitConfig.model_validate({"stages": [{**stage, **wrong}]})


def test_a_pool_is_counted_in_the_precision_that_networks_run_in(
    multi_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, _ = find_original(MEMBER, multi_zoo)
    stage = {"steps": 1, "features": 0.5, "pool": 16, "images": 8}
    kernels, cpu = Kernels.of(original.state), torch.device("cpu")
    _, maps = run_with_maps(original.module, original.state, torch.zeros(1, *original.input_shape), kernels.layers)
    values = 16 * sum(value.numel() for value in maps)
    monkeypatch.setattr(fit, "free_memory", lambda device: 2 * 3 * values)  # half of it: 3 bytes for each value
    fit.check_pools(settings(stages=[stage], precision="bf16"), original, kernels, cpu)
    with pytest.raises(UsageError, match="stage 0 caches the feature maps"):
        fit.check_pools(settings(stages=[stage], precision="float32"), original, kernels, cpu)
    auto = settings(stages=[stage])
    monkeypatch.setattr(fit, "choose", lambda *_: {"precision": "float32"})
    with pytest.raises(UsageError, match="stage 0 caches the feature maps"):
        fit_network(MEMBER, tmp_path / "fit", auto, multi_zoo)
    assert not (tmp_path / "fit").exists()
    monkeypatch.setattr(fit, "choose", lambda *_: {"precision": "bf16"})
    assert fit_network(MEMBER, tmp_path / "fit", auto, multi_zoo).precision["precision"] == "bf16"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("pool", [None, 16])
def test_a_step_does_not_wait_for_the_device(multi_zoo: Path, pool: int | None, precision: str) -> None:
    device = torch.device("cuda")
    original, spec = find_original(MEMBER, multi_zoo, device)
    stage = {"steps": 9, "distillation": 1.0, "features": 0.5, "images": 8, "kernels": 64, "pool": pool}
    config = settings(stages=[stage], precision=precision, predictor_precision=precision)
    step = NernStep(config, begin(original.state, config, spec), original, device)
    step.begin(config.stages[0], 0)
    for number in range(3):  # all of the pool is known then
        loss_of(step, number).backward()
    with no_waiting(device):
        loss_of(step, 3).backward()
