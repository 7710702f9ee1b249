"""A reconstructed network corrected by what it is shown: each batch norm and bias made up for what came before it.

Axes: B images, C channels.

Weights with errors move the mean and the spread of every output. Both networks are shown the same inputs. Layer by layer, what a
batch norm is given, s x + t for the original's x as far as mean and variance tell, has the statistics it keeps turned in the
same way, s m + t and s^2 v; biases of represented layers make up for the difference of mean outputs. Bias correction is of
Nagel et al. (Data-free quantization through weight equalization and bias correction, ICCV 2019, Sec. 4.2); batch norm's
statistics are re-estimated in REPAIR (Jordan et al., 2023). As differences count alone, inputs need not be those that the
network was trained on: noise serves too, though less well.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from netspace.layer_kinds import layer_of

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MOST = 4.0  # a variance is changed by this factor at most


@torch.no_grad()
def corrected(
    module: nn.Module,
    original: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    layers: Sequence[str],
    inputs: Tensor,
) -> dict[str, Tensor]:
    """`state` with batch norms and the biases of `layers` (names of weights) corrected by inputs (B, ...).

    `module` runs both states, in eval mode; it is left as it was. What is called several times is left as it is.
    """
    first, second = copy.deepcopy(module).eval(), copy.deepcopy(module).eval()
    first.load_state_dict(original, strict=False)  # a zoo's member lacks the buffers that its architecture makes
    second.load_state_dict(state, strict=False)
    owners = {layer_of(name) for name in layers}
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    with ExitStack() as hooks:
        for name, part in first.named_modules():
            if isinstance(part, NORMS) and f"{name}.running_mean" in state:

                def note(_part: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
                    seen.setdefault(name, []).append(_statistics(given[0], 1))

                hooks.callback(part.register_forward_pre_hook(note).remove)
            elif name in owners and isinstance(getattr(part, "bias", None), Tensor):

                def hold(part: nn.Module, _given: Any, output: Any, name: str = name) -> None:
                    if isinstance(output, Tensor):
                        seen.setdefault(name, []).append(_statistics(output, _axis(part)))

                hooks.callback(part.register_forward_hook(hold).remove)
        first(inputs)
    with ExitStack() as hooks:
        for name, part in second.named_modules():
            if len(seen.get(name, ())) != 1:
                continue
            (wanted,) = seen[name]
            if isinstance(part, NORMS):

                def move(part: nn.Module, given: tuple[Tensor, ...], wanted: tuple[Tensor, Tensor] = wanted) -> None:
                    assert isinstance(part.running_mean, Tensor) and isinstance(part.running_var, Tensor)
                    mean, variance = _statistics(given[0], 1)
                    little = 1e-6 * wanted[1].mean() + 1e-30  # a channel that does not vary says nothing of its spread
                    ratio = ((variance + little) / (wanted[1] + little)).clamp(1 / MOST, MOST)
                    part.running_mean.sub_(wanted[0]).mul_(ratio.sqrt()).add_(mean)
                    part.running_var *= ratio

                hooks.callback(part.register_forward_pre_hook(move).remove)
            else:

                def shift(
                    part: nn.Module, _given: Any, output: Tensor, wanted: tuple[Tensor, Tensor] = wanted
                ) -> Tensor:
                    assert isinstance(part.bias, Tensor)
                    axis = _axis(part)
                    away = wanted[0] - _statistics(output, axis)[0]
                    part.bias += away
                    return output + (away if axis == -1 else away.view(-1, *[1] * (output.dim() - 2)))

                hooks.callback(part.register_forward_hook(shift).remove)
        second(inputs)
    return {name: value.clone() for name, value in second.state_dict().items() if name in state}


def _axis(part: nn.Module) -> int:
    """Where a layer's output has its channels."""
    return -1 if isinstance(part, nn.Linear) else 1


def _statistics(values: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) over all but the axis of channels."""
    rows = values.movedim(axis, 0).flatten(1)
    return rows.mean(dim=1), rows.var(dim=1, correction=0)
