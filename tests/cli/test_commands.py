"""Every command once, with --json: one JSON object with the keys of the contract, exit code 0."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from safetensors.torch import load_file, save_file

from netspace import archs
from netspace.io import read_json
from netspace.space import Space
from netspace.tasks import DataConfig, load
from netspace.zoo import Zoo

EVAL = {
    "run",
    "decoder",
    "split",
    "members",
    "accuracy_target",
    "accuracy_predicted",
    "r2",
    "mae",
    "agreement",
    "kl",
    "classid_accuracy",
    "diversity",
    "zoo_diversity",
    "compression",
    "per_class",
    "baselines",
}
INFO = {"path", "version", "dataset", "members", "splits", "bytes", "archs"}
LINE = {"from", "to", "gamma", "arch", "latent_accuracy", "weight_accuracy", "spearman"}
Cli = Callable[..., Any]


def test_zoo_build_and_info(cli: Cli, recipes: Path, tiny_zoo: Path, tmp_path: Path) -> None:
    built = cli("zoo", "build", recipes / "zoo.yaml", "--out", "zoo.h5", "--workers", 1, "--json")
    assert built.code == 0 and built.json.keys() >= INFO
    info = cli("zoo", "info", "zoo.h5", "--json")
    assert info.code == 0 and info.err == "" and info.json == built.json
    result = info.json
    assert (result["version"], result["dataset"], result["members"]) == (1, "digits", 36)
    assert result["splits"] == {"train": 24, "val": 6, "test": 6}
    assert result["bytes"] == Path("zoo.h5").stat().st_size
    arch = result["archs"]["lenetlike"]
    assert (arch["class_id"], arch["members"], arch["parameters"], arch["prep"]) == (0, 36, 1477, [12, 128])
    assert arch["accuracy"]["min"] < arch["accuracy"]["median"] < arch["accuracy"]["max"] <= 1
    assert arch["accuracy"]["max"] > 0.5  # ten classes: the networks have learnt
    with Zoo(tiny_zoo) as zoo:
        assert result["content_hash"] == zoo.content_hash  # same recipe, same machine, same networks
    assert not list(tmp_path.glob("*.parts"))


def test_zoo_build_again_trains_nothing(cli: Cli, recipes: Path, zoo_copy: Path) -> None:
    before = zoo_copy.read_bytes()
    again = cli("zoo", "build", recipes / "zoo.yaml", "--out", zoo_copy, "--json")
    assert again.code == 0 and again.json["members"] == 36 and zoo_copy.read_bytes() == before


def test_zoo_verify(cli: Cli, tiny_zoo: Path) -> None:
    sound = cli("zoo", "verify", tiny_zoo, "--sample", 4, "--json")
    assert sound.code == 0
    assert sound.json == {"path": str(tiny_zoo), "ok": True, "checked": 36, "re_evaluated": 4, "problems": []}


def test_zoo_merge(cli: Cli, tiny_zoo: Path) -> None:
    merged = cli("zoo", "merge", "both.h5", tiny_zoo, tiny_zoo, "--json")
    assert merged.code == 0 and merged.json.keys() >= INFO
    assert (merged.json["members"], merged.json["duplicates"]) == (36, 36)


def test_zoo_merge_with_out_as_an_option(cli: Cli, tiny_zoo: Path) -> None:
    for word in ("-o", "--out"):
        merged = cli("zoo", "merge", word, f"both{word}.h5", tiny_zoo, tiny_zoo, "--json")
        assert merged.code == 0 and merged.json["path"] == f"both{word}.h5"
        assert (merged.json["members"], merged.json["duplicates"]) == (36, 36)


def test_every_out_is_o_too() -> None:
    from netspace.cli.app import app

    def commands(group: Any, words: str) -> Any:
        for name, command in getattr(group, "commands", {}).items():
            yield f"{words} {name}", command
            yield from commands(command, f"{words} {name}")

    actual = {
        words: set(parameter.opts)
        for words, command in commands(typer.main.get_command(app), "netspace")
        for parameter in command.params
        if "--out" in parameter.opts
    }
    names = ("quickstart", "train", "encode", "decode", "optimize", "zoo build", "zoo merge", "zoo align")
    names += ("zoo export", "diff", "health")
    names += (
        "compress fit",
        "compress reconstruct",
        "compress quantise",
        "compress correct",
        "compress transfer",
        "morph fit",
        "morph sample",
    )
    assert actual == {f"netspace {name}": {"-o", "--out"} for name in names}


def test_zoo_import(cli: Cli, zoo_copy: Path) -> None:
    with Zoo(zoo_copy) as zoo:
        settings = zoo.only().spec.settings
    torch.manual_seed(1)
    save_file(archs.build("lenetlike", **settings).state_dict(), "one.safetensors")
    torch.save(archs.build("lenetlike", **settings).state_dict(), "two.pt")
    added = cli("zoo", "import", zoo_copy, "one.safetensors", "two.pt", "--arch", "lenetlike", "--json")
    assert added.code == 0
    assert (added.json["imported"], added.json["duplicates"], added.json["arch"]) == (2, 0, "lenetlike")
    assert added.json["accuracy_test"].keys() == {"one.safetensors", "two.pt"}
    assert cli("zoo", "info", zoo_copy, "--json").json["members"] == 38
    again = cli("zoo", "import", zoo_copy, "two.pt", "--arch", "lenetlike", "--json")
    assert (again.json["imported"], again.json["duplicates"]) == (0, 1)
    assert cli("zoo", "verify", zoo_copy, "--sample", 99, "--json").json["ok"]


def test_train_eval_and_report(cli: Cli, recipes: Path, tiny_zoo: Path) -> None:
    out = ("--out", "runs/mine", "--json")
    trained = cli("train", recipes / "space.yaml", "--zoo", tiny_zoo, "--set", "steps=6", *out)
    assert trained.code == 0 and trained.json.keys() >= {"run", "steps", "best"}
    assert (trained.json["run"], trained.json["steps"], trained.json["best"]["step"]) == ("runs/mine", 6, 6)
    evaluated = cli("eval", "--json")  # the newest run
    assert evaluated.code == 0 and evaluated.json.keys() >= EVAL
    result = evaluated.json
    assert (result["run"], result["split"], result["members"], result["latent"]) == ("runs/mine", "test", 6, 64)
    assert result["baselines"].keys() >= {"nearest", "noise", "average"}
    assert result["per_class"]["lenetlike"]["members"] == 6
    kept = read_json(Path("runs/mine/eval-test.json"), dict[str, Any])
    assert kept["detail"]["member"] == [f"lenetlike/{row:04d}" for row in range(30, 36)]
    page = cli("report", "runs/mine", "--json")
    assert page.code == 0 and Path(page.json["report"]).read_text().startswith("<!")
    assert page.json["figures"] and all(Path(figure).stat().st_size for figure in page.json["figures"])


def test_eval_and_report_of_a_run_that_is_named_as_an_option(cli: Cli, run_copy: Path, tmp_path: Path) -> None:
    shutil.copytree(run_copy, tmp_path / "elsewhere")
    for words in (["--run", "elsewhere"], ["elsewhere"]):
        result = cli("eval", *words, "--json")
        assert result.code == 0 and result.json["run"] == "elsewhere"
        page = cli("report", *words, "--json")
        assert page.code == 0 and page.json["report"] == "elsewhere/report.html"


def test_interpolate(cli: Cli, run_copy: Path) -> None:
    result = cli("interpolate", "--from", "worst", "--to", "best", "--steps", 5, "--save", "line", "--json")
    assert result.code == 0 and result.json.keys() >= LINE
    assert result.json["gamma"] == [0, 0.25, 0.5, 0.75, 1] and result.json["arch"] == ["lenetlike"] * 5
    assert len(result.json["latent_accuracy"]) == len(result.json["weight_accuracy"]) == 5
    assert [Path(name).is_file() for name in result.json["networks"]] == [True] * 5
    with Zoo(read_json((run_copy / "provenance.json"), dict[str, Any])["zoo"]) as zoo:
        members = zoo.only().members
        ends = [int(result.json[key].split("/")[1]) for key in ("from", "to")]
        assert members["accuracy_val"][ends].tolist() == [members["accuracy_val"].min(), members["accuracy_val"].max()]
        for index, end in ((0, ends[0]), (-1, ends[1])):  # the direct line ends in the members themselves
            assert result.json["weight_accuracy"][index] == pytest.approx(members["accuracy_test"][end], abs=1e-9)


def test_optimize(cli: Cli, run_copy: Path) -> None:
    words = [
        "optimize",
        "--from",
        "worst",
        "--from",
        "noise",
        "--steps",
        20,
        "--lr",
        0.05,
        "--set",
        "validate_every=10",
    ]
    result = cli(*words, "--json")
    assert result.code == 0 and result.json.keys() >= {"from", "steps", "accuracy_before", "accuracy_after", "curve"}
    assert Path(result.json["network"]) == Path("runs/tiny/optimized/worst-noise/network.safetensors")
    decoded = cli("decode", result.json["latent"], "-o", "net.safetensors", "--json")
    assert decoded.json["accuracy_test"] == pytest.approx(result.json["accuracy_after"][result.json["best"]], abs=1e-9)
    text = cli(*words, "--resume")  # a finished search tells its result again
    assert text.code == 0 and "20 steps, taught by best" in text.out and "* " in text.out
    own = cli(*words[:5], "--resume")  # by its own settings: none need be given again
    assert own.code == 0 and own.out == text.out
    other = cli(*words[:5], "--resume", "--steps", 21)
    assert other.code == 2 and "begun with other settings: steps was 20 and is 21 now" in other.sentence
    again = cli(*words)
    assert again.code == 2 and "exists already: give --resume" in again.sentence


def test_encode_decode(cli: Cli, run_copy: Path, tiny_zoo: Path) -> None:
    encoded = cli("encode", "best", "-o", "z.safetensors", "--run", run_copy, "--json")
    assert encoded.code == 0
    assert (encoded.json["latent"], encoded.json["file"]) == (64, "z.safetensors")
    decoded = cli("decode", "z.safetensors", "-o", "net.safetensors", "--run", run_copy, "--json")
    assert decoded.code == 0 and decoded.json["parameters"] == 1477
    # the file loads into the plain architecture and scores what the command said
    network = archs.build(decoded.json["arch"], **decoded.json["settings"]).eval()
    network.load_state_dict(load_file("net.safetensors"))
    task = load(DataConfig(name="digits", limit=300))
    with torch.no_grad():
        actual = network(task.normalise(task.test.images)).argmax(-1) == task.test.labels
    assert actual.double().mean().item() == pytest.approx(decoded.json["accuracy_test"], abs=1e-12)
    # and it can be encoded again, and be an end of a line, as can the latent
    assert cli("encode", "net.safetensors", "-o", "z2.safetensors", "--json").code == 0
    line = cli("interpolate", "--from", "z.safetensors", "--to", "net.safetensors", "--steps", 2, "--json")
    assert line.code == 0 and line.json["weight_accuracy"] is None
    assert line.json["latent_accuracy"][0] == pytest.approx(decoded.json["accuracy_test"], abs=1e-12)
    assert torch.equal(load_file("z2.safetensors")["latent"], Space.load(run_copy).encode(network))


def test_data_list(cli: Cli) -> None:
    listed = cli("data", "list", "--json")
    assert listed.code == 0 and {"digits", "fashion-mnist", "cifar10"} <= listed.json["data"].keys()


@pytest.mark.parametrize(
    "command",
    [
        ["zoo", "info", "{zoo}"],
        ["zoo", "verify", "{zoo}", "--sample", "1"],
        ["eval", "{run}"],
        ["interpolate", "--from", "worst", "--to", "best", "--steps", "3"],
        ["encode", "best", "-o", "z.safetensors"],
        ["sample", "--count", "3"],
        ["optimize", "--from", "worst", "--steps", "2", "-o", "better"],
        ["report", "{run}"],
        ["data", "list"],
    ],
)
def test_without_json_a_person_reads(cli: Cli, command: list[str], tiny_zoo: Path, run_copy: Path) -> None:
    done = cli(*(part.format(zoo=tiny_zoo, run=run_copy) for part in command))
    assert done.code == 0 and done.out.strip() and "{" not in done.out and "nan" not in done.out.lower()


@pytest.mark.slow
def test_quickstart_small(cli: Cli) -> None:
    words = ["quickstart", "--small", "--device", "cpu", "--set", "space.seed=1", "--set", "zoo.seed=2", "--json"]
    result = cli(*words)
    assert result.code == 0
    assert yaml.safe_load((Path(result.json["run"]) / "config.yaml").read_text())["seed"] == 1
    with Zoo(Path(result.json["zoo"])) as zoo:
        assert zoo.header.recipe["seed"] == 2
    assert result.json.keys() >= {"run", "zoo", "report", "seconds", "eval", "interpolate", "precision", "machine"}
    assert set(result.json["precision"].values()) <= {"float32", "bf16"}
    rates = result.json["machine"]["operations_per_second"]
    assert rates.keys() == {"float32", "bf16"} and min(rates.values()) > 0
    assert result.json["seconds"].keys() == {"zoo", "train", "eval", "total"}
    assert result.json["eval"].keys() >= EVAL and result.json["interpolate"].keys() >= LINE
    assert Path(result.json["report"]).is_file() and Path(result.json["zoo"]).is_file()
    assert cli(*words).json["eval"] == result.json["eval"]  # started again, it goes on from what is there


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from netspace.cli.app import main\n"
        "for words in (['--help'], ['zoo', '--help'], ['train', '--help']):\n"
        "    sys.argv = ['netspace', *words]\n"
        "    try:\n        main()\n"
        "    except SystemExit as stop:\n        assert not stop.code\n"
        "heavy = {'torch', 'numpy', 'h5py', 'accelerate', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout and "--zoo" in done.stdout


def test_version_and_no_command() -> None:
    call = [sys.executable, "-m", "netspace"]
    shown = subprocess.run([*call, "--version"], capture_output=True, text=True)
    assert shown.returncode == 0 and shown.stdout.strip()[0].isdigit()
    bare = subprocess.run(call, capture_output=True, text=True)
    assert bare.returncode == 2 and "quickstart" in bare.stdout + bare.stderr
    wrong = subprocess.run([*call, "zoo", "inof", "x", "--json"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr and "inof" in json.loads(wrong.stdout)["error"]
