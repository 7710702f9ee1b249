"""Run folders, atomic files, safe reading, records, random streams."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import small_disk

from netspace import run_folder
from netspace.config import Settings
from netspace.errors import NetspaceError, UsageError
from netspace.files import locked, replacing, write_text
from netspace.hardware import pick_device, send
from netspace.io import hash_tensors, read_json, read_torch, write_json, write_torch
from netspace.run_folder import (
    FIT,
    OPTIMISATION,
    Metrics,
    RunFolder,
    is_run,
    newest_run,
    provenance,
    read_metrics,
)
from netspace.space import Space


def test_replacing_appears_whole_in_folders_it_makes(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.txt"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_text() == "new" and os.listdir(path.parent) == ["c.txt"]


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt(), NetspaceError("y")])
def test_an_exception_midway_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "c.txt"
    path.write_text("old")
    with pytest.raises(type(error)), replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["c.txt"]


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_text("old")
    with pytest.raises(NetspaceError) as caught, replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(caught.value) == (
        f"{path} could not be written: No space left on device. Free space or choose another place; "
        "what was there before is untouched"
    )
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["c.txt"]


def test_a_disk_that_fills_up_while_writing(tmp_path: Path) -> None:
    """For text and for tensors: torch tells it in its own way."""
    text, tensors = tmp_path / "a.txt", tmp_path / "a.pt"
    write_text(text, "old")
    write_torch(tensors, torch.ones(1))
    with small_disk(4096):
        with pytest.raises(NetspaceError, match=r"a\.txt could not be written: File too large"):
            write_text(text, "x" * 10_000)
        with pytest.raises(NetspaceError, match=r"a\.pt could not be written"):
            write_torch(tensors, torch.zeros(100_000))
    assert text.read_text() == "old" and torch.equal(read_torch(tensors), torch.ones(1))
    assert sorted(os.listdir(tmp_path)) == ["a.pt", "a.txt"]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "a.txt", tmp_path / "file" / "b" / "a.txt"):
        with pytest.raises(NetspaceError, match=r"could not be written: .*choose another place"):
            write_text(path, "x")


def test_json_round_trip(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, None, "é"], "a": 2})
    assert read_json(tmp_path / "a.json", dict[str, Any]) == {"b": [1, None, "é"], "a": 2}


def test_torch_round_trip(tmp_path: Path) -> None:
    stored = {"w": torch.randn(3), "step": 4, "names": ["a", None], "nested": {"x": (1, 2.5, True)}}
    write_torch(tmp_path / "a.pt", stored)
    back = read_torch(tmp_path / "a.pt")
    assert torch.equal(back.pop("w"), stored.pop("w")) and back == stored  # type: ignore[arg-type]


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("hacked"),))


@pytest.mark.parametrize("how", ["torch", "pickle", "inside"])
def test_a_file_that_would_run_code_is_refused(tmp_path: Path, how: str) -> None:
    path = tmp_path / "hostile.pt"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Hostile()))
    else:
        torch.save(Hostile() if how == "torch" else {"w": torch.ones(1), "x": [Hostile()]}, path)
    with pytest.raises(NetspaceError, match=r"hostile.pt was expected to be a torch file of tensors") as caught:
        read_torch(path)
    assert not Path("hacked").exists() and "\n" not in str(caught.value)
    Hostile().__reduce__()[0](*Hostile().__reduce__()[1])  # type: ignore[operator,misc]
    assert Path("hacked").exists()  # it would have


@pytest.mark.parametrize("content", [b"", b"not torch", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_torch_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(NetspaceError, match=r"cannot be read safely: .+"):
        read_torch(tmp_path / "a.pt")


def test_a_truncated_and_a_missing_torch_file(tmp_path: Path) -> None:
    write_torch(tmp_path / "a.pt", torch.randn(1000))
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NetspaceError, match="cannot be read safely"):
        read_torch(tmp_path / "a.pt")
    with pytest.raises(NetspaceError, match=r"b.pt does not exist"):
        read_torch(tmp_path / "b.pt")


def test_metrics_are_read_back_and_a_cut_off_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    metrics = Metrics(path)
    for step in range(5):
        metrics.write(step=step, note="line\nbreak \u2028")
    whole = path.read_bytes()
    for cut in range(1, 20):
        path.write_bytes(whole[:-cut])
        assert [record["step"] for record in read_metrics(path)] == ([0, 1, 2, 3, 4] if cut == 1 else [0, 1, 2, 3])


def test_a_resumed_run_drops_what_it_writes_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    metrics.keep(lambda record: False)
    assert not path.exists()
    for step in range(5):
        metrics.write(step=step)
    path.write_bytes(path.read_bytes() + b'{"step": 5, "lo')
    metrics.keep(lambda record: record["step"] <= 2)
    metrics.write(step=3)
    assert [record["step"] for record in read_metrics(path)] == [0, 1, 2, 3]


def make_run(path: Path, age: int) -> Path:
    path.mkdir(parents=True)
    for name in ("config.yaml", "provenance.json"):
        (path / name).write_text("{}")
        os.utime(path / name, (1_000_000 - age, 1_000_000 - age))
    return path


def test_the_newest_run(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(
        NetspaceError, match=r"no run was named and there is none under .*runs/: train one .* or give --run"
    ):
        newest_run(runs)
    old, new = make_run(runs / "z", age=10), make_run(runs / "a", age=0)
    (runs / "not a run").mkdir()
    (runs / "file").write_text("")
    assert is_run(old) and not is_run(runs / "not a run") and not is_run(runs / "file")
    assert newest_run(runs) == new


@pytest.mark.parametrize("kind", [FIT, OPTIMISATION])
def test_a_fit_among_the_runs_is_no_run_of_a_space(tmp_path: Path, kind: str) -> None:
    run, other = make_run(tmp_path / "run", age=10), RunFolder(tmp_path / "other", ["netspace"], kind)
    other.begin(Some(), provenance(0, model="best"))
    assert other.origin.kind == kind and other.origin.model == "best" and other.last == tmp_path / "other" / "last.pt"
    assert not is_run(other.path) and newest_run(tmp_path) == run
    with pytest.raises(NetspaceError, match=r"other is not a run folder .* written by `netspace train`"):
        Space.load(other.path)
    (other.path / "provenance.json").write_text("damaged")
    assert is_run(other.path)


def test_provenance_says_what_is_needed_and_is_json() -> None:
    result = provenance(7, zoo_hash="ab")
    assert (
        result["seed"] == 7
        and result["zoo_hash"] == "ab"
        and result["torch"] == run_folder.package_version("torch") != "?"
    )
    assert {"netspace", "python", "numpy", "h5py", "accelerate", "machine", "command", "commit"} <= set(result)
    assert result["machine"]["cores"] >= 1 and json.loads(json.dumps(result)) == result
    assert run_folder.package_version("no such package at all") == "?"


def test_no_git_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(run_folder.subprocess, "run", missing)
    assert run_folder.commit() is None


def test_hash_tensors_sees_values_shapes_types_and_order() -> None:
    a, b = torch.arange(6.0), torch.ones(2)
    same = hash_tensors(a, b)
    assert same == hash_tensors(a.clone(), b) and len(same) == 64
    assert hash_tensors(torch.arange(12.0)[::2] / 2, b) == same  # not contiguous, equal
    others = [
        hash_tensors(b, a),
        hash_tensors(a.view(2, 3), b),
        hash_tensors(a.double(), b),
        hash_tensors(a + torch.eye(1, 6)[0] * 1e-6, b),
        hash_tensors(a),
    ]
    assert len({same, *others}) == 6


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_what_is_sent_arrives(device: str) -> None:
    stored = torch.arange(6).view(2, 3)
    for each in (stored, stored.T, stored[:, ::2]):
        sent = send(each, torch.device(device))
        assert sent.device.type == device and torch.equal(sent.cpu(), each)
        assert torch.equal(send(sent, torch.device("cpu")), each)
    assert send(stored, torch.device("cpu")) is stored


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device() == torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("cuda:77", "nonsense"):
        with pytest.raises(NetspaceError, match=f"device '{name}' was asked for, but it is not usable here: .+"):
            pick_device(name)


def test_a_block_alone_leaves_no_lock_and_no_empty_folder(tmp_path: Path) -> None:
    lock = tmp_path / "a" / "b" / ".lock"
    with pytest.raises(KeyError), locked(lock, "busy"):
        assert lock.is_file()
        raise KeyError
    assert os.listdir(tmp_path) == []
    (tmp_path / "mine").mkdir()
    with locked(tmp_path / "mine" / ".lock", "busy"):
        pass
    assert os.listdir(tmp_path) == ["mine"] and os.listdir(tmp_path / "mine") == []  # which was there before
    with locked(lock, "busy"):
        (lock.parent / "found").touch()
    assert os.listdir(lock.parent) == ["found"]


def test_who_comes_second_is_refused_and_spoils_nothing(tmp_path: Path) -> None:
    lock = tmp_path / "a" / ".lock"
    with locked(lock, "busy"):
        for _ in range(2):
            with (
                pytest.raises(NetspaceError, match=r"^busy: wait for it, or choose another --out$"),
                locked(lock, "busy"),
            ):
                pytest.fail("two at once")
        assert lock.is_file()
    lock.parent.mkdir()
    lock.touch()  # of a process that was killed
    with locked(lock, "busy"):
        pass
    assert os.listdir(lock.parent) == []


def test_a_lock_that_its_holder_removes_meanwhile_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the file and locking it: a lock on a file that is gone would keep nobody out."""
    lock, locking, calls = tmp_path / "a" / ".lock", fcntl.flock, list[int]()

    def removed(held: object, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            lock.unlink()
            lock.parent.rmdir()
        locking(held, how)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", removed)
    with locked(lock, "busy"):
        assert len(calls) == 2 and lock.is_file()


def test_a_lock_that_moves_away_with_its_folder_is_not_looked_for(tmp_path: Path) -> None:
    lock = tmp_path / "a" / "lock"
    with locked(lock, "busy"):
        lock.parent.rename(tmp_path / "b")
        lock.parent.mkdir()
        lock.touch()  # another's
    assert lock.is_file() and (tmp_path / "b" / "lock").is_file()


class Some(Settings):
    """Settings of a run."""

    steps: int = 3
    device: str = "cpu"


def test_a_run_is_gone_on_with_by_the_command_that_a_refusal_says(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "my run", ["netspace", "train", "--resume", "--out", "my run"])
    run.check(Some(), resume=False)  # there is none yet
    assert not run.begun and not run.path.exists()
    run.begin(Some(), {"zoo": "zoo.h5"})
    assert run.begun and is_run(run.path) and run.zoo == Path("zoo.h5")
    with pytest.raises(UsageError) as caught:
        run.check(Some(), resume=False)
    assert str(caught.value) == (
        f"{run.path} exists already: give --resume to go on with it (`netspace train --resume --out 'my run'`), or choose "
        "another --out"
    )
    run.check(Some(device="cuda"), resume=True, exclude={"device"})
    with pytest.raises(UsageError) as caught:
        run.check(Some(steps=4), resume=True, what="another recipe")
    assert str(caught.value) == (
        f"{run.path} was begun with another recipe: steps was 3 and is 4 now; resume it with its own (`netspace train --resume "
        "--out 'my run'`), or choose another --out"
    )
    before = run.config.read_bytes()
    run.begin(Some(steps=4))  # keeps what it was begun with
    assert run.config.read_bytes() == before


def test_a_run_has_one_process_and_its_best_weights(tmp_path: Path) -> None:
    run = RunFolder.of_space(tmp_path / "run")
    with run.locked("trained"):
        with pytest.raises(NetspaceError, match=r"run is being trained by another process: wait for it"):
            with run.locked("trained"):
                pytest.fail("two at once")
        with run.locked("trained", main=False):
            pass
        run.begin(Some())
    with pytest.raises(NetspaceError, match="has no trained space yet"):
        run.load_best()
    run.save_best({"a": torch.ones(2)})
    assert torch.equal(run.load_best()["a"], torch.ones(2))
