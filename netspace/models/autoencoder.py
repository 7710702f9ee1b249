"""Encoder and decoder together, built from settings for the networks of one architecture.

Axes: M members, P parameters, H W of a PRep, E latent size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from netspace.functional import NetBatch
from netspace.models.decoder import ConvDecoder, DecoderConfig
from netspace.models.encoder import ConvEncoder, EncoderConfig, ProbeEncoder
from netspace.prep import pack
from netspace.spec import NetSpec


class AutoEncoder(nn.Module):
    """Encoder and decoder; the forward pass is a training step's, both and what lies between pairs."""

    spread: Tensor
    decoder: ConvDecoder

    def __init__(self, encoder: nn.Module, decoder: ConvDecoder, spread: Tensor) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.register_buffer("spread", spread)  # (H, W), of every parameter's layer over the zoo

    def forward(self, preps: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Decoded PReps (M, H, W) of PReps (M, H, W), and those between pairs (S, H, W).

        Pair i is networks i and S + i; `share` (S,) says how far on the line between their latents, from 0 to 1.
        """
        latents = self.encoder(preps)
        pairs = len(share)
        between = torch.lerp(latents[:pairs], latents[pairs : 2 * pairs], share[:, None].to(latents.dtype))
        decoded = self.decoder(torch.cat([latents, between]))
        return decoded[: len(latents)], decoded[len(latents) :]

    def both(self, preps: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (M, E) and decoded PReps (M, H, W) of PReps (M, H, W)."""
        latents = self.encoder(preps)
        return latents, self.decoder(latents)


def layer_spread(preps: Tensor, spec: NetSpec) -> Tensor:
    """The standard deviation of each parameter tensor over PReps (M, H, W), laid out as a PRep (H, W).

    Padding and tensors that never vary have 1, so that dividing by it is always defined.
    """
    flat = preps.flatten(1)[:, : spec.num_parameters]
    pieces = [piece.std(correction=0).expand(piece.shape[1]) for piece in flat.split(spec.sizes, dim=1)]
    spread = pack(torch.cat(pieces), (preps.shape[1], preps.shape[2]))
    return torch.where(spread > 0, spread, torch.ones_like(spread))


def build_autoencoder(
    latent: int,
    encoder: EncoderConfig,
    decoder: DecoderConfig,
    nets: NetBatch,
    probes: Tensor | None,
    example: Tensor | None,
    size: tuple[int, int],
    reference: Tensor | None = None,
) -> AutoEncoder:
    """The model that settings describe.

    `example` (M, H, W) are PReps of training members that set scales, `probes` (Q, ...) the inputs that probes
    start from, `reference` (H, W) the PRep that decoded networks start near. With `example` None (when weights are
    loaded afterwards) nothing is measured.
    """
    spread = torch.ones(size) if example is None else layer_spread(example, nets.spec)
    made: nn.Module
    if encoder.kind == "probe":
        start = torch.zeros(encoder.probes, *nets.spec.input_shape) if probes is None else probes
        made = ProbeEncoder(latent, nets, start, encoder.hidden, example)
    else:
        made = ConvEncoder(latent, spread if encoder.standardise else None)
    back = ConvDecoder(latent, size, decoder)
    if example is not None and decoder.start == "reference":
        assert reference is not None
        with torch.no_grad():
            back.start_near(reference, spread, made(example))
    return AutoEncoder(made, back, spread)
