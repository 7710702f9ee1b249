"""A run folder as training, evaluation and interpolation leave it, made of plausible numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

CONFIG = """name: digits
seed: 0
latent: 256
encoder: {kind: attention}
steps: 4000
"""
PARAMETERS, SIZE, LATENT = 4_810, (16, 400), 256
MakeRun = Callable[..., Path]


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_base(run: Path, records: bool = True, steps: int = 4000) -> None:
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(CONFIG)
    machine = {"system": "Linux", "processor": "A <fast> processor", "cores": 2, "gpus": []}
    versions = {"netspace": "0.1.0", "python": "3.11.9", "torch": "2.11.0", "numpy": "2.0.0"}
    more = {"command": "netspace train space/digits --zoo zoo.h5", "commit": None, "seed": 0}
    zoo = {"zoo": "/data/zoo.h5", "zoo_hash": "ab12" * 16}
    write(run / "provenance.json", {**versions, "machine": machine, **more, **zoo})
    kwargs = [["width", 0.5], ["channels", 1], ["image_size", 8], ["classes", 10]]
    write(
        run / "space.json",
        {"archs": {"lenetlike": {"spec": {"arch": "lenetlike", "kwargs": kwargs}, "prep": SIZE}}},
    )
    if records:
        lines = []
        noise = np.random.default_rng(0)
        for step in range(50, steps + 1, 50):
            value = 1.7 * np.exp(-step / 900) * np.exp(0.1 * noise.standard_normal()) + 0.05
            lines.append({"step": step, "rate": 1.0, "steps_a_second": 12.5, "behaviour": value, "weights": value / 9})
            if step % 500 == 0:
                error = 0.25 * np.exp(-step / 1200) + 0.012
                lines.append(
                    {
                        "step": step,
                        "val_mae": error,
                        "val_r2": 1 - 30 * error**2,
                        "val_agreement": 0.97 - error,
                        "val_kl": error,
                    }
                )
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_evaluation(run: Path, split: str = "test", members: int = 100, seed: int = 1) -> None:
    noise = np.random.default_rng(seed)
    target = np.sort(0.1 + 0.86 * noise.beta(2.2, 1.1, members))
    noise.shuffle(target)
    predicted = np.clip(target + 0.02 * noise.standard_normal(members), 0, 1)
    r2 = 1 - float(((predicted - target) ** 2).sum() / max(((target - target.mean()) ** 2).sum(), 1e-9))
    own = {
        "accuracy_target": target.mean(),
        "accuracy_predicted": predicted.mean(),
        "r2": r2,
        "mae": float(np.abs(predicted - target).mean()),
        "agreement": 0.913,
        "kl": 0.081,
    }
    gamma = np.linspace(0, 1, 11)
    baselines = {
        "nearest": {**own, "r2": 0.991, "mae": 0.011, "agreement": 0.871},
        "nearest_latent": {**own, "r2": 0.95, "mae": 0.031, "agreement": 0.853},
        "average": {**own, "r2": -4.21, "mae": 0.55, "agreement": 0.112},
        "noise": {**own, "r2": 0.97, "mae": 0.021, "agreement": 0.868, "scale": 0.03},
    }
    figures = {
        "run": str(run),
        "split": split,
        "members": members,
        **own,
        "classid_accuracy": None,
        "diversity": 11.4,
        "zoo_diversity": 14.9,
        "compression": LATENT / PARAMETERS,
        "latent": LATENT,
        "parameters": PARAMETERS,
        "per_class": {"lenetlike": {"members": members, **own}},
        "baselines": baselines,
        "interpolation": {
            "pairs": 16,
            "gamma": gamma.tolist(),
            "spearman_latent": 0.964,
            "spearman_weights": 0.312,
            "latent_accuracy": (0.35 + 0.6 * gamma**0.9).tolist(),
            "weight_accuracy": (0.1 + 0.85 * np.abs(2 * gamma - 1) ** 3 * (0.3 + 0.7 * gamma)).tolist(),
            "aligned_accuracy": (0.2 + 0.75 * np.abs(2 * gamma - 1) * (0.3 + 0.7 * gamma)).tolist(),
        },
        "versions": {"netspace": "0.1.0", "torch": "2.11.0"},
        "detail": {
            "member": [f"lenetlike/{row:04d}" for row in range(members)],
            "accuracy_target": target.tolist(),
            "accuracy_predicted": predicted.tolist(),
            "agreement": [0.9] * members,
            "kl": [0.08] * members,
        },
    }
    write(run / f"eval-{split}.json", figures)
    way = np.random.default_rng(99).standard_normal((2, LATENT))
    latents = 3 * target[:, None] * way[0] + noise.uniform(-1, 1, (members, 1)) * way[1]
    latents += 0.3 * noise.standard_normal((members, LATENT))
    shown = np.argsort(target)[np.linspace(0, members - 1, min(4, members)).round().astype(int)]
    spread = np.repeat([0.3, 0.12, 0.2, 0.05], PARAMETERS // 4 + 1)[:PARAMETERS]
    flat = np.zeros((2, len(shown), SIZE[0] * SIZE[1]))
    flat[:, :, :PARAMETERS] = spread * noise.standard_normal((2, len(shown), PARAMETERS))
    preps, decoded = flat.reshape(2, len(shown), *SIZE).astype(np.float32)
    stored = {
        "latents": latents.astype(np.float32),
        "shown": shown.astype(np.int64),
        "preps": preps,
        "decoded": decoded,
    }
    save_file({name: np.ascontiguousarray(value) for name, value in stored.items()}, run / f"eval-{split}.safetensors")


def write_line(
    run: Path, start: str, end: str, spearman: float | None = 0.98, direct: bool = True, age: int = 0
) -> Path:
    gamma = np.linspace(0, 1, 11)
    file = run / "interpolations" / f"{start.replace('/', '-')}--{end.replace('/', '-')}.json"
    result = {
        "from": start,
        "to": end,
        "gamma": gamma.round(6).tolist(),
        "latent_accuracy": (0.12 + 0.8 * gamma).tolist(),
        "weight_accuracy": (0.1 + 0.8 * gamma**6).tolist() if direct else None,
        "aligned_accuracy": (0.1 + 0.8 * gamma**2).tolist() if direct else None,
        "spearman": spearman,
        "weight_spearman": 0.4 if direct else None,
    }
    write(file, result)
    os.utime(file, (1_700_000_000 - age, 1_700_000_000 - age))
    return file


def write_climb(run: Path, name: str = "worst-noise", starts: tuple[str, ...] = ("lenetlike/0003", "noise-1")) -> Path:
    curve = [
        {"step": 25 * k, "loss": None, "accuracy_val": [0.2 + 0.03 * k + 0.1 * s for s in range(len(starts))]}
        for k in range(9)
    ]
    file = run / "optimized" / name / "optimize.json"
    result = {"from": list(starts), "teacher": "best", "curve": curve, "steps": 200, "best": 0}
    write(file, {**result, "accuracy_before": [0.2] * len(starts), "accuracy_after": [0.5] * len(starts)})
    return file


ARCHS = ("lenetlike", "vanillacnn", "resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110")


def write_space(run: Path, archs: tuple[str, ...], unseen: tuple[str, ...]) -> None:
    """`space.json` of architectures whose PReps are a matrix of (P / 80, 80); the i-th has 800 (i + 1) parameters."""
    kwargs = [["classes", 10]]
    result = {
        name: {
            "class_id": index,
            "spec": {"arch": name, "kwargs": kwargs, "shapes": [[10 * (index + 1), 8, 5, 2]]},
            "prep": [12 * (index + 1), 80],
            "shown": name not in unseen,
        }
        for index, name in enumerate(archs)
    }
    write(run / "space.json", {"archs": result})


def several(run: Path, split: str, archs: tuple[str, ...], unseen: tuple[str, ...], members: int) -> None:
    """An evaluation of `members` networks of each architecture that was shown, made of one of a single architecture."""
    shown = [index for index, name in enumerate(archs) if name not in unseen]
    write_evaluation(run, split, members * len(shown), seed=len(split))
    figures = json.loads((run / f"eval-{split}.json").read_text())
    noise = np.random.default_rng(3)
    ids = np.repeat(shown, members)
    decoded = ids.copy()
    decoded[-1] = shown[-2]  # one is taken for another architecture
    target = 0.6 + 0.3 * ids / len(archs) + 0.05 * noise.standard_normal(len(ids))
    detail = {
        **figures.pop("detail"),
        "member": [f"{archs[index]}/{row:04d}" for row, index in enumerate(ids)],
        "arch": [archs[index] for index in ids],
        "arch_predicted": [archs[index] for index in decoded],
        "accuracy_target": target.tolist(),
        "accuracy_predicted": (target + 0.03 * noise.standard_normal(len(ids))).tolist(),
    }
    confusion = np.zeros((len(archs), len(archs)), dtype=int)
    np.add.at(confusion, (ids, decoded), 1)
    factors = np.arange(1, len(archs) - 1) / (len(archs) - 1)
    own = {"accuracy_target": 0.8, "accuracy_predicted": 0.79, "mae": 0.02, "agreement": 0.9, "kl": 0.1}
    of_line = line_of(archs, "accuracy", "lenetlike/0001", f"{archs[-1]}/0002")
    del figures["interpolation"]
    figures |= {
        "classid_accuracy": float((ids == decoded).mean()),
        "per_class": {
            archs[index]: {**own, "r2": -1.5 + index, "members": members, "parameters": 800 * (index + 1)}
            for index in shown
        },
        "archs": list(archs),
        "confusion": confusion.tolist(),
        "between": {
            name: {
                "gamma": gamma,
                "shown": name not in unseen,
                "pairs": members,
                "classid_accuracy": 0.9,
                "accuracy": 0.71,
                "accuracy_least": 0.6,
                "accuracy_zoo": 0.8,
                "ratio": 0.9,
            }
            for name, gamma in zip(archs[1:-1], factors.tolist(), strict=True)
        },
        "line": {**of_line, "factors": factors.tolist()},
        "detail": detail,
    }
    write(run / f"eval-{split}.json", figures)
    rows = np.flatnonzero(ids == shown[-1])[-3:]
    preps = noise.standard_normal((2, len(rows), 12 * len(archs), 80)).astype(np.float32)
    way = noise.standard_normal((len(archs), LATENT))
    latents = (way[ids] + 0.2 * noise.standard_normal((len(ids), LATENT))).astype(np.float32)
    stored = {"latents": latents, "shown": rows, "preps": preps[0].copy(), "decoded": preps[1].copy()}
    save_file(stored, run / f"eval-{split}.safetensors")


def line_of(archs: tuple[str, ...], name: str, start: str, end: str) -> dict[str, Any]:
    """Ten points from each ClassId to the next."""
    gamma = np.linspace(0, 1, 10 * (len(archs) - 1) + 1)
    names = [archs[int(index)] for index in np.round(gamma * (len(archs) - 1))]
    accuracy = 0.7 + 0.2 * gamma + 0.05 * np.cos(2 * np.pi * (len(archs) - 1) * gamma)
    result = {"from": start, "to": end, "gamma": gamma.round(6).tolist(), "arch": names}
    return {**result, name: accuracy.tolist()}


@pytest.fixture
def words_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn but not saved, which takes the most time."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda _, held, **how: held.write(b"<svg></svg>" if how.get("format") == "svg" else b"\x89PNG"),
    )


@pytest.fixture
def make_several(tmp_path: Path) -> MakeRun:
    """Makes a run folder of several architectures: `make_several(archs, unseen, splits, members)`."""

    def make(
        archs: int = 4, unseen: tuple[str, ...] = (), splits: tuple[str, ...] = ("test",), members: int = 6
    ) -> Path:
        run, names = tmp_path / "runs" / "multi", ARCHS[:archs]
        write_base(run, records=False)
        write_space(run, names, unseen)
        for split in splits:
            several(run, split, names, unseen, members)
        losses = {"classid": 1e-7, "distillation": 0.3, "interpolation": 0.4, "behaviour": 0.2, "weights": 0.1}
        lines: list[dict[str, Any]] = []
        for step in range(1, 5):
            between = {f"val_between_{name}": 0.6 + 0.05 * step for name in names[1:-1]}
            between |= {f"val_between_{name}_classid": 1.0 for name in names[1:-1]}
            own = {"val_mae": 0.01 * step, "val_r2": 0.5, "val_agreement": 0.9, "val_classid": 1.0}
            error = 0.1 - 0.01 * min(step, 6 - step)
            lines += [{"step": 100 * step, **losses}, {"step": 100 * step, **own, **between, "val_error": error}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        through = line_of(names, "latent_accuracy", "lenetlike/0003", f"{names[-1]}/0004")
        write(run / "interpolations" / "through.json", {**through, "weight_accuracy": None, "spearman": 0.5})
        write_climb(run, "descent", (*(f"{name}/0001" for name in names[:2]), f"noise-2:{names[1]}"))
        file = run / "optimized" / "descent" / "optimize.json"
        more = {"arch": [*names[:2], names[1]], "accuracy_network": [0.111, 0.222, None], "best": 1}
        write(file, {**json.loads(file.read_text()), **more})
        drawn = {"arch": names[1], "shown": names[1] not in unseen, "fit": "kde", "count": 16}
        measured = {"sampled": {"accuracy": 0.777, "novelty": None}, "zoo_accuracy": 0.8, "classid_accuracy": 0.95}
        write(run / "samples" / f"{names[1]}-kde-0.json", {**drawn, **measured})
        return run

    return make


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Makes a run folder: `make_run(name, splits, lines, records)`."""

    def make(
        name: str = "digits",
        splits: tuple[str, ...] = ("test",),
        lines: int = 1,
        records: bool = True,
        members: int = 40,
        climbs: int = 0,
    ) -> Path:
        run = tmp_path / "runs" / name
        write_base(run, records)
        for seed, split in enumerate(splits):
            write_evaluation(run, split, members * (5 if split == "train" else 1), seed)
        for number in range(climbs):
            write_climb(run, f"climb-{number}")
        for number in range(lines):
            write_line(run, f"lenetlike/{number:04d}", "lenetlike/0099", age=number)
        return run

    return make
