"""Networks of a batch decoded as other architectures: what the term asks of them, and which recipes can have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from netspace.errors import UsageError
from netspace.losses import prediction_loss
from netspace.models.coordinate_decoder import CoordinateDecoder
from netspace.networks.prep import unpack
from netspace.training.recipe import SpaceRecipe
from netspace.training.setup import prepare
from netspace.training.step import Step
from netspace.zoo import Zoo

DECODER = {"kind": "coordinate", "start": "emitted", "hidden": 16, "reference_steps": 3}
SIZES = {"networks": 2, "weight": 0.5, "archs": {"wide": {"arch": "lenetlike", "width": 0.3}}}


def recipe(settings: dict[str, Any], **more: Any) -> SpaceRecipe:
    return SpaceRecipe.model_validate({**settings, "decoder": DECODER, "sizes": SIZES, **more})


@pytest.mark.parametrize("multi", [False, True])
def test_networks_decoded_as_another_architecture_behave_like_themselves(
    tiny_zoo: Path, multi_zoo: Path, space_settings: dict[str, Any], multi_settings: dict[str, Any], multi: bool
) -> None:
    settings = {
        **(multi_settings if multi else space_settings),
        "precision": "float32",
        "networks_precision": "float32",
    }
    loss = {"behaviour": 1.0, "temperature": 2.0}
    with Zoo(multi_zoo if multi else tiny_zoo) as zoo:
        setup = prepare(recipe(settings, loss=loss), zoo, torch.device("cpu"))
        step, number = Step(setup), 1
        terms, batch = step(setup.model, number), step.batch(setup.model, number)
        (arch,) = setup.sizes
        class_id, preps = batch.groups[number % len(batch.groups)]
        decoder = setup.model.decoder
        assert isinstance(decoder, CoordinateDecoder) and arch.spec.settings["width"] == 0.3
        flat = decoder.emit(setup.model.encoder(preps[:2], class_id), *decoder.tokens_for(arch))
        images, _ = step.images.take(number, setup.recipe.images)
        own = setup.family[class_id]
        with torch.no_grad():
            targets = own.nets(unpack(preps[:2], own.parameters), images)
        expected = 0.5 * prediction_loss(arch.nets(flat, images), targets, 2.0)
        torch.testing.assert_close(terms["sizes"], expected.mean(), rtol=1e-4, atol=1e-6)
        terms["sizes"].backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in decoder.trunk.parameters())


def test_other_decoders_cannot_have_them(space_settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"sizes are decoded by decoder.kind coordinate with start: emitted alone"):
        recipe(space_settings, decoder={"kind": "linear", "start": "reference"})


def test_a_kernel_that_no_network_of_the_zoo_has_is_refused(tiny_zoo: Path, space_settings: dict[str, Any]) -> None:
    large = {"archs": {"alexnet-like": {"arch": "torchvision.models:squeezenet1_0", "kwargs": {"num_classes": 10}}}}
    with Zoo(tiny_zoo) as zoo, pytest.raises(UsageError, match="trust it with --trust-arch"):
        prepare(recipe(space_settings, sizes=large), zoo, torch.device("cpu"))
