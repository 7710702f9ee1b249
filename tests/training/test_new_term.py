"""A loss term of one's own is a function of the batch and a line in the table of terms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from netspace.run_folder import read_metrics
from netspace.training.latent_space import train
from netspace.training.recipe import SpaceRecipe
from netspace.training.step import TERMS, Batch, Term


def confidence(batch: Batch, weight: float) -> Tensor:
    """Decoded networks are as sure of themselves as those that were encoded."""
    found, target = (each.float().softmax(-1).amax(-1) for each in (batch.logits[: batch.count], batch.target_logits))
    return weight * (found - target).square().mean()


@pytest.mark.parametrize("multi", [False, True])
def test_it_is_trained_with_and_recorded(
    tiny_zoo: Path,
    multi_zoo: Path,
    space_settings: dict[str, Any],
    multi_settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    multi: bool,
) -> None:
    settings, zoo = (multi_settings, multi_zoo) if multi else (space_settings, tiny_zoo)
    recipe = SpaceRecipe.model_validate({**settings, "steps": 3, "log_every": 1, "loss": {"behaviour": 1.0}})
    runs = []
    for weight in (0.0, 5.0):
        monkeypatch.setitem(TERMS, "confidence", Term(lambda recipe, weight=weight: weight, confidence, targets=True))
        runs.append(train(recipe, zoo, tmp_path / str(weight)))
    records = [[each for each in read_metrics(run / "metrics.jsonl") if "confidence" in each] for run in runs]
    assert [each["confidence"] for each in records[0]] == [0.0] * 3
    assert all(each["confidence"] > 0 for each in records[1])
    assert records[0][0]["behaviour"] == records[1][0]["behaviour"] != records[1][2]["behaviour"]
    assert records[0][2]["behaviour"] != records[1][2]["behaviour"]  # it was learnt from


def test_a_batch_says_the_shapes_it_promises(tiny_zoo: Path, space_settings: dict[str, Any]) -> None:
    from netspace.training.setup import prepare
    from netspace.training.step import Step
    from netspace.zoo import Zoo

    loss = {"behaviour": 1.0, "lines": 0.5}
    with Zoo(tiny_zoo) as zoo:
        recipe = SpaceRecipe.model_validate({**space_settings, "loss": loss})
        setup = prepare(recipe, zoo, torch.device("cpu"))
        batch = Step(setup).batch(setup.model, 0)
    m, s, b, c = recipe.networks, recipe.networks // 2, recipe.images, setup.task.num_outputs
    assert batch.count == m and len(batch.points) == s and batch.decoded.shape == (m + s, *setup.family.size)
    assert batch.logits.shape == (m + s, b, c) and batch.target_logits.shape == (m, b, c)
    assert batch.class_ids.tolist() == [0] * (m + s)
    assert batch.class_logits.numel() == batch.teacher_logits.numel() == batch.labels.numel() == 0  # no teacher
