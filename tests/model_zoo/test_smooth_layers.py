"""The smoothness terms of convolutions and of linear layers in the training of a zoo's members, against loops."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model_zoo.forward import Forward, Way, smooth_layers
from model_zoo.recipe import ZooRecipe
from netspace import archs
from netspace.tasks import Classification, DataConfig, load_images


class Net(nn.Module):
    """A convolution, linear layers, a norm's vectors and a table that is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.LayerNorm(108)
        self.first, self.second = nn.Linear(108, 5), nn.Linear(5, 3)
        self.position_embedding = nn.Parameter(torch.zeros(2, 108))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = self.norm(self.conv(images).flatten(1)) + self.position_embedding[0]
        return self.second(torch.relu(self.first(flat)))


def recipe(**settings: float) -> ZooRecipe:
    return ZooRecipe.model_validate({"archs": {"a": {"arch": "lenetlike"}}, "members": {"train": 1}, **settings})


@pytest.fixture(scope="module")
def task() -> Classification:
    return load_images(DataConfig(name="generated", image_size=8, channels=3, classes=3, limit=16))


def loss(module: nn.Module, task: Classification, **settings: float) -> float:
    rows = torch.cat([value.detach().flatten() for value in module.parameters()])[None]
    images, labels = task.normalise(task.train.images)[None], task.train.labels[None]
    forward = Forward(module, recipe(**settings), Way(1), task)
    return float(forward(rows, {}, images, labels)[0])


def roughness(matrix: torch.Tensor) -> float:
    """The term of a matrix, a pair of neighbours at a time."""
    rows, columns = matrix.shape
    return sum(
        abs(float(matrix[f, c] - matrix[f + 1, c])) + abs(float(matrix[f, c] - matrix[f, c + 1]))
        for f in range(rows - 1)
        for c in range(columns - 1)
    )


def test_the_term_of_linear_layers_is_that_of_loops(task: Classification) -> None:
    torch.manual_seed(0)
    module = Net()
    plain = loss(module, task)
    expected = roughness(module.first.weight) + roughness(module.second.weight)
    assert loss(module, task, smoothness_linear=0.01) - plain == pytest.approx(0.01 * expected, rel=1e-4)
    kernels = loss(module, task, smoothness=0.01) - plain
    assert kernels > 0
    both = loss(module, task, smoothness=0.01, smoothness_linear=0.01) - plain
    assert both == pytest.approx(kernels + 0.01 * expected, rel=1e-4)


def test_which_parameters_count() -> None:
    module = Net()
    assert smooth_layers(module, 0.0, 0.0) == []
    assert smooth_layers(module, 0.5, 0.25) == [(0.5, ["conv.weight"]), (0.25, ["first.weight", "second.weight"])]
    assert smooth_layers(nn.Linear(4, 3), 0.5, 0.0) == []
    assert [weight for weight, _ in smooth_layers(archs.build("lenetlike"), 0.5, 0.25)] == [0.5, 0.25]
