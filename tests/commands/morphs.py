"""Small run folders of morphs, as `netspace morph fit` leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from netspace import archs
from netspace.networks.spec import NetSpec
from netspace.networks.widths import find_widths
from netspace.results.morphs import MorphFit
from netspace.saved_morph import SavedMorph, make_function, plain_network
from netspace.tasks import DataConfig, load
from netspace.training.morph import MorphConfig
from netspace.training.network import NetworkConfig, train_network
from netspace.training.optimizers import OptimizerConfig

DATA = DataConfig(name="digits", limit=200)
ADAM = OptimizerConfig(learning_rate=0.01)


def write_morph(
    folder: Path, arch: str = "resnet8", epochs: int = 0, data: DataConfig = DATA, **config: Any
) -> SavedMorph:
    """Write a morph whose function is that of a network at full width, trained for some epochs, and nothing more."""
    task = load(data)
    settings = archs.task_settings(arch, {"width": 0.25}, task.input_shape, task.num_outputs, task.arch_settings)
    base = {"batch_size": 50, "stages": [{"epochs": 1}], "function": {"noise": 0}}
    whole = MorphConfig.model_validate({**base, **config})
    torch.manual_seed(1)
    module = plain_network(arch, settings, task.input_shape, whole.batch_norm == "keep")
    if epochs:
        module = train_network(
            module, task, NetworkConfig(epochs=epochs, batch_size=25, optimizer=ADAM), folder / "own"
        )
    info = find_widths(module, task.inputs("train", slice(2)), arch)
    function = make_function(module, info, whole.function, 0)
    function.start(dict(module.named_parameters()))
    spec = NetSpec.from_module(module, arch, settings, task.input_shape)
    morph = SavedMorph(function, module, info, whole, spec, data, task.split_hash)
    morph.save(folder)
    count = sum(value.numel() for value in module.parameters())
    sizes = {"groups": {}, "narrowest": 0.5, "full_parameters": count, "stored_parameters": count}
    MorphFit(run=str(folder), file="morph.safetensors", arch=arch, seconds=7.5, **sizes).write(folder / "fit.json")
    return morph
