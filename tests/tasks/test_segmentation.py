"""Segmentation: pictures composed of sprites, whose classes they have, the score over a whole split, losses, refusals."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score, jaccard_score
from torch import Tensor

from netspace.errors import NetspaceError, UsageError
from netspace.tasks import DataConfig, load
from netspace.tasks.base import SPLITS
from netspace.tasks.scenes import DIGITS, Scenes, Sprites, Style, compose, digit_sprites, folder_sprites
from netspace.tasks.segmentation import Segmentation

BLACK = [np.zeros((40, 50, 3), np.uint8)]
SQUARES = Style(objects=(1, 3), sides=(0.25, 0.5), light=(0.2, 0.6))


def squares(opacity: int = 255) -> Sprites:
    """Three squares, red, green and blue, of the classes 1 to 3."""
    colours = torch.eye(3, dtype=torch.uint8)[:, :, None, None].expand(3, 3, 8, 8) * opacity
    return Sprites(
        torch.cat([colours, torch.full((3, 1, 8, 8), opacity, dtype=torch.uint8)], 1), torch.arange(1, 4), SQUARES
    )


def small(classes: int = 4) -> Segmentation:
    """A task of 7 noisy pictures of 4 x 5 pixels in each split, one class in none of them."""
    random = np.random.RandomState(0)

    def scenes() -> Scenes:
        images = torch.from_numpy(random.randint(0, 256, (7, 3, 4, 5), dtype=np.uint8))
        return Scenes(images, torch.from_numpy(random.randint(0, classes - 1, (7, 4, 5)).astype(np.uint8)))

    return Segmentation("noise", {split: scenes() for split in SPLITS}, tuple("abcd"[:classes]))


@pytest.fixture
def artwork(tmp_path: Path) -> Path:
    """Ten emoji of one colour each in two groups, of 20 x 20 pixels."""
    for number in range(10):
        path = tmp_path / "art" / ("round" if number % 2 else "flat") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 20, 4), (20 * number, 0, 255, 255), np.uint8)).save(path)
    return tmp_path / "art"


def settings(**changes: Any) -> DataConfig:
    return DataConfig.model_validate({"name": "segmentation", **changes})


def test_every_pixel_has_the_class_of_the_sprite_that_is_seen_there() -> None:
    scenes = compose(squares(), BLACK, 16, 60, 60, (0,))
    colours = torch.cat([torch.zeros(1, 3), 255 * torch.eye(3)]).byte()
    assert torch.equal(scenes.images, colours[scenes.labels.long()].permute(0, 3, 1, 2))
    covered = (scenes.labels > 0).flatten(1).sum(1)
    assert covered.min() >= 16 and covered.max() <= 3 * 64
    assert {len(set(each.tolist()) - {0}) for each in scenes.labels.flatten(1)} == {1, 2, 3}
    shares = torch.bincount(scenes.labels.flatten().long(), minlength=4)[1:] / covered.sum()
    assert 0.2 < shares.min() < shares.max() < 0.5  # classes are drawn alike


def test_a_sprite_counts_where_it_is_more_than_half_opaque() -> None:
    """And is mixed with the ground by its opacity, whole levels of a grey one."""
    grey = [np.full((40, 50, 3), 200, np.uint8)]
    for opacity, seen in ((127, False), (128, True)):
        sprites = replace(squares(opacity), style=replace(SQUARES, objects=(1, 1)))
        scenes = compose(sprites, grey, 16, 20, 20, (0,))
        assert bool((scenes.labels > 0).any()) == seen
        low, high = (scenes.images.int().amin(1), scenes.images.int().amax(1))
        covered = high > low
        assert torch.equal((high - low)[covered].unique(), torch.tensor([opacity], dtype=torch.int32))
        for low_levels, high_levels in zip(low.flatten(1), high.flatten(1), strict=True):
            (ground,) = low_levels[high_levels == low_levels].unique().tolist()
            assert 0.2 * 200 - 1 <= ground <= 0.6 * 200 + 1
            (under,) = low_levels[high_levels > low_levels].unique().tolist()
            assert under == pytest.approx(ground * (255 - opacity) / 255, abs=0.51)


def test_pictures_follow_from_the_seed_and_fewer_are_the_first_of_many() -> None:
    whole, first = compose(squares(), BLACK, 16, 30, 30, (1,)), compose(squares(), BLACK, 16, 30, 12, (1,))
    assert torch.equal(whole.images[:12], first.images) and torch.equal(whole.labels[:12], first.labels)
    assert not torch.equal(whole.labels, compose(squares(), BLACK, 16, 30, 30, (2,)).labels)


def test_the_task_of_digits_needs_no_download() -> None:
    task, again = load(settings(limit=40)), load(settings(limit=40))
    assert isinstance(task, Segmentation) and task.split_hash == again.split_hash
    assert task.split_hash != load(settings(limit=40, split_seed=1)).split_hash
    assert (task.input_shape, task.output_shape, task.num_outputs) == ((3, 32, 32), (11, 32, 32), 11 * 1024)
    assert [task.size(split) for split in SPLITS] == [40, 500, 1000] and task.arch_settings == {"classes": 11}
    assert task.classes == ("background", *map(str, range(10)))
    labels = task.targets("test", slice(None))
    assert labels.shape == (1000, 32, 32) and sorted(labels.unique().tolist()) == list(range(11))
    inputs = task.inputs("train", slice(None))
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-4)
    index = torch.tensor([[3, 1], [0, 2]])
    assert torch.equal(task.inputs("val", index)[1, 0], task.inputs("val", slice(0, 1))[0])
    assert torch.equal(task.targets("val", index)[0, 1], task.targets("val", slice(1, 2))[0])


def test_splits_have_other_sprites(artwork: Path) -> None:
    sprites, classes = folder_sprites(settings(images="emoji", root=artwork))
    assert classes == ("background", "flat", "round")
    reds = {split: {int(each[0, 0, 0]) for each in sprites[split].pixels} for split in SPLITS}
    assert [len(each) for each in reds.values()] == [7, 1, 2] and len(set.union(*reds.values())) == 10
    for split in SPLITS:  # the group of each is that of its folder
        assert [int(each[0, 0, 0]) // 20 % 2 + 1 for each in sprites[split].pixels] == sprites[split].labels.tolist()
    digits, _ = digit_sprites(settings())
    assert [len(digits[split].labels) for split in SPLITS] == [1000, 297, 500] and digits["val"].style == DIGITS


def test_artwork_of_a_folder_is_a_task(artwork: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load(settings(images="emoji", root=artwork, limit=8))
    assert isinstance(task, Segmentation) and task.output_shape == (3, 64, 64) and task.name == "segmentation of emoji"
    monkeypatch.setenv("NETSPACE_DATA", str(artwork.parent))
    artwork.rename(artwork.with_name("emoji"))
    assert load(settings(images="emoji", limit=8)).split_hash == task.split_hash


def test_missing_artwork_says_how_to_get_it(tmp_path: Path, artwork: Path) -> None:
    with pytest.raises(NetspaceError) as caught:
        load(settings(images="emoji", root=tmp_path / "none"))
    assert str(caught.value) == (
        f"data set 'emoji' is not on this machine: looked in {tmp_path}/none, {tmp_path}/none/emoji; unpack it with "
        "`python tools/emoji.py FOLDER` from npm's emoji-datasource-google 16.0.0 and set data.root to FOLDER, or take "
        "data.images digits, which needs no download, or let NETSPACE_DATA (or the setting root) name the folder that holds it."
    )
    (artwork / "flat" / "0.png").write_bytes(b"no image")
    with pytest.raises(NetspaceError, match=r"flat/0\.png is broken: expected an image"):
        load(settings(images="emoji", root=artwork))
    for file in [*artwork.glob("round/*.png"), artwork / "flat" / "0.png"]:
        file.unlink()
    with pytest.raises(NetspaceError, match="has 4 PNG files, and each split needs at least one: give 10 or more"):
        load(settings(images="emoji", root=artwork))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": "emojis"}, "unknown data.images of segmentation 'emojis': did you mean 'emoji'?"),
        ({"flip": True}, "data set 'segmentation' has no setting flip: leave it out."),
        ({"latent": 3}, "data set 'segmentation' has no setting latent: leave it out."),
        ({"image_size": 300}, "pictures of 'segmentation' have 16 to 224 pixels a side, not image_size=300."),
        ({"root": Path("here")}, "digits come with scikit-learn, but root=here was given: leave it out"),
    ],
)
def test_settings_that_do_not_apply_are_told(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        load(settings(**changes))
    with pytest.raises(UsageError, match="has no setting latent"):
        load(DataConfig(name="digits", latent=3))


def test_the_score_is_sklearns_over_all_pixels_of_a_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the mean over batches; the class that nobody has and nobody predicts does not count."""
    task = small()
    torch.manual_seed(0)
    outputs = torch.randn(2, 7, task.num_outputs)
    outputs[0].view(7, 4, 20)[:, 3] = -100  # the first network never says d, the second does
    truth = task.targets("test", slice(None))
    whole = {split: task.inputs(split, slice(None)) for split in SPLITS}

    def networks(x: Tensor) -> Tensor:
        rows = [next(i for i, each in enumerate(whole["test"]) if torch.equal(each, image)) for image in x]
        return outputs[:, rows]

    monkeypatch.setattr("netspace.tasks.segmentation.MAX_VALUES", 2 * 3 * task.num_outputs)  # three images at a time
    found = task.assess(networks, "test", torch.tensor([-1, -1]))
    for member in range(2):
        predicted = outputs[member].view(7, 4, 4, 5).argmax(1).flatten()
        pair = truth.flatten().numpy(), predicted.numpy()
        assert float(found["mIoU"][member]) == pytest.approx(jaccard_score(*pair, average="macro"), abs=1e-12)
        assert float(found["f1"][member]) == pytest.approx(f1_score(*pair, average="macro"), abs=1e-12)
        assert float(found["pixel_accuracy"][member]) == pytest.approx(
            float((predicted == truth.flatten()).double().mean())
        )
    assert torch.equal(task.evaluate(networks, "test", torch.tensor([-1, -1])), found["mIoU"])
    assert torch.equal(task.score(outputs, truth), found["mIoU"])
    first = task.evaluate(networks, "test", torch.tensor([-1, -1]), limit=2)
    assert torch.equal(first, task.score(outputs[:, :2], truth[:2]))
    halves = (task.score(outputs[:, :2], truth[:2]) * 2 + task.score(outputs[:, 2:], truth[2:]) * 5) / 7
    assert not torch.allclose(halves, found["mIoU"], rtol=0, atol=1e-6)


def test_losses_by_hand() -> None:
    task = small()
    torch.manual_seed(0)
    p, t = torch.randn(2, 3, 4, 4, 5, dtype=torch.float64).unbind(0)  # maps of three images
    labels = task.targets("train", slice(3))
    slow = (
        -sum(float(p[b, :, h, w].log_softmax(0)[labels[b, h, w]]) for b in range(3) for h in range(4) for w in range(5))
        / 60
    )
    assert float(task.training_loss(p, labels)) == pytest.approx(slow, rel=1e-12)
    assert float(task.training_loss(p.flatten(1), labels)) == pytest.approx(slow, rel=1e-12)

    def kl(temperature: float) -> float:
        ours, theirs = (each.div(temperature).softmax(1) for each in (p, t))
        return float((theirs * (theirs / ours).log()).sum(1).mean())

    assert float(task.behaviour_loss(p, t, 4.0)) == pytest.approx(16 * kl(4.0), rel=1e-5)
    assert float(task.divergence(p.flatten(1)[None], t.flatten(1)[None])) == pytest.approx(kl(1.0), rel=1e-9)
    same = (p.argmax(1) == t.argmax(1)).double().mean()
    assert float(task.agreement(p.flatten(1)[None], t.flatten(1)[None])) == pytest.approx(float(same))
    taught = task.distillation_loss(p.flatten(1)[None].float(), t.flatten(1).float(), labels, 4.0, 0.3)
    assert float(taught) == pytest.approx(0.3 * 16 * kl(4.0) + 0.7 * slow, rel=1e-5)


def test_pairs_of_networks_are_compared_one_by_one() -> None:
    """Up to one factor for all, and in the direction that is asked for."""
    task = small()
    torch.manual_seed(0)
    first, second = torch.randn(2, 7, task.num_outputs), torch.randn(3, 7, task.num_outputs)
    agreed, diverged = task.agreements(first, second), task.divergences(first, second)
    for m in range(2):
        for n in range(3):
            one, other = first[m : m + 1], second[n : n + 1]
            assert float(agreed[m, n]) == pytest.approx(140 * float(task.agreement(one, other)))
            assert float(diverged[m, n]) == pytest.approx(140 * float(task.divergence(other, one)), rel=1e-4)
    own = task.identity(first, first, task.targets("test", slice(None))).agreement_own
    assert own.tolist() == [1.0, 1.0]


def test_votes_are_probabilities_and_back() -> None:
    task = small()
    outputs = torch.randn(2, 3, task.num_outputs)
    votes = task.votes(outputs)
    assert torch.allclose(votes.view(2, 3, 4, 20).sum(2), torch.ones(2, 3, 20))
    assert torch.allclose(task.votes(task.from_votes(votes)), votes, atol=1e-6)


def test_pictures_show_image_truth_and_prediction() -> None:
    task = small()
    index = torch.tensor([5, 2])
    perfect = torch.nn.functional.one_hot(task.targets("val", index), 4).permute(0, 3, 1, 2).float()
    rows = task.pictures(lambda x: perfect, "val", index)
    assert list(rows) == ["image", "truth", "prediction"] and rows["image"].shape == (2, 4, 5, 3)
    assert np.array_equal(rows["image"], task.splits["val"].images[index].permute(0, 2, 3, 1).numpy())
    assert np.array_equal(rows["truth"], rows["prediction"])
    wrong = task.pictures(lambda x: perfect.roll(1, 1), "val", index)["prediction"]
    assert not np.array_equal(rows["truth"], wrong)
    painted = rows["truth"][task.targets("val", index).numpy() == 1]
    assert len(np.unique(painted, axis=0)) == 1


def test_grey_sprites_of_16_bits_keep_their_upper_8(artwork: Path) -> None:
    expected, _ = folder_sprites(settings(root=artwork))
    for file in artwork.rglob("*.png"):
        Image.fromarray(np.full((20, 20), 256 * 40 + 7, np.uint16)).save(file)
    sprites, _ = folder_sprites(settings(root=artwork))
    assert len(sprites["train"].pixels) == len(expected["train"].pixels)
    assert sprites["train"].pixels[:, :3].unique().tolist() == [40]
