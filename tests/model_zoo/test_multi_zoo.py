"""Zoos of several architectures, each with members of its own, and the teacher that is built beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from model_zoo import builder
from model_zoo.builder import build
from model_zoo.recipe import SplitConfig, ZooRecipe, planned_runs
from netspace.errors import UsageError
from netspace.zoo import Zoo, parts_folder, teacher_path


@pytest.fixture
def settings(multi_zoo_settings: dict[str, Any]) -> dict[str, Any]:
    """Two architectures and few members."""
    del multi_zoo_settings["archs"]["resnet"]
    multi_zoo_settings["archs"]["vanilla"]["members"] = {"train": 1, "val": 1, "test": 0}
    return {
        **multi_zoo_settings,
        "members": {"train": 2, "val": 1, "test": 1},
        "teacher": {**multi_zoo_settings["teacher"], "epochs": 1},
        "epochs": {"first": 1, "last": 1},
    }


def made(settings: dict[str, Any], **changes: Any) -> ZooRecipe:
    return ZooRecipe.model_validate({**settings, **changes})


def content(path: Path) -> tuple[bool, int, str]:
    with Zoo(path) as zoo:
        return zoo.complete, len(zoo), zoo.content_hash


# ---- recipes


def test_architectures_have_the_zoos_members_or_their_own(settings: dict[str, Any]) -> None:
    recipe = made(settings)
    assert recipe.members_of("lenet") == recipe.members == SplitConfig(train=2, val=1, test=1)
    assert recipe.members_of("vanilla") == SplitConfig(train=1, val=1, test=0)
    runs = planned_runs(recipe)
    assert [sum(run.arch == name for run in runs) for name in ("lenet", "vanilla")] == [4, 2]
    more = {**settings["archs"], "vanilla": {**settings["archs"]["vanilla"], "members": {"train": 9}}}
    others = [run for run in planned_runs(made(settings, archs=more)) if run.arch == "lenet"]
    assert others == [run for run in runs if run.arch == "lenet"]  # whose networks stay what they are


def test_an_architecture_without_members_is_refused(settings: dict[str, Any]) -> None:
    settings["archs"]["vanilla"]["members"] = {"train": 0, "val": 0, "test": 0}
    with pytest.raises(ValidationError, match=r"no members of vanilla are asked for: give it some, or leave it out"):
        made(settings)
    with pytest.raises(ValidationError, match=r"no members of lenet are asked for"):  # which has the zoo's: none
        settings["archs"]["vanilla"]["members"] = {"train": 1}
        made(settings, members={"train": 0, "val": 0, "test": 0})


def test_a_teacher_without_members_is_refused(settings: dict[str, Any]) -> None:
    settings["teacher"]["members"] = {"train": 0, "val": 0, "test": 0}
    with pytest.raises(
        ValidationError, match=r"no members of the teacher are asked for: give it one at least, or leave it out"
    ):
        made(settings)


def test_the_teachers_zoo_has_the_tasks_settings_and_its_own_training(settings: dict[str, Any]) -> None:
    recipe = made(settings)
    own = recipe.teacher_recipe()
    assert own is not None and made(settings, teacher=None).teacher_recipe() is None
    assert (own.name, own.data, own.seed, own.teacher) == ("tiny-multi-teacher", recipe.data, recipe.seed, None)
    assert {name: (each.arch, each.width) for name, each in own.archs.items()} == {"lenetlike": ("lenetlike", 0.4)}
    assert (own.members, own.epochs.first, own.epochs.last) == (SplitConfig(train=1, val=0, test=0), 1, 1)
    assert own == ZooRecipe.model_validate(own.model_dump())  # one that a user could have written


def test_who_teaches_decides_no_network_of_the_zoo(settings: dict[str, Any]) -> None:
    assert made(settings).science() == made(settings, teacher=None).science()
    assert planned_runs(made(settings)) == planned_runs(made(settings, teacher=None))


# ---- builds


def test_the_members_of_each_architecture_are_its_own(multi_zoo: Path) -> None:
    with Zoo(multi_zoo) as zoo:
        assert [group.id for group in zoo.archs.values()] == ["lenet", "vanilla", "resnet"]
        found = {
            name: [len(group.rows(split)) for split in ("train", "val", "test")] for name, group in zoo.archs.items()
        }
        assert [group.class_id for group in zoo.archs.values()] == [0, 1, 2]
    assert found == {"lenet": [6, 2, 3], "vanilla": [5, 1, 3], "resnet": [6, 2, 3]}
    with Zoo(teacher_path(multi_zoo)) as own, Zoo(multi_zoo) as zoo:
        assert len(own) == 1 and own.complete and own.header.split_hash == zoo.header.split_hash


def test_what_is_finished_is_skipped(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build(made(settings), tmp_path / "zoo.h5", workers=1)
    before = path.read_bytes(), teacher_path(path).read_bytes()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["zoo.h5", "zoo.teacher.h5"]
    monkeypatch.setattr(builder, "_train", lambda *_: pytest.fail("something was trained again"))
    build(made(settings), path, workers=1)
    assert (path.read_bytes(), teacher_path(path).read_bytes()) == before


def test_a_teacher_can_be_added_to_a_finished_zoo(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build(made(settings, teacher=None), tmp_path / "zoo.h5", workers=1)
    assert not teacher_path(path).exists()
    before, trained = path.read_bytes(), list[str]()
    train = builder._train

    def noted(the_plan: Any, where: Path, *rest: Any) -> None:
        trained.append(where.name)
        train(the_plan, where, *rest)

    monkeypatch.setattr(builder, "_train", noted)
    build(made(settings), path, workers=1)
    assert trained == ["zoo.teacher.h5"] and path.read_bytes() == before
    both = build(made(settings), tmp_path / "both.h5", workers=1)
    assert content(both) == content(path) and content(teacher_path(both)) == content(teacher_path(path))


def test_an_interrupted_teacher_goes_on(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "zoo.h5"
    with monkeypatch.context() as inner, pytest.raises(KeyboardInterrupt):
        train = builder._train

        def stopped(the_plan: Any, where: Path, *rest: Any) -> None:
            if where == teacher_path(path):
                raise KeyboardInterrupt
            train(the_plan, where, *rest)

        inner.setattr(builder, "_train", stopped)
        build(made(settings), path, workers=1)
    assert content(path)[0] and not teacher_path(path).exists() and parts_folder(teacher_path(path)).exists()
    build(made(settings), path, workers=1)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["zoo.h5", "zoo.teacher.h5"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kwargs": {"depth": 3}}, r"unknown setting of lenetlike 'depth'"),
        ({"kwargs": {"classes": 3}}, r"lenetlike is built with classes=3 but meets 10 classes"),
        ({"arch": "lenetlik"}, r"unknown architecture 'lenetlik': did you mean 'lenetlike'"),
        ({"optimizer": {"learning_rate": [0.1, 0.01]}}, r"optimizer\.learning_rate is a number above 0, or a range"),
    ],
)
def test_a_teacher_that_cannot_be_is_told_before_the_zoo_is_trained(
    settings: dict[str, Any], tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    settings["teacher"] |= change
    with pytest.raises(UsageError, match=words):
        build(made(settings), tmp_path / "zoo.h5", workers=1)
    assert not list(tmp_path.iterdir())


def test_another_teacher_than_the_one_there_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    path = build(made(settings), tmp_path / "zoo.h5", workers=1)
    settings["teacher"] |= {"epochs": 2}
    with pytest.raises(UsageError) as refused:
        build(made(settings), path, workers=1)
    assert str(refused.value).startswith(f"{teacher_path(path)} exists and was built with another recipe: epochs.")
