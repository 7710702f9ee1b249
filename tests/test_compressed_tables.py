"""The benchmarks' page on coordinate networks: what holds is told from what does not, and what was not run is said."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from netspace.config import load, to_yaml
from netspace.io import write_json
from netspace.training.recipe import FitConfig

FIT = {
    "accuracy_original": 0.93,
    "accuracy_reconstructed": 0.928,
    "agreement": 0.99,
    "relative_error": 0.15,
    "parameters_predictor": 44,
    "parameters_represented": 100,
    "bytes_file": 60,
    "bytes_original": 110,
}


@pytest.fixture
def ablations(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "tools"))
    return importlib.import_module("ablations")


def _row(accuracy: float, seed: int = 0) -> dict[str, float]:
    return {"seed": seed, "accuracy_reconstructed": accuracy, "agreement": 0.5, "relative_error": 0.3}


def test_orders_are_held_or_not_by_means_over_seeds(ablations: ModuleType) -> None:
    actual = {"reconstruction only": [_row(0.8), _row(0.6, 1)], "base": [_row(0.7), _row(0.72, 1)]}
    assert "- reconstruction only < base: yes, by 1 of 2 seeds" in ablations.table(actual)
    actual["base"][1] = _row(0.68, 1)
    assert "- reconstruction only < base: no, by 1 of 2 seeds" in ablations.table(actual)
    assert "layer" not in ablations.table(actual)


def test_a_network_without_data_has_relative_errors_alone(ablations: ModuleType) -> None:
    unknown = {"seed": 0, "accuracy_reconstructed": None, "agreement": None, "relative_error": 0.25}
    assert "| base | - | - | 0.250 |" in ablations.table({"base": [unknown]})


def test_the_papers_optimiser_is_compared_under_the_papers_embedding_too(ablations: ModuleType) -> None:
    paper = load(FitConfig, "compress/paper")
    name = "raw 0.76 x 40 (the paper's); Ranger (0.005, the paper's)"
    config = ablations.config_of(ablations.OPTIMIZERS[name], 10, 1e-4, 0, ["a.*"], norms=False)
    assert config.predictor == paper.predictor and config.stages[0].optimizer == paper.stages[0].optimizer
    assert config.layers == ("a.*",) and config.norms == paper.norms and config.order == paper.order
    assert not config.stages[0].runs_networks


def test_every_variant_is_a_valid_fit(ablations: ModuleType) -> None:
    for group in ablations.GROUPS.values():
        for changes in group.values():
            assert ablations.config_of(changes, 10, 1e-4, 0).stages[0].steps == 10


def test_the_page_says_what_holds_and_what_was_not_run(tmp_path: Path, ablations: ModuleType) -> None:
    compressed = importlib.import_module("compressed_tables").compressed  # its neighbour, found as `ablations` was
    write_json(tmp_path / "decoupled" / "fit.json", FIT)
    write_json(tmp_path / "large" / "fit.json", {**FIT, "parameters_predictor": 112, "accuracy_reconstructed": 0.931})
    text = compressed(tmp_path, {"rows": [{"name": "nern: paper", "ratio": 2.2}]})
    assert "| >= 3 | 2.20 | NO |" in text
    assert "decoupled | <= 0.5 points | 0.20 points | yes" in text
    assert "`joint`) | <= 1.0 points | not run | NO" in text
    assert "112% of the convolutions (`large`) over the original | >= 0 | +0.10 points | yes" in text
    assert "ablations: not run" in text
    write_json(tmp_path / "joint" / "fit.json", {**FIT, "accuracy_reconstructed": 0.91})
    assert "`joint`) | <= 1.0 points | 2.00 points | NO" in compressed(tmp_path, {})
    write_json(tmp_path / "joint-pool" / "fit.json", FIT)
    pooled = FitConfig.model_validate({"stages": [{"features": 1.0, "pool": 4096}]})
    (tmp_path / "joint-pool" / "config.yaml").write_text(to_yaml(pooled))
    assert "| joint, `pool` 4,096 | 44.0% |" in compressed(tmp_path, {})
