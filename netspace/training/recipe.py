"""A space's recipe: everything that decides how a latent space is learnt from a zoo."""

from __future__ import annotations

from math import isqrt
from typing import Literal, Self

from pydantic import Field, model_validator

from netspace.config import Settings
from netspace.models.decoder import DecoderConfig
from netspace.models.encoder import EncoderConfig
from netspace.training.optimizers import OptimizerConfig


class LossConfig(Settings):
    """The terms of the loss and their weights."""

    behaviour: float = Field(1.0, ge=0)  # Eq. 1: outputs of predicted and target network
    temperature: float = Field(4.0, gt=0)  # T of Eq. 1
    relative: bool = False  # T in units of the spread of each target's logits, so that weak networks count as much
    lines: float = Field(0.0, ge=0)  # the same between pairs: a latent on their line behaves like a blend of both
    weights: float = Field(0.0, ge=0)  # squared difference of parameters in units of their layer's spread

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.behaviour + self.lines + self.weights:
            raise ValueError("all terms of the loss are 0")
        return self


class SpaceRecipe(Settings):
    """How a latent space is learnt; the zoo is named beside it."""

    name: str = "space"
    seed: int = 0
    latent: int = Field(4096, ge=16)  # E: a square of a multiple of 4; of 32 too for the convolutional encoder
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    networks: int = Field(8, ge=1)  # in a batch, over all processes
    accumulate: int = Field(1, ge=1)  # parts that a batch's networks are taken in, one after another, to save memory
    images: int = Field(128, ge=1)  # in a batch, the same for all networks
    steps: int = Field(10_000, ge=1)
    validate_every: int = Field(500, ge=1)  # steps
    log_every: int = Field(50, ge=1)  # steps
    remember_targets: bool = True  # keep the targets' outputs for all training images, where they fit 1 GiB
    precision: Literal["float32", "bf16"] = "float32"  # of encoder and decoder
    networks_precision: Literal["float32", "bf16"] = "float32"  # of the predicted and target networks
    recompute: bool = False  # the decoder's activations in the backward pass, instead of keeping them: to save memory
    compile: bool = False  # encoder and decoder by torch.compile: a minute at the start, pays on GPUs
    device: str = "auto"

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        side = isqrt(self.latent)
        if side * side != self.latent or side % 4 or (self.encoder.kind == "conv" and self.latent % 32):
            raise ValueError(
                f"latent is the square of a multiple of 4 (and for encoder.kind conv a multiple of 32 too), not {self.latent}"
            )
        if self.networks % self.accumulate:
            raise ValueError(f"{self.networks} networks cannot be taken in {self.accumulate} equal parts")
        return self
