"""Which networks a step of several architectures sees, and which points between them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from netspace import archs
from netspace.errors import UsageError
from netspace.networks.family import ArchClass, Family, net_batch
from netspace.networks.prep import height
from netspace.networks.spec import NetSpec
from netspace.training.batches import Chosen, ClassBatches, Points, batch_slice
from netspace.training.recipe import MultiConfig, SpaceRecipe


def recipe(**changes: Any) -> SpaceRecipe:
    multi = {"batches": changes.pop("batches", "classes")}
    return SpaceRecipe.model_validate({"latent": 64, "multi": multi, **changes})


def taken(chosen: Chosen) -> list[tuple[int, int]]:
    """(ClassId, place) of every network."""
    return [(class_id, int(place)) for class_id, places in chosen for place in places]


# ---- ClassBatches


def test_balanced_batches_have_as_many_of_each_class() -> None:
    batches = ClassBatches(recipe(networks=6), {0: 5, 2: 3, 3: 40})
    for number in range(12):
        chosen = batches.take(number)
        assert [class_id for class_id, _ in chosen] == [0, 2, 3] and all(len(places) == 2 for _, places in chosen)
    first = torch.cat([dict(batches.take(number))[3] for number in range(20)])
    assert sorted(first.tolist()) == list(range(40))  # every one of a class once, before one comes again


def test_classes_are_shuffled_apart() -> None:
    batches = ClassBatches(recipe(networks=60), {0: 30, 1: 30})
    one, two = (places for _, places in batches.take(0))
    assert not torch.equal(one, two) and sorted(one.tolist()) == sorted(two.tolist()) == list(range(30))


@given(st.dictionaries(st.integers(0, 6), st.integers(1, 9), min_size=1), st.integers(1, 8), st.integers(0, 99))
def test_drawn_alike_every_shown_member_comes_once_a_pass(counts: dict[int, int], networks: int, seed: int) -> None:
    counts = dict(sorted(counts.items()))
    batches = ClassBatches(recipe(networks=networks, batches="members", seed=seed), counts)
    total = sum(counts.values())
    steps = [batches.take(number) for number in range(total)]  # `networks` passes
    found = [network for chosen in steps for network in taken(chosen)]
    wanted = [(class_id, place) for class_id, count in counts.items() for place in range(count)]
    assert sorted(found) == sorted(wanted * networks)
    for chosen in steps:
        ids = [class_id for class_id, _ in chosen]
        assert ids == sorted(set(ids)) and sum(len(places) for _, places in chosen) == networks
        assert all(len(places) for _, places in chosen)


def test_pairs_stay_together_and_the_rest_comes_in_twos() -> None:
    """NetSpace's unseen architectures: 40 and 80 networks are 40 pairs of both and 20 of the larger class, one a batch."""
    batches = ClassBatches(recipe(networks=2, batches="pairs"), {0: 40, 3: 80})
    found = [taken(batches.take(number)) for number in range(60)]
    wanted = [[(0, row), (3, row)] for row in range(40)] + [[(3, row), (3, row + 1)] for row in range(40, 80, 2)]
    assert sorted(found) == sorted(wanted) and found != wanted
    mirrored = ClassBatches(recipe(networks=2, batches="pairs"), {0: 3, 2: 2})
    assert sorted(taken(mirrored.take(number)) for number in range(3)) == [
        [(0, 0), (2, 0)],
        [(0, 1), (2, 1)],
        [(0, 2), (0, 0)],  # of an odd number the last is drawn with the first
    ]


def test_pairs_are_of_two_classes() -> None:
    with pytest.raises(
        UsageError, match=r"^multi.batches pairs is for networks of two architectures, but there are 3: choose"
    ):
        ClassBatches(recipe(networks=2, batches="pairs"), {0: 4, 1: 4, 2: 4})


@pytest.mark.parametrize("batches", ["classes", "members", "pairs"])
@pytest.mark.parametrize(("parts", "shares"), [(1, 2), (2, 1), (2, 2), (3, 1)])
def test_parts_and_shares_make_up_the_batch(batches: str, parts: int, shares: int) -> None:
    whole = recipe(networks=24, batches=batches)
    counts = {0: 7, 1: 13}
    pieces = whole.model_copy(update={"accumulate": parts})
    for number in range(4):
        wanted = taken(ClassBatches(whole, counts).take(number))
        dealt_out = [
            ClassBatches(pieces, counts).take(number, batch_slice(pieces, part, place, shares))
            for part in range(parts)
            for place in range(shares)
        ]
        assert sorted(network for chosen in dealt_out for network in taken(chosen)) == sorted(wanted)
        sizes = {sum(len(places) for _, places in chosen) for chosen in dealt_out}
        assert sizes == {24 // (parts * shares)}


@pytest.mark.parametrize("batches", ["classes", "members", "pairs"])
def test_a_batch_depends_on_seed_and_step_alone(batches: str) -> None:
    counts = {0: 7, 1: 13}
    used = ClassBatches(recipe(networks=8, batches=batches), counts)
    for number in (3, 0, 9):
        found = taken(used.take(number))
        assert found == taken(ClassBatches(recipe(networks=8, batches=batches), counts).take(number))
    other = ClassBatches(recipe(networks=8, batches=batches, seed=1), counts)
    assert taken(other.take(9)) != found


# ---- Points


def family_of(count: int) -> Family:
    settings = {"channels": 1, "image_size": 8, "classes": 3, "width": 0.15}
    skeleton = archs.skeleton("lenetlike", settings, (1, 8, 8))
    nets = net_batch(NetSpec.from_module(skeleton, "lenetlike", settings, (1, 8, 8)), "cpu")
    size = height(nets.spec.num_parameters, 64), 64
    return Family([ArchClass(f"{place:02d}", nets, size) for place in range(count)])


TWO, THREE, FOUR = (family_of(count) for count in (2, 3, 4))


def held(*counts: int) -> dict[int, int]:
    """So many networks of ClassIds 0, 1, ..."""
    return {class_id: count for class_id, count in enumerate(counts) if count}


def test_all_pairs_of_the_ends_at_every_class_between() -> None:
    between = Points.between_ends(held(2, 5, 0, 3), FOUR, MultiConfig())
    found = list(zip(*between.pairs.tolist(), between.gamma.tolist(), between.class_ids.tolist(), strict=True))
    wanted = [
        (low, 2 + 5 + high, pytest.approx(class_id / 3), class_id)
        for class_id in (1, 2)
        for low in range(2)
        for high in range(3)
    ]
    assert sorted(found, key=lambda point: (point[3], point[0], point[1])) == wanted
    assert between.pairs.dtype == between.class_ids.dtype == torch.int64 and between.pairs.shape == (2, 12)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 40))
def test_no_more_pairs_than_asked_for_and_networks_in_turn(low: int, high: int, pairs: int) -> None:
    between = Points.between_ends(held(low, 1, high), THREE, MultiConfig(pairs=pairs))
    found = list(zip(*between.pairs.tolist(), strict=True))
    assert len(found) == len(set(found)) == min(pairs, low * high)
    for end, first_place, count in ((0, 0, low), (1, low + 1, high)):
        used = [found_pair[end] - first_place for found_pair in found]
        times = [used.count(place) for place in range(count)]
        assert sum(times) == len(used) and max(times) - min(times) <= 1  # each before one is used again


@pytest.mark.parametrize(
    ("counts", "config"),
    [
        ((0, 4, 4), MultiConfig()),
        ((4, 4, 0), MultiConfig()),
        ((4, 4, 4), MultiConfig(interpolation=0)),
    ],
)
def test_without_both_ends_or_a_weight_there_is_nothing_between(counts: tuple[int, ...], config: MultiConfig) -> None:
    between = Points.between_ends(held(*counts), THREE, config)
    assert between.pairs.shape == (2, 0) and len(between.gamma) == len(between.class_ids) == 0


def test_between_two_architectures_there_is_nothing() -> None:
    between = Points.between_ends(held(2, 2), TWO, MultiConfig())
    assert between.pairs.shape == (2, 0)
