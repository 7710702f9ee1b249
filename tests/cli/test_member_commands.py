"""`zoo list` and `zoo export`, `resume`, and what every command has: `-h`, a version, completion."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shellingham
import torch
from helpers import refused
from safetensors.torch import load_file
from typer.testing import CliRunner

import netspace
from model_zoo.forward import Way
from model_zoo.recipe import ZooRecipe
from model_zoo.work import Plan
from netspace import archs
from netspace.cli.app import app
from netspace.config import load
from netspace.run_folder import COMMANDS
from netspace.tasks import load as load_task
from netspace.zoo import Zoo, parts_folder

Cli = Callable[..., Any]


def test_members_are_listed_as_python_lists_them(cli: Cli, multi_zoo: Path) -> None:
    words = ("zoo", "list", multi_zoo, "--filter", "accuracy > 0.1 and arch != 'resnet'", "--sort", "accuracy")
    result = cli(*words, "--columns", "member,accuracy,split", "--json").json
    with Zoo(multi_zoo) as zoo:
        members = sorted(
            (m for m in zoo if m.accuracy > 0.1 and m.arch != "resnet"),
            key=lambda m: (m.accuracy, zoo.group(m.arch).class_id),
        )
        expected = [{"member": str(m), "accuracy": m.accuracy, "split": m.split} for m in members]
    assert result == {
        "path": str(multi_zoo),
        "count": len(expected),
        "columns": ["member", "accuracy", "split"],
        "members": expected,
    }
    assert len(expected) > 3
    shown = cli(*words, "--descending", "--limit", 2).out.splitlines()
    assert len(shown) == 5 and shown[0].split() == ["member", "split", "run", "seed", "epochs", *_scores()]
    assert shown[2].split()[0] == expected[-1]["member"] and shown[2].split()[1] == expected[-1]["split"]
    assert shown[4] == f"{len(expected) - 2} more of {len(expected)}: --limit {len(expected)} lists all"
    assert "source" in cli("zoo", "list", multi_zoo, "--columns", "all", "--json").json["columns"]
    nothing = cli("zoo", "list", multi_zoo, "--filter", "accuracy > 2")
    assert nothing.code == 0 and nothing.out == f"no member of {multi_zoo} meets the condition\n"


def _scores() -> list[str]:
    return [f"accuracy_{split}" for split in ("train", "val", "test")]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--sort", "acuracy"), r"unknown column 'acuracy': did you mean 'accuracy'"),
        (("--columns", "member,sed"), r"unknown column 'sed'"),
        (("--filter", "accuracy >"), r"the condition 'accuracy >' does not parse: expected one such as"),
        (("--limit", "0"), r"--limit 0 was given, but a whole number from 1 to"),
    ],
)
def test_lists_that_cannot_be_had(cli: Cli, tiny_zoo: Path, options: tuple[str, ...], sentence: str) -> None:
    assert sentence in refused(cli("zoo", "list", tiny_zoo, *options), 2)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_an_exported_member_loads_into_its_class(cli: Cli, multi_zoo: Path, batch_norm: bool) -> None:
    more = ("--batch-norm",) if batch_norm else ()
    result = cli("zoo", "export", multi_zoo, "resnet/0001", "-o", "net.safetensors", *more, "--json").json
    assert (result["member"], result["batch_norm"], result["file"]) == ("resnet/0001", batch_norm, "net.safetensors")
    settings = {**result["settings"], **({} if batch_norm else {"batch_norm": False})}
    network = archs.build(result["arch"], **settings).eval()
    network.load_state_dict(load_file("net.safetensors"))
    inputs = torch.randn(3, *result["input_shape"])
    with Zoo(multi_zoo) as zoo, torch.no_grad():
        expected = zoo["resnet/0001"].module()(inputs)
        torch.testing.assert_close(network(inputs), expected, rtol=1e-4, atol=1e-5)
    again = cli("zoo", "import", "again.h5", "net.safetensors", "--arch", "resnet8", "--width", "0.2",
                "--set", "data.name=digits", "--set", "data.limit=300", "--json")  # fmt: skip
    assert again.json["accuracy_test"]["net.safetensors"] == pytest.approx(result["accuracy_test"], abs=0.02)
    sentence = refused(cli("zoo", "export", multi_zoo, "resnet/0001", "-o", "net.safetensors"), 2)
    assert sentence == "net.safetensors exists already: choose another --out, so that nothing is lost"


def test_an_exported_member_runs_as_onnx(cli: Cli, tiny_zoo: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra test")
    assert cli("zoo", "export", tiny_zoo, "best", "-o", "net.onnx").code == 0
    inputs = np.random.default_rng(0).standard_normal((3, 1, 8, 8)).astype(np.float32)
    (outputs,) = runtime.InferenceSession("net.onnx").run(None, {"inputs": inputs})
    with Zoo(tiny_zoo) as zoo, torch.no_grad():
        expected = zoo["best"].module()(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("member", "out", "sentence"),
    [
        (
            "lenetlike/0036",
            "net.safetensors",
            "member 'lenetlike/0036' does not exist: lenetlike has members 0000 to 0035",
        ),
        ("lenetlik/0001", "net.safetensors", "unknown architecture 'lenetlik': did you mean 'lenetlike'?"),
        ("net", "net.safetensors", "'net' names no network: expected a member such as lenetlike/0000"),
        ("best", "net.pt", "net.pt was expected to end with .safetensors or .onnx"),
    ],
)
def test_exports_that_cannot_be_had(cli: Cli, tiny_zoo: Path, member: str, out: str, sentence: str) -> None:
    assert sentence in refused(cli("zoo", "export", tiny_zoo, member, "-o", out), 2)
    assert not Path(out).exists()


def test_resume_goes_on_with_a_space(cli: Cli, run_copy: Path) -> None:
    (run_copy / "checkpoints" / "best.safetensors").unlink()
    shutil.rmtree(run_copy / "checkpoints")
    (run_copy / "metrics.jsonl").unlink()
    result = cli("resume", run_copy, "--json").json
    assert (result["run"], result["steps"]) == (str(run_copy), 30)
    assert (run_copy / "checkpoints" / "best.safetensors").exists()


@pytest.mark.parametrize("kind", ["fit", "optimisation", "morph", "space"])
def test_resume_calls_the_command_that_began_a_run(
    cli: Cli, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command's own refusal of a folder without settings says which one it was."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("no: settings\n")
    (run / "provenance.json").write_text(json.dumps({"kind": kind, "model": "best", "run": "r", "zoo": "z.h5"}))
    called: list[str] = []
    targets = {"fit": "netspace.cli.compress.fit", "morph": "netspace.cli.morph.fit",
               "optimisation": "netspace.cli.resume.optimize", "space": "netspace.cli.app.train"}  # fmt: skip
    assert targets.keys() == COMMANDS.keys()
    for name, target in targets.items():
        monkeypatch.setattr(
            target, lambda name=name, **given: called.append(f"{name} {given['out']} {given['resume']}")
        )
    assert cli("resume", run).code == 0
    assert called == [f"{kind} {run} True"]


def test_resume_refuses_what_it_cannot_go_on_with(cli: Cli, tmp_path: Path, tiny_zoo: Path) -> None:
    assert "has nothing to resume: a run folder was expected" in refused(cli("resume", tmp_path), 2)
    (tmp_path / "config.yaml").write_text("steps: 1\n")
    assert "was begun by an earlier version of netspace" in refused(cli("resume", tmp_path), 2)
    (tmp_path / "provenance.json").write_text('{"kind": "fitt"}')
    assert "unknown kind of run 'fitt': did you mean 'fit'?" in refused(cli("resume", tmp_path), 2)
    assert "is complete: there is nothing to resume" in refused(cli("resume", tiny_zoo), 2)
    assert "no.h5 does not exist, and no members of it are finished" in refused(cli("resume", "no.h5"), 2)


def test_resume_builds_a_zoo_to_its_end(cli: Cli, recipes: Path, tmp_path: Path) -> None:
    few = ["members.train=4", "members.val=1", "members.test=1", "epochs.last=1", "fused=3"]
    recipe = load(ZooRecipe, recipes / "zoo.yaml", few)
    parts_folder(Path("z.h5")).mkdir()
    Plan(recipe, load_task(recipe.data).split_hash, {"lenetlike": Way(3, "float32", "channels last")}).write(
        Path("z.h5")
    )
    result = cli("resume", "z.h5", "--json").json
    assert result["complete"] and result["members"] == 6 and not parts_folder(Path("z.h5")).exists()


def test_every_command_has_a_short_option_for_help(cli: Cli) -> None:
    for words in ((), ("zoo",), ("zoo", "list"), ("morph", "fit"), ("recipes", "schema"), ("resume",)):
        done = CliRunner().invoke(app, [*words, "-h"])
        assert done.exit_code == 0 and "Usage:" in done.output, words
    assert cli("--version").out.strip() == netspace.__version__


def test_completion_scripts_are_shown(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shellingham, "detect_shell", lambda: ("bash", "/bin/bash"))  # where no shell started the tests
    assert "--install-completion" in CliRunner().invoke(app, ["-h"]).output
    script = cli("--show-completion", "bash")
    assert (
        script.code == 0 and "_netspace_completion" in script.out and "_NETSPACE_COMPLETE=complete_bash" in script.out
    )


def test_a_zoo_is_listed_without_torch(multi_zoo: Path) -> None:
    code = (
        "import sys\n"
        "from netspace.cli.app import main\n"
        "sys.argv = ['netspace', 'zoo', 'list', sys.argv[1], '--sort', 'accuracy', '--json']\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "sys.exit('torch is imported' if 'torch' in sys.modules else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(multi_zoo)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["count"] > 3
