"""Encoder and decoder together, built from settings for the networks of a zoo, and the ClassId head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt

import torch
from torch import Tensor, nn

from netspace.models.decoders import DECODERS, SQUARE, Decoder, DecoderConfig, is_square
from netspace.models.encoders import ENCODERS, SLOPE, Encoder, EncoderConfig, Statistics
from netspace.networks.family import Family
from netspace.networks.prep import pack
from netspace.networks.spec import NetSpec

CHANNELS = 10  # after the convolution, as the authors' implementation has it


class ClassIdHead(nn.Module):
    """One convolution on the latent as a square image, LeakyReLU, and one linear layer."""

    def __init__(self, latent: int, classes: int) -> None:
        super().__init__()
        self.side = isqrt(latent)
        self.conv = nn.Conv2d(1, CHANNELS, 3, stride=2, padding=1)
        self.activation = nn.LeakyReLU(SLOPE)
        self.fc = nn.Linear(CHANNELS * (self.side // 2) ** 2, classes)

    @classmethod
    def refusal(cls, latent: int) -> str | None:
        """Return why the head cannot read a latent size; None where it can."""
        return None if is_square(latent) else f"several architectures take a latent size that is {SQUARE}, not {latent}"

    def forward(self, latents: Tensor) -> Tensor:
        """ClassId logits (M, A) of latents (M, E)."""
        seen = self.activation(self.conv(latents.view(-1, 1, self.side, self.side)))
        logits: Tensor = self.fc(seen.flatten(1))
        return logits.float()


class AutoEncoder(nn.Module):
    """Encoder, decoder and, for several architectures, the ClassId head (NetSpace, Suppl. I, Fig. 1).

    A step's networks come in one batch an architecture, PReps (M, H, W) of its own height, which the convolutional encoder
    pads to the largest; decoded PReps have the height of the largest, and smaller networks fill their first rows.
    """

    spread: Tensor

    def __init__(self, encoder: Encoder, decoder: Decoder, spread: Tensor, head: ClassIdHead | None = None) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.register_buffer("spread", spread)  # (H, W) or (A, H, W), of every parameter's layer over the zoo
        self.head = head  # None for a single architecture

    def forward(
        self, groups: Sequence[tuple[int, Tensor]], pairs: Tensor, gamma: Tensor, class_ids: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Decoded PReps (M + S, H, W) of PReps (M_c, H_c, W) by ClassId and of points between them, and ClassId logits.

        `pairs` (2, S) are rows among the M networks, in the order of the groups, and `gamma` (S,) says how far between the
        two a point lies; `class_ids` (M + S,) as which architectures all are decoded. The logits are (M + S, A), or None
        without a head.
        """
        latents = torch.cat([self.encoder(preps, class_id) for class_id, preps in groups])
        first, second = latents.index_select(0, pairs[0]), latents.index_select(0, pairs[1])
        points = torch.cat([latents, torch.lerp(first, second, gamma[:, None].to(latents.dtype))])
        return self.decoder(points, class_ids), None if self.head is None else self.head(points)

    def elementwise(self) -> list[nn.Parameter]:
        """Return the decoder's parameters of one value for each element of a PRep."""
        return self.decoder.elementwise()

    def not_matrices(self) -> list[nn.Parameter]:
        """Return the parameters of two axes or more that are no weights of a linear map."""
        return [*self.encoder.not_matrices(), *self.decoder.not_matrices()]

    def class_ids(self, latents: Tensor) -> Tensor:
        """The ClassIds (M,) that the head reads from latents (M, E); 0 for a single architecture."""
        if self.head is None:
            return torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
        logits: Tensor = self.head(latents)
        return logits.argmax(-1)


def layer_spread(preps: Tensor, spec: NetSpec, size: tuple[int, int] | None = None) -> Tensor:
    """The standard deviation of each parameter tensor over PReps (M, H, W), laid out as a PRep of `size` or (H, W).

    Padding and tensors that never vary have 1, so that dividing by it is always defined.
    """
    flat = preps.flatten(1)[:, : spec.num_parameters]
    pieces = [piece.std(correction=0).expand(piece.shape[1]) for piece in flat.split(spec.sizes, dim=1)]
    spread = pack(torch.cat(pieces), size or (preps.shape[1], preps.shape[2]))
    return torch.where(spread > 0, spread, torch.ones_like(spread))


def layer_deviation(spread: Tensor, parameters: int) -> Tensor:
    """Return the spread (H, W) that `layer_spread` gave for so many parameters, with 0 for tensors that never vary.

    It is to multiply by: noise, and networks drawn around another one, leave such tensors as they are. Padding keeps 1.
    """
    flat = spread.flatten()
    never = (flat == 1) & (torch.arange(len(flat), device=flat.device) < parameters)
    return flat.masked_fill(never, 0).view_as(spread)


def build_autoencoder(
    latent: int,
    encoder: EncoderConfig,
    decoder: DecoderConfig,
    family: Family,
    probes: Tensor | None = None,
    examples: Mapping[int, Tensor] | None = None,
    references: Mapping[int, Tensor] | None = None,
) -> AutoEncoder:
    """The model that settings describe; with a ClassId head where the family has several architectures.

    `examples`, PReps (M, H, W) by ClassId, are networks of every architecture that set scales; `probes` (Q, ...) the inputs
    that probes start from; `references`, PReps (H, W), those that decoded networks start near. With `examples` None (when
    weights are loaded afterwards) nothing is measured.
    """
    size, spread, statistics = family.size, family.ones(), None
    if examples is not None:
        spreads = [layer_spread(examples[class_id], each.spec, size) for class_id, each in enumerate(family)]
        spread = _stacked(spreads)
        deviations = [layer_deviation(each, arch.parameters) for each, arch in zip(spreads, family, strict=True)]
        trained = {class_id: examples[class_id] for class_id, each in enumerate(family) if each.trained}
        near = None if references is None else [references[class_id] for class_id in range(len(family))]
        padded = near and [
            pack(each.flatten()[: arch.parameters], size) for each, arch in zip(near, family, strict=True)
        ]
        statistics = Statistics(trained, spread, _stacked(padded) if padded else None, _stacked(deviations))
    made = ENCODERS[encoder.kind].build(latent, encoder, family, probes, statistics)
    back = DECODERS[decoder.kind].build(latent, decoder, family)
    if statistics is not None:
        back.initialise(statistics, made)
    return AutoEncoder(made, back, spread, ClassIdHead(latent, len(family)) if len(family) > 1 else None)


def _stacked(preps: list[Tensor]) -> Tensor:
    """(A, H, W), or (H, W) of a single architecture."""
    return torch.stack(preps) if len(preps) > 1 else preps[0]
