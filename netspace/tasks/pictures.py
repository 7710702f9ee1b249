"""Networks that are pictures: from the coordinates of pixels (B, 2) to their values (B, C).

Axes: M members, N pixels of a picture, B pixels of a batch, C channels, K pictures of all splits, H W pixels.

The grid of pixels is the same for all networks, their values are each network's own. A network's seed is the number of its
picture: its index among the pictures of its split, plus a million for validation and two for test pictures. So a zoo's
training members are training pictures, and test members test pictures, however few of them a recipe takes.

Every split has all pixels. A picture is known at its pixels alone, and what lies between them is a matter of convention;
what is held back in tests are pictures, not pixels.
"""

from __future__ import annotations

import hashlib
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from netspace import metrics
from netspace.errors import UsageError
from netspace.tasks.base import SPLITS, Task
from netspace.tasks.images import Classification

TOLERANCE = 0.05  # values that differ by less are alike; 0 is black, 1 is white
STRIDE = 1_000_000  # from the first picture's number of one split to that of the next
UNRELATED = ("crop_padding", "flip", "mean", "std", "field", "points", "variants", "latent")  # settings of other tasks


def picture_number(split: str, index: int, position: int) -> int:
    """Return the number of the picture that run `index` of a zoo's split is fitted to; `position` is of all splits.

    >>> picture_number("test", 3, 120)
    2000003
    """
    return SPLITS.index(split) * STRIDE + index


def pixel_grid(height: int, width: int) -> Float[Tensor, "N 2"]:
    """Return the centres (x to the right, y down) of the pixels of [-1, 1]^2, row by row.

    >>> pixel_grid(1, 2)
    tensor([[-0.5000,  0.0000],
            [ 0.5000,  0.0000]])
    """
    y, x = ((2 * torch.arange(count) + 1) / count - 1 for count in (height, width))
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1).reshape(-1, 2)


class Pictures(Task):
    """Networks from coordinates to pixel values, 0 for black to 1 for white. Scores are the fraction of values right to 0.05."""

    own_targets: ClassVar[bool] = True
    score_name: ClassVar[str] = "within"
    score_noun: ClassVar[str] = "score"
    score_meaning: ClassVar[str] = "the fraction of values that are right to 0.05"
    loss_name: ClassVar[str] = "mean squared difference of values"
    input_noun: ClassVar[str] = "pixels"
    output_noun: ClassVar[str] = "channels"
    input_shape = (2,)

    def __init__(self, images: Classification) -> None:
        """Hold the pictures of all splits of a data set, on its device; `images` are normalised by nobody."""
        splits = [images.split(name) for name in SPLITS]
        self.name, self.device = f"pictures of {images.name}", images.device
        self.source, self.classes = images.name, images.classes
        self.counts = {name: len(split) for name, split in zip(SPLITS, splits, strict=True)}
        self.num_outputs, self.height, self.width = images.input_shape
        self.split_hash = hashlib.sha256(f"pictures {images.split_hash}".encode()).hexdigest()
        pictures = torch.cat([split.images for split in splits])
        self._values = pictures.flatten(2).transpose(1, 2).contiguous()  # (K, N, C) uint8
        self._classes = torch.cat([split.labels for split in splits]).cpu().numpy()  # (K,)
        self._grid = pixel_grid(self.height, self.width).to(self.device)

    def size(self, split: str) -> int:
        """Return the number of pixels, the same in every split."""
        return len(self._grid)

    def inputs(self, split: str, index: Tensor | slice, seeds: Int64[Tensor, " M"] | None = None) -> Tensor:
        """Return the centres of pixels (B, 2) for all networks, or (M, B, 2) for an index (M, B)."""
        return self._grid[index]

    def targets(self, split: str, index: Tensor | slice, seeds: Int64[Tensor, " M"] | None = None) -> Tensor:
        """Return pixel values (M, B, C), 0 to 1; NaN for seed -1, and (B, C) of NaN without `seeds`.

        Raises `UsageError` for the number of no picture.
        """
        rows = torch.tensor([-1]) if seeds is None else self._rows(seeds)
        known = (rows >= 0).view(-1, 1, 1).to(self.device)
        rows = rows.clamp_min(0).to(self.device)
        each = isinstance(index, Tensor) and index.dim() == 2  # pixels of each network's own
        values = self._values[rows[:, None], index] if each else self._values[rows][:, index]
        values = torch.where(known, values.float() / 255, torch.nan)
        return values[0] if seeds is None and not each else values

    def _rows(self, seeds: Int64[Tensor, " M"]) -> Int64[Tensor, " M"]:
        """Return the rows of pictures among those of all splits, -1 for none. Raises `UsageError` for no picture's number."""
        counts = torch.tensor(list(self.counts.values()))
        seeds = seeds.cpu()
        split, index = seeds.clamp_min(0) // STRIDE, seeds.clamp_min(0) % STRIDE
        within = split.clamp_max(len(counts) - 1)
        wrong = (seeds < -1) | (split != within) | (index >= counts[within])
        if wrong.any():
            raise UsageError(
                f"picture number {int(seeds[wrong][0])} of {self.source} was asked for, which has {self._counted()}: numbers of the "
                f"splits begin at 0, {STRIDE} and {2 * STRIDE}"
            )
        return torch.where(seeds < 0, -1, (counts.cumsum(0) - counts)[within] + index)

    def _counted(self) -> str:
        return ", ".join(f"{count:,} {name}" for name, count in self.counts.items()) + " pictures"

    def prepare(self, seeds: Int64[Tensor, " M"]) -> None:
        """Check that there is a picture for each network. Raises `UsageError` if a split has fewer than members."""
        for split, (name, count) in enumerate(self.counts.items()):
            own = seeds[seeds // STRIDE == split] % STRIDE
            if len(own) and (asked := int(own.max()) + 1) > count:
                raise UsageError(
                    f"a zoo of {asked:,} {name} members needs as many pictures, but {self.source} has {self._counted()}: set "
                    f"members.{name} to {count} at most"
                )

    def score(self, outputs: Float[Tensor, "*M B C"], targets: Tensor) -> Float[Tensor, "*M"]:
        """Return the fraction of values that are right to 0.05."""
        return metrics.within(outputs, targets, TOLERANCE)

    def agreement(self, first: Float[Tensor, "*#M B C"], second: Float[Tensor, "*#M B C"]) -> Float[Tensor, ...]:
        """Return the fraction of values that are the same to 0.05."""
        return metrics.within(first, second, TOLERANCE)

    def divergences(self, target: Float[Tensor, "M B C"], predicted: Float[Tensor, "N B C"]) -> Float[Tensor, "M N"]:
        """Return the mean squared difference of every pair, in float64, by one matrix product."""
        a, b = (each.double().flatten(1) for each in (target, predicted))
        return torch.addmm(a.square().sum(1)[:, None] + b.square().sum(1), a, b.T, alpha=-2).clamp_min(0) / a.shape[1]

    def measures(self, outputs: Float[Tensor, "*M B C"], targets: Tensor) -> dict[str, Float[Tensor, "*M"]]:
        """Return `psnr`, the ratio of white to the root of the mean squared error, in decibels, of each network (M,)."""
        error = (outputs.double() - targets.double()).square().mean((-2, -1))
        return {"psnr": -10 * error.clamp_min(1e-12).log10()}

    def labels(self, seeds: Int64[Tensor, " M"]) -> dict[str, np.ndarray]:
        """Return `class`, the index of each picture's class (M,), -1 for none."""
        rows = self._rows(seeds).numpy()
        return {"class": np.where(rows >= 0, self._classes[rows], -1)}

    def member_name(self, seed: int) -> str:
        """Return the name of a picture, such as 'digits/test/0003'; '' for seed -1."""
        self._rows(torch.tensor([seed]))
        return "" if seed < 0 else f"{self.source}/{SPLITS[seed // STRIDE]}/{seed % STRIDE:04d}"
