"""Architectures in the order of their ClassIds, and networks of several side by side."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from netspace import archs
from netspace.archs import ArchConfig
from netspace.errors import NetspaceError, UsageError
from netspace.networks.batch import NetBatch
from netspace.networks.family import ArchClass, Family, Networks, declared
from netspace.networks.prep import height, pack, unpack
from netspace.networks.spec import NetSpec

SHAPE, WIDTH, CPU = (1, 8, 8), 64, torch.device("cpu")


def arch_class(name: str, arch: str, width: float, trained: bool = True, columns: int = WIDTH) -> ArchClass:
    kwargs = {"channels": 1, "image_size": 8, "classes": 5, "width": width}
    skeleton = archs.skeleton(arch, kwargs, SHAPE)
    spec = NetSpec.from_module(skeleton, arch, kwargs, SHAPE)
    return ArchClass(name, NetBatch(skeleton, spec, "loop"), (height(spec.num_parameters, columns), columns), trained)


@pytest.fixture(scope="module")
def family() -> Family:
    return Family(
        [
            arch_class("large", "resnet8", 0.2),
            arch_class("small", "lenetlike", 0.15),
            arch_class("medium", "vanillacnn", 0.15, trained=False),
        ]
    )


def numbered(family: Family, *class_ids: int) -> Networks:
    """Networks with parameters of their own, padding and rows below filled with what nobody may read."""
    random = torch.Generator().manual_seed(0)
    preps = torch.full((len(class_ids), *family.size), torch.nan)
    for row, class_id in zip(preps, class_ids, strict=True):
        row.flatten()[: family[class_id].parameters] = torch.randn(family[class_id].parameters, generator=random) * 0.1
    return Networks(family, preps, torch.tensor(class_ids))


def test_class_ids_order_architectures_by_their_parameters(family: Family) -> None:
    assert [each.id for each in family] == ["small", "medium", "large"] and len(family) == 3
    counts = [each.parameters for each in family]
    assert counts == sorted(counts) and len(set(counts)) == 3
    assert [family.class_id(name) for name in ("small", "medium", "large")] == [0, 1, 2]
    assert family[1].id == "medium" and family.names == "small, medium, large"
    assert family.input_shape == SHAPE and list(family.between) == [1]


def test_of_as_many_parameters_names_decide() -> None:
    twins = [arch_class(name, "lenetlike", 0.15) for name in ("b", "c", "a")]
    assert Family(twins).names == Family(reversed(twins)).names == "a, b, c"


def test_the_largest_height_holds_them_all(family: Family) -> None:
    assert [each.size[0] for each in family] == sorted(each.size[0] for each in family)
    assert family.size == family[2].size == (height(family[2].parameters, WIDTH), WIDTH)


def test_more_rows_can_be_asked_for_but_not_fewer(family: Family) -> None:
    rows = family.size[0]
    assert Family(family, rows + 8).size == (rows + 8, WIDTH)
    assert Family(family, 4).size == Family(family).size == (rows, WIDTH)


@given(st.integers(2, 40))
def test_the_factors_of_eq_12(count: int) -> None:
    """ClassId i lies at i / (A - 1), where Eq. 7 gives i back exactly."""
    twin = arch_class("x", "lenetlike", 0.15)
    many = Family([ArchClass(f"{place:02d}", twin.nets, twin.size) for place in range(count)])
    for place in range(count):
        assert many.factor(place) == float(Fraction(place, count - 1))
        gamma = Fraction(place, count - 1)
        assert (1 - gamma) * 0 + gamma * (count - 1) == place
    assert list(many.between) == list(range(1, count - 1))


def test_a_single_architecture_has_no_line() -> None:
    alone = Family([arch_class("x", "lenetlike", 0.15)])
    assert alone.factor(0) == 0.0 and not list(alone.between)


def test_an_unknown_architecture_is_told_with_those_there_are(family: Family) -> None:
    with pytest.raises(UsageError) as told:
        family.class_id("smal")
    assert str(told.value) == (
        "unknown architecture 'smal': did you mean 'small'? There are: small, medium, large. (of this space)"
    )


@pytest.mark.parametrize(("hidden", "word"), [("small", "smallest"), ("large", "largest")])
def test_the_ends_have_to_be_shown(family: Family, hidden: str, word: str) -> None:
    classes = [ArchClass(each.id, each.nets, each.size, each.id != hidden) for each in family]
    with pytest.raises(UsageError) as told:
        Family(classes)
    assert str(told.value) == (
        f"networks of {hidden}, the {word} architecture, are needed: architectures are ordered between the smallest and "
        "the largest (small, medium, large), and those between alone may go without"
    )


def test_preps_have_one_width(family: Family) -> None:
    with pytest.raises(NetspaceError) as told:
        Family([*family, arch_class("wide", "lenetlike", 0.2, columns=72)])
    assert str(told.value) == ("PReps of one space have one width; those of small, wide, medium, large have [64, 72]")


def test_through_json_and_back(family: Family) -> None:
    told = json.loads(json.dumps(family.to_json()))
    assert [(name, entry["class_id"], entry["shown"]) for name, entry in told.items()] == [
        ("small", 0, True),
        ("medium", 1, False),
        ("large", 2, True),
    ]
    back = Family.from_json(dict(reversed(told.items())), CPU)  # the order in the file does not matter
    for one, two in zip(family, back, strict=True):
        assert (one.id, one.spec, one.size, one.trained) == (two.id, two.spec, two.size, two.trained)
    assert back.to_json() == family.to_json() and Family.from_json(told, CPU, 400).size[0] == 400
    del told["medium"]["shown"]  # as once written
    assert Family.from_json(told, CPU)[1].trained


def test_a_declared_architecture_is_one_that_the_zoo_could_hold(family: Family) -> None:
    made = declared("new", ArchConfig(arch="vanillacnn", width=0.15), SHAPE, 5, WIDTH, CPU)
    assert not made.trained and (made.spec, made.size) == (family[1].spec, family[1].size)


# ---- networks side by side


def answers(nets: NetBatch, flat: Tensor) -> Tensor:
    images = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    return nets(flat, images)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=7))
def test_each_is_one_by_one(class_ids: list[int]) -> None:
    networks = numbered(FAMILY, *class_ids)
    together = networks.each(answers)
    assert together.shape == (len(class_ids), 4, 5)
    for place, class_id in enumerate(class_ids):
        arch = FAMILY[class_id]
        alone = answers(arch.nets, unpack(networks.preps[place : place + 1], arch.parameters))
        torch.testing.assert_close(together[place], alone[0])


FAMILY = Family(
    [arch_class("a", "lenetlike", 0.15), arch_class("b", "vanillacnn", 0.1), arch_class("c", "resnet8", 0.1)]
)


def test_each_is_asked_once_a_class_and_gradients_come_back_in_place(family: Family) -> None:
    networks = numbered(family, 2, 0, 2, 0, 2)
    asked: list[tuple[str, int]] = []

    def work(nets: NetBatch, flat: Tensor) -> Tensor:
        asked.append((nets.spec.arch, len(flat)))
        return flat.square().sum(1)

    preps = networks.preps.nan_to_num().requires_grad_()
    found = Networks(family, preps, networks.class_ids).each(work)
    assert asked == [("lenetlike", 2), ("resnet8", 3)]
    weights = torch.arange(1.0, 6.0)
    (found * weights).sum().backward()
    assert preps.grad is not None
    for place, weight in enumerate(weights):
        own = networks.flat(place)
        assert torch.equal(preps.grad[place].flatten()[: len(own)], weight * 2 * own)
        assert not preps.grad[place].flatten()[len(own) :].any()  # of what belongs to no parameter


def test_flat_is_a_networks_own_parameters(family: Family) -> None:
    networks = numbered(family, 1, 2, 0)
    for place, class_id in enumerate((1, 2, 0)):
        flat = networks.flat(place)
        assert flat.shape == (family[class_id].parameters,) and flat.isfinite().all()


def test_networks_of_one_class_lie_in_the_first_rows(family: Family) -> None:
    flat = torch.randn(3, family[0].parameters)
    networks = Networks.of_class(family, 0, flat)
    assert len(networks) == 3 and networks.preps.shape == (3, *family.size)
    assert networks.class_ids.dtype == torch.int64 and networks.class_ids.tolist() == [0, 0, 0]
    rows = family[0].size[0]
    assert torch.equal(networks.preps[:, :rows], pack(flat, family[0].size)) and not networks.preps[:, rows:].any()
    assert all(torch.equal(networks.flat(place), flat[place]) for place in range(3))


def test_together_and_apart(family: Family) -> None:
    parts = [numbered(family, 2, 0), numbered(family, 1)]
    whole = Networks.concatenate(parts)
    assert whole.class_ids.tolist() == [2, 0, 1] and len(whole) == 3
    assert torch.equal(whole.flat(1), parts[0].flat(1)) and torch.equal(whole.flat(2), parts[1].flat(0))
    assert torch.equal(whole[1:].flat(0), parts[0].flat(1))
    chosen = whole[torch.tensor([2, 0])]
    assert chosen.class_ids.tolist() == [1, 2] and torch.equal(chosen.flat(1), parts[0].flat(0))
