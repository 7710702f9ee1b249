"""`netspace compress` on networks of others: a module for the weights, pictures without labels, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks_that_go_wrong
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file

from netspace import archs
from netspace.tasks.readers import picture_batches, picture_files

Cli = Callable[..., Any]
NAME = "torchvision.models:mobilenet_v2"
KWARGS = '{"num_classes": 7, "width_mult": 0.1}'
WORDS = ("--arch", NAME, "--kwargs", KWARGS)
TRUSTED = (*WORDS, "--trust-arch", NAME)
LITTLE = (
    "--set",
    "predictor.hidden=16",
    "--set",
    "stages=[{steps: 3, kernels: 64}]",
    "--set",
    "pointwise=tiles",
    "--set",
    "seed=3",
)
FILE = "c/compressed.safetensors"


@pytest.fixture(autouse=True)
def nobody_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(archs, "_TRUSTED", set())
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def network() -> torch.nn.Module:
    """A MobileNetV2 with random weights that answers differently for different pictures; written as `net.pth`."""
    torch.manual_seed(0)
    module: torch.nn.Module = torchvision.models.mobilenet_v2(num_classes=7, width_mult=0.1)
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.running_var, 0.01, 0.2)
    torch.save(module.state_dict(), "net.pth")
    return module.eval()


@pytest.fixture
def folder() -> Path:
    random = np.random.default_rng(0)
    Path("seen").mkdir()
    for number in range(5):
        Image.fromarray(random.integers(0, 256, (40, 64, 3), dtype=np.uint8)).save(f"seen/{number}.png")
    return Path("seen")


def test_a_foreign_network_is_fitted_and_shown_pictures(cli: Cli, network: torch.nn.Module, folder: Path) -> None:
    result = cli("compress", "fit", "net.pth", *TRUSTED, *LITTLE, "-o", "c", "--json").json
    assert result["accuracy_original"] is None and result["images"] is None and result["relative_error"] > 0
    words = (*TRUSTED, "--images", folder, "--size", 35)
    seen = cli("compress", "eval", FILE, "net.pth", *words, "--json").json["images"]

    cli("compress", "reconstruct", FILE, "-o", "back.safetensors")
    (batch,) = picture_batches(picture_files(folder), 35)
    with torch.no_grad():
        expected = network(batch)
        network.load_state_dict(load_file("back.safetensors"))
        actual = network(batch)
    cosines = (expected * actual).sum(1) / (expected.norm(dim=1) * actual.norm(dim=1))
    both = [logits.topk(5).indices.tolist() for logits in (expected, actual)]
    shared = [len(set(one) & set(two)) / 5 for one, two in zip(*both, strict=True)]
    assert (seen["count"], seen["size"]) == (5, 35)
    assert seen["agreement"] == float((expected.argmax(1) == actual.argmax(1)).double().mean())
    assert seen["overlap_top5"] == pytest.approx(sum(shared) / 5)
    assert seen["cosine"] == pytest.approx(float(cosines.mean()), abs=1e-5) and seen["cosine"] < 0.999

    same = cli("compress", "eval", FILE, "back.safetensors", *words, "--json").json["images"]
    assert same["agreement"] == same["overlap_top5"] == 1.0 and same["cosine"] == pytest.approx(1.0)
    text = cli("compress", "eval", FILE, "net.pth", *words).out
    assert "on 5 images (normalised by --normalise imagenet" in text and "cosine of the logits" in text


def test_what_is_made_of_a_file_is_shown_pictures_too(cli: Cli, network: torch.nn.Module, folder: Path) -> None:
    cli("compress", "fit", "net.pth", *LITTLE, "-o", "c")
    words = ("net.pth", *TRUSTED, "--images", folder, "--size", 35)
    result = cli("compress", "quantise", FILE, *words, "-o", "q.safetensors", "--bits", 4, "--json").json["networks"]
    for file, name in ((FILE, "reconstructed"), ("q.safetensors", "quantised")):
        assert result[name]["images"] == cli("compress", "eval", file, *words, "--json").json["images"]
    assert result["original"]["images"]["agreement"] == 1 and result["original"]["images"]["cosine"] == pytest.approx(1)
    assert 0.5 < result["original_quantised"]["images"]["cosine"] < 0.9999
    text = cli("compress", "quantise", FILE, *words, "-o", "r8.safetensors").out
    assert "on images" in text and "100.0 %" in text

    rows = cli("compress", "prune", FILE, *words, "--shares", "0,0.5", "--json").json
    assert rows["predictor"][0]["images"] == result["reconstructed"]["images"] and rows["accuracy_original"] is None
    assert rows["original"][0]["images"]["agreement"] == 1 > rows["original"][1]["images"]["cosine"]
    text = cli("compress", "prune", FILE, *words, "--shares", "0").out
    assert "same answer" in text and "answers as the original's on the images" in text
    for command in (("quantise", FILE, "-o", "r.safetensors"), ("eval", FILE)):
        done = cli("compress", *command, "--images", folder)
        assert done.code == 2 and "name it as MODEL" in done.sentence and not Path("r.safetensors").exists()


def test_a_file_is_corrected_by_pictures_or_noise(cli: Cli, network: torch.nn.Module, folder: Path) -> None:
    cli("compress", "fit", "net.pth", *LITTLE, "-o", "c")
    stored, words = load_file(FILE), ("net.pth", *TRUSTED)
    seen = ("--images", folder, "--size", 35)
    before = cli("compress", "eval", FILE, *words, *seen, "--json").json
    for given, kind, count in ((seen, "images", 5), (("--input-shape", "3,35,35"), "noise", 128)):
        result = cli("compress", "correct", FILE, *words, *given, "-o", f"{kind}.safetensors", "--json").json
        assert (result["shown"], result["count"]) == (kind, count)
        assert {f"rest.{name}" for name in result["corrected"]} == {
            name for name, value in load_file(f"{kind}.safetensors").items() if not torch.equal(value, stored[name])
        }
        assert "features.0.1.running_mean" in result["corrected"] and "classifier.1.bias" not in result["corrected"]
        assert abs(Path(f"{kind}.safetensors").stat().st_size - before["bytes_file"]) < 64
        if kind == "images":  # as it was made on them
            after = cli("compress", "eval", f"{kind}.safetensors", *words, *seen, "--json").json
            assert after["images"]["cosine"] > before["images"]["cosine"] + 0.01
            assert after["relative_error"] == before["relative_error"]
    assert "tensors of batch norms" in cli("compress", "correct", FILE, *words, *seen, "-o", "third.safetensors").out

    def refused(code: int, wanted: str, *others: object) -> None:
        done = cli("compress", "correct", FILE, *others)
        assert done.code == code and wanted in done.sentence and not Path("x").exists(), done.sentence

    refused(2, "choose another --out", *words, *seen, "-o", FILE)
    refused(2, "give one of them", *words, *seen, "--input-shape", "3,35,35", "-o", "x")
    refused(2, "nothing is at hand to show to net.pth", *words, "-o", "x")
    refused(2, "of net.pth only the weights are known", "net.pth", *seen, "-o", "x")
    refused(2, "'3,x' was expected to be whole numbers", *words, "--input-shape", "3,x", "-o", "x")
    refused(1, "cannot be run on images of 4 x 9 x 9", *words, "--input-shape", "4,9,9", "-o", "x")


def test_noise_teaches_a_network_of_others(cli: Cli, network: torch.nn.Module) -> None:
    noise = (
        "--set",
        "stages=[{steps: 2, kernels: 64, images: 2, reconstruction: 0.0, distillation: 1.0, inputs: noise}]",
    )
    words = ("fit", "net.pth", *TRUSTED, *LITTLE, *noise, "--json")
    result = cli("compress", *words, "--input-shape", "3,33,33", "-o", "c").json
    other = cli("compress", *words, "--input-shape", "3,65,65", "-o", "d").json
    assert result["curve"][0] == other["curve"][0] and result["curve"][-1] != other["curve"][-1]


def test_what_does_not_go_together_is_refused(cli: Cli, network: torch.nn.Module, folder: Path) -> None:
    def refused(code: int, wanted: str, *words: object) -> None:
        done = cli("compress", *words)
        assert done.code == code and wanted in done.sentence, done.sentence

    fit = ("fit", "net.pth", *LITTLE, "-o", "d")
    refused(2, f"trust it with --trust-arch {NAME}", *fit, *WORDS)
    refused(2, "--kwargs are those of --arch", *fit, "--kwargs", KWARGS)
    refused(2, "--kwargs was expected to be a JSON object", *fit, "--arch", NAME, "--kwargs", "num_classes=7")
    refused(2, "kwargs", *fit, "--arch", NAME, "--kwargs", "[7]")
    one = ("--arch", NAME, "--trust-arch", NAME, "--kwargs")
    refused(2, "unexpected keyword argument 'clases'; change --kwargs", *fit, *one, '{"clases": 7}')
    wrong = '{"num_classes": 6, "width_mult": 0.1}'
    shapes = "classifier.1.weight is of shape (6, 1280) in the architecture and of shape (7, 1280) in the file"
    refused(1, shapes, *fit, *one, wrong)
    save_file({**network.state_dict(), "more": torch.ones(2)}, "more.safetensors")
    refused(
        1,
        "more is absent in the architecture and of shape (2,) in the file",
        "fit",
        "more.safetensors",
        *fit[2:],
        *TRUSTED,
    )
    noise = "stages=[{steps: 1, distillation: 1.0, inputs: noise}]"
    refused(2, "noise has the shape of a network's inputs", *fit, *TRUSTED, "--set", noise)
    assert not Path("d").exists()

    assert cli("compress", *fit, "--json").json["relative_error"] > 0
    evaluate = ("eval", "d/compressed.safetensors")
    refused(2, "name it as MODEL", *evaluate, "--images", folder)
    refused(2, "of net.pth only the weights are known: give --arch", *evaluate, "net.pth", "--images", folder)
    refused(2, "there are no pictures in", *evaluate, "net.pth", *TRUSTED, "--images", "d")


def test_an_arch_is_for_files_alone(cli: Cli, multi_zoo: Path) -> None:
    done = cli("compress", "fit", "best:resnet", "--zoo", multi_zoo, "--arch", "resnet8", "-o", "d")
    assert done.code == 2 and "'best:resnet' names a zoo's member, whose architecture is known" in done.sentence


def test_networks_that_do_not_answer_with_logits_are_compared_by_their_outputs(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("odd_nets.py").write_text(
        "from torch import nn\n"
        "def maps(): return nn.Sequential(nn.Conv2d(3, 4, 3))\n"
        "def flat(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 2))\n"
    )
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.delitem(sys.modules, "odd_nets", raising=False)
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(7, 2))
    for name, result in (
        ("maps", "relative error of the outputs "),
        ("flat", "cannot be run on images of 3 x 32 x 32: "),
    ):
        state = {key: value for key, value in layers.state_dict().items() if name == "flat" or key.startswith("0.")}
        save_file(state, f"{name}.safetensors")
        cli("compress", "fit", f"{name}.safetensors", *LITTLE, "-o", name)
        arch = ("--arch", f"odd_nets:{name}", "--trust-arch", f"odd_nets:{name}")
        words = (f"{name}.safetensors", *arch, "--images", folder, "--size", 32)
        done = cli("compress", "eval", f"{name}/compressed.safetensors", *words)
        assert done.code == (name == "flat") and result in (done.sentence if done.code else done.out), done
    words = ("maps.safetensors", "--arch", "odd_nets:maps", "--trust-arch", "odd_nets:maps", "--images", folder)
    for command in (("quantise", "-o", "q.safetensors"), ("prune", "--shares", "0,0.5")):
        text = cli("compress", command[0], "maps/compressed.safetensors", *words, "--size", 32, *command[1:]).out
        assert "error of outputs" in text, text


def test_inputs_that_a_network_does_not_take_are_refused_before_there_is_a_folder(cli: Cli) -> None:
    name = "networks_that_go_wrong:mobile_like"
    module = networks_that_go_wrong.mobile_like()
    save_file(dict(module.state_dict()), "net.safetensors")
    stages = "stages=[{steps: 2, kernels: 64, images: 4, inputs: noise, distillation: 1.0, features: 0.1}]"
    words = ("net.safetensors", "--arch", name, "--trust-arch", name, "--set", stages, "--set", "pointwise=tiles")
    done = cli("compress", "fit", *words, "--input-shape", "1,16,16", "-o", "c")
    assert done.code == 1 and not Path("c").exists(), done.sentence
    assert "cannot be run on images of 1 x 16 x 16: Input width (16) doesn't match model (8)." in done.sentence
    assert cli("compress", "fit", *words, "--input-shape", "1,8,8", "-o", "c").code == 0
    done = cli("compress", "correct", FILE, *words[:5], "--input-shape", "1,16,16", "-o", "x")
    assert done.code == 1 and "change --size or --input-shape" in done.sentence


class Malice:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


def test_a_pickle_that_would_run_code_is_refused(cli: Cli) -> None:
    torch.save({"a.weight": torch.ones(4, 4, 3, 3), "b": Malice()}, "evil.pth")
    done = cli("compress", "fit", "evil.pth", *TRUSTED, "-o", "d")
    assert done.code == 1 and "cannot be read safely" in done.sentence
    assert not Path("ran").exists() and not Path("d").exists()
    torch.load("evil.pth", weights_only=False)
    assert Path("ran").exists(), "the file would have run code"


def test_a_state_dict_of_a_checkpoint_is_named_by_its_key(cli: Cli, network: torch.nn.Module) -> None:
    state = network.state_dict()
    torch.save({"model": {name: 0 * value for name, value in state.items()}, "ema": state}, "both.pth")
    words = ("both.pth", *TRUSTED, "--key", "ema")
    cli("compress", "fit", *words, *LITTLE, "-o", "c")
    plain = cli("compress", "eval", FILE, "net.pth", "--json").json["relative_error"]
    assert cli("compress", "eval", FILE, *words, "--json").json["relative_error"] == plain > 0
    for command in (("quantise", "-o", "q.safetensors"), ("prune", "--shares", "0"), ("analyse",)):
        assert cli("compress", command[0], FILE, *words, *command[1:]).code == 0
    assert cli("compress", "importance", FILE, "both.pth", "--key", "ema").code == 0
    noise = ("--input-shape", "3,33,33", "-o", "d.safetensors")
    assert cli("compress", "correct", FILE, *words, *noise).code == 0
    done = cli("compress", "eval", FILE, "--key", "ema")
    assert done.code == 2 and "name it as MODEL" in done.sentence


def test_how_pictures_are_normalised_is_a_setting_and_told(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("byte_nets.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4))\n"
    )
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.delitem(sys.modules, "byte_nets", raising=False)
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(512, 4))
    save_file(layers.state_dict(), "net.safetensors")
    cli("compress", "fit", "net.safetensors", *LITTLE, "-o", "c")
    other = torch.nn.Sequential(*layers)
    arch = ("--arch", "byte_nets:net", "--trust-arch", "byte_nets:net")
    words = ("net.safetensors", *arch, "--images", folder, "--size", 10)
    (expected,) = picture_batches(picture_files(folder), 10)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    cosines = {}
    for how in ("imagenet", "0-255"):
        result = cli("compress", "eval", FILE, *words, "--normalise", how, "--json").json["images"]
        inputs = expected if how == "imagenet" else (expected * std + mean) * 255
        with torch.no_grad():
            original = layers(inputs)
            cli("compress", "reconstruct", FILE, "-o", f"{how}.safetensors")
            other = torch.nn.Sequential(
                torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(512, 4)
            )
            other.load_state_dict(load_file(f"{how}.safetensors"))
            actual = other(inputs)
        assert result["agreement"] == float((original.argmax(1) == actual.argmax(1)).double().mean())
        cosines[how] = float(torch.nn.functional.cosine_similarity(original, actual).mean())
        assert result["cosine"] == pytest.approx(cosines[how], abs=1e-4) and result["normalise"] == how
    assert abs(cosines["imagenet"] - cosines["0-255"]) > 0.001
    assert cli("compress", "eval", FILE, *words, "--json").json["images"]["mean"] == [0.485, 0.456, 0.406]
    assert "normalised by --normalise imagenet: mean 0.485,0.456,0.406" in cli("compress", "eval", FILE, *words).out
    outs = (("quantise", "-o", "q.safetensors"), ("prune", "--shares", "0"), ("correct", "-o", "d.safetensors"))
    for name, *more in outs:
        text = cli("compress", name, FILE, *words, "--normalise", "0.5/0.25", *more).out
        assert "normalised by --normalise 0.5/0.25: mean 0.5,0.5,0.5, standard deviation 0.25,0.25,0.25" in text, text
    done = cli("compress", "eval", FILE, "net.safetensors", *arch, "--normalise", "none")
    assert done.code == 2 and "--normalise is about the pictures of --images" in done.sentence
