"""`compress fit` with a size, of networks that do not classify, and of 16-bit, tied and strided weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from budgets import settings
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call
from typer.testing import CliRunner

from netspace import archs
from netspace.archs import ArchConfig
from netspace.cli.app import app
from netspace.compression.budget import fit_budget
from netspace.compression.fit import reconstruct
from netspace.compression.judging import Inputs, Judge
from netspace.compression.originals import find_original
from netspace.errors import NetspaceError, UsageError
from netspace.models.coded_predictor import load_any
from netspace.report import report
from netspace.results.budget import BudgetFit


class Detector(nn.Module):
    """Images (B, 3, S, S) -> boxes (B, 4, S, S) and scores (B, 2, S, S), which are much smaller, and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.boxes, self.scores = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 2, 1)

    def forward(self, images: Tensor) -> dict[str, object]:
        maps = self.body(images)
        return {"boxes": 100 * self.boxes(maps), "scores": self.scores(maps), "stride": 1}


def super_resolution() -> nn.Module:
    """Return a network for (B, 3, S, S) -> (B, 3, 2 S, 2 S)."""
    return nn.Sequential(nn.Conv2d(3, 24, 5, padding=2), nn.ReLU(), nn.Conv2d(24, 12, 3, padding=1), nn.PixelShuffle(2))


class Tied(nn.Module):
    """A network whose two layers have one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 3)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.second(self.first(inputs).relu()).relu())


class WithoutGradients(nn.Module):
    """A network for (B, 3, S, S) whose forward is for inference alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16, 3)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.body(images).relu().mean((2, 3))))


@pytest.fixture(autouse=True)
def few_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netspace.compression.judging.NOISE", {"train": 64, "val": 32, "test": 32})


NAME = Path(__file__).stem
CLASSES = ("Detector", "super_resolution", "Tied", "WithoutGradients")
DETECTOR, SUPER, TIED, WITHOUT_GRADIENTS = (f"{NAME}:{name}" for name in CLASSES)
UNET = ArchConfig(arch="unet", kwargs={"channels": 1, "classes": 2, "image_size": 16, "width": 0.25})


def saved(arch: ArchConfig, folder: Path) -> str:
    archs.trust(DETECTOR, SUPER, TIED, WITHOUT_GRADIENTS)
    torch.manual_seed(5)
    state = archs.build(arch.arch, **arch.kwargs).state_dict()
    save_file({name: value.clone() for name, value in state.items()}, folder / "net.safetensors")
    return str(folder / "net.safetensors")


def error_by_hand(model: str, arch: ArchConfig, out: Path, shape: tuple[int, ...], name: str | None) -> float:
    """Return the mean of the relative errors of outputs, in float64, on the noise that is reported on."""
    original, _ = find_original(model, None, arch=arch)
    inputs = Inputs.of(original, model, None, shape, 0).test
    assert inputs is not None and original.module is not None
    module = original.module.double()
    given = []
    for state in (original.state, load_any(out / "compressed.safetensors").reconstruct()):
        exact = {key: value.double() if value.is_floating_point() else value for key, value in state.items()}
        with torch.no_grad():
            found = functional_call(module, exact, (inputs.double(),))
        tensors = found if isinstance(found, dict) else {"": found}
        given.append([each for key, each in tensors.items() if isinstance(each, Tensor) and name in (None, key)])
    return sum(float((b - a).norm() / a.norm()) for a, b in zip(*given, strict=True)) / len(given[0])


@pytest.mark.parametrize(
    ("arch", "shape", "size", "output", "way"),
    [
        (UNET, (1, 16, 16), 7_000, None, "coded"),
        (ArchConfig(arch=SUPER), (3, 6, 6), 3_000, None, "mixed"),
        (ArchConfig(arch=DETECTOR), (3, 6, 6), 2_500, None, None),
        (ArchConfig(arch=DETECTOR), (3, 6, 6), 2_500, "scores", "mixed"),
    ],
)
def test_values_of_outputs_decide(
    arch: ArchConfig, shape: tuple[int, ...], size: int, output: str | None, way: str | None, tmp_path: Path
) -> None:
    model, out = saved(arch, tmp_path), tmp_path / "small"
    result = fit_budget(model, out, settings(size, input_shape=shape, output=output, way=way), arch=arch)
    assert result.inputs == "noise" and result.agreement is None and result.accuracy_reconstructed is None
    assert result.bytes_file is not None and result.bytes_file <= size and result.output == output
    (chosen,) = (row for row in result.table if row.chosen)
    errors = {row.way: row.output_error_val for row in result.table if row.bytes is not None}
    assert len(errors) == (1 if way else 5) and chosen.output_error_val == min(
        each for each in errors.values() if each is not None
    )
    assert "is best by relative error of outputs on noise: " in result.why
    assert chosen.output_error == result.output_error and 0 < (result.output_error or 0) < 0.5
    assert result.output_error == pytest.approx(error_by_hand(model, arch, out, shape, output), rel=1e-3)


def test_training_lowers_the_error_of_outputs(tmp_path: Path) -> None:
    arch = ArchConfig(arch=DETECTOR)
    config = settings(1_800, input_shape=(3, 6, 6), way="coded", short_steps=0, steps=200)
    result = fit_budget(saved(arch, tmp_path), tmp_path / "c", config, arch=arch)
    (row,), (plain,) = result.table, result.sizes
    assert row.steps == 200 and row.output_error_val is not None and plain.output_error_val is not None
    assert row.output_error_val < 0.9 * plain.output_error_val


def test_the_command_and_the_report(cli: Callable[..., Any], tmp_path: Path) -> None:
    model, folder = saved(ArchConfig(arch=SUPER), tmp_path), tmp_path / "pictures"
    folder.mkdir()
    random = torch.Generator().manual_seed(0)
    for index in range(8):
        pixels = torch.randint(256, (9, 9, 3), generator=random, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"{index}.png")
    short = ["--set", "steps=2", "--set", "short_steps=0", "--set", "images=4", "--way", "coded"]
    given = [
        "compress",
        "fit",
        model,
        "--bytes",
        "3KB",
        "--arch",
        SUPER,
        "--trust-arch",
        SUPER,
        "--images",
        str(folder),
    ]
    given += ["--size", "8", "--normalise", "0-255", "--device", "cpu", "--output", "0", *short]
    done = CliRunner().invoke(app, [*given, "-o", str(tmp_path / "c")])
    assert done.exit_code == 0, done.output
    assert "error of 0" in done.output and "same answer" not in done.output
    done = CliRunner().invoke(app, [*given, "-o", str(tmp_path / "d"), "--json"])
    figures = BudgetFit.model_validate(json.loads(done.stdout))
    assert figures.table[0].output_error == figures.output_error is not None
    assert "relative error of outputs" in Path(report(tmp_path / "d").report).read_text()
    refused = cli(*given, "-o", tmp_path / "e", "--output", "boxes")
    assert refused.code == 2 and "unknown output 'boxes'" in refused.sentence and not (tmp_path / "e").exists()


def test_mistakes(multi_zoo: Path, tmp_path: Path) -> None:
    arch = ArchConfig(arch=DETECTOR)
    model = saved(arch, tmp_path)
    with pytest.raises(UsageError, match=r"unknown output 'masks':.* There are: boxes, scores"):
        fit_budget(model, tmp_path / "c", settings(input_shape=(3, 6, 6), output="masks"), arch=arch)
    with pytest.raises(UsageError, match=r"--output is about running the network, and nothing is known to run"):
        fit_budget(model, tmp_path / "c", settings(output="boxes"))
    with pytest.raises(NetspaceError, match=r"cannot be run on images of 4 x 6 x 6: .* --input-shape"):
        fit_budget(model, tmp_path / "c", settings(input_shape=(4, 6, 6)), arch=arch)
    with pytest.raises(NetspaceError, match=r"was expected to answer with logits \(B, C\), but gave boxes"):
        fit_budget(model, tmp_path / "c", settings(input_shape=(3, 6, 6), compare="answers"), arch=arch)
    with pytest.raises(UsageError, match=r"compare=outputs does without labels"):
        fit_budget("best:resnet", tmp_path / "c", settings(compare="outputs"), multi_zoo)
    assert not (tmp_path / "c").exists()


def test_large_outputs_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arch = ArchConfig(arch=DETECTOR)
    model = saved(arch, tmp_path)
    original, _ = find_original(model, None, arch=arch)
    state = {name: value * 1.01 for name, value in original.state.items()}
    errors = []
    for limit in (1 << 29, 1):
        monkeypatch.setattr("netspace.compression.judging.MAX_OUTPUTS", limit)
        judge = Judge(original, Inputs.of(original, model, None, (3, 6, 6)), model)
        errors.append(judge.measure(state).output_error)
        assert bool(judge.expected["val"]) == (limit > 1)
    assert errors[0] == errors[1]


@pytest.mark.parametrize("run", [False, True])
def test_sixteen_bits_tied_and_strided_weights(run: bool, tmp_path: Path) -> None:
    archs.trust(TIED)
    torch.manual_seed(5)
    state = {name: value.detach().half() for name, value in Tied().state_dict().items()}
    state["first.weight"] = state["first.weight"].T.contiguous().T  # strided
    state["second.weight"] = state["first.weight"]
    assert not state["first.weight"].is_contiguous()
    torch.save(state, tmp_path / "net.pt")
    arch, changes = (ArchConfig(arch=TIED), {"input_shape": (32,)}) if run else (None, {})
    out = tmp_path / "c"
    result = fit_budget(str(tmp_path / "net.pt"), out, settings(1_200, **changes), arch=arch)
    stored = sum(2 * value.numel() for name, value in state.items() if name != "second.weight")
    assert result.bytes_original == stored and (result.bytes_file or 0) <= 1_200
    trained = [row for row in [*result.table, *result.sizes] if row.steps and row.way == "coded"]
    assert bool(trained) == run
    reconstruct(out / "compressed.safetensors", tmp_path / "net.safetensors")
    back = load_any(out / "compressed.safetensors").reconstruct()
    assert list(back) == list(state) and back["first.weight"] is back["second.weight"]
    for name, value in state.items():
        assert back[name].dtype == torch.float16 and back[name].shape == value.shape
        if value.dim() > 1:
            assert float((back[name].float() - value.float()).norm() / value.float().norm()) < 0.4


@pytest.mark.parametrize("way", ["mixed", "rounded", "coordinate"])
def test_a_network_without_gradients_is_not_trained(way: str, tmp_path: Path) -> None:
    arch = ArchConfig(arch=WITHOUT_GRADIENTS)
    model = saved(arch, tmp_path)
    result = fit_budget(model, tmp_path / "out", settings(1_700, way=way, input_shape=(3, 8, 8)), arch=arch)
    assert result.inputs == "noise" and result.agreement is not None
    assert all(not row.steps for row in result.table if row.way != "coordinate")
