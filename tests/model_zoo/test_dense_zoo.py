"""Zoos of networks that segment and that generate images, of a few steps: built, stacked or alone, verified, refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_zoo.builder import build
from model_zoo.recipe import ZooRecipe
from model_zoo.verify import verify
from netspace import archs
from netspace.config import bundled_names, load
from netspace.errors import NetspaceError, UsageError
from netspace.networks.prep import unflatten
from netspace.tasks import DataConfig
from netspace.tasks import load as load_task
from netspace.zoo import Zoo

DATA: dict[str, dict[str, Any]] = {
    "unet": {"name": "segmentation", "image_size": 16, "limit": 30},
    "conv_vae": {"name": "generation", "latent": 3, "limit": 30},
}
SCORES = {"unet": "mIoU", "conv_vae": "likelihood per pixel"}


def recipe(arch: str, **changes: Any) -> ZooRecipe:
    return ZooRecipe.model_validate(
        {
            "data": DATA[arch],
            "archs": {arch: {"arch": arch, "width": 0.125}},
            "members": {"train": 1, "val": 0, "test": 1},
            "epochs": {"first": 2, "last": 2},
            "optimizer": {"name": "adam", "learning_rate": 0.01},
            "batch_size": 10,
            "precision": "float32",
            "fused": 2,
            **changes,
        }
    )


@pytest.mark.parametrize("arch", DATA)
def test_a_zoo_of_two_networks(arch: str, tmp_path: Path) -> None:
    """Its scores come out again from plain modules, and it is the same trained stacked or one by one."""
    path, alone = (build(recipe(arch, fused=fused), tmp_path / f"{fused}.h5", workers=1) for fused in (2, 1))
    with Zoo(path) as zoo, Zoo(alone) as other:
        group = zoo.only()
        assert zoo.header.score == {"name": SCORES[arch], "higher_is_better": True}
        task = load_task(DataConfig.model_validate(DATA[arch]))
        preps, seeds, scores = group.read([0, 1]), group.seeds([0, 1]), group.members["accuracy_test"]
        torch.testing.assert_close(preps, other.only().read([0, 1]), rtol=0, atol=2e-4)
        assert not torch.allclose(preps[0], preps[1])
        for row in range(2):
            net = archs.skeleton(group.spec.arch, group.spec.settings, group.spec.input_shape)
            flat = preps[row].flatten()[: group.spec.num_parameters]
            net.load_state_dict(unflatten(flat, group.spec))
            found = task.assess(lambda x, net=net: net(x)[None], "test", seeds[:1])
            assert float(found[SCORES[arch]]) == pytest.approx(scores[row], abs=1e-6)
    done = verify(path)
    assert done.ok and done.re_evaluated == 2


@pytest.mark.parametrize("arch", DATA)
def test_training_makes_networks_better(arch: str, tmp_path: Path) -> None:
    settings = {
        "members": {"train": 1, "val": 0, "test": 0},
        "fused": 1,
        "optimizer": {"name": "adam", "learning_rate": 0.01},
    }
    scores = []
    for epochs in (1, 12):
        changed = recipe(arch, **settings, epochs={"first": epochs, "last": epochs})
        with Zoo(build(changed, tmp_path / f"{epochs}.h5", workers=1)) as zoo:
            scores.append(float(zoo.only().members["accuracy_train"][0]))
    assert scores[1] > scores[0] + 0.01


def test_networks_that_do_not_fit_are_refused_in_a_sentence(tmp_path: Path) -> None:
    def refused(arch: str, data: str) -> str:
        changed = recipe(data, archs={"net": {"arch": arch, "width": 0.25}})
        with pytest.raises(NetspaceError) as caught:
            build(changed, tmp_path / "zoo.h5", workers=1)
        return str(caught.value)

    assert refused("resnet8", "unet") == (
        "resnet8 gives outputs of (11,) in evaluation, but the task has (11, 16, 16) logits: set its number of logits to fit, or "
        "choose the data it was trained on"
    )
    assert "unet does not run on an example of shape (4, 67): RuntimeError" in refused("unet", "conv_vae")
    assert "conv_vae does not run in evaluation on images of (3, 16, 16)" in refused("conv_vae", "unet")
    with pytest.raises(
        UsageError, match="variety is of networks that classify images; segmentation of digits is another task"
    ):
        build(recipe("unet", variety={"images": [0.5, 1.0]}), tmp_path / "zoo.h5", workers=1)


@pytest.mark.parametrize("name", ["digit-scenes", "emoji-scenes", "fashion-vae", "digits-vae"])
def test_bundled_recipes_have_the_architecture_of_their_task(name: str) -> None:
    assert f"zoo/{name}" in bundled_names()
    bundled = load(ZooRecipe, f"zoo/{name}")
    (config,) = bundled.archs.values()
    assert (config.arch, bundled.data.name) in {("unet", "segmentation"), ("conv_vae", "generation")}
    assert np.isfinite(bundled.members.total)
