"""What every encoder is: the parameters of a network become a latent vector (NetSpace, Sec. III). The kinds are in `encoders`.

Axes: M members (networks), H W of a PRep, E latent size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import Field
from torch import Tensor, nn

from netspace.config import KindSettings
from netspace.networks.family import Family

SLOPE = 0.01  # of every LeakyReLU, as the authors' implementation has it


class EncoderConfig(KindSettings):
    """Which encoder, and what it is made of."""

    kind: str = "conv"  # conv: the paper's convolutions on the weights; probe: outputs of the network for learnt inputs; token: attention to tokens of weights
    probes: int = Field(64, ge=1)  # number of learnt inputs fed to every network (probe)
    hidden: int = Field(256, ge=1)  # width of the layer between outputs and latent (probe)
    refine: int = Field(
        0, ge=0
    )  # steps of descent on each latent, after which the decoded network answers to the probes more as the encoded one does (probe)
    answers: Literal["values", "classes"] = (
        "values"  # loss of this descent: squared differences of outputs, or the KL divergence of Eq. 1 between classes (probe)
    )
    standardise: bool = True  # divide every parameter by the standard deviation of its layer in the zoo (conv)
    pad: bool = True  # pad the PReps of all architectures to the largest height, as in the paper (conv)

    @classmethod
    def table(cls) -> Mapping[str, type[Encoder]]:
        """Return the encoders by their kinds."""
        from netspace.models.encoders import ENCODERS

        return ENCODERS


@dataclass(frozen=True)
class Statistics:
    """What is known of a zoo's networks before the training: models set their scales by it."""

    examples: Mapping[int, Tensor]  # PReps (M, H, W) of every architecture that is trained on, by ClassId
    spread: Tensor  # (H, W) or (A, H, W), standard deviation of every parameter's layer
    references: Tensor | None  # (H, W) or (A, H, W), the PReps that decoded networks may start near
    deviation: Tensor  # as `spread`, but 0 and not 1 for layers that never vary: to multiply by, where spread divides


class Encoder(nn.Module, ABC):
    """Turns PReps into latents."""

    Config: ClassVar[type[EncoderConfig]] = EncoderConfig

    @classmethod
    @abstractmethod
    def build(
        cls, latent: int, config: EncoderConfig, family: Family, probes: Tensor | None, statistics: Statistics | None
    ) -> Self:
        """Return a fresh encoder of a family's networks. `probes` (Q, ...) are inputs of the networks.

        Without `statistics` weights are loaded afterwards, and nothing is measured.
        """

    @abstractmethod
    def forward(self, preps: Tensor, class_id: int = 0) -> Tensor:
        """Latents (M, E) of PReps (M, H, W) of one architecture."""

    @classmethod
    def refusal(cls, latent: int, config: EncoderConfig | None = None) -> str | None:
        """Return why the encoder cannot have a latent size, or its settings, in one sentence; None where it can."""
        if config is not None and config.refine:
            return f"encoder.refine ({config.refine}) takes encoder.kind probe, not {config.kind}: others have no inputs that networks answer to"
        return None

    @classmethod
    def completed(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """Return settings of earlier runs of several architectures with those that were not there then."""
        return raw

    def not_matrices(self) -> list[nn.Parameter]:
        """Return the parameters of two axes or more that are no weights of a linear map."""
        return []
