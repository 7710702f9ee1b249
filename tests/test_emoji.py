"""`tools/emoji.py` on a package of its kind, written here: what is unpacked, where, what is refused, and how npm is asked."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from netspace.errors import NetspaceError, UsageError

ROOT = Path(__file__).parents[1]
ENTRIES = [  # file, group
    ("1f400.png", "Animals & Nature"),
    ("0033-fe0f-20e3.png", "Symbols"),
    ("1f3fb.png", "Component"),
]


@pytest.fixture(scope="module")
def emoji() -> ModuleType:
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("emoji_tool", ROOT / "tools" / "emoji.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package(path: Path, entries: list[dict[str, Any]] | None = None) -> Path:
    """Write a package with a skin tone of an emoji, a picture of another size, and a file that leads outside."""
    if entries is None:
        entries = [{"image": image, "category": group, "short_name": image[:4]} for image, group in ENTRIES]
    files = {"package/emoji.json": json.dumps(entries).encode()}
    for image, _ in (*ENTRIES, ("1f400-1f3fb.png", "")):
        files[f"package/img/google/64/{image}"] = image.encode()
        files[f"package/img/google/sheets/{image}"] = b"sheet"
    files["../outside.png"] = b"outside"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_emoji_are_unpacked_by_group(emoji: ModuleType, tmp_path: Path) -> None:
    counts = emoji.unpack(package(tmp_path / "package.tgz"), tmp_path / "out")
    files = {path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*.*")}
    assert sorted(files) == ["SOURCES.csv", "animals-nature/1f400.png", "symbols/0033-fe0f-20e3.png"]
    assert files["animals-nature/1f400.png"].read_bytes() == b"1f400.png" and counts == {
        "animals-nature": 1,
        "symbols": 1,
    }
    rows = list(csv.DictReader(files["SOURCES.csv"].read_text().splitlines()))
    assert [row["file"] for row in rows] == ["animals-nature/1f400.png", "symbols/0033-fe0f-20e3.png"]
    assert {row["licence"] for row in rows} == {"Apache License 2.0"} and rows[0]["name"] == "1f40"
    assert not (tmp_path / "outside.png").exists()


def test_names_in_the_package_lead_nowhere_else(emoji: ModuleType, tmp_path: Path) -> None:
    entries = [{"image": "1f400.png", "category": "../../etc", "short_name": "x"}]
    emoji.unpack(package(tmp_path / "package.tgz", entries), tmp_path / "out")
    assert (tmp_path / "out" / "etc" / "1f400.png").exists() and not (tmp_path.parent / "etc").exists()


def test_another_file_is_refused_in_a_sentence(emoji: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "text.tgz").write_text("text")
    for path in (tmp_path / "text.tgz", tmp_path / "none.tgz", package(tmp_path / "other.tgz", [{"image": "x"}])):
        with pytest.raises(
            UsageError, match=r"is not the file of emoji-datasource-google@16\.0\.0 \(.*\): get https://"
        ):
            emoji.unpack(path, tmp_path / "out")


def test_npm_is_asked_for_one_package(emoji: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def npm(command: list[str], cwd: Path, **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        if len(asked) == 1:
            package(cwd / "emoji.tgz")
            return subprocess.CompletedProcess(command, 0, "", "")
        return subprocess.CompletedProcess(command, 1, "", "npm error\nnpm error network")

    monkeypatch.setattr(emoji.subprocess, "run", npm)
    monkeypatch.setattr(emoji.shutil, "which", lambda name: "/bin/npm")
    monkeypatch.setattr(sys, "argv", ["emoji.py", str(tmp_path / "out")])
    assert emoji.main() == 0 and (tmp_path / "out" / "SOURCES.csv").exists()
    assert asked == [["npm", "pack", "emoji-datasource-google@16.0.0", "--loglevel=error"]]
    with pytest.raises(
        NetspaceError, match=r"failed \(npm error network\): get https://.* and name the file with --source"
    ):
        emoji.download(tmp_path)
    monkeypatch.setattr(emoji.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="npm is not installed here: install it, or get https://"):
        emoji.download(tmp_path)
    assert emoji.main() == 2
