"""How commands end: memory that ran out is told as such, and no name from a file reaches the terminal raw."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest

from netspace.errors import NetspaceError
from netspace.zoo import Population, Zoo, write_zoo

Cli = Callable[..., Any]
ESCAPE = "a\x1b]0;owned\x07\x1b[2J\u202eb\r\nnetspace: all is well"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "MemoryError"),
        (MemoryError("Unable to allocate 6 GiB"), "Unable to allocate 6 GiB"),
        (RuntimeError("std::bad_alloc"), "std::bad_alloc"),
        (RuntimeError("could not create a primitive"), "could not create a primitive"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory\nmore"), "[enforce fail] Def"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "[Errno 12] Cannot allocate memory"),
    ],
)
def test_memory_that_ran_out_is_told_so(cli: Cli, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str) -> None:
    def short(*_: object) -> None:
        raise error

    monkeypatch.setattr("netspace.cli.zoo.describe", short)
    done = cli("zoo", "info", "z.h5")
    assert done.code == 1 and done.sentence.startswith(f"memory ran out: {told}")
    assert done.sentence.endswith("; take fewer at once (see the recipe's settings)")


def test_another_error_is_no_lack_of_memory(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*_: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr("netspace.cli.zoo.describe", other)
    with pytest.raises(RuntimeError, match="something else"):
        cli("zoo", "info", "z.h5")


def test_names_in_files_reach_no_terminal_raw(cli: Cli, tiny_zoo: Path) -> None:
    with Zoo(tiny_zoo) as zoo:
        group, header = zoo.only(), zoo.header
        stored = Population(group.spec, group.read(range(36)).numpy(), group.members.copy())
        object.__setattr__(header, "data", {**header.data, "name": ESCAPE})
        stored.members["split"][0] = b"\x1b[2J"
    write_zoo(Path("z.h5"), header, {ESCAPE: stored})
    for command in ("info", "verify"):
        done = cli("zoo", command, "z.h5")
        assert r"a\x1b]0;owned\x07\x1b[2J\u202eb" in done.out + done.err
        assert done.out.replace("\n", "").isprintable() and done.err.replace("\n", "").isprintable()
    assert list(cli("zoo", "info", "z.h5", "--json").json["archs"]) == [ESCAPE]
    with h5py.File("z.h5", "a") as file:
        del file["archs"][ESCAPE].attrs["spec"]
    done = cli("zoo", "info", "z.h5")
    assert r"architecture 'a\\x1b" in done.sentence or r"architecture 'a\x1b" in done.sentence
    assert done.err.replace("\n", "").isprintable() and done.err.count("\n") == 1


def test_a_sentence_stays_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise NetspaceError(ESCAPE)

    monkeypatch.setattr("netspace.cli.zoo.describe", fail)
    done = cli("zoo", "info", "z.h5", "--json")
    assert done.sentence == r"a\x1b]0;owned\x07\x1b[2J\u202eb\r\nnetspace: all is well"
    assert json.loads(done.out) == {"error": ESCAPE}
