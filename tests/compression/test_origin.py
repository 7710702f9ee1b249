"""What a resumed fit is of: what it was begun with, where nothing else is given; anything else is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from budgets import NET, NET_ARCH, net_file, settings
from fits import settings as recipe

from netspace.archs import ArchConfig
from netspace.compression.budget import fit_budget
from netspace.compression.fit import fit
from netspace.errors import UsageError
from netspace.io import write_tensors
from netspace.networks.prep import unflatten
from netspace.networks.state_dict import folded_metadata
from netspace.zoo import Zoo

SHAPE = (3, 8, 8)


def test_a_resumed_fit_with_a_size_has_its_zoo(multi_zoo: Path, tmp_path: Path, tiny_zoo: Path) -> None:
    with Zoo(multi_zoo) as zoo:
        member = zoo["best:resnet"]
        tensors = {name: value.clone() for name, value in unflatten(member.flat(), member.spec).items()}
        write_tensors(tmp_path / "member.safetensors", tensors, **folded_metadata(member.spec))
    model, out = str(tmp_path / "member.safetensors"), tmp_path / "c"
    config = settings(2_600, short_steps=0, steps=0, way="coded")
    first = fit_budget(model, out, config, multi_zoo)
    for file in (out / "candidates").glob("coded-*"):
        file.unlink()
    again = fit_budget(model, out, config, resume=True)
    assert again.inputs == first.inputs == "task" and again.table == first.table
    with pytest.raises(
        UsageError, match=r"was begun with the zoo .* as it was then, and .* has another content: resume"
    ):
        fit_budget(model, out, config, tiny_zoo, resume=True)
    moved = shutil.copy(multi_zoo, tmp_path / "moved.h5")
    assert fit_budget(model, out, config, Path(moved), resume=True).table == first.table


def test_a_resumed_fit_with_a_size_has_its_architecture(tmp_path: Path, multi_zoo: Path) -> None:
    model, out, config = net_file(tmp_path), tmp_path / "c", settings(2_500, input_shape=SHAPE, way="coded", steps=0)
    first = fit_budget(model, out, config, arch=NET_ARCH)
    again = fit_budget(model, out, config, resume=True)
    assert again.inputs == first.inputs == "noise" and again.table == first.table
    other = ArchConfig(arch=NET, kwargs={"depth": 2})
    with pytest.raises(
        UsageError, match=r"was begun with \{'arch': 'budgets:net'.*, and --arch is .*'depth': 2.* now: resume"
    ):
        fit_budget(model, out, config, arch=other, resume=True)
    with pytest.raises(UsageError, match=r"was begun without one, and --key is 'ema' now: resume it with its own"):
        fit_budget(model, out, config, arch=NET_ARCH, resume=True, key="ema")
    with pytest.raises(UsageError, match=r"was begun without a zoo, and .* has another content"):
        fit_budget(model, out, config, multi_zoo, resume=True)


def test_a_resumed_fit_without_a_size_has_what_it_was_begun_with(tmp_path: Path) -> None:
    model, out = net_file(tmp_path), tmp_path / "c"
    stage = {"steps": 2, "kernels": 64, "images": 2, "distillation": 1.0, "inputs": "noise"}
    config = recipe(stages=[stage])
    first = fit(model, out, config, arch=NET_ARCH, input_shape=SHAPE)
    assert fit(model, out, config, resume=True).curve == first.curve
    with pytest.raises(UsageError, match=r"was begun with \(3, 8, 8\), and --input-shape is \(3, 9, 9\) now"):
        fit(model, out, config, resume=True, input_shape=(3, 9, 9))
