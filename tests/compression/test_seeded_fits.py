"""Fits from several seeds: they are the single fits, and means and deviations are those of hand."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fits import settings, state_of
from safetensors.torch import save_file

from netspace.compression.fit import fit
from netspace.compression.seeds import fit_seeds, spread, summary
from netspace.config import load
from netspace.errors import UsageError
from netspace.results.compressed import FitRecord, FitResult
from netspace.results.seeds import SeededFits
from netspace.training.recipe import FitConfig

Cli = Callable[..., Any]
ROUNDS = [{"steps": 4, "rounds": 2, "kernels": 64}, {"steps": 2, "kernels": 64}]


@pytest.fixture
def network(tmp_path: Path) -> Path:
    save_file(state_of(), tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def test_each_seed_is_the_fit_of_that_seed(network: Path, tmp_path: Path) -> None:
    config = settings(stages=ROUNDS, validate_every=2, seed=5)
    result = fit_seeds(str(network), tmp_path / "out", config, 2)
    assert SeededFits.read(tmp_path / "out" / "seeds.json") == result
    assert result.seeds == [5, 6] and [(each.stage, each.round) for each in result.rounds] == [(0, 0), (0, 1), (1, 0)]
    alone = fit(str(network), tmp_path / "alone", config.model_copy(update={"seed": 6}))
    assert result.relative_error is not None and result.relative_error.values[1] == alone.relative_error
    assert result.relative_error.values[0] != alone.relative_error
    assert result.accuracy_reconstructed is None and result.rounds[0].accuracy_val is None
    kept = min(record.relative_error for record in alone.curve if record.stage == 1)
    assert result.rounds[1].relative_error.values[1] == kept  # without data the least error decides
    with pytest.raises(UsageError, match="--resume"):
        fit_seeds(str(network), tmp_path / "out", config, 2)
    assert fit_seeds(str(network), tmp_path / "out", config, 3, resume=True).seeds == [5, 6, 7]


def test_means_deviations_and_kept_weights_by_hand() -> None:
    def figures(original: float, after: float, accuracies: list[float], errors: list[float]) -> FitResult:
        curve = [
            FitRecord(stage=index // 2, step=index % 2, accuracy_val=accuracy, relative_error=error)
            for index, (accuracy, error) in enumerate(zip(accuracies, errors, strict=True))
        ]
        return FitResult(
            accuracy_original=original, accuracy_reconstructed=after, agreement=1.0, relative_error=0.5, curve=curve
        )

    config = settings(stages=[{"steps": 1, "rounds": 2}])
    fits = [
        figures(0.8, 0.9, [0.5, 0.4, 0.6, 0.6], [0.3, 0.1, 0.2, 0.1]),  # keeps 0.5 (0.3), then 0.6 (0.1)
        figures(0.8, 0.7, [0.1, 0.3, 0.2, 0.0], [0.9, 0.8, 0.7, 0.6]),  # keeps 0.3 (0.8), then 0.2 (0.7)
    ]
    result = summary(config, [0, 1], fits)
    assert result.accuracy_reconstructed == spread([0.9, 0.7])
    assert result.difference.mean == pytest.approx(0.0) and result.difference.std == pytest.approx(0.2 / 2**0.5)
    assert [each.accuracy_val.values for each in result.rounds] == [[0.5, 0.3], [0.6, 0.2]]
    assert [each.relative_error.values for each in result.rounds] == [[0.3, 0.8], [0.1, 0.7]]
    assert result.rounds[1].relative_error.std == pytest.approx(statistics.stdev([0.1, 0.7]))
    assert spread([0.5]).std is None and spread([0.5, None]) is None


def test_the_command(cli: Cli, network: Path) -> None:
    words = ("compress", "fit", network, "-o", "out", "--set", "predictor.hidden=8", "--seeds", 2)
    stages = ("--set", "stages=[{steps: 2, rounds: 2, kernels: 64}]")
    result = cli(*words, *stages, "--json").json
    assert SeededFits.model_validate(result).seeds == [0, 1]
    text = cli(*words, *stages, "--resume").out
    assert "2 fits, seeds 0 to 1" in text and "stage 1, round 2" in text and " ± " in text
    mistake = cli(*words, "--bytes", "900")
    assert mistake.code == 2 and "--seeds is about fits without a size" in mistake.sentence
    mistake = cli("compress", "fit", "-o", "out", "--seeds", 2, "--resume")
    assert mistake.code == 2 and "name it as MODEL" in mistake.sentence


def test_the_recipe_of_progressive_rounds_has_a_predictor_larger_than_the_network() -> None:
    recipe, large = load(FitConfig, "compress/progressive"), load(FitConfig, "compress/large")
    (stage,) = recipe.stages
    assert recipe.predictor == large.predictor and stage.rounds == 5 and not stage.runs_networks
