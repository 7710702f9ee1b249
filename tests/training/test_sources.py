"""Batches are pure functions of (seed, step): any stretch of a stream equals a slice of the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from netspace import archs
from netspace.networks.batch import NetBatch
from netspace.networks.prep import height
from netspace.networks.spec import NetSpec
from netspace.streams import generator
from netspace.tasks import Classification, DataConfig, load
from netspace.training import batches
from netspace.training.batches import Images, PRepSource, Shuffle, Targets
from netspace.zoo import MEMBER, Header, Population, Zoo, write_zoo

SETTINGS = {"channels": 1, "image_size": 8, "classes": 3, "width": 0.2}


def whole_stream(count: int, seed: int, stream: int, passes: int) -> torch.Tensor:
    return torch.cat([torch.randperm(count, generator=generator(seed, stream, number)) for number in range(passes)])


@given(st.integers(1, 20), st.integers(0, 2**32), st.integers(0, 60), st.integers(1, 60))
def test_any_stretch_is_a_slice_of_the_whole(count: int, seed: int, start: int, many: int) -> None:
    whole = whole_stream(count, seed, 5, 121)
    taken = Shuffle(count, seed, 5).take(start, many)
    assert taken.dtype == torch.int64 and taken.tolist() == whole[start : start + many].tolist()


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30)), min_size=1, max_size=6))
def test_what_was_taken_before_does_not_matter(asked: list[tuple[int, int]]) -> None:
    used = Shuffle(7, 3, 1)
    for start, many in asked:
        assert torch.equal(used.take(start, many), Shuffle(7, 3, 1).take(start, many))


@given(st.integers(1, 50), st.integers(0, 10))
def test_every_pass_is_a_permutation(count: int, number: int) -> None:
    assert sorted(Shuffle(count, 1, 2).take(number * count, count).tolist()) == list(range(count))


def test_seeds_streams_and_passes_differ() -> None:
    def order(seed: int, stream: int, number: int) -> tuple[int, ...]:
        return tuple(Shuffle(30, seed, stream).take(30 * number, 30).tolist())

    assert len({order(seed, stream, number) for seed in (0, 1) for stream in (0, 1) for number in (0, 1)}) == 8


@pytest.fixture(scope="module")
def task() -> Classification:
    return load(DataConfig(name="generated", image_size=8, channels=1, classes=3, limit=60))


@pytest.fixture(scope="module")
def nets() -> NetBatch:
    skeleton = archs.skeleton("lenetlike", SETTINGS, (1, 8, 8))
    return NetBatch(skeleton, NetSpec.from_module(skeleton, "lenetlike", SETTINGS, (1, 8, 8)), "loop")


@pytest.fixture()
def zoo(tmp_path: Path, nets: NetBatch) -> Zoo:
    size = (height(nets.spec.num_parameters, 64), 64)
    preps = np.zeros((6, *size), np.float32)
    random = np.random.default_rng(0)
    preps.reshape(6, -1)[:, : nets.spec.num_parameters] = 0.2 * random.standard_normal((6, nets.spec.num_parameters))
    held = Population(nets.spec, preps, np.zeros(6, MEMBER))
    write_zoo(tmp_path / "z.h5", Header({}, "ab", {}), {"lenetlike": held})
    return Zoo(tmp_path / "z.h5")


CPU = torch.device("cpu")


@pytest.mark.parametrize("kept", [True, False])
def test_preps_from_memory_and_from_the_file_are_the_same(
    zoo: Zoo, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zoo:
        if not kept:
            monkeypatch.setattr(batches, "CACHE_BYTES", 0)
        source = PRepSource(zoo.only(), torch.tensor([4, 1, 5]), CPU)
        assert (source.cache is not None) is kept and len(source) == 3
        places = torch.tensor([2, 0, 0, 1])
        assert torch.equal(source.take(places), zoo.only().read([5, 4, 4, 1]))


def test_what_was_expected_is_what_is_taken(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was not expected, too; what was expected is read once, before it is asked for."""
    monkeypatch.setattr(batches, "CACHE_BYTES", 0)
    source = PRepSource(zoo.only(), torch.arange(6), CPU)
    read, asked = source._read, list[list[int]]()

    def counted(places: torch.Tensor) -> torch.Tensor:
        asked.append(places.tolist())
        return read(places)

    monkeypatch.setattr(source, "_read", counted)
    for expected, places in (([0, 2], [0, 2]), ([1, 3], [3, 1]), ([5, 5], [5, 5])):
        source.prefetch(torch.tensor(expected))
        taken = source.take(torch.tensor(places))
        assert torch.equal(taken, torch.cat([read(torch.tensor([place])) for place in places]))
    assert asked.count([0, 2]) == asked.count([3, 1]) == asked.count([5, 5]) == 1


@pytest.mark.parametrize("remember", [True, False])
def test_targets_remembered_or_computed_are_the_networks_answers(
    zoo: Zoo, nets: NetBatch, task: Classification, remember: bool
) -> None:
    with zoo:
        source = PRepSource(zoo.only(), torch.tensor([4, 1, 5]), CPU)
        images = task.normalise(task.train.images)
        targets = Targets(nets, source, images, remember)
        assert (targets.table is not None) is remember
        members, places = torch.tensor([2, 0]), torch.tensor([7, 7, 50])
        answers = targets.take(members, places, source.take(members), images[places])
        assert answers.shape == (2, 3, 3) and not answers.requires_grad
        flat = zoo.only().read([5, 4]).flatten(1)[:, : nets.spec.num_parameters]
        torch.testing.assert_close(answers, nets(flat, images[places]))


def test_targets_are_not_remembered_where_they_do_not_fit(
    zoo: Zoo, nets: NetBatch, task: Classification, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zoo:
        images = task.normalise(task.train.images)
        source = PRepSource(zoo.only(), torch.tensor([4, 1]), CPU)
        monkeypatch.setattr(batches, "CACHE_BYTES", 2 * 60 * 4 * 3 - 1)
        assert Targets(nets, source, images, cache=True).table is None
        monkeypatch.setattr(batches, "CACHE_BYTES", 2 * 60 * 4 * 3)
        assert Targets(nets, source, images, cache=True).table is not None


def test_images_go_through_the_training_split_a_pass_at_a_time(task: Classification) -> None:
    images = Images(task, seed=3)
    places = torch.cat([images.take(step, 20)[1] for step in range(6)])
    assert sorted(places[:60].tolist()) == sorted(places[60:].tolist()) == list(range(60))
    batch, places = images.take(4, 20)
    assert torch.equal(batch, task.normalise(task.train.images[places]))
    assert torch.equal(batch, Images(task, seed=3).take(4, 20)[0])
    assert not torch.equal(places, Images(task, seed=4).take(4, 20)[1])


def test_augmented_images_are_drawn_anew_each_step_and_again_the_same() -> None:
    moving = load(
        DataConfig(name="generated", image_size=8, channels=1, classes=3, limit=20, crop_padding=2, flip=True)
    )
    images = Images(moving, seed=3)
    first, places = images.take(1, 20)
    again, same = Images(moving, seed=3).take(1, 20)
    assert torch.equal(first, again) and torch.equal(places, same)
    later, others = images.take(2, 20)
    assert not torch.equal(first[places.argsort()], later[others.argsort()])
    plain = moving.augment(moving.train.images[places], generator(3, 3, 1))
    assert torch.equal(first, moving.normalise(plain))
