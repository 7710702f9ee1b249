"""The coordinate decoder: a network from coordinates of tokens to their values, conditioned on a latent.

Axes: M members (networks), N tokens, T values of a token, P parameters, H W of a PRep, E latent size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from netspace.errors import UsageError
from netspace.models.coordinate_network import RELATIVE_FREQUENCIES, SIZE_FREQUENCIES, TokenEmbedding, Trunk
from netspace.models.decoder import Decoder, DecoderConfig
from netspace.models.encoder import Statistics
from netspace.networks.family import ArchClass, Family, by_class
from netspace.networks.prep import pack
from netspace.networks.tokens import SIZES, Tokens, tokens_of, widest_kernel

REFERENCE_TOKENS = 4096  # in a step of the fit to the references


class CoordinateConfig(DecoderConfig):
    """How a coordinate decoder is made."""

    # basis: the network emits features of each token, and a latent their coefficients; modulated: the latent scales and shifts
    # the inputs of every layer (FiLM), so that each network of a batch has its own pass over the coordinates
    conditioning: Literal["basis", "modulated"] = "basis"
    hidden: int = Field(256, ge=1)  # width of the coordinate network
    blocks: int = Field(2, ge=0)  # residual blocks of the coordinate network
    frequencies: int = Field(24, ge=1)  # of each component of a position
    # of each component of a position relative to its layer's size: few for widths in between, which are then like their neighbours
    relative_frequencies: int = Field(RELATIVE_FREQUENCIES, ge=1)
    size_frequencies: int = Field(SIZE_FREQUENCIES, ge=1)  # of each size of a layer and its network; few likewise
    reference_steps: int = Field(600, ge=0)  # of the fit to the references, with start 'emitted'


class CoordinateDecoder(Decoder):
    """A network from coordinates of tokens to their values, conditioned on the latent: one for all architectures.

    Basis: value t of token n is the product of the token's features (from its coordinate alone) with row t of a matrix that
    is linear in the latent, so coordinates cost the same for any number of networks. Modulated: FiLM of each normalised layer.

    With start 'reference' the values have a scale and bias of every element, as in the other decoders. With start 'emitted'
    they are in units of 1 / sqrt(fan-in) (NeuMeta, Eq. 4, divides by the fan-in) and added to what a second coordinate
    network emits, fitted to the references' weights; nothing then belongs to one architecture, and any other decodes, too.
    """

    Config = CoordinateConfig
    scale: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, latent: int, config: DecoderConfig, family: Family, side: int | None = None) -> None:
        """`side` is that of tokens, by default the family's largest kernel's."""
        super().__init__(latent, family.size, config, len(family))
        assert isinstance(config, CoordinateConfig)
        self.conditioning, hidden = config.conditioning, config.hidden
        side = side or max(widest_kernel(arch.nets) for arch in family) or None
        self.embedding = TokenEmbedding(config.frequencies, config.relative_frequencies, config.size_frequencies)
        tokens = [tokens_of(arch.nets, side) for arch in family]
        self.side = tokens[0].side
        self.parameter_counts = [arch.parameters for arch in family]
        for class_id, each in enumerate(tokens):
            self._register(class_id, each)
        values = self.side**2
        modulated = self.conditioning == "modulated"
        self.trunk = Trunk(self.embedding.size, hidden, config.blocks, latent if modulated else None)
        rank = config.rank
        self.reduce = None if rank is None else nn.Linear(latent, rank, bias=False)
        self.head = nn.Linear(hidden, values) if modulated else nn.Linear(rank or latent, values * hidden, bias=False)
        self.reference: nn.Sequential | None = None
        if config.start == "emitted":
            self.reference = nn.Sequential(Trunk(self.embedding.size, hidden, config.blocks), nn.Linear(hidden, values))
            self.scale, self.bias = nn.Parameter(torch.ones(())), None
        else:
            each_size = (len(family), *self.size) if len(family) > 1 else self.size
            self.scale, self.bias = nn.Parameter(torch.ones(each_size)), nn.Parameter(torch.zeros(each_size))

    @classmethod
    def build(cls, latent: int, config: DecoderConfig, family: Family) -> Self:
        """Return a fresh decoder of a family's networks."""
        return cls(latent, config, family)

    @classmethod
    def refusal(cls, latent: int, config: DecoderConfig) -> str | None:
        """Return why settings are not taken."""
        if config.rank is not None and (config.rank > latent or getattr(config, "conditioning", "") == "modulated"):
            return "decoder.rank is at most latent, and not for conditioning: modulated"
        return "decoder.kind coordinate takes start: reference or emitted" if config.start == "small" else None

    def _register(self, class_id: int, tokens: Tokens) -> None:
        """Keep the tokens of an architecture as buffers that move with the module and are not saved."""
        for name in ("index", "coordinates", "fan_in"):
            self.register_buffer(f"{name}_{class_id}", getattr(tokens, name), persistent=False)
        self.register_buffer(f"embedded_{class_id}", self.embedding(tokens.coordinates), persistent=False)

    def _tokens(self, class_id: int) -> tuple[Tokens, Tensor]:
        """Return the tokens of an architecture and their embedded coordinates (N, embedding.size)."""
        index, coordinates, fan_in, embedded = (
            getattr(self, f"{name}_{class_id}") for name in ("index", "coordinates", "fan_in", "embedded")
        )
        return Tokens(index, coordinates, fan_in, self.side), embedded

    def forward(self, latents: Tensor, class_ids: Tensor | None = None) -> Tensor:
        """PReps (M, H, W) of latents (M, E), as networks of the ClassIds (M,) where there are several architectures.

        Raises `UsageError` for a latent of another size.
        """
        if latents.shape[-1] != self.latent:
            raise UsageError(f"a latent of {latents.shape[-1]} values was given; this space's have {self.latent}")
        if self.classes == 1 or class_ids is None:
            values = pack(self.emit(latents, *self._tokens(0)), self.size)
        else:
            stacks, back = by_class(tuple(class_ids.tolist()), latents.device)
            pieces = [
                pack(self.emit(latents.index_select(0, rows), *self._tokens(class_id)), self.size)
                for class_id, rows in stacks
            ]
            values = torch.cat(pieces).index_select(0, back)
        if self.bias is None:
            return values
        if self.bias.dim() == 2:
            return torch.addcmul(self.bias, values, self.scale)
        assert class_ids is not None
        return torch.addcmul(self.bias.index_select(0, class_ids), values, self.scale.index_select(0, class_ids))

    def tokens_for(self, arch: ArchClass) -> tuple[Tokens, Tensor]:
        """Return an architecture's tokens and embedded coordinates (N, inputs), on this device. Raises as `resized`."""
        if self.reference is None:
            raise UsageError(
                "networks of sizes that were not declared need decoder.start: emitted, but this space was trained with "
                "start: reference, which knows the weights of its own architectures alone"
            )
        if (kernel := widest_kernel(arch.nets)) > self.side:
            raise UsageError(
                f"{arch.id} has kernels of {kernel} x {kernel}, but this space decodes kernels of up to "
                f"{self.side} x {self.side}, the largest that it was trained on"
            )
        tokens, device = tokens_of(arch.nets, self.side), self.scale.device
        moved = Tokens(tokens.index.to(device), tokens.coordinates.to(device), tokens.fan_in.to(device), self.side)
        return moved, self.embedding(moved.coordinates)

    def resized(self, family: Family) -> CoordinateDecoder:
        """Return a decoder of the same weights for another family, of any architectures.

        Raises `UsageError` where the reference is a table of the family's weights, or a kernel is too large.
        """
        for arch in family:
            self.tokens_for(arch)
        other = CoordinateDecoder(self.latent, self.config, family, self.side)
        other.load_state_dict(self.state_dict())
        return other.to(self.scale.device)

    def outside(self, arch: ArchClass, trained: Sequence[ArchClass]) -> str | None:
        """Return which sizes of an architecture lie outside those of trained ones, as the end of a sentence; None if none do."""

        def ranges(*archs: ArchClass) -> list[tuple[float, float]]:
            sizes = torch.cat([tokens_of(each.nets, self.side).coordinates for each in archs])[:, -len(SIZES) :]
            return [(2 ** low.item(), 2 ** high.item()) for low, high in zip(sizes.amin(0), sizes.amax(0), strict=True)]

        problems = [
            f"{low:.0f} to {high:.0f} {name} where {least:.0f} to {most:.0f} were trained"
            for name, (low, high), (least, most) in zip(SIZES, ranges(arch), ranges(*trained), strict=True)
            if low < least - 0.5 or high > most + 0.5
        ]
        return f"sizes outside the trained range ({'; '.join(problems)})" if problems else None

    def emit(self, latents: Tensor, tokens: Tokens, embedded: Tensor) -> Tensor:
        """Return parameters (M, P) of latents (M, E) as an architecture whose tokens and embedded coordinates are given.

        With an emitted reference they are complete; else the scale and bias of every element are to come.
        """
        flat = tokens.flat(self._values(latents, embedded).float())
        if self.reference is None:
            return flat
        reference = tokens.flat(self.reference(embedded).float().T.unsqueeze(0))
        return (reference + self.scale * flat) * tokens.fan_in.rsqrt()

    def _values(self, latents: Tensor, embedded: Tensor) -> Tensor:
        """Return what the network emits, (M, T, N)."""
        if self.conditioning == "modulated":
            features = self.trunk(embedded, latents)  # (M, N, hidden)
            return self.head.weight @ features.mT + self.head.bias[:, None]
        features = self.trunk(embedded)  # (N, hidden)
        rows = self.head(latents if self.reduce is None else self.reduce(latents)).reshape(
            -1, features.shape[1]
        )  # (M * T, hidden)
        return (rows @ features.T).view(len(latents), -1, len(features))

    @torch.no_grad()
    def initialise(self, statistics: Statistics, encoder: nn.Module) -> None:
        """Start near the references: decoded networks differ from them by `config.share` of each layer's spread, on average."""
        assert statistics.references is not None
        spread = statistics.deviation if statistics.deviation.dim() == 3 else statistics.deviation[None]
        references = statistics.references if statistics.references.dim() == 3 else statistics.references[None]
        latents = {class_id: encoder(preps, class_id) for class_id, preps in statistics.examples.items()}
        drawn = [
            tokens.flat(self._values(each, embedded))
            for class_id, each in latents.items()
            for tokens, embedded in [self._tokens(class_id)]
        ]
        deviation = torch.cat([each.flatten() for each in drawn]).std()
        if self.bias is not None:
            self.scale.copy_((self.config.share * spread / deviation).view_as(self.scale))
            self.bias.copy_(references.view_as(self.bias))
            return
        units, targets = [], []
        for class_id, parameters in enumerate(self.parameter_counts):
            root = self._tokens(class_id)[0].fan_in.sqrt()
            units.append(spread[class_id].flatten()[:parameters] * root)
            targets.append(references[class_id].flatten()[:parameters] * root)
        self.scale.copy_(self.config.share * torch.cat(units).square().mean().sqrt() / deviation)
        with torch.enable_grad():
            self._fit_reference([targets[class_id] for class_id in latents], list(latents))

    def _fit_reference(self, targets: list[Tensor], class_ids: list[int]) -> None:
        """Fit the emitted reference to parameters (P_c,) of the trained architectures, in units of 1 / sqrt(fan-in)."""
        assert self.reference is not None and isinstance(self.config, CoordinateConfig)
        embedded = torch.cat([self._tokens(class_id)[1] for class_id in class_ids])
        cuts = [self._tokens(class_id)[0] for class_id in class_ids]
        values = torch.cat([tokens.cut(target[None])[0].T for tokens, target in zip(cuts, targets, strict=True)])
        used = torch.cat(
            [tokens.cut(torch.ones_like(target)[None])[0].T for tokens, target in zip(cuts, targets, strict=True)]
        )
        optimizer = torch.optim.Adam(self.reference.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(self.config.reference_steps, 1))
        for _ in range(self.config.reference_steps):
            rows = torch.randint(len(values), (min(len(values), REFERENCE_TOKENS),))
            error = (self.reference(embedded[rows]) - values[rows]).square() * used[rows]
            optimizer.zero_grad()
            (error.sum() / used[rows].sum()).backward()
            optimizer.step()
            schedule.step()
        optimizer.zero_grad()

    def elementwise(self) -> list[nn.Parameter]:
        """Return the scale and bias of every element, where the reference is a table."""
        return [] if self.bias is None else [self.scale, self.bias]

    def scales(self) -> list[nn.Parameter]:
        """Return the scale of what is learnt."""
        return [self.scale]
