"""Running one network of any kind with state dicts that are not its own.

Axes: N images, B of them in a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from netspace.compressed import map_tensors
from netspace.data import TaskData
from netspace.kernels import Layer
from netspace.layer_kinds import layer_of


def run_types(state: Mapping[str, Tensor], module: nn.Module | None) -> dict[str, Tensor]:
    """A state dict in the types that the module computes in, whatever its file holds; without a module, float32."""
    own: dict[str, Tensor] = {} if module is None else module.state_dict()
    kinds = {id(value): own[name].dtype if name in own else torch.float32 for name, value in state.items()}
    return map_tensors(state, lambda value: value.to(kinds[id(value)]) if value.is_floating_point() else value)


def run_with_maps(
    module: nn.Module, state: dict[str, Tensor], shown: Tensor, layers: Sequence[Layer]
) -> tuple[Tensor, list[Tensor]]:
    """Logits (B, C) of a module with a state, and the outputs of the layers."""
    maps: list[Tensor] = []
    with ExitStack() as hooks:
        for layer in layers:
            held = module.get_submodule(layer_of(layer.name))
            hooks.callback(
                held.register_forward_hook(lambda _module, _inputs, output: maps.append(_first(output))).remove
            )
        logits: Tensor = functional_call(module, state, (shown,))
    return logits, maps


def _first(output: Any) -> Tensor:
    """A layer's output; attention gives its weights beside it."""
    return torch.as_tensor(output[0] if isinstance(output, tuple) else output)


@torch.no_grad()
def answers_of(module: nn.Module, state: dict[str, Tensor], task: TaskData, split: str) -> Tensor:
    """Logits (N, C) of a network for all images of a split."""
    batches, state = task.batches(task.split(split), 512), run_types(state, module)
    return torch.cat([functional_call(module, state, (task.normalise(pixels),)).float() for pixels, _ in batches])
