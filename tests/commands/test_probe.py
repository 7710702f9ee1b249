"""`netspace probe`: properties that can be predicted are, others are not; splits keep runs together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import refused
from scipy import stats
from test_health import rewritten

from netspace.commands import probe as probes
from netspace.commands.collection import Collection, opened, sketch
from netspace.commands.convert import write_network
from netspace.commands.probe import Draws, _split, boosted, interval, probe
from netspace.errors import UsageError
from netspace.networks.spec import NetSpec
from netspace.space import Space
from netspace.streams import Stream, generator
from netspace.zoo import Zoo


def test_members_of_one_run_are_on_one_side() -> None:
    runs = np.random.default_rng(0).integers(0, 20, 300)
    for seed in range(5):
        sides = _split(runs, seed)
        assert sorted(np.concatenate(sides).tolist()) == list(range(300))
        owned = [set(runs[side].tolist()) for side in sides]
        assert all(owned) and not owned[0] & owned[1] and not owned[0] & owned[2] and not owned[1] & owned[2]
    assert _split(runs, 0)[2].tolist() != _split(runs, 1)[2].tolist()
    assert not len(_split(runs, 0, test=0)[2])


def test_intervals_are_percentiles_of_samples_of_runs_and_splits() -> None:
    """By a few plain lines, from the same draws."""
    random = np.random.default_rng(0)
    runs = np.repeat(np.arange(12), 3)
    values = random.standard_normal(36)
    tests = [np.flatnonzero(np.isin(runs, random.permutation(12)[:4])) for _ in range(3)]
    predicted = [values[test] + random.standard_normal(len(test)) for test in tests]
    draws = Draws.of(runs, 3, seed=5, count=50)
    found = draws.scores(predicted, [values[test] for test in tests], tests)
    generator_ = generator(5, Stream.PROBE_BOOTSTRAP)
    of_runs = torch.randint(12, (50, 12), generator=generator_).tolist()
    of_splits = torch.randint(3, (50, 3), generator=generator_).tolist()
    for row, (names, chosen) in enumerate(zip(of_runs, of_splits, strict=True)):
        figures = []
        for split in chosen:
            pairs = [
                (predicted[split][index], values[member])
                for name in names
                for index, member in enumerate(tests[split])
                if runs[member] == name
            ]
            if len({truth for _, truth in pairs}) > 1:
                guess, truth = np.array(pairs).T
                rest = ((guess - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()
                figures.append((1 - rest, stats.kendalltau(guess, truth).statistic))
        assert found[row] == pytest.approx(np.mean(figures, axis=0)), row
    told = interval(0.4, found[:, 1])
    ordered = np.sort(found[:, 1])
    assert (told.mean, told.low) == (0.4, pytest.approx(ordered[1] + 0.225 * (ordered[2] - ordered[1])))
    assert interval(np.nan, found[:, 1]).mean is None and interval(0.1, np.array([np.nan])).low is None


def test_members_of_one_run_are_drawn_together_and_in_all_splits() -> None:
    draws = Draws.of(np.array([3, 7, 7, 9, 3]), 2, seed=0, count=200)
    assert (draws.members[:, 0] == draws.members[:, 4]).all() and (draws.members[:, 1] == draws.members[:, 2]).all()
    assert (draws.members[:, [0, 1, 3]].sum(1) == 3).all() and draws.members[:, 3].mean() == pytest.approx(1, abs=0.15)
    assert draws.splits.shape == (200, 2) and set(draws.splits.ravel().tolist()) == {0, 1}


def test_boosting_stops_where_validation_says() -> None:
    random = np.random.default_rng(0)
    features = [random.standard_normal((count, 4)) for count in (400, 100, 100)]
    values = [np.sin(2 * each[:, 0]) + each[:, 1] ** 2 for each in features]
    predicted = boosted(features, values[0], values[1])
    assert np.corrcoef(predicted, values[2])[0, 1] > 0.75
    noise = boosted(features, random.standard_normal(400), random.standard_normal(100))
    assert noise.std() < 0.7  # few rounds


@pytest.fixture(scope="module")
def telling(tiny_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo whose learning rates are the mean of a layer's weights, and whose test accuracies are random."""

    def change(flat: np.ndarray, members: np.ndarray, spec: NetSpec) -> None:
        members["learning_rate"] = flat[:, spec.offsets[2] : spec.offsets[3]].mean(1) + 1
        members["accuracy_test"] = np.random.default_rng(0).random(len(flat))

    return rewritten(tiny_zoo, tmp_path_factory.mktemp("telling") / "zoo.h5", change)


def test_what_weights_say_is_predicted_and_chance_is_not(telling: Path) -> None:
    result = probe(telling, "learning_rate", splits=3)
    found = {(each.source, each.model): each for each in result.probes}
    known = found["statistics", "ridge"]
    assert known.kendall.mean is not None and known.kendall.mean > 0.6 and known.r2.mean is not None
    assert known.kendall_difference is not None and found["statistics", "boosting"].kendall_difference is None
    assert list(result.left_out) == ["latents"] and result.seen == 0 and result.members == 36
    chance = probe(telling, "accuracy_test", splits=2)
    for each in chance.probes:  # where an interval of Student's t, of two splits, went beyond what tau and R2 can be
        assert each.kendall.low is not None and each.kendall.high is not None and each.r2.high is not None
        assert -1 <= each.kendall.low <= each.kendall.high <= 1 and each.r2.high <= 1
    assert all(each.r2.mean is not None and each.r2.mean < 0.3 for each in chance.probes)


def test_a_run_has_latents_and_predicts_for_files(tiny_run: Path, tiny_zoo: Path) -> None:
    space = Space.load(tiny_run)
    with Zoo(tiny_zoo) as zoo:
        group, best = zoo.only(), zoo.find("best").index
        flat = group.read([best]).flatten(1)[0, : group.spec.num_parameters]
    write_network(Path("net.safetensors"), flat, space.arch_class())
    result = probe(tiny_run, splits=2, files=["net.safetensors"])
    assert [(each.source, each.model) for each in result.probes][:2] == [("latents", "ridge"), ("latents", "boosting")]
    assert result.seen == 24 and not result.left_out and result.predictions is not None
    (predicted,) = result.predictions
    assert predicted.best == predicted.all[result.best] and len(predicted.all) == 6
    assert abs(predicted.best - result.target_mean) < 10 * result.target_std
    again = probe(tiny_run, splits=2, files=["net.safetensors"])
    assert again.payload() == result.payload()


def test_variants_of_a_mesh_are_on_one_side(tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three in a row are one unit, whatever their runs; members without a signal's number are units by themselves."""

    def change(flat: np.ndarray, members: np.ndarray, spec: NetSpec) -> None:
        members["seed"] = [*range(30), *[-1] * 6]
        members["run"] = np.arange(36)
        members["accuracy_test"] = np.linspace(0, 1, 36)

    path = rewritten(tiny_zoo, tmp_path / "zoo.h5", change)
    with opened(path, None, "cpu") as members:
        assert (members.units == members.runs).all()
        members.zoo.header = replace(members.zoo.header, data={"name": "meshes", "variants": 3})
        assert [len(set(members.units[start : start + 3])) for start in range(0, 30, 3)] == [1] * 10
        assert len(set(members.units)) == 10 + 6 and len(set(members.runs)) == 36
    monkeypatch.setattr(Collection, "units", property(lambda members: np.arange(members.count) // 6))
    with pytest.raises(UsageError, match=r"36 members of 6 signals in .*, but splits by signals need at least 8"):
        probe(path)


def test_descriptions_of_several_architectures(multi_zoo: Path) -> None:
    with opened(multi_zoo, None, "cpu") as members:
        statistics, answers = members.described("statistics"), members.described("answers")
        assert len(statistics) == len(answers) == members.count == len(members.table)
        widths = [7 * len(each.group.spec.names) for each in members.groups]
        assert statistics.shape[1] == sum(widths) and not statistics[members.arch_ids == 0, widths[0] :].any()
        picked = np.array([1, members.count - 1])
        assert members.described("answers", picked) == pytest.approx(answers[picked], abs=1e-6)
        assert answers.reshape(len(answers), -1, 10).sum(2) == pytest.approx(1, abs=1e-5)
        assert members.position(members.zoo.find(members.name(3))) == 3


def test_sketches_have_the_inner_products_of_what_they_are_of() -> None:
    values = torch.randn(40, 5000, generator=torch.Generator().manual_seed(0))
    values[1] = values[0] + 0.1 * values[1]
    short = sketch(values)
    assert float((short[0] - short[1]).norm() / (values[0] - values[1]).norm()) == pytest.approx(1, abs=0.15)
    error = (short @ short.T - values @ values.T) / 5000
    assert float(error.abs().mean()) < 0.06 and float(error.mean()) == pytest.approx(0, abs=0.01)


def test_the_command_prints_a_table_and_one_object(
    tiny_run: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "ROUNDS", 3)
    done = cli("probe", tiny_run, "--splits", "2")
    assert done.code == 0 and "latents + ridge" in done.out and "Kendall tau" in done.out
    found = cli("probe", tiny_run, "--splits", "2", "--target", "epochs", "--json").json
    assert found["target"] == "epochs" and found["splits"] == 2 and "predictions" not in found


def test_what_cannot_be_predicted_is_one_sentence(tiny_zoo: Path, multi_zoo: Path, cli: Callable[..., Any]) -> None:
    refused(cli("probe", tiny_zoo, "--target", "beauty"), 2, "beauty", "accuracy_test")
    refused(cli("probe", tiny_zoo, "--splits", "1"), 2, "--splits 1")
    refused(cli("probe", tiny_zoo, "--seed", "-1"), 2, "--seed", "-1")
    refused(cli("probe", tiny_zoo, "--seed", 1 << 40), 2, "--seed", "4,294,967,286")
    refused(cli("probe", tiny_zoo, "--members", "5"), 2, "5 members of 5 training runs", "at least 8")
    refused(cli("probe", tiny_zoo, "--target", "learning_rate"), 2, "0.01 for all members")
    refused(cli("probe", tiny_zoo, "--predict", "gone.pt"), 2, "gone.pt does not exist")
    refused(cli("probe", tiny_zoo, "--zoo", tiny_zoo), 2, "no run folder")
    refused(cli("probe", "nowhere"), 1, "nowhere does not exist")
