"""`Task`: what networks are for and how their outputs are scored; and the settings of a task's data.

Axes: M members (networks), N networks of another set, B inputs of a batch, C outputs of a network.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped, UInt8
from pydantic import Field
from torch import Tensor

from netspace import metrics
from netspace.config import Settings
from netspace.errors import NetspaceError, UsageError
from netspace.metrics import Identity

SPLITS = ("train", "val", "test")
CHUNK = 256  # inputs evaluated at once: few enough for a CPU's caches


class DataConfig(Settings):
    """Settings of data, their splits and their shape. Equal settings give equal data, on every machine."""

    name: str = "digits"  # one of netspace.tasks.DATASETS
    # folder of data sets; none: $NETSPACE_DATA, or ~/.cache/netspace/data; for 'folder' the folder of images itself, for 'meshes'
    # that of meshes
    root: Path | None = None
    image_size: int | None = Field(None, ge=1)  # height and width in pixels, antialiased; none: the data set's own
    channels: Literal[1, 3] | None = None  # 1 makes colour grey, 3 repeats grey; none: the data set's own
    split_seed: int = Field(0, ge=0, lt=2**32)  # seed of the stratified cut into splits
    # augmentation: zero pixels on each side before the random crop, 0 for no crop;
    # none: the data set's own (4 for CIFAR, 8 for Tiny-ImageNet, else 0)
    crop_padding: int | None = Field(None, ge=0)
    flip: bool | None = None  # augmentation: mirror every second image; none: the data set's own
    # normalisation: the mean of each channel that is subtracted, pixels in 0..1; none: the training images'
    mean: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] | None = Field(None, min_length=1)
    # normalisation: what each channel is divided by then; none: the training images' standard deviation
    std: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] | None = Field(None, min_length=1)
    limit: int | None = Field(None, ge=1)  # keep only this many training images, stratified
    classes: int | None = Field(None, ge=1)  # number of classes of 'generated' (10)
    # what networks of shapes give: sdf, signed distances (the default); occupancy, logits of being outside
    field: Literal["sdf", "occupancy"] | None = None
    points: int | None = Field(None, ge=64)  # training points of each network of a shape; none: 8,192
    # of 'meshes': networks of each mesh, one of it as it is, the others of it stretched at random along its axes; none: 1
    variants: int | None = Field(None, ge=1)
    # of 'pictures': the data set of images that networks hold, one each; of 'generation': that of images to generate; of
    # 'segmentation': what is pasted over photographs, digits or emoji; none: digits
    images: str | None = None
    latent: int | None = Field(None, ge=1)  # of 'generation': values of a latent, which are its noise too; none: 16


def data_root(root: Path | None = None) -> Path:
    """Return the folder of the data sets: `root`, else $NETSPACE_DATA, else ~/.cache/netspace/data."""
    return Path(root or os.environ.get("NETSPACE_DATA") or Path("~", ".cache", "netspace", "data")).expanduser()


class Task(ABC):
    """A task of networks: its data, losses and scores. The defaults are those of a regression.

    A network is identified by the `seed` of its training run, -1 if it has none (such as one decoded from a point
    between two). A task whose networks share inputs and targets ignores seeds. With `own_targets` each network was
    fitted to targets of its own, which follow from its seed and are NaN for seed -1; with `own_inputs` its inputs
    follow from it, too, and those without seeds or for seed -1 are what networks are compared with each other on.
    Data are split into 'train', 'val' and 'test'; `index` picks B inputs of a split: a slice, integers (B,) for all
    networks alike, or integers (M, B).
    """

    name: str
    device: torch.device
    split_hash: str  # of the content: equal hashes, equal data; 64 hex digits
    input_shape: tuple[int, ...]  # of one input
    num_outputs: int  # C: if an output has several axes, all of its values

    score_name: ClassVar[str] = "score"  # in files and tables
    score_noun: ClassVar[str] = ""  # in sentences, where the name is none; '': the name
    score_meaning: ClassVar[str] = ""  # a phrase that says what the score is
    loss_name: ClassVar[str] = "mean squared difference"  # of `divergence`, in tables
    higher_is_better: ClassVar[bool] = True  # of scores
    own_inputs: ClassVar[bool] = False
    own_targets: ClassVar[bool] = False
    input_noun: ClassVar[str] = "inputs"  # in messages
    output_noun: ClassVar[str] = "outputs"
    surfaces: ClassVar[bool] = False  # outputs are a field in [-1, 1]^3, below 0 inside of a shape
    upright: tuple[int, int] = (1, 2)  # of shapes: the axes that point up and to their front; 0 is x, 1 y, 2 z

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of a network's output for one input; its C values are flattened where M networks are run at once."""
        return (self.num_outputs,)

    @property
    def arch_settings(self) -> dict[str, int]:
        """Settings of architectures that the task decides and that do not follow from shapes, by name."""
        return {}

    @property
    def augments(self) -> bool:
        """Whether training inputs are changed at random."""
        return False

    def first(self, count: int) -> Task:
        """Return the task with the first `count` validation and test inputs alone. Raises `UsageError` where that makes no sense."""
        raise UsageError(
            f"{count:,} {self.input_noun} were to be compared, but {self.name} is evaluated on all of its {self.input_noun}: leave "
            "--images out"
        )

    @abstractmethod
    def size(self, split: str) -> int:
        """Return the number of inputs of a split."""

    @abstractmethod
    def inputs(self, split: str, index: Tensor | slice, seeds: Int64[Tensor, " M"] | None = None) -> Tensor:
        """Return normalised inputs: (B, ...) for all networks, or (M, B, ...) with `own_inputs` or an index (M, B)."""

    @abstractmethod
    def targets(self, split: str, index: Tensor | slice, seeds: Int64[Tensor, " M"] | None = None) -> Tensor:
        """Return targets: (B, ...) for all networks, or (M, B, ...) with `own_targets` or an index (M, B)."""

    @abstractmethod
    def score(self, outputs: Float[Tensor, "*M B C"], targets: Tensor) -> Float[Tensor, "*M"]:
        """Return a score from 0 to 1, averaged over inputs, for targets (B, ...), or (M, B, ...) of each network."""

    def draw_augmentation(self, count: int, random: torch.Generator) -> Shaped[Tensor, "K N"]:
        """Draw K random numbers for each of `count` training inputs, to augment them in one epoch; K is 0 for none."""
        return torch.empty(0, count)

    def augmented(
        self, index: Int64[Tensor, "M B"], draws: Shaped[Tensor, "M K B"], seeds: Int64[Tensor, " M"]
    ) -> Tensor:
        """Return training inputs (M, B, ...) augmented by `draws`, a part of what `draw_augmentation` returned."""
        return self.inputs("train", index, seeds)

    def random_inputs(self, index: Int64[Tensor, " B"], random: torch.Generator) -> Tensor:
        """Return training inputs (B, ...) for all networks, augmented at random if the task `augments`."""
        return self.inputs("train", index)

    @torch.no_grad()
    def evaluate(
        self,
        networks: Callable[[Tensor], Float[Tensor, "M B C"]],
        split: str,
        seeds: Int64[Tensor, " M"],
        limit: int | None = None,
        targets: Tensor | None = None,
        inputs: Tensor | None = None,
    ) -> Float[Tensor, " M"]:
        """Return scores of networks on the inputs of a split, or the first `limit`; `networks` maps inputs to outputs.

        `targets` and `inputs` (M, N, ...) replace those of the seeds.
        """
        count, total = 0, torch.zeros(len(seeds), dtype=torch.float64, device=self.device)
        for outputs, truth in self.outputs_and_targets(networks, split, seeds, limit, targets, inputs):
            total += self.score(outputs, truth) * outputs.shape[1]
            count += outputs.shape[1]
        return total / count

    def outputs_and_targets(
        self,
        networks: Callable[[Tensor], Float[Tensor, "M B C"]],
        split: str,
        seeds: Int64[Tensor, " M"],
        limit: int | None = None,
        targets: Tensor | None = None,
        inputs: Tensor | None = None,
        chunk: int = CHUNK,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield outputs of networks and what they should be, of `chunk` inputs at a time; for `evaluate`, with its arguments."""
        count = min(self.size(split), limit or self.size(split))
        for start in range(0, count, chunk):
            part = slice(start, min(start + chunk, count))
            truth = self.targets(split, part, seeds) if targets is None else targets[:, part].to(self.device)
            batch = self.inputs(split, part, seeds) if inputs is None else inputs[:, part].to(self.device)
            yield networks(batch), truth

    def assess(
        self,
        networks: Callable[[Tensor], Float[Tensor, "M B C"]],
        split: str,
        seeds: Int64[Tensor, " M"],
        limit: int | None = None,
    ) -> dict[str, Float[Tensor, " M"]]:
        """Return the score of networks, by its name, and what else a task measures; arguments as for `evaluate`."""
        return {self.score_name: self.evaluate(networks, split, seeds, limit)}

    def merit(self, score: Any) -> Any:
        """Return the score, or 1 minus it if lower is better: higher is always better."""
        return score if self.higher_is_better else 1 - score

    def training_loss(self, outputs: Float[Tensor, "*M B C"], targets: Tensor) -> Float[Tensor, ""]:
        """Return the loss that networks are trained with; by default the mean squared error."""
        return F.mse_loss(outputs, targets)

    def behaviour_loss(
        self,
        predicted: Float[Tensor, "*M B C"],
        target: Float[Tensor, "*M B C"],
        temperature: float = 1.0,
        relative: bool = False,
    ) -> Float[Tensor, ""]:
        """Return the loss between outputs of predicted and target networks (NetSpace, Eq. 1 or 2); default: squared."""
        return F.mse_loss(predicted.float(), target.float())

    def distillation_loss(
        self,
        predicted: Float[Tensor, "M B C"],
        teacher: Float[Tensor, "B C"],
        targets: Tensor,
        temperature: float,
        alpha: float,
    ) -> Float[Tensor, " M"]:
        """Return each network's loss on a teacher's outputs, with weight `alpha`, and on targets (NetSpace, Eq. 5)."""
        rows = [
            alpha * self.behaviour_loss(each, teacher, temperature)
            + (1 - alpha) * self.training_loss(each.float(), targets)
            for each in predicted
        ]
        return torch.stack(rows)

    def blend(
        self, first: Float[Tensor, "M B C"], second: Float[Tensor, "M B C"], gamma: Float[Tensor, " M"]
    ) -> Float[Tensor, "M B C"]:
        """Return the target outputs of networks between two: their outputs, mixed with `gamma` of the second."""
        return torch.lerp(first.float(), second.float(), gamma.view(-1, 1, 1))

    def inputs_between(
        self,
        split: str,
        first: Int64[Tensor, " M"],
        second: Int64[Tensor, " M"],
        gamma: Float[Tensor, " M"],
    ) -> Tensor | None:
        """Return inputs (M, B, ...) for networks between two others (seeds `first` and `second`, both (M,)).

        They are mixed as targets are in `targets_between`, so that those at the ends are the two networks' own. None if all
        networks share their inputs.
        """
        return _mixed(self.inputs, split, first, second, gamma) if self.own_inputs else None

    def targets_between(
        self,
        split: str,
        first: Int64[Tensor, " M"],
        second: Int64[Tensor, " M"],
        gamma: Float[Tensor, " M"],
    ) -> Tensor | None:
        """Return targets (M, B, ...) for networks between two others (seeds `first` and `second`, both (M,)).

        They are mixed with weight `gamma` (M,) on the second. None if all networks share their targets.
        """
        return _mixed(self.targets, split, first, second, gamma) if self.own_targets else None

    def agreement(self, first: Float[Tensor, "*#M B C"], second: Float[Tensor, "*#M B C"]) -> Float[Tensor, ...]:
        """Return how alike outputs are, from 0 to 1; by default their concordance (Lin, 1989), 0 if it is negative."""
        return metrics.concordance(first, second)

    def divergence(self, predicted: Float[Tensor, "*M B C"], target: Float[Tensor, "*M B C"]) -> Float[Tensor, "*M"]:
        """Return the behaviour loss of each network by itself, in float64."""
        return (predicted.double() - target.double()).square().mean((-2, -1))

    def agreements(self, first: Float[Tensor, "M B C"], second: Float[Tensor, "N B C"]) -> Float[Tensor, "M N"]:
        """Return the agreement of every pair, up to one factor for all."""
        return torch.stack([self.agreement(each.expand_as(second), second) for each in first])

    def divergences(self, target: Float[Tensor, "M B C"], predicted: Float[Tensor, "N B C"]) -> Float[Tensor, "M N"]:
        """Return the divergence of every pair, up to one factor for all."""
        return torch.stack([self.divergence(predicted, each.expand_as(predicted)) for each in target])

    def measures(self, outputs: Float[Tensor, "*M B C"], targets: Tensor) -> dict[str, Float[Tensor, "*M"]]:
        """Return further measures of networks, by name, for targets (B, ...), or (M, B, ...) of each network."""
        return {}

    def pictures(
        self, network: Callable[[Tensor], Tensor], split: str, index: Int64[Tensor, " S"]
    ) -> dict[str, UInt8[np.ndarray, "S h w 3"]]:
        """Return rows of images by name that show what one network makes of inputs; empty where there is nothing to see."""
        return {}

    def votes(self, outputs: Float[Tensor, "*M B C"]) -> Float[Tensor, "*M B C"]:
        """Return what the members of an ensemble average; by default their outputs."""
        return outputs

    def from_votes(self, votes: Float[Tensor, "*M B C"]) -> Float[Tensor, "*M B C"]:
        """Return the outputs that have these `votes`."""
        return votes

    def identity(self, predicted: Float[Tensor, "M B C"], target: Float[Tensor, "M B C"], targets: Tensor) -> Identity:
        """Compare predicted networks with their own targets and with other networks of the same score."""
        return metrics.identity_of(self.agreements(predicted, target), self.score(target, targets))

    def prepare(self, seeds: Int64[Tensor, " M"]) -> None:  # noqa: B027 - most tasks have nothing to prepare
        """Compute in advance, on all cores, what takes long and networks with these seeds need."""

    def member_name(self, seed: int) -> str:
        """Return the name of the signal that a network was fitted to, such as 'chair/0003'; '' for none."""
        return ""

    def labels(self, seeds: Int64[Tensor, " M"]) -> dict[str, Any]:
        """Return what is known of the signals that networks were fitted to, arrays (M,) by name."""
        return {}

    def normalisation(self) -> dict[str, list[float]]:
        """Return the mean and standard deviation that inputs are normalised by, if the task has them."""
        return {}

    def score_metadata(self) -> dict[str, Any]:
        """Return what a zoo's file says of the score; empty for classification."""
        return {"name": self.score_name, "higher_is_better": self.higher_is_better}

    def score_field(self) -> dict[str, Any]:
        """Return the field `score` of a command's result; empty if the fields `accuracy_*` are accuracies."""
        if not self.score_metadata():
            return {}
        texts = {
            "noun": self.score_noun,
            "meaning": self.score_meaning,
            "loss": self.loss_name,
            "inputs": self.input_noun,
        }
        said = {name: text for name, text in texts.items() if text}
        return {"score": {**self.score_metadata(), **said, "own_targets": self.own_targets}}


def _mixed(values: Callable[..., Tensor], split: str, first: Tensor, second: Tensor, gamma: Tensor) -> Tensor:
    """Return what two networks (seeds (M,)) have for a split, mixed with weight `gamma` (M,) on the second."""
    ends = (values(split, slice(None), seeds) for seeds in (first, second))
    return torch.stack([torch.lerp(one, other, float(g)) for one, other, g in zip(*ends, gamma, strict=True)])


def missing(name: str, looked: Sequence[Path], how: str) -> NetspaceError:
    """Return the error for a data set that is not on this machine: where it was looked for, and how to get it."""
    paths = ", ".join(str(path) for path in looked)
    return NetspaceError(
        f"data set {name!r} is not on this machine: looked in {paths}; {how}, or let NETSPACE_DATA (or the "
        f"setting root) name the folder that holds it."
    )


def broken(path: Path, expected: str, actual: str) -> NetspaceError:
    """Return the error for a file whose content is not what its name says."""
    return NetspaceError(f"{path} is broken: expected {expected}, found {actual}; get this file again.")
