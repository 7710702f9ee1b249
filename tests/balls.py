"""A task of shapes whose networks are balls, known in closed form: four parameters, trained in a second."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from netspace.streams import generator
from netspace.tasks import DataConfig, Task

ARCH = f"{__name__}:ball"


class Ball(nn.Module):
    """The signed distance (B, 1) of points (B, 3) to a sphere."""

    def __init__(self) -> None:
        super().__init__()
        self.centre = nn.Parameter(0.1 * torch.randn(3))
        self.radius = nn.Parameter(torch.tensor(0.5))

    def forward(self, points: Tensor) -> Tensor:
        return (points - self.centre).square().sum(-1, keepdim=True).add(1e-12).sqrt() - self.radius


def ball() -> nn.Module:
    return Ball()


class Balls(Task):
    """A ball of a random middle and radius for each network."""

    own_targets, surfaces, score_name = True, True, "closeness"
    name, split_hash, input_shape, num_outputs = "balls", "b" * 64, (3,), 1

    def __init__(self, config: DataConfig, device: torch.device) -> None:
        self.device = device
        self.points = {
            split: 2 * torch.rand(count, 3, generator=generator(index)).to(device) - 1
            for index, (split, count) in enumerate({"train": 256, "val": 64, "test": 128}.items())
        }

    def size(self, split: str) -> int:
        return len(self.points[split])

    def inputs(self, split: str, index: Tensor | slice, seeds: Tensor | None = None) -> Tensor:
        return self.points[split][index]

    def targets(self, split: str, index: Tensor | slice, seeds: Tensor | None = None) -> Tensor:
        assert seeds is not None
        points = self.inputs(split, index)  # (B, 3) or (M, B, 3)
        draws = torch.stack([torch.rand(4, generator=generator(seed)) for seed in seeds.tolist()]).to(self.device)
        centre, radius = 0.6 * (draws[:, None, :3] - 0.5), 0.3 + 0.3 * draws[:, 3, None, None]
        distance = (points - centre).norm(dim=-1, keepdim=True) - radius
        return torch.where(seeds.view(-1, 1, 1) < 0, torch.nan, distance)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (1 / (1 + 10 * (outputs - targets).double().abs())).mean((-2, -1))


ZOO: dict[str, Any] = {
    "name": "balls",
    "data": {"name": "balls"},
    "archs": {"ball": {"arch": ARCH}},
    "members": {"train": 16, "val": 4, "test": 6},
    "epochs": {"first": 20, "last": 20},
    "optimizer": {"name": "adam", "learning_rate": 0.02, "schedule": "cosine"},
    "batch_size": 32,
    "fused": 8,
}
SPACE: dict[str, Any] = {
    "name": "balls",
    "latent": 16,
    "encoder": {"kind": "probe", "probes": 16, "hidden": 32},
    "decoder": {"start": "reference", "share": 0.3},
    "loss": {"behaviour": 1.0},
    "optimizer": {"name": "adam", "learning_rate": 0.01},
    "networks": 8,
    "images": 64,
    "steps": 200,
    "validate_every": 100,
    "log_every": 100,
    "precision": "float32",
    "networks_precision": "float32",
}
