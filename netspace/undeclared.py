"""Networks of sizes and architectures that nobody declared, decoded by a coordinate decoder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from netspace import archs
from netspace.errors import NetspaceWarning, UsageError
from netspace.models.autoencoder import AutoEncoder
from netspace.models.decoders import CoordinateDecoder
from netspace.networks.family import ArchClass, Family, declared
from netspace.training.recipe import SpaceRecipe


def resized(
    model: AutoEncoder, recipe: SpaceRecipe, family: Family, arch: str, width: float | None, depth: int | None
) -> tuple[AutoEncoder, Family]:
    """Return a model that decodes the latents of `model` as networks of another architecture, and its family.

    As `netspace.Space.resized`, which calls it with its parts.
    """
    sizes = {name: size for name, size in (("width", width), ("depth", depth)) if size is not None}
    name = "-".join([arch, *(f"{key}{size:g}" for key, size in sizes.items())])
    if not isinstance(decoder := model.decoder, CoordinateDecoder):
        raise UsageError(
            f"networks of {name} were asked for, but this space's decoder ({recipe.decoder.kind}) gives those of "
            f"{family.names} as they are: other sizes take decoder.kind coordinate with start: emitted"
        )
    known = next((each.spec for each in family if each.id == arch), None)
    settings, device = {} if known is None else known.settings, model.spread.device
    chosen = _declared(family, name, arch if known is None else known.arch, {**settings, **sizes}, device)
    other = Family([chosen])
    result = decoder.resized(other)
    _warn_of_sizes(decoder, recipe, family, chosen, device)
    return AutoEncoder(model.encoder, result, other.ones().to(device)), other


def _declared(family: Family, name: str, arch: str, settings: Mapping[str, Any], device: torch.device) -> ArchClass:
    """Return an architecture for the inputs and outputs that a family's networks have."""
    sample = family[0]
    with torch.no_grad():
        zero = torch.zeros(1, *sample.spec.input_shape, device=device)
        outputs = sample.nets(torch.zeros(1, sample.parameters, device=device), zero).shape[-1]
    config = archs.ArchConfig(arch=arch, kwargs=dict(settings))
    return declared(name, config, sample.spec.input_shape, outputs, sample.size[1], device)


def _warn_of_sizes(
    decoder: CoordinateDecoder, recipe: SpaceRecipe, family: Family, arch: ArchClass, device: torch.device
) -> None:
    """Warn where nothing says that networks of an architecture are any good."""
    if any(each.spec.shapes == arch.spec.shapes for each in family):
        return
    if recipe.sizes is None:
        problem = "was decoded by a space that was trained at the sizes of its own architectures alone (`sizes` in its recipe)"
    else:
        trained = [
            _declared(
                family, name, each.arch, each.kwargs | ({} if each.width is None else {"width": each.width}), device
            )
            for name, each in recipe.sizes.archs.items()
        ]
        known = [*family, *trained]
        outside = decoder.outside(arch, known)
        problem = "" if outside is None else f"has {outside}"
        if arch.spec.arch not in {each.spec.arch for each in known}:
            problem = f"is of an architecture ({arch.spec.arch}) that this space was not trained to decode at any size"
    if problem:
        warnings.warn(f"{arch.id} {problem}: it may be at chance", NetspaceWarning, stacklevel=5)
