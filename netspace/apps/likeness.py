"""How alike two states of one network answer on pictures, without labels.

Axes: B images, C classes.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netspace.data.pictures import shown
from netspace.errors import NetspaceError, UsageError
from netspace.metrics import agreement, cosine, overlap
from netspace.training.nern import Original


@torch.no_grad()
def likeness(original: Original, state: dict[str, Tensor], files: list[Path], size: int, model: str) -> dict[str, Any]:
    """What the original, called `model`, and a state of it answer on the pictures, shown at `size` x `size`.

    Raises `UsageError` where no module is known, `NetspaceError` where it does not map the pictures to logits (B, C).
    """
    if original.module is None:
        raise UsageError(f"images are shown to the network, and of {model} only the weights are known: give --arch")
    modules = [copy.deepcopy(original.module) for _ in range(2)]
    for module, values in zip(modules, (original.state, state), strict=True):
        module.load_state_dict(values)
    batches = [[_logits(module, batch, model) for module in modules] for batch in shown(files, size)]
    both = [torch.cat(answers) for answers in zip(*batches, strict=True)]
    return {
        "count": len(files),
        "size": size,
        "agreement": float(agreement(both[0], both[1])),
        "overlap_top5": float(overlap(both[0], both[1])),
        "cosine": float(cosine(both[0], both[1])),
    }


def _logits(module: nn.Module, batch: Tensor, model: str) -> Tensor:
    try:
        logits = module(batch)
    except (RuntimeError, ValueError, TypeError) as error:  # whatever a module of others raises
        told = (str(error) or type(error).__name__).splitlines()[0]
        sides = " x ".join(str(side) for side in batch.shape[1:])
        raise NetspaceError(f"{model} cannot be run on images of {sides}: {told}; change --size") from None
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        told = f"a tensor of {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise NetspaceError(f"{model} was expected to answer images with logits (B, C), but gave {told}")
    return logits
