"""`NetSpec`: derived from a module, hashable, the same after JSON, and exact about what differs."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from netspace import archs
from netspace.errors import NetspaceError
from netspace.networks.spec import NetSpec

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
shapes = st.lists(st.integers(0, 9), max_size=4).map(tuple)
values = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False)


@st.composite
def specs(draw: st.DrawFn) -> NetSpec:
    held = draw(st.dictionaries(names, shapes, min_size=1, max_size=6))
    kwargs = tuple(sorted(draw(st.dictionaries(names, values, max_size=4)).items()))
    return NetSpec(draw(names), kwargs, draw(shapes), tuple(held), tuple(held.values()))


def small() -> NetSpec:
    return NetSpec("tiny", (("width", 0.5),), (1, 4, 4), ("a.weight", "a.bias", "t"), ((3, 2), (3,), ()))


@given(specs())
def test_json_gives_an_equal_spec_with_an_equal_hash(spec: NetSpec) -> None:
    back = NetSpec.from_json(spec.to_json())
    assert back == spec and hash(back) == hash(spec) and back.to_json() == spec.to_json()


@given(specs())
def test_offsets_and_sizes_lay_parameters_end_to_end(spec: NetSpec) -> None:
    place = 0
    for shape, offset, size in zip(spec.shapes, spec.offsets, spec.sizes, strict=True):
        elements = 1
        for side in shape:
            elements *= side
        assert (offset, size) == (place, elements)
        place += elements
    assert spec.num_parameters == place


@pytest.mark.parametrize("name", ["lenetlike", "vanillacnn", "resnet8"])
def test_from_module_takes_parameters_in_registration_order(name: str) -> None:
    module = archs.skeleton(name, {"channels": 3}, (3, 32, 32))
    spec = NetSpec.from_module(module, name, {"width": 1.0, "channels": 3}, (3, 32, 32))
    assert spec.names == tuple(key for key, _ in module.named_parameters())
    assert spec.shapes == tuple(tuple(value.shape) for value in module.parameters())
    assert spec.num_parameters == sum(value.numel() for value in module.parameters())
    assert spec.kwargs == (("channels", 3), ("width", 1.0)) and spec.settings == {"channels": 3, "width": 1.0}
    assert NetSpec.from_json(spec.to_json()) == spec


def test_a_module_without_parameters_is_refused() -> None:
    with pytest.raises(NetspaceError, match=r"'flat' has no parameters: there is nothing to represent"):
        NetSpec.from_module(nn.Flatten(), "flat", {}, (1,))


def test_a_module_that_shares_a_tensor_is_refused() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    with pytest.raises(NetspaceError, match=r"'tied' shares one tensor between parameters: untie them"):
        NetSpec.from_module(net, "tied", {}, (2,))


def test_names_and_shapes_must_pair() -> None:
    with pytest.raises(NetspaceError, match=r"'x' has 2 parameter names but 1 shapes"):
        NetSpec("x", (), (1,), ("a", "b"), ((1,),))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "null",
        "{}",
        '"arch"',
        json.dumps({**json.loads(small().to_json()), "shapes": [[1, "x"]]}),
        json.dumps({**json.loads(small().to_json()), "shapes": 4}),
        json.dumps({**json.loads(small().to_json()), "kwargs": [[1]]}),
        json.dumps({key: value for key, value in json.loads(small().to_json()).items() if key != "names"}),
    ],
)
def test_text_that_is_no_spec_is_one_sentence(text: str) -> None:
    with pytest.raises(NetspaceError, match=r"^not the JSON of a network's spec: "):
        NetSpec.from_json(text)


def test_difference_names_missing_unknown_and_misshapen_parameters() -> None:
    spec = small()
    right = dict(zip(spec.names, spec.shapes, strict=True))
    assert spec.difference(right) == ""
    assert spec.difference(dict(reversed(right.items()))) == ""  # order is not a difference
    assert spec.difference({"a.bias": (3,), "t": ()}) == "1 parameters are missing (first: a.weight)"
    assert spec.difference(right | {"b": (1,)}) == "1 are not known (first: b)"
    told = spec.difference({"a.weight": (2, 3), "x": (1,), "t": ()})
    assert told == (
        "1 parameters are missing (first: a.bias); 1 are not known (first: x); "
        "a.weight has shape (2, 3) where (3, 2) is expected"
    )


def test_a_spec_is_frozen_and_unequal_when_anything_differs() -> None:
    spec = small()
    with pytest.raises(AttributeError):
        spec.arch = "other"  # type: ignore[misc]
    others = [
        NetSpec("other", spec.kwargs, spec.input_shape, spec.names, spec.shapes),
        NetSpec(spec.arch, (("width", 1.0),), spec.input_shape, spec.names, spec.shapes),
        NetSpec(spec.arch, spec.kwargs, (3, 4, 4), spec.names, spec.shapes),
        NetSpec(spec.arch, spec.kwargs, spec.input_shape, ("b", *spec.names[1:]), spec.shapes),
        NetSpec(spec.arch, spec.kwargs, spec.input_shape, spec.names, ((2, 3), *spec.shapes[1:])),
    ]
    assert len({spec, *others, small()}) == 6
    assert isinstance(torch.empty(spec.shapes[0]), torch.Tensor)
