"""The house's shape: who imports whom, how long files are, and that every example in a docstring runs."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import model_zoo
import netspace
from netspace.commands.morph import fit as fit_morph
from netspace.compression.fit import fit
from netspace.training.morph import MorphConfig
from netspace.training.recipe import FitConfig

ROOT = Path(__file__).parents[1]
FILES = sorted(path for package in ("netspace", "model_zoo") for path in (ROOT / package).rglob("*.py"))
LONGEST = 400  # lines

MODULES = sorted(
    name
    for package in (netspace, model_zoo)
    for name in (
        package.__name__,
        *(found.name for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")),
    )
    if not name.endswith("__main__")
)
EXAMPLES = {
    "zoo": "tiny_zoo",
    "run": "example_run",
    "compressed": "example_file",
    "folder": "tmp_path",
    "chairs_run": "chairs_copy",
    "morph_run": "example_morph",
}
COMMANDS = [
    *(f"netspace.commands.{name}" for name in (
        "complete.complete", "convert.decode", "diff.diff", "encode.encode", "evaluate.evaluate", "health.health", "interpolate.interpolate", "morph.fit",
        "morph_eval.evaluate", "morph_sample.sample", "optimize.optimize", "probe.probe", "quickstart.quickstart", "recipes.recipes", "recipes.schema", "sample.sample", "search.search",
    )),
    *(f"netspace.compression.{name}" for name in (
        "analyse.analyse", "analyse.importance", "correct.correct", "fit.evaluate", "fit.fit", "fit.reconstruct",
        "rebuild.rebuild_cost", "seeds.fit_seeds", "shrink.prune", "shrink.quantise", "transfer.transfer",
    )),
    "netspace.report.report",
    "netspace.saved_morph.load_morphed",
    "netspace.saved_morph.open_morph",
    "netspace.space.Space",
    "netspace.training.latent_space.train",
    "netspace.zoo.Zoo",
    "netspace.zoo.merge",
    "model_zoo.align.align_zoo",
    "model_zoo.builder.build",
    "model_zoo.importer.import_members",
    "model_zoo.verify.verify",
]  # fmt: skip


def test_a_file_imports_only_from_the_floors_below(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from importlinter.cli import lint_imports_command as c; sys.exit(c())",
            "--config",
            str(ROOT / "pyproject.toml"),
            "--cache-dir",
            str(tmp_path),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < LONGEST


def test_files_of_tests_have_names_of_their_own() -> None:
    """Pytest imports them by their names alone, and collects nothing if two are the same."""
    names = sorted(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert names == sorted(set(names))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_open_with_their_contract(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not tree.body or ast.get_docstring(tree)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles_or_evaluates(path: Path) -> None:
    """torch.load only with weights_only=True; no pickle, no eval, no exec."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not names & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load"}
            if called == "torch.load":
                assert "weights_only=True" in ast.unparse(node)
            if called == "np.load":
                assert "allow_pickle=True" not in ast.unparse(node)


@pytest.fixture(scope="session")
def example_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that examples write into."""
    return Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("examples") / "run"))


@pytest.fixture(scope="session")
def example_file(tiny_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed network: the best of `tiny_zoo`."""
    folder = tmp_path_factory.mktemp("examples") / "fit"
    fit("best", folder, FitConfig.model_validate({"predictor": {"hidden": 16}, "stages": [{"steps": 2}]}), tiny_zoo)
    return folder / "compressed.safetensors"


@pytest.fixture(scope="session")
def example_morph(tiny_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A morph of the best of `tiny_zoo`."""
    folder = tmp_path_factory.mktemp("examples") / "morph"
    fit_morph(folder, MorphConfig.model_validate({"stages": [{"steps": 2}], "batch_size": 8}), "best", tiny_zoo)
    return folder


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name: str, request: pytest.FixtureRequest) -> None:
    """Names that an example uses and does not make are those of `EXAMPLES`."""
    module = importlib.import_module(name)
    actual = doctest.DocTestFinder(exclude_empty=True).find(module)
    source = "".join(example.source for test in actual for example in test.examples)
    given = {
        word: request.getfixturevalue(fixture)
        for word, fixture in EXAMPLES.items()
        if re.search(rf"(?<!\.)\b{word}\b(?! *=)", source)
    }
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, _ = doctest.testmod(module, extraglobs=given, optionflags=flags)
    assert failed == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example(name: str) -> None:
    module, _, function = name.rpartition(".")
    assert ">>> " in (getattr(importlib.import_module(module), function).__doc__ or ""), name


def test_examples_were_found() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    examples = sum(len(test.examples) for name in MODULES for test in finder.find(importlib.import_module(name)))
    assert examples >= 5
