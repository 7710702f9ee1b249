"""The tables of docs/benchmarks-spaces.md and the README on spaces: what a baseline does better is said, and targets are judged."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOOLS = Path(__file__).parent.parent / "tools"
OWN = {"accuracy_predicted": 0.8, "r2": 0.95, "mae": 0.03, "bias": 0.02, "agreement": 0.88, "kl": 0.1}


@pytest.fixture
def space_tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("space_tables")


def figures() -> dict[str, Any]:
    """Of a space that a random network as accurate beats in R2 and bias alone."""
    return {
        **OWN,
        "members": 100,
        "accuracy_target": 0.78,
        "latent": 256,
        "parameters": 5226,
        "compression": 0.049,
        "diversity": 5.5,
        "zoo_diversity": 13.75,
        "identity": {"own_minus_peers": 0.0789, "jaccard_own": 0.5, "jaccard_peers": 0.25, "without_peers": 3},
        "baselines": {
            "same_accuracy": {**OWN, "r2": 0.984, "bias": -0.004, "mae": 0.031, "agreement": 0.7, "kl": 0.4},
            "five_nearest": {**OWN, "r2": 0.5, "bias": 0.1, "mae": 0.1, "agreement": 0.851, "kl": 0.2},
            "aligned_average": None,
        },
        "interpolation": {
            "pairs": 8,
            "spearman_latent": 0.96,
            "spearman_weights": 0.5,
            "linear_r2_latent": 0.9,
            "linear_r2_weights": 0.1,
            "end_differences": [0.05, -0.01],
            "end_distances": [0.06, 0.01],
        },
    }


def story(**changes: Any) -> dict[str, Any]:
    """What `quickstart --json` prints, as far as it is judged."""
    line = {"spearman": 0.97, "weight_spearman": 0.5}
    return {"eval": {**figures(), **changes}, "interpolate": line, "seconds": {"total": 200.0}}


def test_the_best_baseline_of_each_column_and_where_it_is_better(space_tables: ModuleType) -> None:
    actual = {column.key: column for column in space_tables.COLUMNS}
    best = {key: space_tables.best_baseline(figures(), column) for key, column in actual.items()}
    assert best["r2"] == ("same_accuracy", 0.984) and best["bias"] == ("same_accuracy", -0.004)
    assert best["mae"] == ("same_accuracy", 0.031) and best["agreement"] == ("five_nearest", 0.851)
    assert [key for key, column in actual.items() if space_tables.beaten(figures(), column)] == ["r2", "bias"]
    table = space_tables.short_table({"digits": figures()})
    assert "| digits, 100 test networks | **0.950** | **3.00** | **+2.00** | **88.0 %** |" in table
    assert (
        "0.984 (a random training network as accurate), better | 3.10 (a random training network as accurate) |"
        in table
    )
    assert "85.1 % (mean answer of the 5 nearest) |" in table


def test_refined_latents_stand_beside_their_control(space_tables: ModuleType) -> None:
    """The control, which is trained, is no lookup: it is compared with refined latents alone."""
    told = figures()
    told["refined"] = {**OWN, "agreement": 0.93, "steps": 200}
    told["baselines"]["distilled"] = {**OWN, "agreement": 0.92, "r2": 0.96}
    table = space_tables.short_table({"digits": told})
    assert "| the same, latents refined by 200 steps on the networks' answers | **0.950** | **3.00** |" in table
    assert "its weights trained for as many | 0.960, better | 3.00 | +2.00 | 92.0 % |" in table
    assert "85.1 % (mean answer of the 5 nearest) |" in table
    assert "| the space, latents refined by 200 steps | 80.0 % |" in space_tables.tables({"digits": told}, {})


def test_every_baseline_stands_in_the_long_table_the_missing_one_too(space_tables: ModuleType) -> None:
    text = space_tables.tables({"digits": figures()}, {"digits": "A note."})
    for words in (
        "| average of the 10 best, aligned | missing | | | | | |",
        "| mean answer of the 5 nearest | 80.0 % | 0.500 | 10.00 | +10.00 | 85.1 % | 0.200 |",
        "(ratio 0.40)",
        "+7.9 points; overlap of mistakes (Jaccard) 0.500 own, 0.250 others (3 of 100 members",
        "R2 of a straight line 0.900 latent, 0.100 weights; decoded ends minus their targets +5.0 and -1.0 points",
        "A note.",
        "Better than the space: R2 of accuracy: a random training network as accurate, 0.984; bias, points:",
    ):
        assert words in text, words
    rows = [row for row in text.splitlines() if row.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1


def test_fashions_aims_ask_for_every_column(space_tables: ModuleType) -> None:
    text = space_tables.fashion_aims(figures())
    assert "| R2 of accuracy | better than 0.984 (a random training network as accurate) | 0.950 | NO |" in text
    assert "| agreement | >= 85 % | 88.0 % | yes |" in text


@pytest.mark.parametrize(
    ("changes", "options", "code", "words"),
    [
        (
            {"bias": 0.005, "r2": 0.97, "agreement": 0.91, "identity": {"own_minus_peers": 0.11}},
            ["--all"],
            0,
            "ok   agreement, over five_nearest",
        ),
        ({}, [], 0, "miss absolute bias of predicted accuracy: 2.0 points, at most 1.0 points"),
        ({}, ["--all"], 1, "FAIL agreement with the own target over peers': 7.9 points, at least 10.0 points"),
        ({"agreement": 0.84}, [], 0, "miss agreement, over five_nearest: 84.0 %, above 85.1 %"),
        ({"agreement": 0.79}, [], 1, "FAIL agreement, floor: 79.0 %, at least 80.0 %"),
        ({"identity": {}}, [], 0, "miss agreement with the own target over peers': not measured"),
        (
            {},
            [],
            0,
            "not measured: nearest_answers, nearest_agreement, constant, ensemble, aligned_average",
        ),
    ],
)
def test_targets_of_the_quickstart(
    changes: dict[str, Any], options: list[str], code: int, words: str, tmp_path: Path
) -> None:
    file = tmp_path / "quickstart.json"
    file.write_text(json.dumps(story(**changes)))
    command = [sys.executable, str(TOOLS / "check_quickstart.py"), str(file), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code and words in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("distance", "lookup", "words"),
    [
        (
            1.2,
            0.95,
            ("are nearly one network", "1.2 to 1.2 where the zoo's is 13 to 30", "agrees at least as often", "95.0%"),
        ),
        (11.0, 0.93, ("of a class differ", "agrees less often with the target: 93.0%, the predicted networks 94.9%")),
    ],
)
def test_the_sentence_on_several_architectures_is_of_the_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, distance: float, lookup: float, words: tuple[str, ...]
) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    several_tables = importlib.import_module("multi_tables")
    own = {"accuracy_predicted": 0.95, "accuracy_target": 0.94, "diversity": distance}
    classes = {"small": {**own, "zoo_diversity": 13.2}, "large": {**own, "zoo_diversity": 29.6}}
    evaluated = {
        **figures(),
        "agreement": 0.949,
        "classid_accuracy": 1.0,
        "per_class": classes,
        "baselines": {"nearest": {"agreement": lookup}, "average": {"agreement": 0.99}, "aligned_average": None},
    }
    controls = {"accuracy_scale_zero": 0.81, "accuracy_distilled": None}
    between = {"middle": {"ratio": 1.01, "accuracy": 0.97, **controls}}
    for name, stored in (("multi", evaluated), ("unseen", {"between": between})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "eval-test.json").write_text(json.dumps(stored))
    sentence = several_tables.several_sentence(tmp_path / "multi", tmp_path / "unseen")
    controls_said = (
        "middle 97.0%, with the learnt part off 81.0%, a network distilled from the teacher for as many steps not"
    )
    for word in (*words, controls_said):
        assert word in sentence, (word, sentence)
