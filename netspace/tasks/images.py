"""Labelled images: `Classification`, three splits of uint8 images on a device; resizing and augmentation.

Axes: M members (networks), B images of a batch, N images, C channels, H W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Float32, Int64, Shaped, UInt8
from torch import Tensor
from torch.nn import functional as F

from netspace import losses, metrics
from netspace.errors import NetspaceError, unknown
from netspace.hardware import send
from netspace.metrics import Identity
from netspace.streams import Stream, generator
from netspace.tasks.base import SPLITS, Task

CHUNK = 1024  # images resized at once: bounds the memory of the float64 copy


def resize(images: UInt8[Tensor, "N C H W"], size: int) -> UInt8[Tensor, "N C S S"]:
    """Resize images to `size` pixels a side, bilinear and antialiased; those of that size stay as they are."""
    if images.shape[2:] == (size, size):
        return images
    out = torch.empty(*images.shape[:2], size, size, dtype=torch.uint8, device=images.device)
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK].double()
        part = F.interpolate(part, size=(size, size), mode="bilinear", antialias=True)
        # Half a level rounds up; 1e-6 keeps exact halves from falling by the last bit of some sum.
        out[start : start + CHUNK] = (part + (0.5 + 1e-6)).floor().clamp(0, 255).to(torch.uint8)
    return out


def with_channels(images: UInt8[Tensor, "N _ H W"], channels: int) -> UInt8[Tensor, "N C H W"]:
    """Convert images to 1 or 3 channels: the luma of ITU-R BT.601 (as in PIL), or grey three times."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1).contiguous()
    red, green, blue = (images[:, c : c + 1].to(torch.int32) for c in range(3))
    return ((299 * red + 587 * green + 114 * blue + 500) // 1000).to(torch.uint8)


def random_crop_flip(
    images: Shaped[Tensor, "*B C H W"], generator: torch.Generator, padding: int, flip: bool
) -> Shaped[Tensor, "*B C H W"]:
    """Pad with zeros, crop at a random position, mirror half of the images at random (NetSpace, Suppl. IV, after [9]).

    All crops are drawn first, then all flips, so the same generator state gives the same result however the leading
    axes are arranged. The generator may be on the CPU for images on any device.
    """
    if not padding and not flip:
        return images
    stack = images.reshape(-1, *images.shape[-3:])
    count, device = len(stack), generator.device
    offsets = torch.zeros(2, count, dtype=torch.int64, device=device)
    mirrored = torch.zeros(count, dtype=torch.bool, device=device)
    if padding:
        offsets = torch.randint(2 * padding + 1, (2, count), generator=generator, device=device)
    if flip:
        mirrored = torch.randint(2, (count,), generator=generator, device=device).bool()
    offsets, mirrored = (send(t, images.device) for t in (offsets, mirrored))
    return crop_flip(stack, offsets, mirrored, padding).reshape(images.shape)


def crop_flip(
    images: Shaped[Tensor, "B C H W"], offsets: Int64[Tensor, "2 B"], mirrored: Bool[Tensor, " B"], padding: int
) -> Shaped[Tensor, "B C H W"]:
    """Pad images with zeros, crop image b at row offsets[0, b] and column offsets[1, b], and mirror it if mirrored[b].

    Offsets are in 0 .. 2 * padding; the offset `padding` moves nothing. Images are mirrored left to right.
    """
    count, channels, height, width = images.shape
    device = images.device
    rows = torch.arange(height, device=device) + offsets[0, :, None]  # (B, H)
    columns = torch.arange(width, device=device)
    columns = torch.where(mirrored[:, None], columns.flip(0), columns) + offsets[1, :, None]  # (B, W)
    padded = F.pad(images, (padding,) * 4)
    pixels = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # (B, H, W), positions in a flat padded image
    index = pixels.reshape(count, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, index).reshape(images.shape)


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels. Raises `NetspaceError` if they do not fit together."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise NetspaceError(
                f"a split holds uint8 images of shape (N, C, H, W), not {images.dtype} {tuple(images.shape)}"
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise NetspaceError(
                f"a split of {len(images)} images holds as many int64 labels, not {labels.dtype} {tuple(labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, order: Tensor | slice) -> Split:
        """Return the images and labels of a slice or of indices (B,)."""
        return Split(self.images[order], self.labels[order])

    def to(self, device: torch.device | str) -> Split:
        """Return the split on a device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Classification(Task):
    """Classification of images on one device; made by `netspace.tasks.load` or `Classification.of`.

    Networks return logits, one for each class; the behaviour loss is Eq. 1 of NetSpace, the score is accuracy.
    """

    score_name: ClassVar[str] = "accuracy"
    loss_name: ClassVar[str] = "KL divergence, nats"
    input_noun: ClassVar[str] = "images"
    output_noun: ClassVar[str] = "classes"

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]  # name of each label
    mean: Tensor  # (C,) float32, of the training pixels in 0..1
    std: Tensor  # (C,) float32, of the training pixels, at least 1/255
    split_hash: str  # sha256 of all images and labels in their order, 64 hex digits
    crop_padding: int = 0  # pixels; 0: no random crop
    flip: bool = False

    @classmethod
    def of(
        cls,
        name: str,
        train: Split,
        val: Split,
        test: Split,
        classes: Sequence[str],
        crop_padding: int = 0,
        flip: bool = False,
    ) -> Classification:
        """Make a task of three splits, with the mean and standard deviation of the training images.

        Raises `NetspaceError` if a split is empty, shapes differ, or a label has no class.
        """
        splits = dict(zip(SPLITS, (train, val, test), strict=True))
        for key, split in splits.items():
            if not len(split):
                raise NetspaceError(f"data set {name!r} has no image in its {key} split; each split needs at least one")
            if split.images.shape[1:] != train.images.shape[1:]:
                raise NetspaceError(
                    f"data set {name!r} has images of shape {tuple(train.images.shape[1:])} to train on "
                    f"and of {tuple(split.images.shape[1:])} in its {key} split; set image_size and channels"
                )
            low, high = (int(bound) for bound in split.labels.aminmax())
            if low < 0 or high >= len(classes):
                raise NetspaceError(
                    f"data set {name!r} has {len(classes)} classes, so labels 0 to {len(classes) - 1}, "
                    f"but the labels of its {key} split go from {low} to {high}"
                )
        moments = channel_moments(train.images)
        content = hash_splits(splits.values())
        return cls(name, train, val, test, tuple(classes), *moments, content, crop_padding, flip)

    @property
    def input_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """(C, H, W)"""
        return tuple(self.train.images.shape[1:])

    @property
    def num_outputs(self) -> int:  # type: ignore[override]
        """The number of classes."""
        return len(self.classes)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The device of the images."""
        return self.train.images.device

    @property
    def augments(self) -> bool:
        """Whether training images are cropped or mirrored at random."""
        return bool(self.crop_padding or self.flip)

    def split(self, name: str) -> Split:
        """Return the split called `name`. Raises `UsageError` if it is not train, val or test."""
        if name not in SPLITS:
            raise unknown("split", name, SPLITS)
        split: Split = getattr(self, name)
        return split

    def first(self, count: int) -> Classification:
        """Return the task with the first `count` validation and test images alone, or all if there are fewer."""
        val, test = self.val.take(slice(count)), self.test.take(slice(count))
        return replace(self, val=val, test=test, split_hash=hash_splits([self.train, val, test]))

    def size(self, split: str) -> int:
        """Return the number of images of a split."""
        return len(self.split(split))

    def inputs(self, split: str, index: Tensor | slice, seeds: Tensor | None = None) -> Tensor:
        """Return normalised images (B, C, H, W), or (M, B, C, H, W) for an index (M, B)."""
        return self.normalise(self.split(split).images[index])

    def targets(self, split: str, index: Tensor | slice, seeds: Tensor | None = None) -> Tensor:
        """Return labels (B,), or (M, B) for an index (M, B)."""
        return self.split(split).labels[index]

    def draw_augmentation(self, count: int, random: torch.Generator) -> Tensor:
        """Draw row, column and mirroring of each crop, int64 (3, count); (0, count) without augmentation."""
        if not self.augments:
            return torch.empty(0, count, dtype=torch.int64)
        offsets = torch.randint(2 * self.crop_padding + 1, (2, count), generator=random)
        mirrored = torch.randint(2, (1, count), generator=random)
        return torch.cat([offsets, mirrored if self.flip else torch.zeros_like(mirrored)])

    def augmented(self, index: Tensor, draws: Tensor, seeds: Tensor) -> Tensor:
        """Return normalised training images (M, B, C, H, W), cropped and mirrored by `draws` (M, 3, B)."""
        images = self.train.images[index]
        if self.augments:
            rows = draws.transpose(0, 1).flatten(1)  # (3, M * B)
            moved = crop_flip(images.flatten(0, 1), rows[:2], rows[2].bool(), self.crop_padding)
            images = moved.view_as(images)
        return self.normalise(images)

    def random_inputs(self, index: Tensor, random: torch.Generator) -> Tensor:
        """Return normalised training images (B, C, H, W), cropped and mirrored at random."""
        return self.normalise(self.augment(self.train.images[index], random))

    def score(self, outputs: Float[Tensor, "*M B C"], targets: Int64[Tensor, " B"]) -> Float[Tensor, "*M"]:
        """Return the accuracy."""
        return metrics.accuracy(outputs, targets)

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of logits (..., B, C) in nats."""
        return F.cross_entropy(outputs, targets)

    def behaviour_loss(
        self, predicted: Tensor, target: Tensor, temperature: float = 1.0, relative: bool = False
    ) -> Tensor:
        """Return the KL divergence at a temperature (NetSpace, Eq. 1): see `netspace.losses.prediction_loss`."""
        return losses.prediction_loss(predicted, target, temperature, relative)

    def distillation_loss(
        self, predicted: Tensor, teacher: Tensor, targets: Tensor, temperature: float, alpha: float
    ) -> Tensor:
        """Return the distillation loss (NetSpace, Eq. 5): see `netspace.losses.distillation_loss`."""
        return losses.distillation_loss(predicted, teacher, targets, temperature, alpha)

    def blend(self, first: Tensor, second: Tensor, gamma: Tensor) -> Tensor:
        """Return target logits (M, B, C) between two networks': see `netspace.losses.blend`."""
        return losses.blend(first, second, gamma)

    def agreement(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the fraction of images for which logits (..., B, C) predict the same class."""
        return metrics.agreement(first, second)

    def divergence(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return KL(target || predicted) of logits (..., B, C) in nats."""
        return metrics.divergence(predicted, target)

    def agreements(self, first: Tensor, second: Tensor) -> Tensor:
        """Count the images for which both of a pair predict the same class, (M, N) float32: exact."""
        return metrics.agreements(first, second)

    def divergences(self, target: Tensor, predicted: Tensor) -> Tensor:
        """Return KL(target || predicted) of every pair (M, N), summed over images."""
        return metrics.divergences(target, predicted)

    def votes(self, outputs: Tensor) -> Tensor:
        """Return the class probabilities of logits, both (..., B, C)."""
        return outputs.softmax(-1)

    def from_votes(self, votes: Tensor) -> Tensor:
        """Return the logits of which `votes` are the softmax, both (..., B, C)."""
        return votes.clamp_min(torch.finfo(votes.dtype).tiny).log()

    def identity(self, predicted: Tensor, target: Tensor, targets: Tensor) -> Identity:
        """Compare logits (M, B, C) with those of a network's own target and of others of the same accuracy."""
        return metrics.identity(predicted.argmax(-1), target.argmax(-1), targets)

    def normalisation(self) -> dict[str, list[float]]:
        """Return mean and standard deviation of each channel, pixels in 0..1."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    def score_metadata(self) -> dict[str, Any]:
        """Return nothing: zoo files without it mean accuracy."""
        return {}

    def subset(self, count: int, seed: int) -> Classification:
        """Return the task with `count` of its training images, drawn by the seed, or all if there are no more.

        Mean, standard deviation and hash stay those of the whole.
        """
        if count >= len(self.train):
            return self
        index = torch.randperm(len(self.train), generator=generator(seed, Stream.POOL))[:count].to(self.device)
        return replace(self, train=self.train.take(index))

    def to(self, device: torch.device | str) -> Classification:
        """Return the task on another device; data that are there already are not copied."""
        moved: dict[str, Any] = {key: getattr(self, key).to(device) for key in (*SPLITS, "mean", "std")}
        return replace(self, **moved)

    def normalise(self, images: Shaped[Tensor, "*B C H W"]) -> Float[Tensor, "*B C H W"]:
        """Normalise uint8 images: float32, with mean 0 and variance 1 of each channel over `train`."""
        scale = (1 / (255 * self.std))[:, None, None]
        shift = (self.mean / self.std)[:, None, None]
        return images.to(torch.float32).mul_(scale).sub_(shift)

    def augment(self, images: Shaped[Tensor, "*B C H W"], generator: torch.Generator) -> Shaped[Tensor, "*B C H W"]:
        """Crop and mirror uint8 images at random, by `crop_padding` and `flip` of this task: see `random_crop_flip`."""
        return random_crop_flip(images, generator, self.crop_padding, self.flip)

    def batches(
        self,
        split: Split | str,
        batch_size: int,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one pass over a split (or its name): uint8 images (B, C, H, W) and labels (B,).

        In order without a `generator`, else shuffled by it. The last batch may be smaller; `drop_last` then leaves it
        out.

        Raises `NetspaceError` unless `batch_size` is positive.
        """
        if batch_size < 1:
            raise NetspaceError(f"a batch has at least one image, not {batch_size}")
        chosen = self.split(split) if isinstance(split, str) else split
        order: Tensor | None = None
        if generator is not None:
            order = torch.randperm(len(chosen), generator=generator, device=generator.device)
            order = order.to(chosen.images.device)
        end = len(chosen) - len(chosen) % batch_size if drop_last else len(chosen)
        for start in range(0, end, batch_size):
            part = slice(start, start + batch_size)
            which = part if order is None else order[part]
            yield chosen.images[which], chosen.labels[which]


def channel_moments(images: UInt8[Tensor, "N C H W"]) -> tuple[Float32[Tensor, " C"], Float32[Tensor, " C"]]:
    """Return mean and standard deviation of each channel in units of 0..1, exact up to the last rounding.

    They are computed from the counts of the 256 levels. A constant channel has standard deviation 1/255, so that
    dividing by it is harmless.
    """
    levels = torch.arange(256, dtype=torch.float64, device=images.device) / 255
    rows = [torch.bincount(images[:, c].reshape(-1), minlength=256) for c in range(images.shape[1])]
    fraction = torch.stack(rows).double() / max(len(images) * images.shape[2] * images.shape[3], 1)  # (C, 256)
    mean = fraction @ levels
    variance = (fraction * (levels - mean[:, None]).square()).sum(1)
    return mean.float(), variance.sqrt().clamp(min=1 / 255).float()


def hash_splits(splits: Iterable[Split]) -> str:
    """Return the sha256, in hex, of the shape, images and labels of every split, in this order."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr(tuple(split.images.shape)).encode())
        digest.update(split.images.contiguous().cpu().numpy().data)
        digest.update(split.labels.cpu().numpy().astype("<i8").data)
    return digest.hexdigest()
