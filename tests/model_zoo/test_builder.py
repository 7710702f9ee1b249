"""`build`: whoever trains, in whatever order, however often interrupted, the zoo is that of the recipe."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import deadline
from torch import Tensor

from model_zoo import builder, work
from model_zoo.builder import build
from model_zoo.forward import Forward, Way
from model_zoo.recipe import ZooRecipe, planned_runs
from model_zoo.work import Plan, Worker
from netspace.errors import NetspaceError, UsageError
from netspace.progress import Progress
from netspace.tasks import load
from netspace.zoo import Shard, Zoo, merge, parts_folder


def content(path: Path) -> tuple[bool, int, str]:
    with Zoo(path) as zoo:
        return zoo.complete, len(zoo), zoo.content_hash


def test_the_members_are_the_plans(tiny_zoo: Path, zoo_settings: dict[str, Any]) -> None:
    runs = {run.run: run for run in planned_runs(ZooRecipe.model_validate(zoo_settings))}
    with Zoo(tiny_zoo) as zoo:
        members = zoo.only().members
        assert zoo.header.recipe["name"] == "tiny" and zoo.header.recipe["epochs"]["last"] == 4
    assert members["run"].tolist() == sorted(runs)
    for row in members:
        run = runs[int(row["run"])]
        assert (int(row["seed"]), int(row["epochs"])) == (run.seed, run.epochs[-1])
        assert (bytes(row["split"]).decode(), float(row["learning_rate"])) == (run.split, run.learning_rate)
        assert row["status"] == b"ok" and row["source"] == b"tiny"
    for split in ("train", "val", "test"):  # each split spans the whole range of epochs
        assert set(members["epochs"][members["split"] == split.encode()]) >= {1, 4} or split != "train"
    # networks that were trained for longer are the better ones
    mean = [members["accuracy_train"][members["epochs"] == epochs].mean() for epochs in (1, 4)]
    assert mean[1] > mean[0] + 0.1


def test_processes_and_their_number_do_not_matter(small: ZooRecipe, tmp_path: Path) -> None:
    one = build(small, tmp_path / "one.h5", workers=1)
    two = build(small, tmp_path / "deep" / "two.h5", workers=2)
    assert content(one) == content(two)
    assert one.stat().st_size > 0 and not parts_folder(one).exists() and not parts_folder(two).exists()


def test_shards_are_built_in_the_current_folder(
    small: ZooRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert content(build(small, Path("."), workers=1, shard=Shard(1, 4)))[1] == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["shard-1-of-4.h5"]


def test_another_seed_is_another_zoo(small: ZooRecipe, tmp_path: Path) -> None:
    one = build(small, tmp_path / "one.h5", workers=1)
    other = build(small.model_copy(update={"seed": 9}), tmp_path / "other.h5", workers=1)
    with Zoo(one) as first, Zoo(other) as second:
        assert not set(first.only().members["seed"]) & set(second.only().members["seed"])


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


def interrupt(patch: pytest.MonkeyPatch, recipe: ZooRecipe, path: Path, commits: int, late: bool) -> None:
    """Builds until so many commits; dies before the next one begins, or `late`, in the middle of writing it."""
    write, count = work.write_zoo, [0]

    def dying(part: Path, *rest: Any) -> None:
        if count[0] == commits:
            if late:
                part.with_name(f".{part.name}.1.tmp").write_bytes(b"half a par")
            raise Killed
        count[0] += 1
        write(part, *rest)

    with patch.context() as inner:
        inner.setattr(work, "write_zoo", dying)
        inner.setattr(work, "COMMIT_EVERY", -1.0)  # members are committed as they are finished
        with pytest.raises(Killed):
            build(recipe, path, workers=1)


@pytest.mark.parametrize("late", [False, True])
def test_an_interrupted_build_loses_nothing_and_goes_on(
    small: ZooRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    whole, path = build(small, tmp_path / "whole.h5", workers=1), tmp_path / "zoo.h5"
    interrupt(monkeypatch, small, path, 0, late)
    with pytest.raises(NetspaceError, match="does not exist"):
        Zoo(path)
    interrupt(monkeypatch, small, path, 1, late)
    assert content(path)[:2] == (False, 2)
    interrupt(monkeypatch, small, path, 2, late)  # looked at before, and now there are more
    assert content(path)[:2] == (False, 6)
    assert content(path) == content(path)
    build(small, path, workers=1)
    assert content(path) == content(whole)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["whole.h5", "zoo.h5"]


def test_death_between_the_zoo_and_the_tidying(
    small: ZooRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "zoo.h5"

    def dying(folder: Path) -> None:
        raise Killed

    with monkeypatch.context() as inner, pytest.raises(Killed):
        inner.setattr(builder.shutil, "rmtree", dying)
        build(small, path, workers=1)
    before = content(path)
    assert before[:2] == (True, 8) and not parts_folder(path).exists()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".zoo.h5.done", "zoo.h5"]
    build(small, path, workers=1)
    assert content(path) == before and [entry.name for entry in tmp_path.iterdir()] == ["zoo.h5"]


def test_death_before_the_tidying_begins(small: ZooRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "zoo.h5"

    def dying(place: Path) -> Path:
        raise Killed

    with monkeypatch.context() as inner, pytest.raises(Killed):
        inner.setattr(builder, "_done", lambda place: tmp_path / "done" if not place.exists() else dying(place))
        build(small, path, workers=1)
    before = content(path)
    assert before[:2] == (True, 8) and parts_folder(path).exists()
    build(small, path, workers=1)
    assert content(path) == before and [entry.name for entry in tmp_path.iterdir()] == ["zoo.h5"]


def test_a_group_goes_on_from_its_checkpoint(
    zoo_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo_settings["members"] = {"train": 4, "val": 0, "test": 0}
    recipe = ZooRecipe.model_validate(zoo_settings)
    whole, path = build(recipe, tmp_path / "whole.h5", workers=1), tmp_path / "zoo.h5"
    save, seen = work.write_torch, list[int]()

    def dying(file: Path, state: dict[str, Any]) -> None:
        save(file, state)
        seen.append(state["round"])
        if state["round"] == 2:
            raise Killed

    with monkeypatch.context() as inner, pytest.raises(Killed):
        inner.setattr(work, "write_torch", dying)
        inner.setattr(work, "CHECKPOINT_EVERY", -1.0)
        build(recipe, path, workers=1)
    assert seen == [1, 2] and list(parts_folder(path).glob("group-*.pt"))
    there = content(path)[1]  # a checkpoint speaks of no member that is not on disk
    with Zoo(whole) as zoo:
        assert there == int((zoo.only().members["epochs"] <= 2).sum()) > 0
    epochs: list[int] = []
    step = work.Group._one_epoch

    def counted(group: Any) -> int:
        epochs.append(group.round)
        return step(group)

    monkeypatch.setattr(work.Group, "_one_epoch", counted)
    build(recipe, path, workers=1)
    assert epochs[0] == 3  # the first two are not trained again
    assert content(path) == content(whole)


def test_members_that_are_trained_again_replace_those_of_before(
    zoo_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = ZooRecipe.model_validate({**zoo_settings, "members": {"train": 4, "val": 0, "test": 0}, "fused": 4})
    whole, path = build(recipe, tmp_path / "whole.h5", workers=1), tmp_path / "zoo.h5"
    epoch = work.Group._one_epoch

    def rounded(group: Any) -> int:  # as another processor rounds
        seen = epoch(group)
        group.flat = group.flat + 1e-6
        return seen

    with monkeypatch.context() as patched:
        patched.setattr(work.Group, "_one_epoch", rounded)
        interrupt(monkeypatch, recipe, path, 1, False)
    assert [part.name for part in parts_folder(path).glob("part-*")] == ["part-00000-000001.h5"]  # of no checkpoint
    build(recipe, path, workers=1)
    assert content(path) == content(whole)


def test_another_recipe_is_refused(small: ZooRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "zoo.h5"
    interrupt(monkeypatch, small, path, 1, False)
    slower = small.model_copy(update={"batch_size": 30})
    with pytest.raises(UsageError, match="batch_size was 25 and is 30 now"):
        build(slower, path, workers=1)
    assert content(path)[1] == 2
    assert (
        not {"smoothness", "smoothness_linear"} & small.science().keys()
    )  # as in zoos built before there were such settings
    with pytest.raises(UsageError, match=r"smoothness was None and is 0.01 now"):
        build(small.model_copy(update={"smoothness": 0.01}), path, workers=1)
    build(small.model_copy(update={"device": "cpu"}), path, workers=1)  # where it is trained is not the recipe
    with pytest.raises(UsageError, match="batch_size was 25 and is 30 now"):
        build(slower, path, workers=1)


def test_two_builders_at_one_zoo(small: ZooRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, told = tmp_path / "zoo.h5", list[str]()
    train: Callable[..., None] = builder._train

    def meanwhile(*rest: Any) -> None:
        def other() -> None:
            try:
                build(small, path, workers=1)
            except NetspaceError as error:
                told.append(str(error))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        train(*rest)

    monkeypatch.setattr(builder, "_train", meanwhile)
    build(small, path, workers=1)
    assert len(told) == 1 and "another process" in told[0] and content(path)[0]


def test_shares_cover_all_groups_once(small: ZooRecipe, tmp_path: Path) -> None:
    path = tmp_path / "zoo.h5"
    the_plan = Plan(small, load(small.data).split_hash, {"lenetlike": work.Way(2, "float32", "channels last")})
    the_plan.write(path)
    assert Plan.read(path) == the_plan
    seen: list[int] = []
    for place in (2, 0, 1):
        Worker(the_plan, path).run(place, 3, seen.append)
    assert sum(seen) == 300 * sum(run.epochs[-1] for run in planned_runs(small))
    parts = sorted(parts_folder(path).glob("part-*-last.h5"))
    assert len(parts) == 3 and len(the_plan.groups()) == 4  # small groups of a worker share a part
    assert work.finished_groups(path) == {0, 1, 2, 3}
    merge(path, parts, ordered=True)
    assert content(path)[2] == content(build(small, tmp_path / "other.h5", workers=1))[2]


def test_diverged_networks_are_kept_out_of_the_splits(zoo_settings: dict[str, Any], tmp_path: Path) -> None:
    zoo_settings["members"] = {"train": 3, "val": 1, "test": 0}
    zoo_settings["optimizer"] = {"name": "sgd", "learning_rate": 1e18}
    recipe = ZooRecipe.model_validate(zoo_settings)
    with Zoo(build(recipe, tmp_path / "zoo.h5", workers=1)) as zoo:
        group = zoo.only()
        assert group.members["status"].tolist() == [b"diverged"] * 4
        assert not len(group.rows("all")) and not group.read(range(4)).any()
        assert np.isnan(group.members["accuracy_test"]).all()


def test_a_worker_that_fails_is_told(small: ZooRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder.sys, "executable", "/bin/false")
    with pytest.raises(NetspaceError, match="worker process ended with code 1"):
        build(small, tmp_path / "zoo.h5", workers=2)
    assert not (tmp_path / "zoo.h5").exists()


CHATTER = """
import os, sys
if any("model_zoo.work" in word for word in sys.orig_argv):
    for _ in range(1024):
        os.write(2, b"x" * 1023 + b"\\n")
    if os.environ.get("FAILS"):
        os.write(2, b"the last word\\n")
        os._exit(3)
"""


def test_workers_that_say_much(small: ZooRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte each, before they begin: more than a pipe holds."""
    (tmp_path / "sitecustomize.py").write_text(CHATTER)  # which every Python process imports when it starts
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with deadline(60):
        assert content(build(small, tmp_path / "two.h5", workers=2))[:2] == (True, 8)
        monkeypatch.setenv("FAILS", "1")
        with pytest.raises(NetspaceError, match=r"^a worker process ended with code 3: the last word$"):
            build(small, tmp_path / "failed.h5", workers=2)


def test_reports_that_cannot_be_taken_in_are_an_error(
    small: ZooRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(Progress):
        def advance(self, units: float = 1, note: str = "") -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(builder, "progress", lambda *words: nullcontext(Full(*words)))
    with (
        deadline(60),
        pytest.raises(NetspaceError, match=r"^the reports of a worker .* cannot be read: .*No space left"),
    ):
        build(small, tmp_path / "zoo.h5", workers=2)
    assert not (tmp_path / "zoo.h5").exists()


def test_a_zoo_is_finished_only_with_all_of_its_groups(
    small: ZooRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "zoo.h5"
    real = Worker.run
    with monkeypatch.context() as patched:  # trains every second group alone, without an error
        patched.setattr(Worker, "run", lambda self, rank, world_size, report: real(self, 0, 2, report))
        with pytest.raises(
            NetspaceError, match=r"zoo\.h5 was to be finished, but 2 of its 4 groups .* are not trained yet"
        ):
            build(small, path, workers=1)
        assert not path.exists() and parts_folder(path).exists()
    assert content(build(small, path, workers=1))[:2] == (True, 8)


def test_the_callers_threads_are_given_back(small: ZooRecipe, tmp_path: Path) -> None:
    torch.set_num_threads(2)
    try:
        build(small, tmp_path / "zoo.h5", workers=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_what_memory_held_is_said_once_and_remembered(
    small: ZooRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, failed = Forward.__call__, [0]

    def greedy(forward: Forward, rows: Tensor, *rest: Any) -> Any:
        if len(rows) > 1:
            failed[0] += 1
            raise torch.OutOfMemoryError
        return whole(forward, rows, *rest)

    monkeypatch.setattr(Forward, "__call__", greedy)
    monkeypatch.setenv("NETSPACE_CACHE", str(tmp_path / "cache"))  # where no way was timed yet
    path = build(small, tmp_path / "zoo.h5", workers=1)
    told = [line for line in capsys.readouterr().err.splitlines() if "memory" in line]
    assert told == ["lenetlike: 2 networks at once did not fit into memory; 1 do"]
    assert failed == [3]  # once when each of both ways was tried, once in the training
    with Zoo(path) as zoo:
        assert zoo.complete and (zoo.only().members["status"] == b"ok").all()


def test_what_was_chosen_is_told_and_kept_for_a_restart(
    small: ZooRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, way = small.model_copy(update={"fused": None}), Way(1, "bf16", "channels last")
    path = tmp_path / "zoo.h5"
    with monkeypatch.context() as inner:
        inner.setattr(builder, "choose_way", lambda *_: way)
        interrupt(inner, recipe, path, 1, False)
    monkeypatch.setattr(builder, "choose_way", lambda *_: pytest.fail("it was chosen before"))
    build(recipe, path, workers=1)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training")]
    first = "training 8 runs (lenetlike 1 at once, bf16, channels last; "
    assert len(told) == 2 and all(line.startswith(first) for line in told)


def test_preps_follow_the_networks_and_zoos_of_other_widths_stay(small: ZooRecipe, tmp_path: Path) -> None:
    """Without `prep_width` the smallest architecture has 8 rows and the others its width; a zoo that is there is not touched."""
    archs = {"lenet": {"arch": "lenetlike", "width": 0.25}, "resnet": {"arch": "resnet8", "width": 0.25}}
    recipe = ZooRecipe.model_validate({**small.model_dump(), "archs": archs, "prep_width": None})
    found = work.candidates(recipe, load(recipe.data))
    assert {name: each.size for name, each in found.items()} == {"lenet": (8, 192), "resnet": (28, 192)}
    wide = work.candidates(recipe.model_copy(update={"prep_width": 10_000}), load(recipe.data))
    assert {each.size for each in wide.values()} == {(4, 10_000)}
    path = build(small.model_copy(update={"prep_width": 10_000}), tmp_path / "zoo.h5", workers=1)
    before = path.read_bytes()
    assert build(small.model_copy(update={"prep_width": None}), path, workers=1) == path and path.read_bytes() == before
    with pytest.raises(UsageError, match=r"prep_width was 10000 and is 656 now"):
        build(small.model_copy(update={"prep_width": 656}), path, workers=1)
