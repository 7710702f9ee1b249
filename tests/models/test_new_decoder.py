"""A decoder of one's own is a class and a line in the table of kinds: recipe, training and space take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import Field
from torch import Tensor, nn

from netspace.config import load, to_yaml
from netspace.errors import UsageError
from netspace.models import encoders
from netspace.models.autoencoder import AutoEncoder
from netspace.models.decoders import DECODERS, Decoder, DecoderConfig
from netspace.run_folder import read_metrics
from netspace.space import Space
from netspace.training.latent_space import train
from netspace.training.optimizers import Optimizer, OptimizerConfig
from netspace.training.recipe import SpaceRecipe


class OuterConfig(DecoderConfig):
    """Its own settings."""

    depth: int = Field(2, ge=1)


class OuterDecoder(Decoder):
    """PReps as outer products of rows and columns, which have no scale or bias of every element."""

    Config = OuterConfig

    def __init__(self, latent: int, size: tuple[int, int], config: DecoderConfig, classes: int = 1) -> None:
        super().__init__(latent, size, config, classes)
        assert isinstance(config, OuterConfig)
        self.depth = config.depth
        self.rows = nn.Linear(latent, config.depth * size[0])
        self.columns = nn.Linear(latent, config.depth * size[1])
        self.offset = nn.Parameter(torch.zeros(size))

    def forward(self, latents: Tensor, class_ids: Tensor | None = None) -> Tensor:
        """PReps (M, H, W) of latents (M, E)."""
        rows = self.rows(latents).view(len(latents), self.depth, -1)
        columns = self.columns(latents).view(len(latents), self.depth, -1)
        return torch.einsum("mdh,mdw->mhw", rows, columns) + self.offset

    @classmethod
    def refusal(cls, latent: int, config: DecoderConfig) -> str | None:
        """Even latents alone."""
        return f"decoder.kind outer takes an even latent size, not {latent}" if latent % 2 else None

    def initialise(self, statistics: encoders.Statistics, encoder: nn.Module) -> None:
        """Begin at the mean network."""
        with torch.no_grad():
            self.offset.copy_(torch.cat(list(statistics.examples.values())).mean(0))

    def elementwise(self) -> list[nn.Parameter]:
        """The offset."""
        return [self.offset]


@pytest.fixture(autouse=True)
def outer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DECODERS, "outer", OuterDecoder)


def test_a_recipe_with_it_is_trained_loaded_and_decoded(
    tiny_zoo: Path, space_settings: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**space_settings, "decoder": {"kind": "outer", "depth": 3}, "latent": 34, "log_every": 1, "steps": 12}
    every_network = {"networks": 24, "loss": {"behaviour": 0, "weights": 1}, "optimizer": {"learning_rate": 1e-3}}
    recipe = SpaceRecipe.model_validate({**settings, **every_network, "encoder": {"kind": "probe", "probes": 4}})
    run = train(recipe, tiny_zoo, tmp_path / "run")
    assert yaml.safe_load((run / "config.yaml").read_text())["decoder"]["depth"] == 3
    losses = [record["weights"] for record in read_metrics(run / "metrics.jsonl") if "weights" in record]
    assert len(losses) == 12 and losses[-1] < losses[0]
    space = Space.load(run)
    assert isinstance(space.model.decoder, OuterDecoder) and space.model.decoder.depth == 3
    assert space.decode_flat(torch.randn(2, 34)).shape == (2, 1477)


def test_its_settings_are_checked_and_read_back(tmp_path: Path) -> None:
    def made(**decoder: Any) -> SpaceRecipe:
        settings = {"latent": 34, "encoder": {"kind": "probe"}, "decoder": {"kind": "outer", **decoder}}
        return load(SpaceRecipe, settings)

    (tmp_path / "config.yaml").write_text(to_yaml(made(depth=5)))
    assert load(SpaceRecipe, tmp_path / "config.yaml").decoder == OuterConfig(kind="outer", depth=5)
    with pytest.raises(UsageError, match=r"setting decoder.depth in the settings: Input should be greater than"):
        made(depth=0)
    with pytest.raises(UsageError, match=r"unknown setting 'decoder.deep'"):
        made(deep=1)
    with pytest.raises(UsageError, match="outer takes an even latent size, not 35"):
        load(SpaceRecipe, {"latent": 35, "encoder": {"kind": "probe"}, "decoder": {"kind": "outer"}})
    with pytest.raises(
        UsageError, match=r"decoder.kind .* 'conv', 'linear', 'mlp', 'coordinate' or 'outer' \(found: 'inner'\)"
    ):
        load(SpaceRecipe, {"decoder": {"kind": "inner"}})


def test_the_optimiser_asks_it_for_its_parameters() -> None:
    config = OuterConfig(kind="outer")
    model = AutoEncoder(encoders.ConvEncoder(32), OuterDecoder(32, (4, 8), config), torch.ones(4, 8))
    rates = OptimizerConfig(name="muon", learning_rate=1e-3, elementwise_rate=1e-2, muon_rate=0.1)
    optimizer = Optimizer(model, rates, 1)
    of_rate = {
        group["lr"]: {id(value) for value in group["params"]} for part in optimizer.parts for group in part.param_groups
    }
    assert of_rate[1e-2] == {id(model.decoder.offset)}
    matrices = [value for value, _ in optimizer.views]
    assert any(value is model.decoder.rows.weight for value in matrices)
    assert not any(value is model.decoder.offset for value in matrices)
