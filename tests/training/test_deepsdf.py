"""The auto-decoder's training on balls, whose distances are known; latents of balls that it never saw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from netspace.models.auto_decoder import AutoDecoder
from netspace.run_folder import RunFolder, read_metrics
from netspace.streams import Stream, generator
from netspace.training import deepsdf
from netspace.training.deepsdf import DeepSdfConfig, DeepSdfLearner, field_values, fit_latents
from netspace.training.descent import OwnSamples
from netspace.training.loop import Loop, make_accelerator
from netspace.training.optimizers import Optimizer, OptimizerConfig

CONFIG = DeepSdfConfig(
    hidden=32, layers=3, steps=250, shapes=16, points=64, fit_steps=150, fit_points=64,
    optimizer=OptimizerConfig(name="adam", learning_rate=5e-3, elementwise_rate=2e-2, schedule="cosine"),
)  # fmt: skip


def balls(radii: torch.Tensor, points: int, stream: int) -> OwnSamples:
    """Balls about the origin: |x| - r."""
    inside = 2 * torch.rand(len(radii), points, 3, generator=generator(0, stream)) - 1
    return OwnSamples(inside, inside.norm(dim=-1, keepdim=True) - radii[:, None, None])


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> DeepSdfLearner:
    folder = RunFolder(tmp_path_factory.mktemp("deepsdf"), ["again"], "deepsdf")
    torch.manual_seed(1)
    radii = torch.linspace(0.2, 0.8, 24)
    learner = DeepSdfLearner(CONFIG, AutoDecoder(24, 4, 32, 3), balls(radii, 256, 1), balls(radii, 128, 2), folder)
    accelerator, _ = make_accelerator(torch.device("cpu"))
    Loop(learner, accelerator, folder.metrics, folder.last).run()
    learner.model.load_state_dict(folder.load_best())
    return learner


def test_training_shapes_and_others_are_given_back(learner: DeepSdfLearner) -> None:
    model = learner.model
    error = (field_values(model, model.latents, learner.val.points) - learner.val.values).abs().mean()
    assert float(error) < 0.02
    new = balls(torch.tensor([0.27, 0.51, 0.73]), 256, 3)
    latents = fit_latents(model, new, CONFIG)
    assert latents.shape == (3, 4)
    assert not latents.requires_grad
    elsewhere = balls(torch.tensor([0.27, 0.51, 0.73]), 512, 4)
    fitted = (field_values(model, latents, elsewhere.points) - elsewhere.values).abs().mean((1, 2))
    mean = model.latents.mean(0).expand(3, -1)
    unfitted = (field_values(model, mean, elsewhere.points) - elsewhere.values).abs().mean((1, 2))
    assert float(fitted.max()) < 0.03
    assert float(fitted[[0, 2]].max()) < 0.2 * float(unfitted[[0, 2]].min())


def test_an_auto_decoder_of_one_shape_finds_others() -> None:
    """One latent has no deviation over shapes."""
    torch.manual_seed(0)
    latents = fit_latents(AutoDecoder(1, 4, 32, 3), balls(torch.tensor([0.3, 0.5]), 64, 3), CONFIG)
    assert latents.isfinite().all() and not torch.equal(latents[0], latents[1])


@torch.no_grad()
def test_the_terms_are_the_difference_and_the_prior(learner: DeepSdfLearner) -> None:
    """Over all shapes of the batch, one by one."""
    terms = learner.terms(learner.model, 3, 0)
    config, model = CONFIG, learner.model
    rows = learner.shuffle.take(3 * 16, 16)
    columns = torch.randint(256, (16, 64), generator=generator(0, Stream.AUTO_DECODED_POINTS, 3))
    total, prior = 0.0, 0.0
    for row, own in zip(rows.tolist(), columns, strict=True):
        latent = model.latents[row]
        points, values = learner.train.points[row, own], learner.train.values[row, own]
        outputs = model(latent[None], points)[0]
        total += float((outputs - values).double().abs().mean()) / 16
        prior += config.prior * float(latent.double().square().sum()) / 16
    assert float(terms["difference"]) == pytest.approx(total, rel=1e-4)
    assert float(terms["prior"]) == pytest.approx(prior, rel=1e-4)


@torch.no_grad()
def test_processes_share_the_shapes_of_a_step(learner: DeepSdfLearner, tmp_path: Path) -> None:
    both = [
        DeepSdfLearner(CONFIG, learner.model, learner.train, learner.val, learner.folder, rank, 2) for rank in (0, 1)
    ]
    parts = [float(each.terms(learner.model, 3, 0)["difference"]) for each in both]
    assert sum(parts) / 2 == pytest.approx(float(learner.terms(learner.model, 3, 0)["difference"]), rel=1e-5)
    assert parts[0] != parts[1]


def test_validations_are_recorded_and_the_timing_changes_nothing(learner: DeepSdfLearner) -> None:
    records = [record for record in read_metrics(learner.folder.metrics) if "val_difference" in record]
    assert [record["step"] for record in records] == list(range(25, 251, 25))
    before = [value.clone() for value in learner.model.parameters()]
    assert learner.seconds_a_step() > 0
    after = list(learner.model.parameters())
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
    assert all(value.grad is None for value in after)


def test_the_optimiser_is_part_of_a_timed_step(learner: DeepSdfLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by 3 with each batch and by 4 with each step of the optimiser."""
    clock, terms, step = [0.0], DeepSdfLearner.terms, Optimizer.step

    def ticking(work: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            clock[0] += seconds
            return work(*arguments)

        return call

    monkeypatch.setattr(DeepSdfLearner, "terms", ticking(terms, 3))
    monkeypatch.setattr(Optimizer, "step", ticking(step, 4))
    monkeypatch.setattr(deepsdf.time, "perf_counter", lambda: clock[0])
    assert learner.seconds_a_step() == 7
