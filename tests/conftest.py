"""Shared fixtures. Long tests run with --slow, GPU tests where there is a GPU.

`tiny_zoo` and `tiny_run` are a real zoo and a real run on scikit-learn's digits, made once and never changed by a test:
tests that write take `zoo_copy` and `run_copy`.
"""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jaxtyping import install_import_hook

# Calls of these modules are checked against the shapes and types in their signatures. Modules that compiled passes of
# zoo training run through (`netspace.networks.prep`, `netspace.tasks.images`) cannot be: a check breaks a graph in two.
install_import_hook(["netspace.metrics", "netspace.tasks.base"], "beartype.beartype")

MAX_WORKERS = 8  # processes that share the tests; each takes 1 to 2 GB of memory
ZOO: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "data": {"name": "digits", "limit": 300},
    "archs": {"lenetlike": {"arch": "lenetlike", "width": 0.25}},
    "members": {"train": 24, "val": 6, "test": 6},
    "epochs": {"first": 1, "last": 4},
    "optimizer": {"name": "adam", "learning_rate": 0.01},
    "batch_size": 25,
    "prep_width": 128,
    "fused": 4,
}
SPACE: dict[str, Any] = {
    "name": "tiny",
    "seed": 0,
    "latent": 64,
    "encoder": {"kind": "probe", "probes": 16, "hidden": 32},
    "decoder": {"start": "reference", "share": 0.3},
    "loss": {"behaviour": 1.0, "temperature": 1.0},
    "optimizer": {"name": "muon", "learning_rate": 0.001, "muon_rate": 0.01, "schedule": "cosine", "ema": 0.9},
    "networks": 8,
    "images": 64,
    "steps": 30,
    "validate_every": 10,
    "log_every": 5,
    "precision": "float32",  # figures are compared to many digits
    "networks_precision": "float32",
}
MULTI_ZOO: dict[str, Any] = {
    "name": "tiny-multi",
    "seed": 4,
    "data": {"name": "digits", "limit": 300},
    "archs": {
        "lenet": {"arch": "lenetlike", "width": 0.15},
        "vanilla": {"arch": "vanillacnn", "width": 0.15, "members": {"train": 5, "val": 1, "test": 3}},
        "resnet": {"arch": "resnet8", "width": 0.2},
    },
    "teacher": {
        "arch": "lenetlike",
        "width": 0.4,
        "members": {"train": 1, "val": 0, "test": 0},
        "epochs": 4,
        "optimizer": {"name": "adam", "learning_rate": 0.01},
        "batch_size": 25,
    },
    "members": {"train": 6, "val": 2, "test": 3},
    "epochs": {"first": 2, "last": 2},
    "optimizer": {"name": "adam", "learning_rate": 0.01},
    "batch_size": 25,
    "prep_width": 128,
    "fused": 3,
}
MULTI: dict[str, Any] = {
    **SPACE,
    "name": "tiny-multi",
    "loss": {"behaviour": 0.0},
    "multi": {"alpha": 0.7, "temperature": 2.0, "pairs": 2},
    "optimizer": {**SPACE["optimizer"], "learning_rate": 0.01, "muon_rate": 0.05, "betas": [0.9, 0.99]},
    "networks": 6,
}

CHAIRS_ZOO: dict[str, Any] = {
    "name": "tiny-chairs",
    "seed": 5,
    "data": {"name": "chairs", "points": 1024},
    "archs": {"siren": {"arch": "siren", "width": 0.0625}},
    "members": {"train": 8, "val": 2, "test": 2},
    "init": "shared",
    "epochs": {"first": 20, "last": 20},
    "optimizer": {"name": "adam", "learning_rate": 0.005, "schedule": "cosine"},
    "batch_size": 64,
    "fused": 12,
}
CHAIRS: dict[str, Any] = {
    **SPACE,
    "name": "tiny-chairs",
    "latent": 16,
    "decoder": {"kind": "linear", "start": "reference", "share": 0.3},
    "loss": {"behaviour": 1.0},
    "steps": 60,
    "validate_every": 30,
    "log_every": 10,
}


def pytest_configure() -> None:
    """Import `model_zoo`, not the folder tests/model_zoo, which is found first where netspace is installed in place."""
    from netspace.process import import_model_zoo

    import_model_zoo()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return a process for each available core; none, which is this process alone, where single files or tests are named."""
    from netspace.process import available_cores

    cores = min(available_cores(), MAX_WORKERS)
    return 0 if cores == 1 or any(".py" in argument for argument in config.args) else cores


LONG = (  # files that take a minute or more, the longest first: begun last, one of them would keep one process busy alone
    "test_quickstart_shapes", "test_recipes", "test_floors", "test_crashes", "test_ranks", "test_multi_ranks", "test_refine",
    "test_shape_commands", "test_kills", "test_kills_of_trainings", "test_kills_of_fits", "test_kills_of_morphs", "test_interrupts",
)  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    order = {name: index for index, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))  # stable: all others stay in their order
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Calibrations of a process stay out of the user's cache and out of other processes' choices; compiled code is shared.

    One thread, which is faster for tiny networks.
    """
    import os

    from netspace.hardware import cache_folder

    compiled = cache_folder() / "numba"  # named after its sources: compiled once for all processes that tests start
    compiled.mkdir(parents=True, exist_ok=True)
    folder = tmp_path_factory.mktemp("cache")
    (folder / "numba").symlink_to(compiled, target_is_directory=True)
    os.environ["NETSPACE_CACHE"] = str(folder)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _own_trust() -> Iterator[None]:
    """What the tests of a file trust is not trusted by other files, which the same process may run after them."""
    from netspace import archs

    before = set(archs._TRUSTED)
    yield
    archs._TRUSTED.intersection_update(before)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs in a folder of its own, so that a stray write lands nowhere that matters."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def zoo_settings() -> dict[str, Any]:
    """The recipe of `tiny_zoo`, to be changed."""
    return copy.deepcopy(ZOO)


@pytest.fixture
def space_settings() -> dict[str, Any]:
    """The recipe of `tiny_run`, to be changed."""
    return copy.deepcopy(SPACE)


@pytest.fixture(scope="session")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with zoo.yaml and space.yaml."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "zoo.yaml").write_text(yaml.safe_dump(ZOO))
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE))
    return folder


@pytest.fixture(scope="session")
def tiny_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo of 36 networks of 1,477 parameters, built in this process."""
    from model_zoo.builder import build
    from model_zoo.recipe import ZooRecipe

    return build(ZooRecipe.model_validate(ZOO), tmp_path_factory.mktemp("zoo") / "zoo.h5", workers=1)


@pytest.fixture(scope="session")
def tiny_run(tiny_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A space of `tiny_zoo`, trained for 30 steps in this process."""
    from netspace.training.latent_space import train
    from netspace.training.recipe import SpaceRecipe

    return train(SpaceRecipe.model_validate(SPACE), tiny_zoo, tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture
def multi_zoo_settings() -> dict[str, Any]:
    """The recipe of `multi_zoo`, to be changed."""
    return copy.deepcopy(MULTI_ZOO)


@pytest.fixture
def multi_settings() -> dict[str, Any]:
    """The recipe of `multi_run`, to be changed."""
    return copy.deepcopy(MULTI)


@pytest.fixture(scope="session")
def multi_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo of three architectures (lenet, vanilla, resnet), with its teacher beside it."""
    from model_zoo.builder import build
    from model_zoo.recipe import ZooRecipe

    return build(ZooRecipe.model_validate(MULTI_ZOO), tmp_path_factory.mktemp("multi") / "zoo.h5", workers=1)


@pytest.fixture(scope="session")
def multi_run(multi_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A space of all architectures of `multi_zoo`, trained for 30 steps."""
    from netspace.training.latent_space import train
    from netspace.training.recipe import SpaceRecipe

    return train(SpaceRecipe.model_validate(MULTI), multi_zoo, tmp_path_factory.mktemp("runs") / "multi")


@pytest.fixture(scope="session")
def chairs_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo of 12 networks of 353 parameters that are chairs."""
    from model_zoo.builder import build
    from model_zoo.recipe import ZooRecipe

    return build(ZooRecipe.model_validate(CHAIRS_ZOO), tmp_path_factory.mktemp("chairs") / "zoo.h5", workers=1)


@pytest.fixture(scope="session")
def chairs_run(chairs_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A space of `chairs_zoo`, trained for 60 steps."""
    from netspace.training.latent_space import train
    from netspace.training.recipe import SpaceRecipe

    return train(SpaceRecipe.model_validate(CHAIRS), chairs_zoo, tmp_path_factory.mktemp("runs") / "chairs")


@pytest.fixture
def chairs_copy(chairs_run: Path, tmp_path: Path) -> Path:
    """`chairs_run`, to be written into."""
    return Path(shutil.copytree(chairs_run, tmp_path / "runs" / "chairs"))


@pytest.fixture(scope="session")
def unseen_run(multi_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A space that was shown no network of the architecture in the middle, and knows another only by name."""
    from netspace.training.latent_space import train
    from netspace.training.recipe import SpaceRecipe

    declared = {"declared": {"arch": "vanillacnn", "width": 0.18}}
    settings = {**MULTI, "multi": {**MULTI["multi"], "counts": {"vanilla": 0}, "declared": declared}}
    return train(SpaceRecipe.model_validate(settings), multi_zoo, tmp_path_factory.mktemp("runs") / "unseen")


@pytest.fixture(scope="session")
def coordinate_run(multi_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A space of the three architectures of `multi_zoo` with one set of decoder weights: a coordinate decoder."""
    from netspace.training.latent_space import train
    from netspace.training.recipe import SpaceRecipe

    decoder = {"kind": "coordinate", "start": "emitted", "hidden": 16, "reference_steps": 5}
    settings = {**MULTI, "decoder": decoder, "steps": 4, "validate_every": 4}
    return train(SpaceRecipe.model_validate(settings), multi_zoo, tmp_path_factory.mktemp("runs") / "coordinate")


@pytest.fixture
def zoo_copy(tiny_zoo: Path, tmp_path: Path) -> Path:
    """`tiny_zoo`, to be changed."""
    return Path(shutil.copy(tiny_zoo, tmp_path / "zoo.h5"))


@pytest.fixture
def run_copy(tiny_run: Path, tmp_path: Path) -> Path:
    """`tiny_run`, to be written into."""
    return Path(shutil.copytree(tiny_run, tmp_path / "runs" / "tiny"))


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on standard output; fails if there is more or less."""
        assert self.out.count("\n") == 1 and self.out.endswith("\n"), self.out
        actual = json.loads(self.out)
        assert isinstance(actual, dict)
        return actual

    @property
    def sentence(self) -> str:
        """The one line a mistake is told in."""
        assert "Traceback" not in self.err
        lines = [line for line in self.err.splitlines() if line.startswith("netspace: ")]
        assert len(lines) == 1, self.err
        assert self.err.splitlines()[-1] == lines[0], self.err
        return lines[0].removeprefix("netspace: ")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command line by the console script's own `main`, in this process."""
    from netspace.cli.app import main

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["netspace", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        result = capsys.readouterr()
        return Outcome(int(stop.value.code or 0), result.out, result.err)

    return call
