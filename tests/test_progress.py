"""Progress on standard error: silent, as lines, or as a bar; standard output stays clean."""

from __future__ import annotations

import io
import sys

import pytest

from netspace import progress as module
from netspace.progress import clock, progress


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (12.4, "12 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 00 min"),
        (3720, "1 h 02 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize("value", ["off", "OFF", "0", "no"])
def test_it_can_be_silenced(value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("NETSPACE_PROGRESS", value)
    monkeypatch.setattr(module, "LINE_EVERY", 0.0)
    with progress("train", 10, "steps") as bar:
        bar.begin_at(2)
        bar.advance(3)
        assert bar.done == 5
    result = capsys.readouterr()
    assert result.out == result.err == ""


def test_lines_where_standard_error_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NETSPACE_PROGRESS", raising=False)
    monkeypatch.setattr(module, "LINE_EVERY", 0.0)
    times = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(times))
    with progress("train", 1000, "steps") as bar:
        bar.begin_at(400)  # does not count for the throughput
        bar.advance(100, "MAE 2")
        bar.advance(100)
    result = capsys.readouterr()
    assert result.out == ""
    assert result.err.splitlines() == [
        "train: 500 of 1,000 steps, 10.0 a second, 50 s left MAE 2",
        "train: 600 of 1,000 steps, 10.0 a second, 40 s left",
    ]


def test_lines_are_rare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("NETSPACE_PROGRESS", raising=False)
    monkeypatch.setattr(module.time, "monotonic", lambda: 0.0)
    with progress("train", 10, "steps") as bar:
        for _ in range(10):
            bar.advance()
    assert bar.done == 10 and capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal_that_ends_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NETSPACE_PROGRESS", raising=False)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(KeyError), progress("train", 10, "steps") as bar:
        bar.begin_at(5)
        bar.advance(2, "note")
        assert bar.done == 7 and bar.bar.tasks[0].completed == 7  # type: ignore[attr-defined]
        raise KeyError
    assert bar.bar.finished is False and not bar.bar.live.is_started  # type: ignore[attr-defined]
