"""What is installed: the packages, the recipes inside one of them, and ours in a folder that has some of the same name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

import pytest
import yaml

import netspace
from netspace.config import bundled_folder, bundled_names

ROOT = Path(__file__).parents[1]
NOT_OURS = "raise SystemExit('a package of the current folder was imported')"
ARCH = """
from torch import nn
def make(*, channels, classes, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, classes))
"""
WORKERS = ("--workers", "2", "--trust-arch", "mine:make", "--json")


@pytest.fixture
def busy_folder(tmp_path: Path, zoo_settings: dict[str, Any]) -> Path:
    """A folder with a `model_zoo/` and a `configs/` of the user's own, an architecture and a recipe of it."""
    folder = tmp_path / "busy"
    for name in ("model_zoo", "configs"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(NOT_OURS)
    (folder / "configs" / "zoo").mkdir()
    (folder / "mine.py").write_text(ARCH)
    changes = {
        "archs": {"mine": {"arch": "mine:make"}},
        "members": {"train": 2, "val": 0, "test": 0},
        "epochs": {"first": 1, "last": 1},
        "fused": 1,
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump({**zoo_settings, **changes}))
    return folder


def start(folder: Path, *command: str, path: str = str(ROOT)) -> subprocess.CompletedProcess[str]:
    """A command from `folder`; `path` is PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command,
        cwd=folder,
        env={**environment, **({"PYTHONPATH": path} if path else {})},
        capture_output=True,
        text=True,
    )


def test_every_package_is_installed_and_the_recipes_with_them() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    files = [file for package in ("netspace", "model_zoo") for file in (ROOT / package).rglob("__init__.py")]
    actual = [".".join(file.parent.relative_to(ROOT).parts) for file in files]
    assert sorted(settings["packages"]) == sorted([*actual, "netspace.configs"])
    assert settings["package-dir"]["netspace.configs"] == "configs"
    package = Path(netspace.__file__).parent  # of the checkout, or installed
    assert bundled_folder() == (ROOT / "configs" if package.parent == ROOT else package / "configs")
    texts = [
        {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*.yaml")}
        for root in (ROOT / "configs", bundled_folder())
    ]
    assert texts[0] == texts[1] != {}
    assert not list(ROOT.glob("configs/**/*.py"))


def test_a_checkout_in_a_folder_with_packages_of_the_same_names(busy_folder: Path) -> None:
    done = start(busy_folder, sys.executable, "-m", "netspace", "zoo", "build", "mine.yaml", "-o", "z.h5", *WORKERS)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["archs"]["mine"]["members"] == 2
    done = start(busy_folder, sys.executable, "-m", "netspace", "zoo", "build", "zoo/quickstart", "--set", "nonsense=1")
    assert "unknown setting 'nonsense'" in done.stderr and "zoo/quickstart" in done.stderr


@pytest.mark.slow
def test_a_wheel_in_a_folder_with_packages_of_the_same_names(busy_folder: Path, tmp_path: Path) -> None:
    """The command, the module, and the module under accelerate's launcher."""
    source = tmp_path / "source"
    for name in ("netspace", "model_zoo", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = str(binaries / "python")
    done = start(tmp_path, python, "-m", "pip", "install", "--no-deps", str(source), path="")
    assert done.returncode == 0, done.stderr
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site, libraries = (
        start(tmp_path, each, "-c", purelib, path="").stdout.strip() for each in (python, sys.executable)
    )
    assert sorted(path.name for path in Path(site).iterdir() if "configs" in path.name) == []
    assert len(bundled_names()) == len(list(Path(site, "netspace", "configs").rglob("*.yaml")))
    Path(site, "libraries.pth").write_text(libraries)  # torch and the rest, from where these tests run
    module = ["-m", "netspace"]
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    for name, words in (
        ("command", [str(binaries / "netspace")]),
        ("module", [python, *module]),
        ("launcher", [python, *launcher, *module]),
    ):
        # the command has no current folder in its path, so the user's own architecture is named by PYTHONPATH
        path = str(busy_folder) if name == "command" else ""
        done = start(busy_folder, *words, "zoo", "build", "mine.yaml", "-o", f"{name}.h5", *WORKERS, path=path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["archs"]["mine"]["members"] == 2
        done = start(busy_folder, *words, "zoo", "build", "zoo/quickstart", "--set", "nonsense=1", path=path)
        assert "unknown setting 'nonsense'" in done.stderr
