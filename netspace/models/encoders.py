"""Encoders: the parameters of a network become a latent vector of one size (NetSpace, Sec. III; probes are ours).

Axes: M members (networks), H W rows and columns of a PRep, E latent size, B probes, C outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from netspace.errors import UsageError
from netspace.models.encoder import SLOPE, Encoder, EncoderConfig, Statistics
from netspace.models.token_encoder import TokenEncoder
from netspace.networks.batch import NetBatch
from netspace.networks.family import Family
from netspace.networks.prep import unpack

TAPS, STRIDE, PADDING = 3, 2, 1  # of both convolutions, along the width


def widest(images: Tensor, first: nn.Conv2d, second: nn.Conv2d, slope: float) -> Tensor:
    """max over the width of conv2(leaky_relu(conv1(images))): (M, 1, H, W) -> (M, C, H).

    Both are 1x3 convolutions of stride 2 and padding 1 with a bias, the first from one channel to h, the second from h
    to C. Of equal maxima one wins, as in max pooling. First derivatives only.
    """
    result: Tensor = _Widest.apply(images, first.weight, first.bias, second.weight, second.bias, slope)
    return result


class _Widest(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, slope: float
    ) -> Tensor:
        dense = images.contiguous(memory_format=torch.channels_last)
        hidden = F.leaky_relu_(F.conv2d(dense, weight1, bias1, (1, STRIDE), (0, PADDING)), slope)
        wide = F.conv2d(hidden, weight2, bias2, (1, STRIDE), (0, PADDING))
        best, where = wide.permute(0, 2, 3, 1).max(dim=2)  # (M, H, C)
        ctx.save_for_backward(images, hidden, where, weight1, weight2)
        ctx.slope = slope
        return best.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, hidden, where, weight1, weight2 = ctx.saved_tensors
        wanted = weight1.dtype
        coming = gradient.transpose(1, 2).to(wanted)  # (M, H, C)
        reach = torch.arange(TAPS, device=images.device) - PADDING
        seen = STRIDE * where.unsqueeze(-1) + reach  # (M, H, C, 3): positions of `hidden` before each winner
        inside = (seen >= 0) & (seen < hidden.shape[3])
        seen = seen.clamp(0, hidden.shape[3] - 1)
        member = torch.arange(len(images), device=images.device)[:, None, None, None]
        row = torch.arange(images.shape[2], device=images.device)[None, :, None, None]
        values = hidden.permute(0, 2, 3, 1)[member, row, seen].to(wanted)  # (M, H, C, 3, h)
        values = values * inside.unsqueeze(-1)
        of_weight2 = torch.einsum("mrc,mrcth->cht", coming, values).unsqueeze(2)
        back = coming[..., None, None] * weight2[:, :, 0].transpose(1, 2)  # (M, H, C, 3, h)
        slopes = (values > 0).to(wanted) * (1 - ctx.slope) + ctx.slope
        back = back * slopes * inside.unsqueeze(-1)
        before = STRIDE * seen.unsqueeze(-1) + reach  # (M, H, C, 3, 3): positions of the image before those
        present = (before >= 0) & (before < images.shape[3])
        before = before.clamp(0, images.shape[3] - 1)
        pixels = images[:, 0][member.unsqueeze(-1), row.unsqueeze(-1), before] * present
        of_weight1 = back.flatten(0, 3).T @ pixels.to(wanted).flatten(0, 3)  # (h, 3)
        of_images = None
        if ctx.needs_input_grad[0]:
            shares = (back @ weight1[:, 0, 0]) * present  # (M, H, C, 3, 3)
            of_images = torch.zeros_like(images[:, 0], dtype=wanted)
            of_images.scatter_add_(2, before.flatten(2), shares.flatten(2))
            of_images = of_images.unsqueeze(1).to(images.dtype)
        return (
            of_images,
            of_weight1[:, None, None],
            back.sum((0, 1, 2, 3)),
            of_weight2,
            coming.sum((0, 1)),
            None,
        )


# Factor of an architecture's position, in -1 to 1, among the inputs of `ProbeEncoder.read`. The other inputs are hundreds of
# answers of about 1, whose sum one input of 1 would hardly change at the start of training.
POSITION_WEIGHT = 8.0


EMPTY_ROWS = (
    5  # below a PRep: two see its last rows, two the padding of the convolutions, all others are as the one between
)


class ConvEncoder(Encoder):
    """Horizontal, then vertical convolutions, each pair followed by a maximum over its direction.

    With h = E / 32 channels: 1x3 convolutions of stride 2 (1 -> h -> 2h), maximum over the width; 3x1
    convolutions (2h -> 4h -> 32h = E), maximum over the height. Works for any H and W. `spread` (A, H, W) or (H, W), if
    given, divides the PRep first; then rows of zeros are added up to `rows`, if given: NetSpace's authors pad the PReps of
    all architectures to the largest height, so that the encoder sees from the empty rows which architecture it reads. No more
    than `EMPTY_ROWS` of them are computed: the maximum over the height is the same.
    """

    spread: Tensor

    def __init__(self, latent: int, spread: Tensor | None = None, rows: int | None = None) -> None:
        super().__init__()
        self.rows = rows
        if problem := self.refusal(latent):
            raise UsageError(problem)
        h = latent // 32
        self.along = nn.Sequential(
            nn.Conv2d(1, h, (1, 3), stride=(1, 2), padding=(0, 1)),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(h, 2 * h, (1, 3), stride=(1, 2), padding=(0, 1)),
        )
        self.across = nn.Sequential(
            nn.Conv2d(2 * h, 4 * h, (3, 1), padding=(1, 0)),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(4 * h, latent, (3, 1), padding=(1, 0)),
        )
        self.activation = nn.LeakyReLU(SLOPE)  # rises, so it may come after each maximum: the same, on far fewer values
        self.register_buffer("spread", torch.ones(1, 1) if spread is None else spread.clone())

    @classmethod
    def build(
        cls, latent: int, config: EncoderConfig, family: Family, probes: Tensor | None, statistics: Statistics | None
    ) -> Self:
        """Return a fresh encoder, which needs no probes (Q, ...)."""
        spread = family.ones() if statistics is None else statistics.spread
        rows = family.rows if len(family) > 1 and config.pad else None
        return cls(latent, spread if config.standardise else None, rows)

    @classmethod
    def refusal(cls, latent: int, config: EncoderConfig | None = None) -> str | None:
        """Return why a latent size is not a multiple of 32."""
        if latent > 0 and latent % 32 == 0:
            return super().refusal(latent, config)
        return f"encoder.kind conv takes a latent size that is a multiple of 32, not {latent}"

    @classmethod
    def completed(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """Runs from before `encoder.pad` read PReps of several architectures each at its own height."""
        return {"pad": False, **raw}

    def forward(self, preps: Tensor, class_id: int = 0) -> Tensor:
        """Latents (M, E) of PReps (M, H, W) of one architecture."""
        first, _, second = self.along
        assert isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d)
        spread = self.spread[class_id, : preps.shape[1]] if self.spread.dim() == 3 else self.spread
        preps = preps / spread
        if self.rows is not None:
            preps = nn.functional.pad(preps, (0, 0, 0, min(self.rows - preps.shape[1], EMPTY_ROWS)))
        wide = widest(preps.unsqueeze(1), first, second, SLOPE)
        tall = self.across(self.activation(wide.unsqueeze(3)))  # (M, E, H, 1)
        latents: Tensor = self.activation(tall.amax(dim=(2, 3)))
        return latents


class ProbeEncoder(Encoder):
    """Runs every network on Q learnt inputs and maps its answers to a latent vector.

    The answers (Q x C logits, centred per input) do not change when neurons are permuted or rescaled, so
    networks that behave alike are encoded alike (cf. functional probing: Herrmann et al. 2024; Kahana et al.,
    ProbeGen, 2025). `images` (Q, ...) start the probes; `examples`, PReps (M, H, W) by ClassId, set the answers' scale.

    Networks of several architectures (one of `nets` each) may answer alike, but their latents must differ: the ClassId is read
    from the latent alone. So the position of a network's architecture, from -1 for the smallest to 1 for the largest, is one
    more input of `read`, times `POSITION_WEIGHT`. A learnt embedding of each architecture would have nothing to learn from for one
    of which no network is seen in training; a position on one axis orders it between its neighbours, as NetSpace, Eq. 12 does.
    """

    mean: Tensor
    spread: Tensor

    def __init__(
        self,
        latent: int,
        nets: Sequence[NetBatch],
        images: Tensor,
        hidden: int,
        examples: Mapping[int, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.nets = tuple(nets)  # a tuple: the skeletons' parameters are not this module's
        self.probes = nn.Parameter(images.clone())
        with torch.no_grad():
            count = self.nets[0].spec.num_parameters
            answers = self.answers(torch.zeros(1, 4, -(-count // 32) * 8))
        self.register_buffer("mean", torch.zeros(answers.shape[1]))
        self.register_buffer("spread", torch.ones(()))
        multi = int(len(self.nets) > 1)
        self.read = nn.Sequential(
            nn.Linear(answers.shape[1] + multi, hidden), nn.LeakyReLU(SLOPE), nn.Linear(hidden, latent)
        )
        if examples:
            with torch.no_grad():
                answers = torch.cat([self.answers(preps, class_id) for class_id, preps in examples.items()])
                self.mean.copy_(answers.mean(0))
                self.spread.copy_(answers.std(0, correction=0).mean().clamp_min(1e-6))

    @classmethod
    def build(
        cls, latent: int, config: EncoderConfig, family: Family, probes: Tensor | None, statistics: Statistics | None
    ) -> Self:
        """Return a fresh encoder whose probes begin as `probes` (Q, ...), or as zeros without them."""
        start = torch.zeros(config.probes, *family.input_shape) if probes is None else probes
        examples = None if statistics is None else statistics.examples
        return cls(latent, [each.nets for each in family], start, config.hidden, examples)

    @classmethod
    def refusal(cls, latent: int, config: EncoderConfig | None = None) -> str | None:
        """Return None: any latent size will do."""
        return None

    def not_matrices(self) -> list[nn.Parameter]:
        """Return the probes, which are inputs of networks."""
        return [self.probes]

    def answers(self, preps: Tensor, class_id: int = 0) -> Tensor:
        """The networks' centred logits for all probes, (M, Q * C)."""
        nets = self.nets[class_id]
        logits = nets(unpack(preps, nets.spec.num_parameters), self.probes).float()
        centre = logits.mean(-1, keepdim=True) if logits.shape[-1] > 1 else 0  # of one output nothing would be left
        return (logits - centre).flatten(1)

    def forward(self, preps: Tensor, class_id: int = 0) -> Tensor:
        """Latents (M, E) of PReps (M, H, W) of one architecture."""
        seen = (self.answers(preps, class_id) - self.mean) / self.spread
        if len(self.nets) > 1:
            position = 2 * class_id / (len(self.nets) - 1) - 1
            seen = torch.cat([seen, seen.new_full((len(seen), 1), POSITION_WEIGHT * position)], dim=1)
        latents: Tensor = self.read(seen)
        return latents


__all__ = [
    "ENCODERS",
    "ConvEncoder",
    "Encoder",
    "EncoderConfig",
    "ProbeEncoder",
    "Statistics",
    "TokenEncoder",
    "widest",
]

ENCODERS: dict[str, type[Encoder]] = {"conv": ConvEncoder, "probe": ProbeEncoder, "token": TokenEncoder}
