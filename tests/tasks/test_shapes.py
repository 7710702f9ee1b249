"""The task of signed distances: points, what is true of them, scores, and networks between two shapes."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from netspace.errors import UsageError
from netspace.tasks import DataConfig, load
from netspace.tasks.chairs import chair
from netspace.tasks.shapes import SignedDistances

SEEDS = torch.tensor([5, 0, 5])


@pytest.fixture(scope="module")
def task() -> SignedDistances:
    loaded = load(DataConfig(name="chairs", points=256))
    assert isinstance(loaded, SignedDistances)
    return loaded


def test_points_are_each_shapes_own_and_true_of_it(task: SignedDistances) -> None:
    """Distances are those of the shape with the seed's number; half of the points are near its surface."""
    points, distances = (each("val", slice(None), SEEDS) for each in (task.inputs, task.targets))
    assert points.shape == (3, 2048, 3)
    assert distances.shape == (3, 2048, 1)
    assert points.abs().max() <= 1
    for row, seed in enumerate(SEEDS.tolist()):
        true = chair(seed).distances(points[row].double().numpy())
        assert np.allclose(distances[row, :, 0], true, atol=1e-6)
    assert torch.equal(points[0], points[2])
    assert not torch.equal(points[0], points[1])
    near = (distances.abs() < 0.15).double().mean((1, 2))
    assert (near > 0.5).all()
    assert not torch.equal(points[0], task.inputs("test", slice(2048), SEEDS[:1])[0])


def test_an_index_picks_the_same_points_as_a_slice(task: SignedDistances) -> None:
    whole = task.inputs("train", slice(None), SEEDS)
    index = torch.tensor([[3, 1], [0, 255], [7, 7]])
    assert torch.equal(task.inputs("train", index, SEEDS), torch.stack([whole[m, index[m]] for m in range(3)]))
    assert torch.equal(task.inputs("train", torch.tensor([9, 4]), None), task.inputs("train", slice(None))[[9, 4]])


def test_shared_points_belong_to_no_shape(task: SignedDistances) -> None:
    shared, unknown = task.inputs("test", slice(None)), task.targets("test", slice(None))
    assert shared.shape == (4096, 3)
    assert unknown.isnan().all()
    assert torch.equal(shared, task.inputs("test", slice(None), torch.tensor([-1]))[0])
    assert torch.isnan(task.score(unknown, torch.zeros_like(unknown)))


def test_the_order_in_which_shapes_are_asked_for_changes_nothing(task: SignedDistances) -> None:
    other = load(DataConfig(name="chairs", points=256))
    other.inputs("val", slice(None), torch.tensor([9, 2, 5]))
    seeds = torch.tensor([0, -1, 5])
    assert torch.equal(other.inputs("val", slice(None), seeds), task.inputs("val", slice(None), seeds))


def test_scores_are_the_fraction_within_a_hundredth(task: SignedDistances) -> None:
    targets = torch.zeros(2, 4, 1)
    outputs = torch.tensor([[0.0, 0.009, 0.011, -0.5], [0.02, 0.02, 0.02, 0.02]])[..., None]
    assert task.score(outputs, targets).tolist() == [0.5, 0.0]
    assert task.agreement(outputs[0], outputs[1]).item() == pytest.approx(0.25)
    assert task.behaviour_loss(outputs, targets).item() == pytest.approx(float(outputs.square().mean()))


def test_between_two_shapes_distances_are_mixed_at_shared_points(task: SignedDistances) -> None:
    first, second, gamma = torch.tensor([1, 1]), torch.tensor([2, 2]), torch.tensor([0.0, 0.25])
    points = task.inputs_between("val", first, second, gamma)
    targets = task.targets_between("val", first, second, gamma)
    shared = task.inputs("val", slice(None)).double().numpy()
    true = [torch.from_numpy(chair(number).distances(shared)).float()[:, None] for number in (1, 2)]
    assert points.shape == (2, 2048, 3)
    assert torch.equal(points[1].double(), torch.from_numpy(shared))
    assert torch.allclose(targets[0], true[0], atol=1e-6)
    assert torch.allclose(targets[1], 0.75 * true[0] + 0.25 * true[1], atol=1e-6)
    assert task.targets_between("val", torch.tensor([-1]), second[:1], gamma[:1]).isnan().all()


def test_occupancies_are_of_the_same_points(task: SignedDistances) -> None:
    other = load(DataConfig(name="chairs", points=256, field="occupancy"))
    inside = (task.targets("val", slice(None), SEEDS) <= 0).float()
    assert torch.equal(1 - other.targets("val", slice(None), SEEDS), inside)

    def logits(points: Tensor) -> Tensor:
        rows = zip(SEEDS.tolist(), points.double().numpy(), strict=True)
        return torch.stack([torch.from_numpy(chair(seed).distances(each)) for seed, each in rows])[..., None]

    outputs = 5000 * logits(other.inputs("val", slice(None), SEEDS))
    assert other.score(outputs, other.targets("val", slice(None), SEEDS)).min() > 0.999
    assert float(other.training_loss(outputs, other.targets("val", slice(None), SEEDS).double())) < 0.1
    assert float(other.agreement(outputs[0], -outputs[0])) < 0.01


def test_what_is_known_of_shapes_has_names(task: SignedDistances) -> None:
    labels = task.labels(SEEDS)
    assert labels["seat_height"].tolist() == [chair(seed).labels["seat_height"] for seed in SEEDS.tolist()]
    assert task.member_name(12) == "chair/0012"


def test_settings_of_images_are_refused_and_hashes_follow_the_settings(task: SignedDistances) -> None:
    with pytest.raises(UsageError, match="data set 'chairs' has no setting image_size, classes: leave it out"):
        load(DataConfig(name="chairs", image_size=28, classes=3))
    with pytest.raises(UsageError, match=re.escape("data set 'digits' has no setting points: leave it out.")):
        load(DataConfig(name="digits", points=100))
    with pytest.raises(UsageError, match="'chairs' is made, not read"):
        load(DataConfig.model_validate({"name": "chairs", "root": "."}))
    assert load(DataConfig(name="chairs", points=256)).split_hash == task.split_hash
    assert load(DataConfig(name="chairs", points=256, split_seed=1)).split_hash != task.split_hash
