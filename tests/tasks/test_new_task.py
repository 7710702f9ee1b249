"""A task of a few lines: every network is fitted to a curve of its own. Nothing that zoos and spaces do assumes classes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model_zoo.builder import build
from model_zoo.recipe import ZooRecipe
from model_zoo.verify import verify
from netspace import archs
from netspace.commands.evaluate import evaluate
from netspace.commands.interpolate import interpolate
from netspace.losses import weight_loss
from netspace.report import report
from netspace.results import Score
from netspace.results.zoos import Verification
from netspace.space import Space
from netspace.streams import generator
from netspace.tasks import TASKS, DataConfig, Task, load
from netspace.training.latent_space import train
from netspace.training.recipe import SpaceRecipe
from netspace.zoo import Zoo

ARCH = f"{__name__}:mlp"
TOLD: dict[str, Any] = {"name": "closeness", "higher_is_better": True}  # what results say of the score
TOLD |= {"loss": "mean squared difference", "inputs": "inputs", "own_targets": True}


def mlp(hidden: int = 16) -> nn.Module:
    """A network from numbers (B, 1) to numbers (B, 1)."""
    return nn.Sequential(nn.Linear(1, hidden), nn.Tanh(), nn.Linear(hidden, 1))


class Curves(Task):
    """A sine of a random phase and height for each network, on [-1, 1]."""

    own_targets, score_name = True, "closeness"
    name, split_hash, input_shape, num_outputs = "curves", "c" * 64, (1,), 1

    def __init__(self, config: DataConfig, device: torch.device) -> None:
        self.device = device

    def size(self, split: str) -> int:
        return {"train": 64, "val": 48, "test": 300}[split]

    def inputs(self, split: str, index: Tensor | slice, seeds: Tensor | None = None) -> Tensor:
        return torch.linspace(-1, 1, self.size(split), device=self.device)[:, None][index]

    def targets(self, split: str, index: Tensor | slice, seeds: Tensor | None = None) -> Tensor:
        x = self.inputs(split, index)  # (B, 1) or (M, B, 1)
        assert seeds is not None
        draws = torch.stack([torch.rand(2, generator=generator(seed)) for seed in seeds.tolist()]).to(self.device)
        phase, height = (each.view(-1, 1, 1) for each in draws.T)
        return torch.where(seeds.view(-1, 1, 1) < 0, torch.nan, (0.5 + height) * torch.sin(3 * x + 6 * phase))

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (1 / (1 + (outputs - targets).double().square())).mean((-2, -1))


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "curves", Curves)  # the one line
        patch.setattr(archs, "_TRUSTED", {ARCH})
        yield


ZOO: dict[str, Any] = {
    "name": "curves",
    "data": {"name": "curves"},
    "archs": {"mlp": {"arch": ARCH}},
    "members": {"train": 24, "val": 6, "test": 6},
    "epochs": {"first": 100, "last": 100},
    "optimizer": {"name": "adam", "learning_rate": 0.03, "schedule": "cosine"},
    "batch_size": 16,
    "fused": 12,
}
SPACE: dict[str, Any] = {
    "name": "curves",
    "latent": 64,
    "encoder": {"kind": "probe", "probes": 16, "hidden": 32},
    "decoder": {"start": "reference", "share": 0.3},
    "loss": {"behaviour": 1.0, "lines": 0.5, "weights": 0.1},
    "optimizer": {"name": "adam", "learning_rate": 0.003},
    "networks": 8,
    "images": 64,
    "steps": 60,
    "validate_every": 20,
    "log_every": 20,
    "precision": "float32",
    "networks_precision": "float32",
}


@pytest.fixture(scope="module")
def zoo(_registered: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ZooRecipe.model_validate(ZOO), tmp_path_factory.mktemp("curves") / "curves.h5", workers=1)


@pytest.fixture(scope="module")
def run(zoo: Path) -> Path:
    return train(SpaceRecipe.model_validate(SPACE), zoo, zoo.parent / "run")


def test_a_zoo_of_networks_with_targets_of_their_own(zoo: Path) -> None:
    """Each network fits its own curve and not another's; the file says what its scores are, and they come out again."""
    task = load("curves")
    with Zoo(zoo) as opened:
        group = opened.only()
        assert opened.header.score == {"name": "closeness", "higher_is_better": True}
        rows = group.rows("all")
        scores, seeds = group.members["accuracy_test"][rows], group.seeds(rows)
        outputs = torch.stack([_outputs(group.read([row])[0], task) for row in rows])
        best = opened.find("best")
    assert scores.min() > 0.9
    assert np.allclose(task.score(outputs, task.targets("test", slice(None), seeds)), scores, atol=1e-6)
    assert float(task.score(outputs, task.targets("test", slice(None), seeds.roll(1))).mean()) < 0.8
    assert scores[best.index] >= scores.max() - 0.01
    assert verify(zoo) == Verification(path=str(zoo), ok=True, checked=36, re_evaluated=16, problems=[])


def _outputs(prep: Tensor, task: Task) -> Tensor:
    network = mlp()
    flat = prep.flatten()
    start = 0
    with torch.no_grad():
        for value in network.parameters():
            value.copy_(flat[start : start + value.numel()].view(value.shape))
            start += value.numel()
        return network(task.inputs("test", slice(None)))


def test_a_wrong_score_is_noticed(zoo: Path, tmp_path: Path) -> None:
    import h5py

    from netspace.zoo.file import hash_table

    changed = shutil.copy(zoo, tmp_path / "changed.h5")
    with h5py.File(changed, "r+") as file:
        members = file["archs/mlp/members"][:]
        members["accuracy_val"] -= 0.2
        file["archs/mlp/members"][...] = members
        raw = hash_table(members).encode()
        file["archs/mlp"].attrs.create("members_hash", np.bytes_(raw), dtype=h5py.string_dtype("utf-8", len(raw)))
    problems = verify(Path(changed)).problems
    assert any("closeness on val is stored as" in problem for problem in problems)


def test_a_space_of_curves(run: Path, zoo: Path) -> None:
    """Training makes decoded networks behave like their targets; the figures compare them on the targets' own curves."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [record["behaviour"] for record in metrics if "behaviour" in record]
    assert losses[-1] < losses[0]
    figures = evaluate(run)
    assert figures.score == Score(**TOLD)
    assert figures.accuracy_target > 0.9
    assert 0 < figures.accuracy_predicted < figures.accuracy_target
    assert figures.kl > 0 and 0 <= figures.agreement <= 1
    baselines = figures.baselines
    assert baselines["nearest_answers"].kl < baselines["constant"].kl
    assert baselines["nearest_agreement"].agreement > baselines["same_accuracy"].agreement
    assert figures.interpolation.pairs == 3


def test_lines_between_curves_are_measured_on_curves_between(run: Path, zoo: Path) -> None:
    """At the ends the scores are those of the networks themselves; between, targets are mixed."""
    with Zoo(zoo) as opened:
        group = opened.only()
        rows = group.rows("test")[:2]
        known = group.members["accuracy_test"][rows]
    figures = interpolate(run, f"mlp/{rows[0]:04d}", f"mlp/{rows[1]:04d}", steps=5)
    assert np.allclose([figures.weight_accuracy[0], figures.weight_accuracy[-1]], known, atol=1e-6)
    assert all(np.isfinite(figures.latent_accuracy))


def test_probes_of_one_output_are_not_centred(run: Path, zoo: Path) -> None:
    """Centring over one output would leave nothing of it, and all networks would have one latent."""
    space = Space.load(run)
    with Zoo(zoo) as opened:
        preps = opened.only().read(range(4))
    latents = space.encode_preps(preps)
    assert weight_loss(latents[:1], latents[1:2]) > 0


def test_commands_speak_of_the_score(run: Path, zoo: Path, cli: Callable[..., Any]) -> None:
    """Tables name the task's score and not accuracy; what is on disk says which it is."""
    for arguments in (["eval", run], ["interpolate", "--run", run, "--from", "mlp/0000", "--to", "best"]):
        table = cli(*arguments, "--zoo", zoo)
        assert table.code == 0 and "closeness" in table.out and "accura" not in table.out and "image" not in table.out
    record = json.loads((run / "eval-test.json").read_text())
    assert record["score"] == TOLD


def test_the_report_speaks_of_the_score(run: Path, zoo: Path) -> None:
    """Its texts, the axes of its figures and the points on them; the settings are as they were written."""
    evaluate(run)
    interpolate(run, "worst", "best", steps=3)
    page = Path(report(run).report).read_text()
    settings = page[page.index("<pre>") : page.index("</pre>")]
    words = re.sub(r"<(script|style|pre)\b.*?</\1>", "", page, flags=re.DOTALL)
    assert ">closeness on test inputs, %</text>" in words and ">target's closeness, %</text>" in words
    assert 'data-text="γ 0.00; closeness ' in words and "predicted closeness scores from" in words
    assert not re.search(r"(?<!same_)accura|\bimages\b", words) and "same answer on an input" in words
    assert "images: " in settings and "inputs: " not in settings


def test_a_command_for_images_refuses_another_task(zoo: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    refused = cli("compress", "fit", "mlp/0000", "--zoo", zoo, "--out", tmp_path / "fit")
    assert refused.code == 2
    assert refused.sentence == f"{zoo} is a zoo of curves: this needs one of networks that classify images"


def test_descent_on_latents_is_refused_where_networks_share_no_targets(
    run: Path, zoo: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    """There is nothing that one teacher could teach all of them, or a start could be measured by."""
    refused = cli("optimize", "--from", "worst", "--run", run, "--zoo", zoo, "--out", tmp_path / "out")
    assert refused.code == 2 and not (tmp_path / "out").exists()
    assert refused.sentence == (
        f"{zoo} is a zoo of curves, where each network is fitted to targets of its own, so none can teach the others: "
        "`optimize` and `multi` in a space's recipe learn from a teacher, and are for networks that share one task"
    )
