"""Drawn networks: the distribution they come from, what is told of them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from netspace.commands.convert import zoo_of
from netspace.commands.sample import draw, sample
from netspace.errors import UsageError
from netspace.networks.family import Networks
from netspace.networks.state_dict import flat_parameters
from netspace.space import Space
from netspace.training.setup import task_of
from netspace.training.validation import accuracies


def test_the_gaussian_has_the_latents_mean_and_covariance() -> None:
    torch.manual_seed(0)
    known = torch.randn(200, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64) + 3
    drawn = draw(known.float(), 100_000, "gaussian", 0.3, 0).double()
    torch.testing.assert_close(drawn.mean(0), known.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), known.T.cov(), atol=0.25, rtol=0.05)


def test_kde_lies_around_members() -> None:
    known = torch.tensor([[0.0, 0.0], [100.0, 0.0]])
    drawn = draw(known, 500, "kde", 0.01, 0)
    assert torch.cdist(drawn, known).min(1).values.max() < 5
    assert 150 < int((drawn[:, 0] > 50).sum()) < 350
    assert torch.equal(draw(known, 5, "kde", 0.0, 1).unique(dim=0), known)


@pytest.mark.parametrize("fit", ["gaussian", "kde"])
def test_what_is_told_is_what_was_drawn(tiny_run: Path, run_copy: Path, tmp_path: Path, fit: str) -> None:
    result = sample(run_copy, 4, fit=fit, seed=1, save=tmp_path / "nets")
    assert result.arch == "lenetlike" and len(result.accuracy) == len(result.novelty) == 4
    space = Space.load(run_copy)
    with zoo_of(run_copy) as zoo:
        task = task_of(zoo, "cpu")
    for name, right in zip(result.networks, result.accuracy, strict=True):
        flat = flat_parameters(load_file(name), space.spec)
        network = Networks.of_class(space.family, 0, flat[None])
        assert accuracies(network, task, "test")[0] == pytest.approx(right)
    assert result.nearest.novelty == result.nearest.distance == 0
    assert result.average.pairwise_agreement == 1 and result.average.diversity == 0
    assert result.sampled.accuracy == pytest.approx(sum(result.accuracy) / 4)
    assert result.sampled.novelty == pytest.approx(sum(result.novelty) / 4)
    assert result == sample(run_copy, 4, fit=fit, seed=1, save=tmp_path / "nets")
    assert result.accuracy != sample(run_copy, 4, fit=fit, seed=2).accuracy
    assert (run_copy / "samples" / f"lenetlike-{fit}-1.json").is_file()


def test_mistakes(tiny_run: Path) -> None:
    with pytest.raises(UsageError, match=r"networks of resnet8 were asked for, but this space holds lenetlike alone"):
        sample(tiny_run, arch="resnet8")
    with pytest.raises(UsageError, match=r"unknown fit 'gauss': did you mean 'gaussian'"):
        sample(tiny_run, fit="gauss")
    with pytest.raises(UsageError, match=r"at least 2 networks are drawn"):
        sample(tiny_run, 1)
    for bandwidth in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=r"a bandwidth of .* was asked for: give a number above 0"):
            sample(tiny_run, fit="kde", bandwidth=bandwidth)
