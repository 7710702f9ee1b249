"""`compress eval` on pictures and noise, of networks that do not classify and of those that do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from budgets import settings
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call

from netspace import archs
from netspace.archs import ArchConfig
from netspace.compression.budget import fit_budget
from netspace.compression.fit import evaluate
from netspace.compression.judging import noise
from netspace.compression.originals import Pictures
from netspace.compression.reference import Unlabelled
from netspace.errors import NetspaceError, UsageError
from netspace.models.coded import Coded
from netspace.networks.outputs import output_tensors
from netspace.networks.rounding import round_rows
from netspace.tasks.readers import IMAGENET, picture_batches, picture_files


class TwoHeads(nn.Module):
    """Images (B, 3, S, S) -> boxes (B, 4) and landmarks (B, 2, 10), in a tuple inside a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.boxes, self.marks = nn.Linear(32, 4), nn.Linear(32, 20)

    def forward(self, images: Tensor) -> dict[str, object]:
        maps = self.body(images)
        return {"found": (50 * self.boxes(maps), self.marks(maps).unflatten(1, (2, 10))), "stride": 4}


def three_classes() -> nn.Module:
    """Return a classifier of (B, 3, 9, 9), whose answers to noise differ."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 49, 3, bias=False))


NAME = Path(__file__).stem
HEADS, CLASSES = ArchConfig(arch=f"{NAME}:TwoHeads"), ArchConfig(arch=f"{NAME}:three_classes")
SHAPE = (3, 9, 9)


@pytest.fixture(autouse=True)
def few_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netspace.compression.judging.NOISE", {"train": 64, "val": 32, "test": 48})


def written(arch: ArchConfig, folder: Path, bits: int = 3) -> tuple[str, Path, list[dict[str, Tensor]]]:
    """Write a network and a compressed file of it; return both, and both state dicts in float64."""
    archs.trust(HEADS.arch, CLASSES.arch)
    torch.manual_seed(5)
    state = {name: value.detach().clone() for name, value in archs.build(arch.arch).state_dict().items()}
    save_file(state, folder / "net.safetensors")
    codes = {name: round_rows(value, bits) for name, value in state.items() if value.dim() > 1}
    coded = Coded.of(state, codes)
    coded.save(folder / "small.safetensors")
    states = [{name: value.double() for name, value in each.items()} for each in (state, coded.reconstruct())]
    return str(folder / "net.safetensors"), folder / "small.safetensors", states


def errors_by_hand(arch: ArchConfig, states: list[dict[str, Tensor]], inputs: Tensor) -> dict[str, float]:
    """Return the relative error of each output in float64, all inputs at once."""
    module = archs.build(arch.arch).double()
    with torch.no_grad():
        one, two = (output_tensors(functional_call(module, state, (inputs.double(),))) for state in states)
    return {name: float((two[name] - value).norm() / value.norm()) for name, value in one.items()}


def pictures(folder: Path, count: int = 35) -> Path:
    """Write more pictures than one batch of them has."""
    random = np.random.default_rng(0)
    (folder / "seen").mkdir()
    for number in range(count):
        Image.fromarray(random.integers(0, 256, (12, 15, 3), dtype=np.uint8)).save(folder / f"seen/{number:02}.png")
    return folder / "seen"


@pytest.mark.parametrize("kind", ["pictures", "noise"])
def test_outputs_are_compared_by_their_errors(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, file, states = written(HEADS, tmp_path)
    if kind == "pictures":
        folder = pictures(tmp_path)
        unlabelled, inputs = Unlabelled(Pictures(folder, 9)), torch.cat(list(picture_batches(picture_files(folder), 9)))
    else:
        monkeypatch.setattr("netspace.compression.judging.BATCH", 7)  # batches of several sizes
        unlabelled, inputs = Unlabelled(input_shape=SHAPE), noise(SHAPE, "test")
    figures = evaluate(file, model, arch=HEADS, unlabelled=unlabelled)
    assert torch.is_grad_enabled()
    found = figures.images if kind == "pictures" else figures.noise
    expected = errors_by_hand(HEADS, states, inputs)
    assert list(expected) == ["found.0", "found.1"] and all(value > 0.005 for value in expected.values())
    assert found is not None and found.output_errors == pytest.approx(expected, rel=1e-4)
    assert found.output_error == pytest.approx(sum(expected.values()) / 2, rel=1e-4)
    assert found.count == len(inputs) and found.agreement is None and figures.agreement is None
    assert (figures.noise is None, figures.images is None) == (kind == "pictures", kind == "noise")
    if kind == "pictures":
        assert figures.images is not None and figures.images.normalise == IMAGENET.figures()["normalise"]
    one = evaluate(file, model, arch=HEADS, unlabelled=Unlabelled(unlabelled.pictures, unlabelled.input_shape, "1"))
    picked = one.images or one.noise
    assert picked is not None and picked.output == "1"
    assert picked.output_error == pytest.approx(expected["found.1"], rel=1e-4)


def test_the_original_itself_has_no_error(tmp_path: Path) -> None:
    model, _, states = written(HEADS, tmp_path)
    exact = {name: value.float() for name, value in states[0].items()}
    Coded.of(exact, {}).save(tmp_path / "same.safetensors")
    figures = evaluate(tmp_path / "same.safetensors", model, arch=HEADS, unlabelled=Unlabelled(input_shape=SHAPE))
    assert figures.noise is not None and figures.noise.output_error == 0.0 and figures.bytes_file is not None


def test_classifiers_are_compared_by_answers_on_noise_too(tmp_path: Path) -> None:
    model, file, states = written(CLASSES, tmp_path, bits=2)
    inputs, module = noise(SHAPE, "test"), archs.build(CLASSES.arch).double()
    with torch.no_grad():
        one, two = (functional_call(module, state, (inputs.double(),)) for state in states)
    same = float((one.argmax(1) == two.argmax(1)).double().mean())
    found = evaluate(file, model, arch=CLASSES, unlabelled=Unlabelled(input_shape=SHAPE)).noise
    assert found is not None and 0 < same < 1 and found.agreement == pytest.approx(same) and found.output_error is None
    unlabelled = Unlabelled(input_shape=SHAPE, compare="outputs")
    found = evaluate(file, model, arch=CLASSES, unlabelled=unlabelled).noise
    assert found is not None and found.agreement is None and found.output_errors == {}
    assert found.output_error == pytest.approx(errors_by_hand(CLASSES, states, inputs)[""], rel=1e-4)


def test_a_fit_is_evaluated_as_it_reports(tmp_path: Path) -> None:
    model, _, _ = written(HEADS, tmp_path)
    result = fit_budget(model, tmp_path / "c", settings(1_100, input_shape=SHAPE, way="coded", steps=0), arch=HEADS)
    figures = evaluate(
        tmp_path / "c/compressed.safetensors", model, arch=HEADS, unlabelled=Unlabelled(input_shape=SHAPE)
    )
    assert figures.noise is not None and result.output_error is not None and result.output_error > 0
    assert figures.noise.output_error == pytest.approx(result.output_error)


def test_the_commands(cli: Callable[..., Any], tmp_path: Path) -> None:
    model, file, _ = written(HEADS, tmp_path)
    words = ("compress", "eval", file, model, "--arch", HEADS.arch, "--trust-arch", HEADS.arch)
    found = cli(*words, "--input-shape", "3,9,9", "--json").json
    assert set(found["noise"]["output_errors"]) == {"found.0", "found.1"} and found["images"] is None
    text = cli(*words, "--input-shape", "3,9,9").out
    assert "on 48 inputs of noise of 3 x 9 x 9 relative error of the outputs 0." in text and "(found.0 0." in text
    folder = pictures(tmp_path, 3)
    text = cli(*words, "--images", folder, "--size", 9, "--output", "found.1").out
    assert "on 3 images (normalised by" in text and "relative error of found.1 0." in text
    out = tmp_path / "corrected.safetensors"
    assert cli("compress", "correct", *words[2:], "--images", folder, "--size", 9, "-o", out).code == 0
    before, after = (
        cli(*words[:2], each, *words[3:], "--images", folder, "--size", 9, "--json").json["images"]
        for each in (file, out)
    )
    assert after["output_error"] < before["output_error"]
    for wrong, sentence in (
        (("--input-shape", "3,9,9", "--images", folder), "give one of them"),
        (("--output", "found.1"), "give one of these too"),
        (("--input-shape", "3,9,9", "--compare", "values"), "unknown comparison 'values'"),
        (("--input-shape", "3,9,9", "--output", "masks"), "unknown output 'masks'"),
    ):
        done = cli(*words, *wrong)
        assert done.code == 2 and sentence in done.sentence, done.sentence
    done = cli("compress", "eval", file, "--input-shape", "3,9,9")
    assert done.code == 2 and "name it as MODEL" in done.sentence


def test_mistakes(tmp_path: Path) -> None:
    model, file, _ = written(HEADS, tmp_path)
    with pytest.raises(UsageError, match=r"noise is given to the network, and of .* only the weights are known"):
        evaluate(file, model, unlabelled=Unlabelled(input_shape=SHAPE))
    with pytest.raises(NetspaceError, match=r"cannot be run on images of 4 x 9 x 9: .* --input-shape"):
        evaluate(file, model, arch=HEADS, unlabelled=Unlabelled(input_shape=(4, 9, 9)))
    with pytest.raises(NetspaceError, match=r"was expected to answer with logits \(B, C\), but gave found"):
        evaluate(file, model, arch=HEADS, unlabelled=Unlabelled(input_shape=SHAPE, compare="answers"))


def test_noise_of_large_inputs_is_less(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = noise((3, 8, 8), "train")
    monkeypatch.setattr("netspace.compression.judging.MAX_NOISE", 10 * 4 * 3 * 8 * 8)
    assert torch.equal(noise((3, 8, 8), "train"), whole[:10]) and len(noise((4, 3, 8, 8, 99), "val")) == 1
