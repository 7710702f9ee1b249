"""Teachers: members, files and the one beside a zoo answer as themselves; those of another task are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from model_zoo.builder import build
from model_zoo.recipe import ZooRecipe
from netspace import archs
from netspace.commands.convert import write_network
from netspace.errors import NetspaceError, UsageError
from netspace.networks.family import ArchClass, net_batch
from netspace.networks.prep import unpack
from netspace.tasks import Classification
from netspace.training.latent_space import train
from netspace.training.recipe import SpaceRecipe
from netspace.training.setup import Teacher, task_of, teacher
from netspace.zoo import Zoo, teacher_path

SETTINGS = {"channels": 1, "image_size": 8, "classes": 7, "width": 0.25}


@pytest.fixture
def zoo(tiny_zoo: Path) -> Iterator[Zoo]:
    with Zoo(tiny_zoo) as opened:
        yield opened


@pytest.fixture
def task(zoo: Zoo) -> Classification:
    return task_of(zoo, "cpu")


def answers(zoo: Zoo, arch: str, row: int, images: torch.Tensor) -> torch.Tensor:
    group = zoo.group(arch)
    flat = unpack(group.read([row]), group.spec.num_parameters)
    return net_batch(group.spec, "cpu")(flat, images)[0]


def test_teachers_of_every_kind(zoo: Zoo, task: Classification, tmp_path: Path, zoo_settings: dict[str, Any]) -> None:
    zoo_settings["archs"] = {"other": {"arch": "vanillacnn", "width": 0.25}}
    zoo_settings["members"] = {"train": 2, "val": 1, "test": 0}
    path = build(ZooRecipe.model_validate(zoo_settings), tmp_path / "other.h5", workers=1)
    group = zoo.only()
    flat = unpack(group.read([5])[0], group.spec.num_parameters)
    written = tmp_path / "net.safetensors"
    write_network(written, flat, ArchClass(group.id, net_batch(group.spec, "cpu"), group.size))
    images = task.normalise(task.train.images[:5])
    found = {text: teacher(text, zoo, task) for text in ("best", "lenetlike/0003", str(path), str(written))}
    best = int(group.members["accuracy_val"].argmax())
    torch.testing.assert_close(found["best"](images), answers(zoo, "lenetlike", best, images))
    torch.testing.assert_close(found["lenetlike/0003"](images), answers(zoo, "lenetlike", 3, images))
    torch.testing.assert_close(found[str(written)](images), answers(zoo, "lenetlike", 5, images))
    with Zoo(path) as other:
        best = int(other.only().members["accuracy_val"].argmax())
        torch.testing.assert_close(found[str(path)](images), answers(other, "other", best, images))
    assert found[str(path)].name == f"{path}:other/{best:04d}" and found["lenetlike/0003"].name == "lenetlike/0003"
    assert found[str(path)].nets.spec.arch == "vanillacnn"
    assert not any(each(images).requires_grad for each in found.values())


def test_the_hash_tells_networks_apart(zoo: Zoo, task: Classification) -> None:
    one, again, other = (teacher(text, zoo, task) for text in ("lenetlike/0003", "lenetlike/0003", "lenetlike/0004"))
    assert one.hash == again.hash != other.hash


def test_the_teacher_beside_the_zoo_is_meant_by_auto(multi_zoo: Path) -> None:
    beside = teacher_path(multi_zoo)
    assert beside.is_file() and beside.name == "zoo.teacher.h5"
    with Zoo(multi_zoo) as zoo:
        found = teacher("auto", zoo, task_of(zoo, "cpu"))
    assert found.name == f"{beside}:lenetlike/0000" and found.nets.spec.settings["width"] == 0.4
    with Zoo(beside) as own:
        assert torch.equal(found.flat, unpack(own.only().read([0])[0], found.nets.spec.num_parameters))


def test_without_a_teacher_beside_the_zoo_auto_is_refused(zoo: Zoo, task: Classification) -> None:
    with pytest.raises(UsageError) as refused:
        teacher("auto", zoo, task)
    assert str(refused.value) == (
        f"{zoo.path} has no teacher next to it (zoo.teacher.h5 was expected): give its recipe a 'teacher' and build it again, "
        "which trains the teacher alone, or name one (a zoo member, 'best', a zoo file, a network's file)"
    )


def test_teachers_of_another_number_of_classes(zoo: Zoo, task: Classification, tmp_path: Path) -> None:
    few = tmp_path / "few.safetensors"
    notes = {"arch": "lenetlike", "settings": json.dumps(SETTINGS)}
    save_file(archs.build("lenetlike", **SETTINGS).state_dict(), few, metadata=notes)
    with pytest.raises(UsageError) as refused:
        teacher(str(few), zoo, task)
    assert str(refused.value) == (
        f"the teacher {few} tells 7 classes apart, but digits has 10: give a teacher of the same task"
    )


def test_teachers_of_other_images(zoo: Zoo, task: Classification, tmp_path: Path, zoo_settings: dict[str, Any]) -> None:
    zoo_settings["data"] = {"name": "digits", "limit": 100, "image_size": 12}
    zoo_settings["members"] = {"train": 1, "val": 1, "test": 0}
    large = build(ZooRecipe.model_validate(zoo_settings), tmp_path / "large.h5", workers=1)
    with pytest.raises(UsageError) as refused:
        teacher(str(large), zoo, task)
    assert str(refused.value) == f"the teacher {large} takes images of (1, 12, 12), but digits has (1, 8, 8)"


@pytest.mark.parametrize("damage", ["no notes", "bad settings", "torch"])
def test_files_that_do_not_say_what_they_hold(zoo: Zoo, task: Classification, tmp_path: Path, damage: str) -> None:
    path = tmp_path / ("net.pt" if damage == "torch" else "net.safetensors")
    state = archs.build("lenetlike", **SETTINGS).state_dict()
    if damage == "torch":
        torch.save(state, path)
    else:
        notes = {"arch": "lenetlike", "settings": "{"} if damage == "bad settings" else None
        save_file(state, path, metadata=notes)
    with pytest.raises(NetspaceError) as refused:
        teacher(str(path), zoo, task)
    assert str(refused.value) == (
        f"{path} does not say which network it holds: give a safetensors file that netspace wrote (`decode`, "
        "`interpolate --save`), a zoo member, or a zoo file"
    )


@pytest.mark.parametrize("text", ["lenetlike/0099", "nobody", "wors", "gone.h5", "gone.safetensors"])
def test_teachers_that_are_not_there(zoo: Zoo, task: Classification, text: str) -> None:
    with pytest.raises(NetspaceError, match=text):
        teacher(text, zoo, task)


# ---- a run's own teacher


@pytest.fixture
def recipe(multi_settings: dict[str, Any]) -> SpaceRecipe:
    return SpaceRecipe.model_validate({**multi_settings, "steps": 2})


def test_a_run_remembers_its_teacher(multi_run: Path, multi_zoo: Path) -> None:
    told = json.loads((multi_run / "provenance.json").read_text())
    with Zoo(multi_zoo) as zoo:
        found: Teacher = teacher("auto", zoo, task_of(zoo, "cpu"))
    assert (told["teacher"], told["teacher_hash"]) == (found.name, found.hash)


def test_a_run_goes_on_with_its_own_teacher_alone(
    multi_zoo: Path, recipe: SpaceRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archs, "_TRUSTED", set())  # what other tests trusted would be in the command
    zoo, run = tmp_path / "zoo.h5", tmp_path / "run"
    shutil.copy(multi_zoo, zoo)
    shutil.copy(teacher_path(multi_zoo), teacher_path(zoo))
    train(recipe, zoo, run)
    told = json.loads((run / "provenance.json").read_text())
    before = (run / "metrics.jsonl").read_bytes()
    shutil.copy(multi_zoo, teacher_path(zoo))  # another network is the best there
    with pytest.raises(UsageError) as refused:
        train(recipe, zoo, run, resume=True)
    assert str(refused.value).startswith(f"{run} was begun with another teacher than {teacher_path(zoo)}:") and str(
        refused.value
    ).endswith(f": resume it with its own ({told['teacher']}), by `netspace train --resume --out {run}`")
    assert (run / "metrics.jsonl").read_bytes() == before
    shutil.copy(teacher_path(multi_zoo), teacher_path(zoo))
    train(recipe, zoo, run, resume=True)


def test_a_run_of_one_architecture_needs_none(tiny_run: Path) -> None:
    assert "teacher" not in json.loads((tiny_run / "provenance.json").read_text())
