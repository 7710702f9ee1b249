"""Files appear whole, through links, without remains; locks that wait."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from netspace.errors import NetspaceError
from netspace.files import locked, replacing, write_text

KILLED = """
import os, signal, sys
from pathlib import Path
from netspace.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_link_is_written_through(tmp_path: Path) -> None:
    target = tmp_path / "disk" / "zoo.h5"
    target.parent.mkdir()
    for link, there in ((tmp_path / "link", target), (tmp_path / "second", tmp_path / "link")):
        link.symlink_to(there)
        write_text(link, link.name)  # at first there is no target yet
        assert link.is_symlink() and target.read_text() == link.name and os.listdir(target.parent) == ["zoo.h5"]


def test_nothing_but_a_file_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    kinds = {"pipe": "a device", "folder": "a folder", "circle": "a link to itself"}
    for name, kind in kinds.items():
        with pytest.raises(NetspaceError) as caught:
            write_text(tmp_path / name, "x")
        assert str(caught.value) == (
            f"{tmp_path / name} could not be written: it is {kind}, not a file; choose another place"
        )
    assert sorted(os.listdir(tmp_path)) == sorted(kinds) and (tmp_path / "pipe").is_fifo()


def test_what_a_killed_writer_left_goes_with_the_next_one_but_nothing_of_a_living_one(tmp_path: Path) -> None:
    path, other = tmp_path / "a [1].h5", tmp_path / "b.h5"
    for each in (path, other):
        subprocess.run([sys.executable, "-c", KILLED, str(each)])
    left = sorted(os.listdir(tmp_path))
    assert len(left) == 2 and all(name.endswith(".tmp") for name in left)
    with replacing(tmp_path / "c.h5") as temporary:
        temporary.write_text("c")
        done = threading.Thread(target=write_text, args=(path, "whole"))
        done.start()
        done.join()
        assert temporary.exists()
    assert sorted(os.listdir(tmp_path)) == [left[1], "a [1].h5", "c.h5"]
    assert path.read_text() == "whole" and other.name in left[1]


def test_a_lock_is_waited_for_as_long_as_it_was_said(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with locked(lock, "busy"):
        start = time.monotonic()
        with pytest.raises(NetspaceError, match=r"^busy: wait for it"), locked(lock, "busy", patience=0.2):
            pytest.fail("two at once")
        assert 0.2 <= time.monotonic() - start < 5
    stored, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(lock, "busy"):
            stored.set()
            let_go.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    stored.wait(10)
    threading.Timer(0.1, let_go.set).start()
    with locked(lock, "busy", patience=10):
        assert let_go.is_set()
    holder.join()
    assert os.listdir(tmp_path) == []
