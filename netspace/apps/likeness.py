"""How alike two states of one network answer on pictures, without labels.

Axes: B images, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netspace.data.pictures import Normalisation, shown
from netspace.errors import NetspaceError, UsageError
from netspace.metrics import agreement, cosine, overlap
from netspace.training.nern import Original


class Likeness:
    """Measures states of the network called `model` beside the original, on pictures shown at `size` x `size`.

    Raises `UsageError` where no module is known, `NetspaceError` where it does not map the pictures to logits (B, C).
    """

    def __init__(self, original: Original, files: list[Path], size: int, model: str, by: Normalisation) -> None:
        if original.module is None:
            raise UsageError(f"images are shown to the network, and of {model} only the weights are known: give --arch")
        self.module, self.files, self.size, self.model = copy.deepcopy(original.module), files, size, model
        self.by = by
        self.answers = self._answers(original.state)

    def measure(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """What a state of the network answers, beside what the original does."""
        found = self._answers(state)
        return {
            "count": len(self.files),
            "size": self.size,
            **self.by.figures(),
            "agreement": float(agreement(self.answers, found)),
            "overlap_top5": float(overlap(self.answers, found)),
            "cosine": float(cosine(self.answers, found)),
        }

    @torch.no_grad()
    def _answers(self, state: Mapping[str, Tensor]) -> Tensor:
        self.module.load_state_dict(state, strict=False)  # all but buffers that the architecture makes
        return torch.cat(
            [logits_of(self.module, batch, self.model) for batch in shown(self.files, self.size, by=self.by)]
        )


def logits_of(module: nn.Module, batch: Tensor, model: str) -> Tensor:
    """Logits (B, C) of the module of `model` for images. Raises `NetspaceError` where it gives none."""
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
