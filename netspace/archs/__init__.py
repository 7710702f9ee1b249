"""The architectures by name, and the only way to those of others.

`ARCHS` has all that come with netspace. Installed packages add theirs by an entry point of the group 'netspace.archs';
anyone can name a 'module:factory', which is imported only if `trust` was called with it in this process, because a user
typed it as `--trust-arch`. A recipe or a zoo file that names one imports nothing.

A factory takes keyword arguments and returns an `nn.Module` that maps images (B, channels, H, W) to logits
(B, classes), or inputs of another task to its outputs. It needs no class, no registration and no base class.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import torch
from pydantic import Field
from torch import nn

from netspace.archs.convnets import (
    lenetlike,
    morph_lenet,
    resnet8,
    resnet14,
    resnet20,
    resnet32,
    resnet56,
    resnet_of_depth,
    small_cnn,
    vanillacnn,
)
from netspace.archs.dense import conv_vae, unet
from netspace.archs.fields import fourier_mlp, siren
from netspace.config import Settings
from netspace.errors import NetspaceError, UsageError, unknown
from netspace.hardware import NETWORK_COPIES, AllocationLimit, free_memory
from netspace.networks.folding import fold

__all__ = [
    "ARCHS",
    "ArchConfig",
    "Factory",
    "build",
    "names",
    "resolve",
    "skeleton",
    "task_settings",
    "trust",
    "trust_options",
]

Factory = Callable[..., nn.Module]

ARCHS: dict[str, Factory] = {
    "lenetlike": lenetlike,
    "vanillacnn": vanillacnn,
    "resnet": resnet_of_depth,
    "resnet8": resnet8,
    "resnet14": resnet14,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet56": resnet56,
    "morph_lenet": morph_lenet,
    "small_cnn": small_cnn,
    "siren": siren,
    "fourier_mlp": fourier_mlp,
    "unet": unet,
    "conv_vae": conv_vae,
}


class ArchConfig(Settings):
    """An architecture as recipes name it."""

    arch: str  # a registered name, or 'module:factory'
    # width factor of the factory; leave it out if the factory has none
    width: float | None = Field(None, gt=0, le=10_000)
    # further keyword arguments of the factory
    kwargs: dict[str, str | int | float | bool | None] = Field(default_factory=dict)

    def settings(
        self, image_shape: tuple[int, ...], classes: int, own: Mapping[str, int] | None = None
    ) -> dict[str, Any]:
        """Return the factory's keyword arguments for a task. Raises as `task_settings`."""
        width = {} if self.width is None else {"width": self.width}
        return task_settings(self.arch, {**self.kwargs, **width}, image_shape, classes, own)


USUAL = {"width": 4, "depth": 200}  # larger ones are built only if free memory holds their tensors
_TRUSTED: set[str] = set()  # the 'module:factory's that this process may import


def names() -> list[str]:
    """Return the names of all architectures that `build` knows without trusting other code."""
    return list(ARCHS) + sorted(name for name in _installed() if name not in ARCHS)


def trust(*typed: str) -> None:
    """Allow this process to import each 'module:factory' among `typed`: words of a user, never read from a file."""
    _TRUSTED.update(typed)


def trust_options() -> list[str]:
    """Return the options of the command line that trust what this process trusts."""
    return [word for name in sorted(_TRUSTED) for word in ("--trust-arch", name)]


def resolve(name: str) -> Factory:
    """Return the factory called `name`: one of `names()`, or a 'module:factory' that is trusted.

    Raises `UsageError` for an unknown name and for a 'module:factory' that is not trusted, which is not imported;
    `NetspaceError` if importing one fails.
    """
    if name in ARCHS:
        return ARCHS[name]
    if ":" not in name:
        installed = _installed()
        if name not in installed:
            raise unknown("architecture", name, names(), "One of your own is named 'module:factory'.")
        return _load(installed[name])
    if name not in _TRUSTED:
        raise UsageError(
            f"architecture {name!r} is code outside netspace, which is not run because a file names it: "
            f"if you know what it does, trust it with --trust-arch {name}."
        )
    return _load(EntryPoint(name=name, value=name, group="netspace.archs"))


def build(name: str, /, **kwargs: object) -> nn.Module:
    """Build the network `name` with `kwargs`, freshly initialised.

    Raises as `resolve`, and `UsageError` for settings that it does not have, lacks or does not accept.

    >>> build("resnet8", channels=1, image_size=28)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    return _make(name, resolve(name), kwargs)


def task_settings(
    name: str,
    given: Mapping[str, object],
    image_shape: tuple[int, ...],
    classes: int,
    own: Mapping[str, int] | None = None,
) -> dict[str, object]:
    """Return `given` with `channels`, `image_size` and `classes` of a task, as far as `name` has such settings.

    `image_shape` is (channels, H, W), or another shape for factories of other inputs; `own` are further settings that a task
    decides (`Task.arch_settings`), which go before those of shapes. Raises as `resolve`, and `UsageError` if `given`
    contradicts the task, or images that are not square meet an `image_size`.

    >>> task_settings("vanillacnn", {"width": 0.5}, (1, 28, 28), 10)
    {'width': 0.5, 'channels': 1, 'image_size': 28, 'classes': 10}
    """
    accepted = inspect.signature(resolve(name)).parameters
    own = own or {}
    task = {"classes": classes}
    if len(image_shape) == 3:
        task = {"channels": image_shape[0], "image_size": image_shape[1], **task}
    elif len(image_shape) == 1:
        task = {"inputs": image_shape[0], "outputs": classes, **task}
    settings = dict(given)
    settings.update((key, value) for key, value in {**task, **own}.items() if key in accepted and key not in given)
    for key, value in own.items():
        if key in accepted and settings[key] != value:
            raise UsageError(
                f"{name} is built with {key}={settings[key]} but the task has {key}={value}: set {key} to fit, or leave it out."
            )
    _refuse_misfit(name, {key: value for key, value in settings.items() if key not in own}, image_shape, classes)
    return settings


def skeleton(name: str, kwargs: Mapping[str, object], image_shape: tuple[int, ...]) -> nn.Module:
    """Return the folded network `name`, whose parameters are those of a PRep, in eval mode with random values.

    `image_shape` is (channels, H, W), or the shape of another input. torch's random state on the CPU stays as it was.
    Our ResNets are built without batch norm, which has the same state as folding; others are traced only if they have
    batch norm. Buffers stay as the factory makes them (`netspace.archs.identity`). Raises as `build` and
    `netspace.networks.folding.fold`.
    """
    factory = resolve(name)
    accepted = inspect.signature(factory).parameters
    defaults = {key: each.default for key, each in accepted.items()}
    _refuse_misfit(name, {**defaults, **kwargs}, image_shape)
    settings = dict(kwargs)
    if name in ARCHS and "batch_norm" in accepted:
        settings["batch_norm"] = False
    with torch.random.fork_rng(devices=()):
        module = _make(name, factory, settings)
        return fold(module, torch.zeros(2, *image_shape), name=name, constants=True)


def _make(name: str, factory: Factory, kwargs: Mapping[str, object]) -> nn.Module:
    """Return `factory(**kwargs)`. Raises `UsageError` unless its signature accepts `kwargs` and memory holds its tensors."""
    accepted = inspect.signature(factory).parameters.values()
    named = {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    settings = {each.name: each for each in accepted if each.kind in named}
    if not any(each.kind is each.VAR_KEYWORD for each in accepted):
        for key in kwargs:
            if key not in settings:
                raise unknown(f"setting of {name}", key, settings)
    missing = [key for key, each in settings.items() if each.default is each.empty and key not in kwargs]
    if missing:
        raise UsageError(f"{name} cannot be built without {', '.join(missing)}: give it in its settings.")
    if not any(_number(kwargs.get(key)) > usual for key, usual in USUAL.items()):
        module = factory(**kwargs)
    else:  # counting tensors imports torch's compiler, which takes seconds
        free = free_memory(torch.device("cpu"))
        given = ", ".join(f"{key}={value}" for key, value in kwargs.items())
        problem = f"{name}({given}) takes more than a quarter of the {free / 2**30:,.1f} GiB that are free: choose a smaller one"
        with AllocationLimit(free // NETWORK_COPIES, UsageError(problem)):
            module = factory(**kwargs)
    if not isinstance(module, nn.Module):
        raise NetspaceError(f"{name} gave a {type(module).__name__} where a torch.nn.Module is needed.")
    return module


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _refuse_misfit(
    name: str, settings: Mapping[str, object], image_shape: tuple[int, ...], classes: int | None = None
) -> None:
    """Raise `UsageError` if `settings` have other channels, sides or classes than the task."""
    expected: dict[str, set[int]] = {}
    if len(image_shape) == 3:
        expected = {"channels": set(image_shape[:1]), "image_size": set(image_shape[1:])}
    elif len(image_shape) == 1:
        expected = {"inputs": set(image_shape), **({} if classes is None else {"outputs": {classes}})}
    if classes is not None:
        expected["classes"] = {classes}
    for key, sizes in expected.items():
        value = settings.get(key)
        if isinstance(value, int) and sizes != {value}:
            images = "images" if len(image_shape) == 3 else "inputs"
            task = (
                f"{classes} {key}" if key in ("classes", "outputs") else f"{'x'.join(map(str, image_shape))} {images}"
            )
            raise UsageError(f"{name} is built with {key}={value} but meets {task}: set {key} to fit, or leave it out.")


def _installed() -> dict[str, EntryPoint]:
    return {each.name: each for each in entry_points(group="netspace.archs")}


def _load(entry: EntryPoint) -> Factory:
    """Import the module of an entry point and return its factory."""
    module, _, attribute = entry.value.partition(":")
    try:
        imported = importlib.import_module(module.strip())
    except Exception as error:  # whatever the module does when imported
        missing = isinstance(error, ModuleNotFoundError)
        hint = " (python looks among installed packages and in PYTHONPATH)" if missing else ""
        raise NetspaceError(
            f"architecture {entry.name!r}: importing {module!r} failed with {type(error).__name__}: {error}{hint}."
        ) from error
    factory = getattr(imported, attribute.strip(), None)
    if factory is None:
        public = [key for key, value in vars(imported).items() if callable(value) and not key.startswith("_")]
        raise unknown(f"factory in {module}", attribute, public)
    if not callable(factory):
        raise UsageError(f"architecture {entry.name!r} is a {type(factory).__name__}, not a function or class.")
    checked: Factory = factory
    return checked
