"""What is the fastest is timed once and remembered; no test here times anything: the clock is made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from netspace import precision
from netspace.hardware import cache_folder
from netspace.io import read_json
from netspace.precision import calibration_file, fastest


class Clock:
    """A clock that only work moves; counts how often each way ran."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runs: dict[str, int] = {}

    def way(self, name: str, *seconds: float) -> Callable[[], None]:
        def run() -> None:
            number = self.runs[name] = self.runs.get(name, 0) + 1
            self.now += seconds[min(number - 1, len(seconds) - 1)]

        return run


@pytest.fixture()
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    made = Clock()
    monkeypatch.setattr(precision.time, "perf_counter", lambda: made.now)
    monkeypatch.setenv("NETSPACE_CACHE", str(tmp_path / "cache"))
    return made


def test_the_fastest_is_found_after_a_warm_up(clock: Clock) -> None:
    """The first run of each does not count, the best of the others does."""
    ways = {"slow start": clock.way("slow start", 100.0, 5.0, 1.0, 5.0), "steady": clock.way("steady", 2.0)}
    assert fastest("subject", ways) == "slow start"
    assert clock.runs == {"slow start": 4, "steady": 4}


def test_ways_take_turns_and_short_ones_more_of_them(clock: Clock) -> None:
    """What is slow for a while, as a shared processor is, slows all ways alike."""
    order: list[str] = []

    def way(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            clock.now += seconds * (10 if len(order) < 8 else 1)

        return run

    assert fastest("subject", {"a": way("a", 0.011), "b": way("b", 0.010)}, repeats=2) == "b"
    assert order == ["a", "b"] * 11  # 2 x 5 turns, and the one to warm up


def test_a_remembered_answer_is_returned_untimed(clock: Clock) -> None:
    assert fastest("subject", {"a": clock.way("a", 1.0), "b": clock.way("b", 2.0)}) == "a"
    before = dict(clock.runs)
    assert fastest("subject", {"b": clock.way("b", 0.1), "a": clock.way("a", 9.0)}) == "a"  # in any order
    assert clock.runs == before
    assert list(read_json(cache_folder() / "calibration.json", dict[str, str]).values()) == ["a"]


def test_another_subject_other_ways_and_other_threads_are_timed_anew(clock: Clock) -> None:
    ways = {"a": clock.way("a", 1.0), "b": clock.way("b", 2.0)}
    fastest("subject", ways)
    for again in (
        lambda: fastest("other", ways),
        lambda: fastest("subject", {**ways, "c": clock.way("c", 3.0)}),
    ):
        before = clock.runs["a"]
        again()
        assert clock.runs["a"] > before
    before, threads = clock.runs["a"], torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        fastest("subject", ways)
    finally:
        torch.set_num_threads(threads)
    assert clock.runs["a"] > before
    assert len(read_json(cache_folder() / "calibration.json", dict[str, str])) == 4


@pytest.mark.parametrize("package", ["netspace", "torch"])
def test_another_version_is_timed_anew(clock: Clock, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    fastest("subject", {"a": clock.way("a", 1.0), "b": clock.way("b", 2.0)})
    if package == "torch":
        monkeypatch.setattr(torch, "__version__", "9.9")
    else:
        monkeypatch.setattr(precision, "package_version", lambda name: f"{name} 9.9")
    assert fastest("subject", {"a": clock.way("a", 2.0), "b": clock.way("b", 1.0)}) == "b"


def test_deleting_the_file_forgets(clock: Clock) -> None:
    fastest("subject", {"a": clock.way("a", 1.0), "b": clock.way("b", 2.0)})
    calibration_file().unlink()
    assert fastest("subject", {"a": clock.way("a", 2.0), "b": clock.way("b", 1.0)}) == "b"


def test_work_makes_the_time_of_a_unit_count(clock: Clock) -> None:
    ways = {"one": clock.way("one", 1.0), "eight": clock.way("eight", 4.0)}
    assert fastest("without", ways) == "one"
    assert fastest("with", ways, work={"one": 1, "eight": 8}) == "eight"
    assert fastest("partly", ways, work={"one": 1}) == "one"


def test_what_runs_out_of_memory_is_out_of_the_race(clock: Clock) -> None:
    def greedy() -> None:
        raise torch.OutOfMemoryError

    assert fastest("subject", {"greedy": greedy, "modest": clock.way("modest", 9.0)}, work={"greedy": 1e9}) == "modest"


def test_what_raises_is_out_of_the_race_unless_all_do(clock: Clock) -> None:
    def broken() -> None:
        raise RuntimeError("a real mistake")

    assert fastest("subject", {"broken": broken, "fine": clock.way("fine", 1.0)}) == "fine"
    with pytest.raises(RuntimeError, match="a real mistake"):
        fastest("subject", {"broken": broken, "as broken": broken})


def test_a_folder_that_cannot_be_written_is_no_error(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NETSPACE_CACHE", str(tmp_path / "file" / "cache"))
    ways = {"a": clock.way("a", 1.0), "b": clock.way("b", 2.0)}
    assert fastest("subject", ways) == "a"

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("NETSPACE_CACHE", str(tmp_path / "read-only"))
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert fastest("subject", ways) == "a"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe\x80", b'{"x": 1}'])
def test_a_broken_memory_is_forgotten(clock: Clock, content: bytes) -> None:
    file = cache_folder() / "calibration.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    assert fastest("subject", {"a": clock.way("a", 1.0), "b": clock.way("b", 2.0)}) == "a"
    assert "a" in json.loads(file.read_text()).values()


def test_a_remembered_way_that_is_not_on_offer_is_timed_again(clock: Clock) -> None:
    ways = {"a": clock.way("a", 1.0), "b": clock.way("b", 2.0)}
    fastest("subject", ways)
    file = cache_folder() / "calibration.json"
    file.write_text(json.dumps(dict.fromkeys(json.loads(file.read_text()), "c")))
    assert fastest("subject", ways) == "a"


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NETSPACE_CACHE", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x"
    monkeypatch.delenv("NETSPACE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "netspace"
