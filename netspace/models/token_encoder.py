"""The token encoder: attention from a few learnt queries to the tokens of a network's weights.

Axes: M members (networks), N tokens, T values of a token, Q queries, W width, E latent size, H W of a PRep.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn

from netspace.errors import UsageError
from netspace.models.coordinate_network import TokenEmbedding
from netspace.models.encoder import Encoder, EncoderConfig, Statistics
from netspace.networks.family import Family
from netspace.networks.prep import unpack
from netspace.networks.tokens import tokens_of, widest_kernel

PRETRAINING = {"networks": 16, "learning_rate": 1e-3}  # of each step of the pre-training


class TokenConfig(EncoderConfig):
    """How a token encoder is made."""

    width: int = Field(128, ge=1)  # of a token's features; a multiple of heads
    heads: int = Field(4, ge=1)  # of every attention
    layers: int = Field(2, ge=1)  # times that the queries attend to the tokens, and to each other
    queries: int = Field(16, ge=1)  # learnt vectors that gather what a latent says
    frequencies: int = Field(16, ge=1)  # of each component of a token's position
    pretrain: int = Field(0, ge=0)  # steps of masked-token pre-training on the zoo's weights; 0: none
    masked: float = Field(0.5, gt=0, lt=1)  # fraction of tokens that are hidden in pre-training


class TokenEncoder(Encoder):
    """Reads a network as tokens of weights with their coordinates (cf. SANE, Schuerholt et al. 2024; Perceiver, Jaegle et al. 2021).

    A token is its values, in units of their layer's standard deviation in the zoo, and its embedded coordinate. Learnt queries
    attend to all tokens, then to each other, so that the cost is linear in the number of tokens; a linear layer of all queries
    gives the latent. One set of weights serves all architectures: what kind of network it is, the coordinates say.
    """

    Config = TokenConfig
    spread: Tensor

    def __init__(self, latent: int, config: EncoderConfig, family: Family, spread: Tensor | None = None) -> None:
        super().__init__()
        assert isinstance(config, TokenConfig)
        self.latent, width = latent, config.width
        self.embedding = TokenEmbedding(config.frequencies)
        side = max(widest_kernel(arch.nets) for arch in family) or None
        tokens = [tokens_of(arch.nets, side) for arch in family]
        self.tokens, self.parameter_counts = tokens, [arch.parameters for arch in family]
        for class_id, each in enumerate(tokens):
            self.register_buffer(f"index_{class_id}", each.index, persistent=False)
            self.register_buffer(f"embedded_{class_id}", self.embedding(each.coordinates), persistent=False)
        self.register_buffer("spread", family.ones() if spread is None else spread.clone())
        self.values = nn.Linear(tokens[0].side ** 2, width)
        self.coordinates = nn.Linear(self.embedding.size, width)
        self.token = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width))
        self.queries = nn.Parameter(torch.randn(config.queries, width) / width**0.5)
        self.read = nn.ModuleList(
            nn.MultiheadAttention(width, config.heads, batch_first=True) for _ in range(config.layers)
        )
        self.mix = nn.ModuleList(
            nn.TransformerEncoderLayer(width, config.heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(config.layers)
        )
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Flatten(1), nn.Linear(config.queries * width, latent))

    @classmethod
    def build(
        cls, latent: int, config: EncoderConfig, family: Family, probes: Tensor | None, statistics: Statistics | None
    ) -> Self:
        """Return a fresh encoder, pre-trained on `statistics.examples` if settings say so; no probes (Q, ...)."""
        made = cls(latent, config, family, None if statistics is None else statistics.spread)
        if statistics is not None:
            made.pretrain(config, statistics)
        return made

    @classmethod
    def refusal(cls, latent: int, config: EncoderConfig | None = None) -> str | None:
        """Return why settings are not taken."""
        if isinstance(config, TokenConfig) and config.width % config.heads:
            return f"encoder.width ({config.width}) is a multiple of encoder.heads ({config.heads})"
        return super().refusal(latent, config)

    def not_matrices(self) -> list[nn.Parameter]:
        """Return the queries, which are inputs."""
        return [self.queries]

    def cut(self, preps: Tensor, class_id: int) -> Tensor:
        """Return the standardised values (M, N, T) of tokens of PReps (M, H, W) of one architecture."""
        spread = self.spread[class_id] if self.spread.dim() == 3 else self.spread
        count = self.parameter_counts[class_id]
        tokens = replace(self.tokens[class_id], index=getattr(self, f"index_{class_id}"))  # on this device
        return tokens.cut(unpack(preps, count) / spread.flatten()[:count]).mT

    def summary(self, values: Tensor, class_id: int, hidden: Tensor | None = None) -> Tensor:
        """Return latents (M, E) of values (M, N, T), of which tokens `hidden` (M, N) are not looked at."""
        tokens = self.token(self.values(values) + self.coordinates(getattr(self, f"embedded_{class_id}")))
        x = self.queries.expand(len(tokens), -1, -1)
        for read, mix in zip(self.read, self.mix, strict=True):
            x = mix(x + read(x, tokens, tokens, key_padding_mask=hidden, need_weights=False)[0])
        latents: Tensor = self.out(x)
        return latents

    def forward(self, preps: Tensor, class_id: int = 0) -> Tensor:
        """Latents (M, E) of PReps (M, H, W) of one architecture."""
        return self.summary(self.cut(preps, class_id), class_id)

    def pretrain(self, config: EncoderConfig, statistics: Statistics) -> None:
        """Learn to tell hidden tokens from the others: their values from the latent and their coordinates.

        Raises `UsageError` if the settings ask for it and there are no networks to learn from.
        """
        assert isinstance(config, TokenConfig)
        if not config.pretrain:
            return
        if not statistics.examples:
            raise UsageError("encoder.pretrain needs networks to learn from")
        guess = nn.Sequential(
            nn.Linear(self.latent + config.width, 2 * config.width),
            nn.GELU(),
            nn.Linear(2 * config.width, self.values.in_features),
        )
        with torch.enable_grad():
            optimizer = torch.optim.AdamW([*self.parameters(), *guess.parameters()], lr=PRETRAINING["learning_rate"])
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.pretrain)
            class_ids = sorted(statistics.examples)
            for step in range(config.pretrain):
                class_id = class_ids[step % len(class_ids)]
                examples = statistics.examples[class_id]
                rows = torch.randint(len(examples), (min(len(examples), int(PRETRAINING["networks"])),))
                values = self.cut(examples[rows], class_id)
                hidden = torch.rand(values.shape[:2]) < config.masked
                latents = self.summary(values, class_id, hidden)
                where = self.coordinates(getattr(self, f"embedded_{class_id}")).expand(len(rows), -1, -1)
                seen = torch.cat([latents[:, None].expand(-1, where.shape[1], -1), where], dim=2)
                error = (guess(seen) - values).square().mean(2) * hidden
                optimizer.zero_grad()
                (error.sum() / hidden.sum().clamp_min(1)).backward()
                optimizer.step()
                schedule.step()
            optimizer.zero_grad()
