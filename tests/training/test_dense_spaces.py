"""Spaces of networks that segment and that generate: trained on the protocol, as any other; `compress` says that it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model_zoo.builder import build
from model_zoo.recipe import ZooRecipe
from netspace.run_folder import read_metrics
from netspace.space import Space
from netspace.tasks import DataConfig, load
from netspace.training.latent_space import train
from netspace.training.recipe import SpaceRecipe

DATA: dict[str, dict[str, Any]] = {
    "unet": {"name": "segmentation", "image_size": 16, "limit": 20},
    "conv_vae": {"name": "generation", "latent": 3, "limit": 20},
}
SPACE: dict[str, Any] = {
    "latent": 16,
    "encoder": {"kind": "probe", "probes": 4, "hidden": 8},
    "decoder": {"kind": "linear", "start": "reference", "share": 0.1},
    "loss": {"behaviour": 1.0, "lines": 0.5},
    "optimizer": {"name": "adam", "learning_rate": 1e-4},
    "networks": 4,
    "images": 8,
    "steps": 6,
    "validate_every": 6,
    "log_every": 1,
    "precision": "float32",
    "networks_precision": "float32",
}


@pytest.mark.parametrize("arch", DATA)
def test_a_space_is_trained_and_decodes_such_networks(arch: str, tmp_path: Path, cli: Callable[..., Any]) -> None:
    recipe = {
        "data": DATA[arch],
        "archs": {arch: {"arch": arch, "width": 0.125}},
        "members": {"train": 4, "val": 2, "test": 0},
        "epochs": {"first": 1, "last": 2},
        "optimizer": {"name": "adam", "learning_rate": 0.01},
        "batch_size": 10,
        "precision": "float32",
        "fused": 6,
    }
    zoo = build(ZooRecipe.model_validate(recipe), tmp_path / "zoo.h5", workers=1)
    run = train(SpaceRecipe.model_validate(SPACE), zoo, tmp_path / "run")
    records = read_metrics(run / "metrics.jsonl")
    losses = [record["behaviour"] for record in records if "behaviour" in record]
    assert len(losses) == 6 and 0 < losses[-1] < losses[0]
    assert any(0 < record.get("val_accuracy_predicted", -1) < 1 for record in records)
    space, task = Space.load(run), load(DataConfig.model_validate(DATA[arch]))
    outputs = space.decode_all(torch.randn(2, 16)).each(lambda nets, flat: nets(flat, task.inputs("test", slice(3))))
    assert outputs.shape == (2, 3, task.num_outputs) and task.score(outputs, task.targets("test", slice(3))).shape == (
        2,
    )
    refused = cli("compress", "fit", f"{arch}/0000", "--zoo", zoo, "--out", tmp_path / "fit")
    assert refused.code == 2
    assert refused.sentence == f"{zoo} is a zoo of {task.name}: this needs one of networks that classify images"
