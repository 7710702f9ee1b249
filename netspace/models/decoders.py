"""Decoders: a latent vector becomes a PRep (NetSpace, Sec. III and Fig. 1).

Axes: M members, H W of a PRep, E latent size, for the convolutional decoder E = s * s.
`ConvDecoder` is the paper's. `LinearDecoder` is one matrix: on small networks it gives back as much for a twentieth of the
time. Both end in a scale and bias of every element. `CoordinateDecoder` is a network from coordinates to weights, which also
decodes sizes that nobody declared. Another decoder is a class and a line in the table `DECODERS`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from math import isqrt
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from netspace.config import KindSettings
from netspace.errors import UsageError
from netspace.models.coordinate_network import TokenEmbedding, Trunk
from netspace.models.encoders import SLOPE, Statistics
from netspace.networks.batch import NetBatch
from netspace.networks.family import Family, by_class
from netspace.networks.prep import pack
from netspace.networks.tokens import Tokens, tokens_of, widest_kernel


class DecoderConfig(KindSettings):
    """Which decoder, and how it starts."""

    kind: str = (
        "conv"  # conv: the paper's convolutions; linear: one matrix; coordinate: a network from coordinates to weights
    )
    # small: decoded networks start near zero. reference: near the best training member, by a table of its weights. emitted:
    # near it, by a coordinate network that is fitted to it first, which also knows sizes in between (coordinate)
    start: Literal["small", "reference", "emitted"] = "small"
    slope: float = Field(SLOPE, ge=0, lt=1)  # negative slope of the LeakyReLUs (conv)
    rank: int | None = Field(
        None, ge=1
    )  # rank of the matrix, as two factors, for networks with many parameters; none: full (linear)
    share: float = Field(
        0.3, gt=0
    )  # with start 'reference': initial scale around it, in units of the standard deviation of each layer in the zoo

    @classmethod
    def table(cls) -> Mapping[str, type[Decoder]]:
        """Return the decoders by their kinds."""
        return DECODERS


REFERENCE_TOKENS = 4096  # in a step of the fit to the references


SQUARE = "the square of a multiple of 4 (16, 64, 144, 256, ... 4096)"  # what convolutions on a latent take


def is_square(latent: int) -> bool:
    """Whether a latent size is the square of a multiple of 4."""
    side = isqrt(max(latent, 0))
    return latent > 0 and side**2 == latent and side % 4 == 0


class Decoder(nn.Module, ABC):
    """Turns latents into PReps: what the training, the optimiser and a space ask of any decoder."""

    Config: ClassVar[type[DecoderConfig]] = DecoderConfig

    def __init__(
        self, latent: int, size: tuple[int, int], config: DecoderConfig | None = None, classes: int = 1
    ) -> None:
        """`size` is (H, W) of decoded PReps, `classes` the number of architectures.

        Raises `UsageError` for a latent size or settings that this decoder does not take.
        """
        super().__init__()
        self.latent, self.size, self.config, self.classes = latent, size, config or self.Config(), classes
        self.recompute = False  # activations in the backward pass, instead of storing them, where a decoder can
        if problem := self.refusal(latent, self.config):
            raise UsageError(problem)

    @classmethod
    def build(cls, latent: int, config: DecoderConfig, family: Family) -> Self:
        """Return a fresh decoder of a family's networks."""
        return cls(latent, family.size, config, len(family))

    @abstractmethod
    def forward(self, latents: Tensor, class_ids: Tensor | None = None) -> Tensor:
        """PReps (M, H, W) of latents (M, E), as networks of the ClassIds (M,) where there are several architectures."""

    @classmethod
    def refusal(cls, latent: int, config: DecoderConfig) -> str | None:
        """Return why a latent size or settings are not taken, in one sentence; None where they are."""
        return None

    def initialise(self, statistics: Statistics, encoder: nn.Module) -> None:
        """Set scales by what is known of the zoo's networks, and by how the fresh encoder encodes them."""

    def elementwise(self) -> list[nn.Parameter]:
        """Return the parameters of one value for each element of a PRep, which have a learning rate of their own."""
        return []

    def scales(self) -> list[nn.Parameter]:
        """Return the parameters that everything learnt from a latent is multiplied by, where there are such."""
        return []

    def not_matrices(self) -> list[nn.Parameter]:
        """Return the parameters of two axes or more that are no weights of a linear map."""
        return self.elementwise()


class ElementwiseDecoder(Decoder):
    """Layers that emit PReps from latents, and the scale and bias of every element that come last.

    They are initialised N(0, 1e-3) and U(0, 1e-2), as the authors do; `start_near` replaces them so that all decoded
    networks start near one that works. Of several architectures, with `classes` of them, each then has a scale and bias
    of its own; else one serves all, as in the paper.
    """

    def __init__(
        self, latent: int, size: tuple[int, int], config: DecoderConfig | None = None, classes: int = 1
    ) -> None:
        super().__init__(latent, size, config, classes)
        self.layers(latent, size)
        each = (classes, *size) if classes > 1 and self.config.start == "reference" else size
        self.scale = nn.Parameter(torch.randn(each) * 1e-3)
        self.bias = nn.Parameter(torch.rand(each) * 1e-2)

    @abstractmethod
    def layers(self, latent: int, size: tuple[int, int]) -> None:
        """Make the layers that `values` uses."""

    @abstractmethod
    def values(self, latents: Tensor) -> Tensor:
        """What the layers emit (M, H, W), before every element's own scale and bias."""

    def initialise(self, statistics: Statistics, encoder: nn.Module) -> None:
        """Start near the references, where the settings say so."""
        if self.config.start != "reference":
            return
        assert statistics.references is not None
        with torch.no_grad():
            latents = torch.cat([encoder(preps, class_id) for class_id, preps in statistics.examples.items()])
        self.start_near(statistics.references, statistics.spread, latents)

    def elementwise(self) -> list[nn.Parameter]:
        """Return the last scale and bias."""
        return [self.scale, self.bias]

    def scales(self) -> list[nn.Parameter]:
        """Return the last scale."""
        return [self.scale]

    @torch.no_grad()
    def start_near(self, reference: Tensor, spread: Tensor, latents: Tensor) -> None:
        """Sets scale and bias so that `latents` (M, E) decode to networks around `reference` (H, W) or (A, H, W).

        They differ from it by `config.share` of `spread`, of the same shape, on average. The layers before are drawn again by
        He et al. (2015), which keeps the signal's size from latent to PRep.
        """
        for layer in self._weighted():
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        self.scale.copy_(self.config.share * spread / self.values(latents).std())
        self.bias.copy_(reference)

    def _weighted(self) -> Iterator[nn.Conv2d | nn.Linear]:
        return (layer for layer in self.children() if isinstance(layer, nn.Conv2d | nn.Linear))

    def forward(self, latents: Tensor, class_ids: Tensor | None = None) -> Tensor:
        """PReps (M, H, W) of latents (M, E), as networks of the ClassIds (M,) where there are several architectures.

        Raises `UsageError` for a latent of another size.
        """
        if latents.shape[-1] != self.latent:
            raise UsageError(f"a latent of {latents.shape[-1]} values was given; this space's have {self.latent}")
        values = self.values(latents).float()
        if self.scale.dim() == 2:
            return torch.addcmul(self.bias, values, self.scale)
        assert class_ids is not None
        return torch.addcmul(self.bias.index_select(0, class_ids), values, self.scale.index_select(0, class_ids))


class ConvDecoder(ElementwiseDecoder):
    """Convolutions that gain depth, and reshapes that spend it on space (NetSpace, Fig. 1)."""

    @classmethod
    def refusal(cls, latent: int, config: DecoderConfig) -> str | None:
        """Return why a latent is not the square of a multiple of 4, or which setting is another decoder's."""
        if config.start == "emitted":
            return "decoder.start emitted is for decoder.kind coordinate"
        if not is_square(latent):
            return f"decoder.kind conv takes a latent size that is {SQUARE}, not {latent}"
        return "decoder.rank is for decoder.kind linear" if config.rank is not None else None

    def layers(self, latent: int, size: tuple[int, int]) -> None:
        """Make the four convolutions."""
        self.side, (rows, width) = isqrt(latent), size
        self.deepen = nn.Conv2d(1, 256 * rows, 3, stride=2, padding=1)
        self.widen = nn.Conv2d(128, width // 8, 3, stride=2, padding=1)
        self.fill = nn.Conv2d(latent // 8, 256, 3, stride=2, padding=1)
        self.emit = nn.Conv2d(256, 32, 3, padding=1)
        self.activation = nn.LeakyReLU(self.config.slope)

    def values(self, latents: Tensor) -> Tensor:
        """What the convolutions emit (M, H, W)."""
        x = latents.view(-1, 1, self.side, self.side)
        for stage in (self._depth, self._width, self._content):
            x = checkpoint(stage, x, use_reentrant=False) if self.recompute and torch.is_grad_enabled() else stage(x)
        return x.reshape(-1, *self.size)

    def _depth(self, x: Tensor) -> Tensor:
        return self._dense(self.deepen(x).reshape(-1, 128, self.size[0], self.latent // 2))

    def _width(self, x: Tensor) -> Tensor:
        return self._dense(self.widen(x).reshape(-1, self.latent // 8, self.size[0] // 2, self.size[1] // 4))

    def _content(self, x: Tensor) -> Tensor:
        emitted: Tensor = self.emit(self._dense(self.fill(x).reshape(-1, 256, self.size[0] // 4, self.size[1] // 8)))
        return emitted

    def _dense(self, images: Tensor) -> Tensor:
        """Activated, and on a GPU in channels-last order; on a CPU the reordering costs more than it brings."""
        activated: Tensor = self.activation(images)
        return activated.contiguous(memory_format=torch.channels_last) if images.is_cuda else activated


class LinearDecoder(ElementwiseDecoder):
    """One matrix from latent to PRep, or two whose product has a rank."""

    @classmethod
    def refusal(cls, latent: int, config: DecoderConfig) -> str | None:
        """Return why a rank is above the latent size, or which setting is another decoder's."""
        if config.start == "emitted":
            return "decoder.start emitted is for decoder.kind coordinate"
        return None if (config.rank or 0) <= latent else "decoder.rank is at most latent"

    def layers(self, latent: int, size: tuple[int, int]) -> None:
        """The matrix, without a bias: every element has one of its own."""
        elements, rank = size[0] * size[1], self.config.rank
        self.reduce = None if rank is None else nn.Linear(latent, rank, bias=False)
        self.emit = nn.Linear(rank or latent, elements, bias=False)

    def values(self, latents: Tensor) -> Tensor:
        """What the matrix gives (M, H, W)."""
        reduced = latents if self.reduce is None else self.reduce(latents)
        values: Tensor = self.emit(reduced)
        return values.view(-1, *self.size)


class CoordinateConfig(DecoderConfig):
    """How a coordinate decoder is made."""

    # basis: the network emits features of each token, and a latent their coefficients; modulated: the latent scales and shifts
    # the inputs of every layer (FiLM), so that each network of a batch has its own pass over the coordinates
    conditioning: Literal["basis", "modulated"] = "basis"
    hidden: int = Field(256, ge=1)  # width of the coordinate network
    blocks: int = Field(2, ge=0)  # residual blocks of the coordinate network
    frequencies: int = Field(24, ge=1)  # of each component of a position
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

    def __init__(self, latent: int, config: DecoderConfig, family: Family) -> None:
        super().__init__(latent, family.size, config, len(family))
        assert isinstance(config, CoordinateConfig)
        self.conditioning, hidden = config.conditioning, config.hidden
        self.side = max(widest_kernel(arch.nets) for arch in family) or None
        self.embedding = TokenEmbedding(config.frequencies)
        tokens = [tokens_of(arch.nets, self.side) for arch in family]
        self.side = tokens[0].side
        self.parameter_counts = [arch.parameters for arch in family]
        for class_id, each in enumerate(tokens):
            self._register(class_id, each)
        values = self.side**2
        modulated = self.conditioning == "modulated"
        self.trunk = Trunk(self.embedding.size, hidden, config.blocks, latent if modulated else None)
        self.head = nn.Linear(hidden, values) if modulated else nn.Linear(latent, values * hidden, bias=False)
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
        if config.rank is not None:
            return "decoder.rank is for decoder.kind linear"
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
        return Tokens(index, coordinates, fan_in, int(self.side or 0)), embedded

    def forward(self, latents: Tensor, class_ids: Tensor | None = None) -> Tensor:
        """PReps (M, H, W) of latents (M, E), as networks of the ClassIds (M,) where there are several architectures.

        Raises `UsageError` for a latent of another size.
        """
        if latents.shape[-1] != self.latent:
            raise UsageError(f"a latent of {latents.shape[-1]} values was given; this space's have {self.latent}")
        if self.classes == 1 or class_ids is None:
            values = pack(self._flat(latents, *self._tokens(0)), self.size)
        else:
            stacks, back = by_class(tuple(class_ids.tolist()), latents.device)
            pieces = [
                pack(self._flat(latents.index_select(0, rows), *self._tokens(class_id)), self.size)
                for class_id, rows in stacks
            ]
            values = torch.cat(pieces).index_select(0, back)
        if self.bias is None:
            return values
        if self.bias.dim() == 2:
            return torch.addcmul(self.bias, values, self.scale)
        assert class_ids is not None
        return torch.addcmul(self.bias.index_select(0, class_ids), values, self.scale.index_select(0, class_ids))

    def decode_as(self, latents: Tensor, nets: NetBatch) -> Tensor:
        """Return parameters (M, P) of networks of any architecture, also one that is not of the family.

        Raises `UsageError` where the reference is a table of the family's weights, or a kernel is too large.
        """
        if self.reference is None:
            raise UsageError(
                "networks of sizes that were not declared need decoder.start: emitted, but this space was trained with "
                "start: reference, which knows the weights of its own architectures alone"
            )
        if widest_kernel(nets) > int(self.side or 0):
            raise UsageError(
                f"{nets.spec.arch} has kernels of {widest_kernel(nets)} x {widest_kernel(nets)}, but this space decodes "
                f"kernels of up to {self.side} x {self.side}, the largest that it was trained on"
            )
        tokens = tokens_of(nets, self.side).to(latents.device)
        return self._flat(latents, tokens, self.embedding(tokens.coordinates))

    def _flat(self, latents: Tensor, tokens: Tokens, embedded: Tensor) -> Tensor:
        """Return parameters (M, P): before the scale and bias of every element, or with the emitted reference."""
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
        rows = self.head(latents).reshape(-1, features.shape[1])  # (M * T, hidden)
        return (rows @ features.T).view(len(latents), -1, len(features))

    @torch.no_grad()
    def initialise(self, statistics: Statistics, encoder: nn.Module) -> None:
        """Start near the references: decoded networks differ from them by `config.share` of each layer's spread, on average."""
        assert statistics.references is not None
        spread = statistics.spread if statistics.spread.dim() == 3 else statistics.spread[None]
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


DECODERS: dict[str, type[Decoder]] = {"conv": ConvDecoder, "linear": LinearDecoder, "coordinate": CoordinateDecoder}
