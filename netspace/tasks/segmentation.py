"""Segmentation: networks from images (B, 3, H, W) to logits of the classes of their pixels (B, K, H, W).

Axes: M members (networks), B images of a batch, N images of a split, K classes, H W pixels, Q = H * W; C = K * H * W values of
an output, which are given as maps (*M, B, K, H, W) or flat (*M, B, C).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from colorsys import hsv_to_rgb
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from netspace import losses, metrics
from netspace.errors import UsageError, unknown
from netspace.tasks import packaged, scenes
from netspace.tasks.base import CHUNK, SPLITS, DataConfig, Task
from netspace.tasks.images import channel_moments
from netspace.tasks.scenes import Scenes
from netspace.tasks.shapes import refuse_unrelated

UNRELATED = ("channels", "crop_padding", "flip", "mean", "std", "classes", "field", "points", "variants", "latent")
COUNTS = {"train": 4000, "val": 500, "test": 1000}  # pictures of each split, unless `limit` says fewer for training
SOURCES = {"digits": (scenes.digit_sprites, 32), "emoji": (scenes.folder_sprites, 64)}  # sprites, and pixels of a side
MAX_SIDE = 224  # pixels of a side of pictures: photographs have 427
MAX_VALUES = 1 << 25  # of outputs in memory at once in evaluation


class Segmentation(Task):
    """Classes of pixels. Scores are mIoU over all classes, the background too, from one confusion matrix of all pixels of a split."""

    score_name: ClassVar[str] = "mIoU"
    input_noun: ClassVar[str] = "images"
    output_noun: ClassVar[str] = "logits"

    def __init__(
        self, name: str, splits: Mapping[str, Scenes], classes: tuple[str, ...], device: torch.device | str = "cpu"
    ) -> None:
        """Hold pictures and classes of pixels of each split on a device."""
        self.name, self.device, self.classes = name, torch.device(device), classes
        self.input_shape = tuple(splits["train"].images.shape[1:])
        self.num_outputs = len(classes) * self.input_shape[1] * self.input_shape[2]
        self.mean, self.std = (each.to(device) for each in channel_moments(splits["train"].images))
        digest = hashlib.sha256(repr((name, classes)).encode())
        for split in SPLITS:
            for values in (splits[split].images, splits[split].labels):
                digest.update(repr(tuple(values.shape)).encode())
                digest.update(values.contiguous().numpy().data)
        self.split_hash = digest.hexdigest()
        self.splits = {split: Scenes(each.images.to(device), each.labels.to(device)) for split, each in splits.items()}

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(K, H, W)"""
        return (len(self.classes), *self.input_shape[1:])

    @property
    def arch_settings(self) -> dict[str, int]:
        """The number of classes, which is not that of outputs."""
        return {"classes": len(self.classes)}

    def _split(self, name: str) -> Scenes:
        if name not in SPLITS:
            raise unknown("split", name, SPLITS)
        return self.splits[name]

    def size(self, split: str) -> int:
        """Return the number of pictures of a split."""
        return len(self._split(split).images)

    def inputs(self, split: str, index: Tensor | slice, seeds: Int64[Tensor, " M"] | None = None) -> Tensor:
        """Return normalised images (B, 3, H, W), or (M, B, 3, H, W) for an index (M, B)."""
        images = self._split(split).images[index].float()
        return (images / 255 - self.mean[:, None, None]) / self.std[:, None, None]

    def targets(self, split: str, index: Tensor | slice, seeds: Int64[Tensor, " M"] | None = None) -> Tensor:
        """Return classes of pixels (B, H, W), or (M, B, H, W) for an index (M, B)."""
        return self._split(split).labels[index].long()

    def logits(self, outputs: Float[Tensor, ...]) -> Float[Tensor, "*M B Q K"]:
        """Return the logits of each pixel, of outputs as maps (*M, B, K, H, W) or flat (*M, B, C)."""
        flat = outputs.shape[-1] == self.num_outputs
        maps = outputs.unflatten(-1, (len(self.classes), -1)) if flat else outputs.flatten(-2)
        return maps.transpose(-1, -2)

    def predictions(self, outputs: Float[Tensor, ...]) -> Int64[Tensor, "*M B H W"]:
        """Return the likeliest class of each pixel."""
        return self.logits(outputs).argmax(-1).unflatten(-1, self.input_shape[1:])

    def confusion(self, outputs: Float[Tensor, ...], targets: Int64[Tensor, "... H W"]) -> Int64[Tensor, "*M K K"]:
        """Count pixels by their class and the class that a network gives them."""
        predicted = self.predictions(outputs)
        return metrics.confusion(predicted.flatten(-3), targets.flatten(-3), len(self.classes))

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mIoU of each network over all pixels that are given; that of a split is not the mean of its batches'."""
        return metrics.mean_iou(self.confusion(outputs, targets))

    def measures(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return `f1`, averaged over classes, and `pixel_accuracy`, the fraction of pixels that are right, of each network."""
        return _measures(self.confusion(outputs, targets))

    @torch.no_grad()
    def evaluate(
        self,
        networks: Callable[[Tensor], Tensor],
        split: str,
        seeds: Int64[Tensor, " M"],
        limit: int | None = None,
        targets: Tensor | None = None,
        inputs: Tensor | None = None,
    ) -> Float[Tensor, " M"]:
        """Return the mIoU of networks over a split, or its first `limit` images: see `Task.evaluate`."""
        return metrics.mean_iou(self._confusions(networks, split, seeds, limit, targets, inputs))

    @torch.no_grad()
    def assess(
        self,
        networks: Callable[[Tensor], Tensor],
        split: str,
        seeds: Int64[Tensor, " M"],
        limit: int | None = None,
    ) -> dict[str, Float[Tensor, " M"]]:
        """Return `mIoU`, `f1` and `pixel_accuracy` of networks over a split, or its first `limit` images."""
        confusions = self._confusions(networks, split, seeds, limit)
        return {self.score_name: metrics.mean_iou(confusions), **_measures(confusions)}

    def _confusions(
        self,
        networks: Callable[[Tensor], Tensor],
        split: str,
        seeds: Tensor,
        limit: int | None,
        targets: Tensor | None = None,
        inputs: Tensor | None = None,
    ) -> Int64[Tensor, "M K K"]:
        chunk = max(1, min(CHUNK, MAX_VALUES // (self.num_outputs * max(len(seeds), 1))))
        total = torch.zeros(len(seeds), len(self.classes), len(self.classes), dtype=torch.int64, device=self.device)
        for outputs, truth in self.outputs_and_targets(networks, split, seeds, limit, targets, inputs, chunk):
            total += self.confusion(outputs, truth)
        return total

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of a pixel, in nats."""
        logits = self.logits(outputs)
        labels = targets.flatten(-2).expand(logits.shape[:-1])
        return F.cross_entropy(logits.reshape(-1, len(self.classes)), labels.reshape(-1))

    def _rows(self, outputs: Tensor) -> Float[Tensor, "*M R K"]:
        """Return the logits of all pixels of all images, R = B * Q."""
        return self.logits(outputs).flatten(-3, -2)

    def behaviour_loss(
        self, predicted: Tensor, target: Tensor, temperature: float = 1.0, relative: bool = False
    ) -> Tensor:
        """Return the KL divergence of a pixel at a temperature (NetSpace, Eq. 1): see `netspace.losses.prediction_loss`."""
        return losses.prediction_loss(self._rows(predicted), self._rows(target), temperature, relative)

    def blend(self, first: Tensor, second: Tensor, gamma: Tensor) -> Tensor:
        """Return target outputs (M, B, C) between two networks': see `netspace.losses.blend`."""
        return losses.blend(first, second, gamma)

    def agreement(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the fraction of pixels that both give the same class."""
        return (self.predictions(first) == self.predictions(second)).double().mean((-3, -2, -1))

    def divergence(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return KL(target || predicted) of a pixel, in nats."""
        return metrics.divergence(self._rows(predicted), self._rows(target))

    def agreements(self, first: Tensor, second: Tensor) -> Tensor:
        """Count the pixels that both of a pair give the same class, (M, N)."""
        return metrics.agreements(self._rows(first), self._rows(second))

    def divergences(self, target: Tensor, predicted: Tensor) -> Tensor:
        """Return KL(target || predicted) of every pair (M, N), summed over pixels."""
        return metrics.divergences(self._rows(target), self._rows(predicted))

    def identity(self, predicted: Tensor, target: Tensor, targets: Tensor) -> metrics.Identity:
        """Compare networks with their own targets and with other networks of the same mIoU, by agreement on pixels."""
        pixels = targets.numel()
        return metrics.identity_of(self.agreements(predicted, target) / pixels, self.score(target, targets))

    def votes(self, outputs: Tensor) -> Tensor:
        """Return the class probabilities of pixels, as flat as outputs (*M, B, C)."""
        return self.logits(outputs).softmax(-1).transpose(-1, -2).flatten(-2)

    def from_votes(self, votes: Tensor) -> Tensor:
        """Return the outputs (*M, B, C) of which `votes` are the probabilities."""
        return votes.clamp_min(torch.finfo(votes.dtype).tiny).log()

    @torch.no_grad()
    def pictures(
        self, network: Callable[[Tensor], Tensor], split: str, index: Int64[Tensor, " S"]
    ) -> dict[str, UInt8[np.ndarray, "S h w 3"]]:
        """Return `image`, `truth` and `prediction`: pixels of a class in its colour, the background as a dark image."""
        index = index.to(self.device)
        images = self._split(split).images[index].permute(0, 2, 3, 1)
        colours = torch.tensor(_colours(len(self.classes)), dtype=torch.uint8, device=self.device)

        def painted(classes: Tensor) -> Tensor:
            return torch.where((classes == 0)[..., None], images // 3, colours[classes])

        truth, predicted = self.targets(split, index), self.predictions(network(self.inputs(split, index)))
        rows = {"image": images, "truth": painted(truth), "prediction": painted(predicted)}
        return {name: row.cpu().numpy() for name, row in rows.items()}

    def normalisation(self) -> dict[str, list[float]]:
        """Return mean and standard deviation of each channel, pixels in 0..1."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}


def _colours(classes: int) -> list[list[int]]:
    """Return red, green and blue of each class, 0 to 255: hues that are far apart for classes that are neighbours."""
    hues = ((0.6180339887 * number) % 1 for number in range(classes))
    return [[round(255 * level) for level in hsv_to_rgb(hue, 0.6, 0.95)] for hue in hues]


def _measures(confusions: Tensor) -> dict[str, Tensor]:
    right = confusions.diagonal(dim1=-2, dim2=-1).sum(-1) / confusions.sum((-2, -1))
    return {"f1": metrics.macro_f1(confusions), "pixel_accuracy": right.double()}


def load_segmentation(config: DataConfig, device: torch.device) -> Task:
    """Return the task of pictures composed of the sprites that the setting `images` names.

    Raises `UsageError` for settings that do not apply, `NetspaceError` for artwork that is not on this machine.
    """
    refuse_unrelated(config, UNRELATED)
    source = config.images or "digits"
    if source not in SOURCES:
        raise unknown("data.images of segmentation", source, SOURCES)
    if source == "digits" and config.root is not None:
        raise UsageError(
            f"digits come with scikit-learn, but root={config.root} was given: leave it out, or set data.images."
        )
    read, side = SOURCES[source]
    side = config.image_size or side
    if not 16 <= side <= MAX_SIDE:
        raise UsageError(f"pictures of {config.name!r} have 16 to {MAX_SIDE} pixels a side, not image_size={side}.")
    sprites, classes = read(config)
    photographs = packaged.photographs()
    counts = {**COUNTS, "train": min(COUNTS["train"], config.limit or COUNTS["train"])}
    splits = {
        split: scenes.compose(
            sprites[split], photographs, side, COUNTS[split], counts[split], (config.split_seed, number)
        )
        for number, split in enumerate(SPLITS)
    }
    return Segmentation(f"segmentation of {source}", splits, classes, device)
