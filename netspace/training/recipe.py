"""Recipes of trainings: of a latent space, and of a fit of one network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, SerializeAsAny, model_validator
from torch import Tensor

from netspace.archs import ArchConfig
from netspace.config import FileName, Seed, Settings
from netspace.models.autoencoder import ClassIdHead
from netspace.models.coordinate_network import PredictorConfig
from netspace.models.decoders import DECODERS, DecoderConfig
from netspace.models.encoders import ENCODERS, EncoderConfig
from netspace.networks.kernels import Pointwise
from netspace.precision import Precision
from netspace.training.optimizers import OptimizerConfig


class LossConfig(Settings):
    """The terms of the loss and their weights; `multi` has more of its own."""

    behaviour: float = Field(
        1.0, ge=0
    )  # weight of Eq. 1: divergence between the outputs of predicted and target network
    temperature: float = Field(4.0, gt=0)  # T of Eq. 1, for the behaviour term
    relative: bool = (
        False  # T in units of the standard deviation of each target's logits, so that weak networks count as much
    )
    lines: float = Field(
        0.0, ge=0
    )  # weight of Eq. 1 for points between pairs of networks: their network behaves like a blend of both
    contrastive: float = Field(
        0.0, ge=0
    )  # weight of InfoNCE: outputs of a predicted network are nearer to its own target's than to those of others in the batch
    contrast: float = Field(0.1, gt=0)  # temperature of InfoNCE
    weights: float = Field(
        0.0, ge=0
    )  # weight of the squared difference of parameters, in units of the standard deviation of their layer


class MultiConfig(Settings):
    """The multi-architecture setting (NetSpace, Sec. III): the networks that are trained on, and the terms of the loss."""

    counts: dict[str, NonNegativeInt] = Field(
        default_factory=dict
    )  # training members used of each architecture, the first ones; if not named: all; 0: the architecture is unseen
    declared: dict[str, ArchConfig] = Field(
        default_factory=dict
    )  # further architectures, of which the zoo has no network
    batches: Literal["classes", "members", "pairs"] = (
        "classes"  # classes: equally many of each architecture in a batch; members: drawn from all members; pairs: fixed pairs of two
    )
    teacher: str = (
        "auto"  # auto: the teacher built with the zoo; or a member, 'best', a zoo file, the file of a network
    )
    alpha: float = Field(0.9, ge=0, le=1)  # of Eq. 5 and 10: weight of the teacher; the labels have 1 - alpha
    temperature: float = Field(4.0, gt=0)  # T of Eq. 3 and 8, for the teacher's outputs
    distillation: float = Field(1.0, ge=0)  # weight of Eq. 5: distillation from the teacher
    classid: float = Field(1.0, ge=0)  # weight of Eq. 6: the ClassId head
    interpolation: float = Field(1.0, ge=0)  # weight of Eq. 11, for each point between a pair of networks
    rows: int | None = Field(
        None, ge=4, multiple_of=4
    )  # minimum height H of decoded PReps; none: the height of the largest architecture
    pairs: int | None = Field(
        None, ge=1
    )  # maximum number of pairs of a smallest and a largest network in a part of a batch; none: all pairs


class SizesConfig(Settings):
    """Other architectures that some networks of a batch are also decoded as, so that sizes between them can be asked for."""

    archs: dict[str, ArchConfig] = Field(min_length=1)  # one of them is drawn in each step
    networks: int = Field(4, ge=1)  # networks of a batch that are also decoded as it, all of one architecture
    weight: float = Field(1.0, gt=0)  # of Eq. 1 between them and the networks that were encoded


class SpaceRecipe(Settings):
    """The recipe of a latent space; the zoo is an argument of its own."""

    bundled: ClassVar[str] = "space"

    name: FileName = "space"  # names the run folder, runs/NAME
    seed: Seed = 0  # of all random numbers
    latent: int = Field(
        4096, ge=16
    )  # E, values of a latent; for decoder.kind conv and for `multi` the square of a multiple of 4
    encoder: SerializeAsAny[EncoderConfig] = EncoderConfig()
    decoder: SerializeAsAny[DecoderConfig] = DecoderConfig()
    loss: LossConfig = LossConfig()
    multi: MultiConfig | None = None  # settings of a space of several architectures; none: a space of one architecture
    sizes: SizesConfig | None = None  # other architectures to decode; none: those of the family alone
    optimizer: OptimizerConfig = OptimizerConfig()
    networks: int = Field(8, ge=1)  # networks in a batch, over all processes
    accumulate: int = Field(
        1, ge=1
    )  # parts into which the networks of a batch are split, one after another, to save memory
    images: int = Field(128, ge=1)  # images in a batch, the same for all networks
    noise: float = Field(
        0.0, ge=0
    )  # maximum noise on every second network of a batch, in units of the standard deviation of each layer; 0: none
    steps: int = Field(10_000, ge=1)  # steps of the optimiser
    # agreement on validation members at which training ends before its last step, as for shapes in the paper; none: never
    stop_at: float | None = Field(None, gt=0, le=1)
    validate_every: int = Field(500, ge=1)  # steps
    log_every: int = Field(50, ge=1)  # steps
    remember_targets: bool = True  # cache the outputs of the target networks for all training images, if they fit 1 GiB
    precision: Precision = "auto"  # of encoder and decoder; auto: the faster one on this machine
    networks_precision: Precision = "auto"  # of the predicted and target networks; auto: the faster one on this machine
    recompute: bool = False  # compute the decoder's activations again in the backward pass, to save memory
    compile: bool = False  # compile encoder and decoder with torch.compile: a minute at the start, worth it on GPUs
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto: a GPU if there is one

    @classmethod
    def completed(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """Return an earlier run's settings with those of its encoder that were not there then."""
        encoder = raw.get("encoder")
        if raw.get("multi") and isinstance(encoder, dict) and encoder.get("kind") in ENCODERS:
            return {**raw, "encoder": ENCODERS[encoder["kind"]].completed(encoder)}
        return raw

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        head = ClassIdHead.refusal(self.latent) if self.multi else None
        back = DECODERS[self.decoder.kind].refusal(self.latent, self.decoder)
        if problem := head or back or ENCODERS[self.encoder.kind].refusal(self.latent, self.encoder):
            raise ValueError(problem)
        loss, multi = self.loss, self.multi
        if (
            not loss.behaviour
            + loss.lines
            + loss.weights
            + loss.contrastive
            + (multi.distillation + multi.interpolation if multi else 0)
        ):
            raise ValueError("all terms of the loss are 0")
        if multi and loss.lines:
            raise ValueError("loss.lines is for one architecture; between several, use multi.interpolation")
        if multi and self.noise:
            raise ValueError(
                "noise is for one architecture: several learn from a teacher, which has no outputs for networks with noise"
            )
        if self.sizes and not (self.decoder.kind == "coordinate" and self.decoder.start == "emitted"):
            raise ValueError("sizes are decoded by decoder.kind coordinate with start: emitted alone")
        if self.networks % self.accumulate:
            raise ValueError(f"{self.networks} networks cannot be taken in {self.accumulate} equal parts")
        return self


Teaches = Callable[[Tensor], Tensor]  # a teacher: logits (B, C) for inputs (B, ...)


class StageConfig(Settings):
    """One stage of the fit, with an optimiser of its own."""

    steps: int = Field(8_000, ge=1)  # steps of the optimiser in each round
    rounds: int = Field(
        1, ge=1
    )  # repetitions of these steps; each after the first fits a new predictor to the result of the one before ('progressive')
    reconstruction: float = Field(1.0, ge=0)  # weight of Eq. 3: reconstruction of the weights
    distillation: float = Field(0.0, ge=0)  # weight of Eq. 5: distillation of logits
    features: float = Field(0.0, ge=0)  # weight of Eq. 4: distance of feature maps
    teacher: str | None = (
        None  # whose logits are distilled: a zoo member, the best of a zoo, the file of a network; none: the original network
    )
    inputs: Literal["task", "noise"] = "task"  # inputs of the networks; noise: U[-1, 1], without data
    images: int = Field(256, ge=1)  # images in a batch
    pool: int | None = Field(
        None, ge=1
    )  # draw batches from this many training images, and cache the original's feature maps of them; none: all images
    kernels: int = Field(4096, ge=1)  # number of kernels that get a gradient in a step
    sampling: Literal["all", "layer", "uniform", "weighted"] = "weighted"  # how these kernels are drawn
    # p_uni: fraction of steps in which 'weighted' draws uniformly; in the others it draws by norm, with replacement
    uniform: float = Field(0.8, ge=0, le=1)
    optimizer: OptimizerConfig = OptimizerConfig(name="muon", learning_rate=2e-3, muon_rate=0.02, schedule="cosine")

    @model_validator(mode="after")
    def _has_terms(self) -> Self:
        if not self.reconstruction + self.distillation + self.features:
            raise ValueError("all terms of a stage are 0")
        if self.pool is not None and (self.inputs == "noise" or not self.runs_networks):
            raise ValueError("a pool holds images of the task: it needs inputs: task, and terms that run the networks")
        return self

    @property
    def runs_networks(self) -> bool:
        """Whether the networks themselves are run."""
        return self.distillation + self.features > 0


class FitConfig(Settings):
    """The recipe of a fit: how a network is represented by a coordinate network."""

    bundled: ClassVar[str] = "compress"

    seed: Seed = 0  # of all random numbers
    layers: tuple[str, ...] = ()  # patterns of the names of the weights to represent; empty: all convolutions
    pointwise: Pointwise = "centre"  # 1x1 convolutions as the centre of a kernel, or as matrices cut into tiles, with K * K times fewer coordinates
    side: int | None = Field(
        None, ge=1
    )  # K, side of the kernels; larger convolutions are left out; none: that of the largest, 3 if there are only matrices
    order: Literal["none", "in-filter", "cross-filter"] = "cross-filter"  # of the kernels of a layer (NeRN, Sec. 3.3)
    norms: bool = True  # fit filters in units of their norm, which is stored separately: as many values as the scale of a batch norm
    zeros: bool = True  # keep the exact zeros of layers where a tenth of the values are zero, as pruning leaves them, by a mask in the file
    predictor: PredictorConfig = PredictorConfig()
    stages: tuple[StageConfig, ...] = Field((StageConfig(),), min_length=1)  # one after the other
    validate_every: int = Field(500, ge=1)  # steps
    log_every: int = Field(50, ge=1)  # steps
    precision: Precision = "auto"  # of the networks that are run; auto: the faster one on this machine
    predictor_precision: Precision = (
        "float32"  # of the steps of the predictor, which are less exact in bf16; validation is in float32
    )

    @classmethod
    def completed(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """Return an earlier fit's settings with normalised coordinates, the only ones there were then."""
        predictor = raw.get("predictor")
        if not isinstance(predictor, dict) or not isinstance(predictor.get("embedding"), dict):
            return raw
        return {**raw, "predictor": {**predictor, "embedding": {"coordinates": "normalised", **predictor["embedding"]}}}
