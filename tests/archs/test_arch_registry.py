"""Architectures by name: what is known, what is trusted, what is refused and in which words."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
import torch
from helpers import IMAGE_ARCHS
from torch import nn

from netspace import archs
from netspace.errors import NetspaceError, UsageError
from netspace.networks.folding import fold

MINE = """
import torch
from pathlib import Path

Path(__file__).with_suffix(".imported").touch()

def small(channels, *, hidden=4, norm=False):
    layers = [torch.nn.Conv2d(channels, hidden, 3), torch.nn.BatchNorm2d(hidden)][: 1 + norm]
    return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())

def anything(**kwargs):
    return torch.nn.Linear(**kwargs)

def not_a_network():
    return 3

number = 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's module `mine_archs`, which leaves a mark beside itself when it is imported."""
    (tmp_path / "mine_archs.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(archs, "_TRUSTED", set())
    monkeypatch.delitem(sys.modules, "mine_archs", raising=False)
    return tmp_path / "mine_archs.imported"


def test_the_names() -> None:
    assert archs.names()[:8] == [
        "lenetlike",
        "vanillacnn",
        "resnet",
        "resnet8",
        "resnet14",
        "resnet20",
        "resnet32",
        "resnet56",
    ]
    assert all(archs.resolve(name) is factory for name, factory in archs.ARCHS.items())


def test_an_unknown_architecture_is_told_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"^unknown architecture 'resnet9': did you mean 'resnet'\? There are: "):
        archs.build("resnet9")


def test_an_unknown_setting_is_told_with_the_valid_ones() -> None:
    with pytest.raises(UsageError) as caught:
        archs.build("resnet8", widht=2)
    assert str(caught.value) == (
        "unknown setting of resnet8 'widht': did you mean 'width'? "
        "There are: channels, classes, image_size, width, batch_norm."
    )
    with pytest.raises(UsageError, match="unknown setting of lenetlike 'batch_norm'"):
        archs.build("lenetlike", batch_norm=True)


def test_code_of_others_is_imported_only_when_trusted(mine: Path) -> None:
    name = "mine_archs:small"
    archs.trust("mine_archs:other")
    for attempt in (
        lambda: archs.resolve(name),
        lambda: archs.build(name, channels=1),
        lambda: archs.skeleton(name, {"channels": 1}, (1, 8, 8)),
        lambda: archs.task_settings(name, {}, (1, 8, 8), 4),
    ):
        with pytest.raises(UsageError) as caught:
            attempt()
        assert str(caught.value) == (
            "architecture 'mine_archs:small' is code outside netspace, which is not run because a file names "
            "it: if you know what it does, trust it with --trust-arch mine_archs:small."
        )
    assert not mine.exists() and "mine_archs" not in sys.modules
    archs.trust(name, "resnet8")
    net = archs.skeleton(name, {"channels": 1, "hidden": 5}, (1, 8, 8))
    assert mine.exists() and net(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
    assert isinstance(archs.build(name, channels=1), nn.Module)


def test_what_a_trusted_factory_can_get_wrong(mine: Path) -> None:
    archs.trust(*(f"mine_archs:{each}" for each in ("small", "smal", "anything", "not_a_network", "number")))
    archs.trust("no_such_module_here:net", "broken_archs:net")
    assert isinstance(archs.build("mine_archs:anything", in_features=2, out_features=3), nn.Linear)
    with pytest.raises(UsageError, match="unknown factory in mine_archs 'smal': did you mean 'small'"):
        archs.build("mine_archs:smal")
    with pytest.raises(UsageError, match="mine_archs:small cannot be built without channels"):
        archs.build("mine_archs:small")
    with pytest.raises(UsageError, match="'mine_archs:number' is a int, not a function or class"):
        archs.build("mine_archs:number")
    with pytest.raises(NetspaceError, match=r"gave a int where a torch\.nn\.Module is needed"):
        archs.build("mine_archs:not_a_network")
    with pytest.raises(NetspaceError, match="importing 'no_such_module_here' failed with ModuleNotFoundError"):
        archs.build("no_such_module_here:net")
    (mine.parent / "broken_archs.py").write_text("1 / 0")
    with pytest.raises(NetspaceError, match="importing 'broken_archs' failed with ZeroDivisionError"):
        archs.build("broken_archs:net")


def test_an_installed_entry_point_is_known_by_its_name(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("tiny", "mine_archs:small", "netspace.archs"),
        EntryPoint("resnet8", "mine_archs:not_a_network", "netspace.archs"),  # netspace's own name wins
    ]
    monkeypatch.setattr(archs, "entry_points", lambda group: EntryPoints(points).select(group=group))
    assert archs.names() == [*archs.ARCHS, "tiny"]
    assert not mine.exists()
    assert len(list(archs.build("tiny", channels=2).parameters())) == 2
    assert archs.resolve("resnet8") is archs.ARCHS["resnet8"]


@pytest.mark.parametrize("name", IMAGE_ARCHS)
def test_a_skeleton_is_the_folded_network_and_disturbs_nothing(name: str) -> None:
    settings = {"channels": 1, "image_size": 16, "classes": 4, "width": 0.5}
    state = torch.random.get_rng_state()
    skeleton = archs.skeleton(name, settings, (1, 16, 16))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(each.training for each in skeleton.modules())
    folded = fold(archs.build(name, **settings), torch.zeros(2, 1, 16, 16))
    shapes = [(key, value.shape) for key, value in folded.state_dict().items()]
    assert [(key, value.shape) for key, value in skeleton.state_dict().items()] == shapes
    assert skeleton(torch.zeros(2, 1, 16, 16)).shape == (2, 4)


def test_a_skeleton_of_a_users_network_is_folded(mine: Path) -> None:
    archs.trust("mine_archs:small")
    skeleton = archs.skeleton("mine_archs:small", {"channels": 1, "norm": True}, (1, 8, 8))
    assert list(skeleton.state_dict()) == ["0.weight", "0.bias"]


def test_settings_of_a_task(mine: Path) -> None:
    settings = archs.task_settings("resnet8", {"width": 2}, (1, 28, 28), 7)
    assert settings == {"width": 2, "channels": 1, "image_size": 28, "classes": 7}
    given = {"channels": 1, "image_size": 28, "classes": 7}
    assert archs.task_settings("resnet8", given, (1, 28, 28), 7) == given
    archs.trust("mine_archs:small", "mine_archs:anything")
    assert archs.task_settings("mine_archs:small", {}, (2, 8, 6), 7) == {"channels": 2}
    assert archs.task_settings("mine_archs:anything", {"x": 1}, (2, 8, 6), 7) == {"x": 1}
    assert archs.task_settings("mine_archs:small", {"channels": 3}, (5,), 7) == {"channels": 3}
    linear = archs.skeleton("mine_archs:anything", {"in_features": 5, "out_features": 2}, (5,))
    assert list(linear.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize(
    ("given", "shape", "sentence"),
    [
        (
            {"channels": 3},
            (1, 28, 28),
            "channels=3 but meets 1x28x28 images: set channels to fit, or leave it out.",
        ),
        ({"classes": 5}, (1, 28, 28), "classes=5 but meets 7 classes: set classes to fit, or leave it out."),
        ({}, (1, 28, 20), "image_size=28 but meets 1x28x20 images: set image_size to fit, or leave it out."),
    ],
)
def test_settings_that_contradict_a_task(given: dict[str, object], shape: tuple[int, int, int], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        archs.task_settings("resnet8", given, shape, 7)
    assert str(caught.value) == f"resnet8 is built with {sentence}"


def test_a_skeleton_for_other_images_is_refused() -> None:
    with pytest.raises(UsageError, match="resnet8 is built with image_size=32 but meets 3x28x28 images"):
        archs.skeleton("resnet8", {}, (3, 28, 28))
