"""The plan of a zoo: a pure function of its recipe, with every split over the whole range of epochs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from model_zoo.forward import OptimizerConfig
from model_zoo.recipe import EpochConfig, RunPlan, Variety, ZooRecipe, planned_runs, spread
from netspace.config import load, to_yaml
from netspace.errors import UsageError

ARCHS = {"resnet8": {"arch": "resnet8"}, "lenet": {"arch": "lenetlike", "width": 0.5}}


def recipe(**changes: object) -> ZooRecipe:
    return load(ZooRecipe, {"archs": ARCHS, "members": {"train": 6, "val": 3, "test": 2}, **changes})


def test_the_defaults_are_the_papers() -> None:
    """NetSpace, Suppl. IV: 100, 16 and 16 members, each a run of its own, over epochs up to 600."""
    held = ZooRecipe.model_validate({"archs": ARCHS})
    assert (held.members.train, held.members.val, held.members.test) == (100, 16, 16)
    assert (held.epochs.first, held.epochs.last, held.epochs.snapshots, held.prep_width) == (
        1,
        600,
        1,
        None,
    )


def test_the_plan_is_a_pure_function_of_the_recipe() -> None:
    assert planned_runs(recipe()) == planned_runs(recipe()) == planned_runs(load(ZooRecipe, recipe().model_dump()))
    assert planned_runs(recipe(seed=1)) != planned_runs(recipe())
    assert (
        planned_runs(recipe(device="cpu")) == planned_runs(recipe())
        and recipe(device="cpu").science() == recipe().science()
    )
    assert recipe(seed=1).science() != recipe().science()


def test_an_architecture_is_planned_without_regard_to_the_others() -> None:
    def of(runs: list[RunPlan], arch: str) -> list[RunPlan]:
        return [run for run in runs if run.arch == arch]

    alone = planned_runs(recipe(archs={"lenet": ARCHS["lenet"]}))
    assert of(planned_runs(recipe()), "lenet") == alone
    assert of(planned_runs(recipe()), "resnet8") != alone


def test_seeds_and_runs_are_all_different() -> None:
    runs = planned_runs(recipe(members={"train": 200, "val": 50, "test": 50}))
    assert len({run.seed for run in runs}) == len(runs) == 600
    for arch in ARCHS:
        assert sorted(run.run for run in runs if run.arch == arch) == list(range(300))


def test_splits_have_their_members_and_the_longest_run_comes_first() -> None:
    runs = planned_runs(recipe(epochs={"first": 1, "last": 40, "snapshots": 2}))
    for arch in ARCHS:
        own = [run for run in runs if run.arch == arch]
        counts = {
            split: sum(len(run.epochs) for run in own if run.split == split) for split in ("train", "val", "test")
        }
        assert counts == {"train": 6, "val": 3, "test": 2}
        assert [run.epochs[-1] for run in own] == sorted((run.epochs[-1] for run in own), reverse=True)
    assert [run.arch for run in runs] == sorted((run.arch for run in runs), key=list(ARCHS).index)


def test_a_split_without_members_has_no_runs() -> None:
    runs = planned_runs(recipe(members={"train": 2, "val": 0, "test": 0}))
    assert {run.split for run in runs} == {"train"} and len(runs) == 4


@given(
    st.integers(1, 60),
    st.integers(1, 100),
    st.integers(0, 200),
    st.sampled_from(["even", "log", "early"]),
    st.integers(1, 7),
)
def test_spread_gives_every_member_an_epoch(members: int, first: int, more: int, spacing: str, snapshots: int) -> None:
    config = EpochConfig(first=first, last=first + more, spacing=spacing, snapshots=snapshots)  # type: ignore[arg-type]
    runs = spread(config, members)
    assert sum(map(len, runs)) == members and len(runs) == math.ceil(members / snapshots)
    for epochs in runs:
        assert 1 <= len(epochs) <= snapshots and list(epochs) == sorted(set(epochs))
        assert epochs[0] >= first
        assert epochs[0] <= first + more and epochs[-1] <= first + more + snapshots  # later only by rounding


def test_spread_by_hand() -> None:
    assert spread(EpochConfig(first=1, last=601), 4) == [(76,), (226,), (376,), (526,)]
    assert spread(EpochConfig(first=1, last=601, snapshots=2), 4) == [(76, 376), (226, 526)]
    assert spread(EpochConfig(first=1, last=256, spacing="log"), 4) == [(2,), (8,), (32,), (128,)]
    assert spread(EpochConfig(first=3, last=9), 1) == [(9,)]
    assert spread(EpochConfig(first=5, last=5, snapshots=3), 3) == [(5, 6, 7)]
    assert spread(EpochConfig(), 0) == []
    # a sixth of 601 epochs is 100: 100 of 186 members lie in the first, two in the last
    assert spread(EpochConfig(first=1, last=601, spacing="early"), 3) == [(32,), (94,), (226,)]


def test_early_epochs_are_those_of_netspaces_authors() -> None:
    """Their list: every epoch below 100, then every 2nd, 5th, 10th, 25th and 50th of each hundred; median 92.5."""
    strides = (1, 2, 5, 10, 25, 50)
    listed = np.array([epoch for epoch in range(600) if epoch % strides[epoch // 100] == strides[epoch // 100] - 1])
    assert len(listed) == 186 and np.median(listed) == 92.5
    found = np.array([epoch for (epoch,) in spread(EpochConfig(last=600, spacing="early"), 186)])
    assert np.abs(found - listed).max() <= 25 and np.abs(found - listed)[:150].max() <= 2
    for name in ("paper-cifar10", "paper-tiny-imagenet"):
        runs = planned_runs(load(ZooRecipe, f"zoo/{name}"))
        for split, members in (("train", 100), ("val", 16), ("test", 16)):
            epochs = [run.epochs[0] for run in runs if run.split == split]
            assert len(epochs) == members and np.median(epochs) == pytest.approx(93, abs=2)
            assert min(epochs) < 10 and max(epochs) > 350


def test_rates_are_one_or_drawn_log_uniformly() -> None:
    assert {run.learning_rate for run in planned_runs(recipe(optimizer={"learning_rate": 0.01}))} == {0.01}
    runs = planned_runs(recipe(optimizer={"learning_rate": [1e-4, 1e-2]}, members={"train": 400, "val": 0, "test": 0}))
    logs = [math.log10(run.learning_rate) for run in runs]
    assert -4 <= min(logs) < -3.9 and -2.1 < max(logs) <= -2
    assert sum(logs) / len(logs) == pytest.approx(-3, abs=0.1)
    assert [run.seed for run in runs] == [
        run.seed for run in planned_runs(recipe(members={"train": 400, "val": 0, "test": 0}))
    ]


def test_runs_draw_their_own_decay_and_schedule() -> None:
    runs = planned_runs(recipe(optimizer={"weight_decay": [1e-4, 1e-2], "schedule": ["constant", "cosine"]}))
    assert all(1e-4 <= run.weight_decay <= 1e-2 for run in runs) and len({run.weight_decay for run in runs}) == len(
        runs
    )
    assert {run.schedule for run in runs} == {"constant", "cosine"}
    plain = planned_runs(recipe())
    assert {(run.weight_decay, run.schedule) for run in plain} == {(0.0, "constant")}
    assert [run.seed for run in plain] == [run.seed for run in runs]


@pytest.mark.parametrize("rates", [[1e-2, 1e-3], [0.0, 1e-3], [-1.0, 1.0]])
def test_a_range_of_rates_that_is_none(rates: list[float]) -> None:
    with pytest.raises(UsageError, match=r"optimizer.learning_rate is a number above 0, or a range of two"):
        planned_runs(recipe(optimizer={"learning_rate": rates}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"archs": {}}, "no architecture is given under 'archs'"),
        ({"members": {"train": 0, "val": 0, "test": 0}}, "no members are asked for"),
        ({"epochs": {"first": 5, "last": 4}}, "the last epoch (4) comes before the first (5)"),
        ({"prep_width": 100}, "multiple of 8"),
        ({"prep_width": 0}, "greater than or equal to 8"),
        ({"epochs": {"snapshot": 2}}, "unknown setting 'epochs.snapshot': did you mean 'epochs.snapshots'?"),
        (
            {"archs": {"a": {"arch": "resnet8", "widht": 1}}},
            "unknown setting 'archs.a.widht': did you mean 'archs.a.width'? There are: archs.a.arch",
        ),
        ({"archs": {"a": {}}}, "setting 'archs.a.arch' is missing in the settings"),
        ({"batch_size": 0}, "setting batch_size in the settings"),
        ({"data": {"nam": "digits"}}, "unknown setting 'data.nam'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(changes: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipe(**changes)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_recipe_survives_yaml() -> None:
    held = recipe(optimizer={"learning_rate": [1e-4, 1e-2], "name": "sgd"}, fused=3)
    assert load(ZooRecipe, yaml.safe_load(to_yaml(held))) == held
    assert isinstance(held.optimizer, OptimizerConfig)


def varied(**variety: Any) -> ZooRecipe:
    return ZooRecipe.model_validate(
        {"archs": {"a": {"arch": "lenetlike"}}, "members": {"train": 40, "val": 0, "test": 0}, "variety": variety}
    )


def test_variety_is_drawn_for_each_run_and_changes_nothing_else_of_it() -> None:
    runs = planned_runs(varied(classes=[3, 8], images=[0.2, 1.0], label_noise=[0.0, 0.3]))
    drawn = [run.variety for run in runs]
    assert all(each is not None and 3 <= each.classes <= 8 for each in drawn)  # type: ignore[operator]
    assert all(each is not None and 0.2 <= each.images <= 1 and 0 <= each.label_noise <= 0.3 for each in drawn)
    assert len(set(drawn)) == 40 and {each.classes for each in drawn if each} == {3, 4, 5, 6, 7, 8}
    plain = planned_runs(varied().model_copy(update={"variety": None}))
    assert [replace(run, variety=None) for run in runs] == plain


def test_a_run_sees_images_of_its_classes_and_some_wrong_labels() -> None:
    labels = torch.arange(1000) % 10
    seen, own = Variety(4, 0.5, 0.25).training_data(labels, seed=3)
    classes = labels[seen].unique()
    assert len(classes) == 4 and len(seen) == 200 and len(seen.unique()) == 200
    changed = own[seen] != labels[seen]
    assert 0.15 < changed.double().mean() < 0.35
    assert torch.isin(own[seen], classes).all()
    unseen = torch.ones(1000, dtype=torch.bool)
    unseen[seen] = False
    assert torch.equal(own[unseen], labels[unseen])
    again, _ = Variety(4, 0.5, 0.25).training_data(labels, seed=3)
    other, _ = Variety(4, 0.5, 0.25).training_data(labels, seed=4)
    assert torch.equal(seen, again) and not torch.equal(labels[seen].unique(), labels[other].unique())


def test_all_of_everything_is_the_data_itself() -> None:
    labels = torch.arange(30) % 3
    seen, own = Variety(None, 1.0, 0.0).training_data(labels, seed=0)
    assert torch.equal(seen, torch.arange(30)) and torch.equal(own, labels)


def test_a_range_upside_down_is_refused() -> None:
    with pytest.raises(ValueError, match=r"variety.images is a minimum and a maximum; found 0.9 above 0.2"):
        varied(images=[0.9, 0.2])


def test_a_shape_is_in_one_split_for_all_architectures() -> None:
    """Numbers follow the largest split of any architecture; where all are alike they are those of the runs."""
    own: dict[str, dict[str, object]] = {"siren": {"arch": "siren"}, "narrow": {"arch": "siren", "width": 0.5}}
    assert all(run.seed == run.run for run in planned_runs(recipe(data={"name": "chairs"}, archs=own)))
    own["narrow"]["members"] = {"train": 2, "val": 4, "test": 1}
    numbers: dict[tuple[str, str], set[int]] = {}
    for run in planned_runs(recipe(data={"name": "chairs"}, archs=own)):
        numbers.setdefault((run.arch, run.split), set()).add(run.seed)
    assert numbers == {
        ("siren", "train"): {0, 1, 2, 3, 4, 5}, ("siren", "val"): {6, 7, 8}, ("siren", "test"): {10, 11},
        ("narrow", "train"): {0, 1}, ("narrow", "val"): {6, 7, 8, 9}, ("narrow", "test"): {10},
    }  # fmt: skip
