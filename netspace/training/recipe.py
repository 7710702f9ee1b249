"""What a user writes for a training: the recipe of a space, and that of a fit."""

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

    behaviour: float = Field(1.0, ge=0)  # Eq. 1: outputs of predicted and target network
    temperature: float = Field(4.0, gt=0)  # T of Eq. 1
    relative: bool = False  # T in units of the spread of each target's logits, so that weak networks count as much
    lines: float = Field(0.0, ge=0)  # the same between pairs: a latent on their line behaves like a blend of both
    weights: float = Field(0.0, ge=0)  # squared difference of parameters in units of their layer's spread


class MultiConfig(Settings):
    """The multi-architecture setting (NetSpace, Sec. III): which networks are shown, and what it adds to the loss."""

    counts: dict[str, NonNegativeInt] = Field(
        default_factory=dict
    )  # training members shown of an architecture, the first ones; not named: all; 0: none, it is only declared
    declared: dict[str, ArchConfig] = Field(
        default_factory=dict
    )  # architectures of which the zoo has no network at all
    batches: Literal["classes", "members", "pairs"] = (
        "classes"  # as many of every class in a batch; drawn from all alike; or pairs of two classes that stay together
    )
    teacher: str = "auto"  # the zoo's own, beside it; or a member, 'best', a zoo file, a network's file
    alpha: float = Field(0.9, ge=0, le=1)  # of Eq. 5 and 10: the teacher's share; the rest is the labels'
    temperature: float = Field(4.0, gt=0)  # T of Eq. 3 and 8
    distillation: float = Field(1.0, ge=0)  # weight of Eq. 5
    classid: float = Field(1.0, ge=0)  # of Eq. 6
    interpolation: float = Field(1.0, ge=0)  # of Eq. 11, for each point between a pair
    rows: int | None = Field(None, ge=4, multiple_of=4)  # of decoded PReps, at least; None: what the largest needs
    pairs: int | None = Field(
        None, ge=1
    )  # of a smallest and a largest network, at most, in a part of a batch; None: all


class SpaceRecipe(Settings):
    """How a latent space is learnt; the zoo is named beside it."""

    bundled: ClassVar[str] = "space"

    name: FileName = "space"
    seed: Seed = 0
    latent: int = Field(4096, ge=16)  # E: for convolutions and a ClassId head the square of a multiple of 4
    encoder: SerializeAsAny[EncoderConfig] = EncoderConfig()
    decoder: SerializeAsAny[DecoderConfig] = DecoderConfig()
    loss: LossConfig = LossConfig()
    multi: MultiConfig | None = None  # for several architectures; None: for a zoo of one
    optimizer: OptimizerConfig = OptimizerConfig()
    networks: int = Field(8, ge=1)  # in a batch, over all processes
    accumulate: int = Field(1, ge=1)  # parts that a batch's networks are taken in, one after another, to save memory
    images: int = Field(128, ge=1)  # in a batch, the same for all networks
    noise: float = Field(
        0.0, ge=0
    )  # on every second network, up to so much of each layer's spread: networks near the zoo's
    steps: int = Field(10_000, ge=1)
    validate_every: int = Field(500, ge=1)  # steps
    log_every: int = Field(50, ge=1)  # steps
    remember_targets: bool = True  # keep the targets' outputs for all training images, where they fit 1 GiB
    precision: Precision = "auto"  # of encoder and decoder: auto, float32 or bf16
    networks_precision: Precision = "auto"  # of the predicted and target networks
    recompute: bool = False  # the decoder's activations in the backward pass, instead of keeping them: to save memory
    compile: bool = False  # encoder and decoder by torch.compile: a minute at the start, pays on GPUs
    device: str = "auto"

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
        if not loss.behaviour + loss.lines + loss.weights + (multi.distillation + multi.interpolation if multi else 0):
            raise ValueError("all terms of the loss are 0")
        if multi and loss.lines:
            raise ValueError(
                "loss.lines is for one architecture; between several, multi.interpolation says what is learnt"
            )
        if multi and self.noise:
            raise ValueError(
                "noise is for one architecture: several learn from a teacher, which knows no disturbed networks"
            )
        if self.networks % self.accumulate:
            raise ValueError(f"{self.networks} networks cannot be taken in {self.accumulate} equal parts")
        return self


Teaches = Callable[[Tensor], Tensor]  # logits (B, C) for inputs (B, ...)


class StageConfig(Settings):
    """One stage of the fit, with an optimiser of its own."""

    steps: int = Field(8_000, ge=1)
    rounds: int = Field(
        1, ge=1
    )  # of so many steps; each after the first fits, from anew, what the one before gave ('progressive')
    reconstruction: float = Field(1.0, ge=0)  # weight of Eq. 3
    distillation: float = Field(0.0, ge=0)  # of Eq. 5
    features: float = Field(0.0, ge=0)  # of Eq. 4
    teacher: str | None = (
        None  # whose logits are distilled: a zoo's member, a zoo's best, a network's file; None: the network's own
    )
    inputs: Literal["task", "noise"] = "task"  # what is shown to the networks; noise: U[-1, 1], no data
    images: int = Field(256, ge=1)  # in a batch
    pool: int | None = Field(
        None, ge=1
    )  # of so many training images, drawn once, batches are made; the network's own maps for them are remembered
    kernels: int = Field(4096, ge=1)  # that gradients flow through in a step
    sampling: Literal["all", "layer", "uniform", "weighted"] = "weighted"  # how they are drawn
    # p_uni, the fraction of steps in which 'weighted' draws uniformly; in the others by norm, with replacement
    uniform: float = Field(0.8, ge=0, le=1)
    optimizer: OptimizerConfig = OptimizerConfig(name="muon", learning_rate=2e-3, muon_rate=0.02, schedule="cosine")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.reconstruction + self.distillation + self.features:
            raise ValueError("all terms of a stage are 0")
        if self.pool is not None and (self.inputs == "noise" or not self.runs_networks):
            raise ValueError("a pool is of the task's images: it wants inputs: task, and terms that run the networks")
        return self

    @property
    def runs_networks(self) -> bool:
        """Whether the networks themselves are run."""
        return self.distillation + self.features > 0


class FitConfig(Settings):
    """How a network is represented."""

    bundled: ClassVar[str] = "compress"

    seed: Seed = 0
    layers: tuple[str, ...] = ()  # patterns of the weights that are; none: all convolutions
    pointwise: Pointwise = "centre"  # how 1x1 convolutions are taken; tiles: as matrices, K * K times fewer coordinates
    side: int | None = Field(None, ge=1)  # K, larger convolutions left out; None: the largest's, 3 for matrices alone
    order: Literal["none", "in-filter", "cross-filter"] = "cross-filter"
    norms: bool = True  # filters in units of their norm, which is kept beside: as many values as a batch norm's scale
    predictor: PredictorConfig = PredictorConfig()
    stages: tuple[StageConfig, ...] = Field((StageConfig(),), min_length=1)
    validate_every: int = Field(500, ge=1)  # steps
    log_every: int = Field(50, ge=1)  # steps
    precision: Precision = "auto"  # of the networks that are run: auto, float32 or bf16
    predictor_precision: Precision = (
        "float32"  # of the predictor's steps, which bf16 makes less exact; it is validated in float32
    )

    @classmethod
    def completed(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """Fits from before `embedding.coordinates` was a setting had normalised ones."""
        predictor = raw.get("predictor")
        if not isinstance(predictor, dict) or not isinstance(predictor.get("embedding"), dict):
            return raw
        return {**raw, "predictor": {**predictor, "embedding": {"coordinates": "normalised", **predictor["embedding"]}}}
