"""State dicts: with batch norm or folded, from modules and from files, as flat parameters; what is none is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from netspace import archs
from netspace.compression.originals import find_original
from netspace.errors import NetspaceError, UsageError
from netspace.networks.prep import unflatten
from netspace.networks.spec import NetSpec
from netspace.networks.state_dict import (
    _trained_state,
    fits,
    flat_parameters,
    metadata_spec,
    read_safetensors,
    read_state_dict,
)

SETTINGS: dict[str, Any] = {"channels": 1, "classes": 10, "image_size": 8, "width": 0.25}


def spec_of(arch: str, **changes: Any) -> NetSpec:
    settings = {**SETTINGS, **changes}
    return NetSpec.from_module(archs.skeleton(arch, settings, (1, 8, 8)), arch, settings, (1, 8, 8))


def test_state_dicts_with_batch_norm_are_folded() -> None:
    skeleton, spec = archs.skeleton("resnet8", SETTINGS, (1, 8, 8)), spec_of("resnet8")
    torch.manual_seed(0)
    module = archs.build("resnet8", **SETTINGS)
    images = torch.randn(32, 1, 8, 8)
    for _ in range(3):
        module(images)  # running statistics of their own
    with torch.no_grad():
        for value in module.parameters():
            if value.dim() == 1:
                value += 0.1 * torch.randn_like(value)
    flat = flat_parameters(module.state_dict(), spec)
    folded = {name: value.clone() for name, value in unflatten(flat, spec).items()}
    skeleton.load_state_dict(folded)
    with torch.no_grad():
        torch.testing.assert_close(skeleton(images), module.eval()(images), rtol=1e-3, atol=1e-4)
    assert torch.equal(flat_parameters(folded, spec), flat)
    broken = {**module.state_dict(), "fc.bias": torch.full((10,), torch.nan)}
    with pytest.raises(NetspaceError, match=r"fc\.bias"):
        flat_parameters(broken, spec)


def test_a_state_dict_fits_with_batch_norm_or_folded() -> None:
    spec = spec_of("resnet8")
    assert fits(archs.build("resnet8", **SETTINGS).state_dict(), spec)
    assert fits(archs.skeleton("resnet8", SETTINGS, (1, 8, 8)).state_dict(), spec)
    assert not fits(archs.build("resnet8", **{**SETTINGS, "width": 0.5}).state_dict(), spec)
    assert not fits(archs.build("vanillacnn", **SETTINGS).state_dict(), spec)


def test_a_state_dict_of_another_network_is_told_of_the_folded_one() -> None:
    state = archs.build("lenetlike", **SETTINGS).state_dict()
    with pytest.raises(NetspaceError, match=r"this state dict is not one of 'resnet8': "):
        flat_parameters(state, spec_of("resnet8"))
    wide = archs.build("lenetlike", **{**SETTINGS, "width": 0.5}).state_dict()
    with pytest.raises(NetspaceError, match=r"this state dict is not one of 'lenetlike': .*shape"):
        flat_parameters(wide, spec_of("lenetlike"))


def test_statistics_that_are_not_finite_are_named() -> None:
    state = archs.build("resnet8", **SETTINGS).state_dict()
    name = next(name for name in state if name.endswith("running_var"))
    state[name] = torch.full_like(state[name], torch.inf)
    with pytest.raises(NetspaceError) as told:
        flat_parameters(state, spec_of("resnet8"))
    assert str(told.value) == f"{name} of 'resnet8' holds values that are not finite"


def test_any_float_type_and_any_order() -> None:
    spec, state = spec_of("lenetlike"), archs.build("lenetlike", **SETTINGS).state_dict()
    flat = flat_parameters(state, spec)
    assert flat.dtype == torch.float32 and flat.shape == (spec.num_parameters,)
    backwards = {name: value.double() for name, value in reversed(list(state.items()))}
    assert torch.equal(flat_parameters(backwards, spec), flat)


def test_state_dict_files(tmp_path: Path) -> None:
    state = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        found = read_state_dict(tmp_path / name)
        assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)
    with pytest.raises(UsageError, match=r"gone\.pt"):
        read_state_dict(tmp_path / "gone.pt")


def test_the_state_dict_in_a_checkpoint_is_taken_where_there_is_one(tmp_path: Path) -> None:
    net = torch.nn.Linear(2, 3)
    adam = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    adam.step()
    checkpoint = {
        "model": net.state_dict(),
        "optimizer": adam.state_dict(),
        "epoch": 3,
        "best": {},
        "mean": torch.ones(3),
    }
    torch.save(checkpoint, tmp_path / "one.pt")
    found = read_state_dict(tmp_path / "one.pt")
    assert found.keys() == {"weight", "bias"} and torch.equal(found["weight"], net.weight)
    torch.save({**checkpoint, "ema": net.state_dict()}, tmp_path / "two.pt")
    with pytest.raises(NetspaceError, match=r"holds 2 of them \(model, ema\): name one of them by --key, or save"):
        read_state_dict(tmp_path / "two.pt")


def test_what_is_no_state_dict_file(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(NetspaceError) as told:
        read_state_dict(tmp_path / "list.pt")
    assert str(told.value) == (
        f"{tmp_path / 'list.pt'} was expected to hold a state dict (names to tensors), but holds something else: save "
        "`model.state_dict()` alone"
    )
    torch.save({"a": 1}, tmp_path / "numbers.pt")
    with pytest.raises(NetspaceError, match="holds something else"):
        read_state_dict(tmp_path / "numbers.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"no such thing")
    with pytest.raises(NetspaceError, match=r"was expected to be a safetensors file, but cannot be read: "):
        read_safetensors(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    "notes",
    [
        {"arch": "llama", "settings": "{}", "input_shape": "[3]"},
        {"arch": "resnet50", "settings": '{"channels": 3, "image_size": 224}'},
        {"arch": "resnet8", "settings": '{"channels": 3, "image_size": 32, "depth": 7}'},  # a name that is ours too
        {"arch": "resnet8", "settings": "[" * 5000, "input_shape": "[3, 32, 32]"},
        {"arch": "resnet8", "settings": "[]", "input_shape": "[3, 32, 32]"},
        {"arch": "hf://someone/model", "settings": "{}", "input_shape": "[3, 8, 8]"},
        {"format": "pt", "settings": "{", "netspace": "\x1b[2J"},
    ],
)
def test_notes_of_other_programs_describe_no_network(tmp_path: Path, notes: dict[str, str]) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "a.safetensors", metadata=notes)
    state = read_state_dict(tmp_path / "a.safetensors")
    assert state.metadata == notes and metadata_spec(state.metadata) is None
    original, spec = find_original(str(tmp_path / "a.safetensors"), None)
    assert spec is None and original.module is None and torch.equal(original.state["w"], torch.ones(3))


def test_notes_of_ours_that_name_code_still_want_trust() -> None:
    with pytest.raises(UsageError, match="trust it with --trust-arch os:system"):
        metadata_spec({"arch": "os:system", "settings": "{}", "input_shape": "[1, 8, 8]"})


def test_an_architecture_is_built_once_for_all_state_dicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for a network with batch norm, which is loaded and folded: what is cached is never written to."""
    built, build = [], archs.build
    monkeypatch.setattr(archs, "build", lambda name, **settings: built.append(name) or build(name, **settings))
    spec = spec_of("resnet8", width=0.3)
    folded, whole = (
        dict(each.state_dict())
        for each in (archs.skeleton("resnet8", spec.settings, (1, 8, 8)), build("resnet8", **spec.settings))
    )
    known = _trained_state(spec)
    before = {name: value.clone() for name, value in known.state.items()}
    with torch.inference_mode():
        flat = flat_parameters(folded, spec)
    assert all(fits(state, spec) for state in (folded, whole)) and built == ["resnet8"]
    assert torch.equal(flat_parameters(folded, spec), flat)
    first = flat_parameters(whole, spec)
    assert built == ["resnet8"] * 2 and torch.equal(flat_parameters(whole, spec), first)
    assert _trained_state(spec) is known and all(
        torch.equal(known.state[name], value) for name, value in before.items()
    )


def test_an_architecture_that_is_defined_anew_is_built_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a session that goes on, as in a notebook; and one that is no longer trusted is refused."""
    monkeypatch.setitem(archs.ARCHS, "own", lambda: nn.Linear(3, 2))
    spec = NetSpec.from_module(nn.Linear(3, 2), "own", {}, (3,))
    assert fits(nn.Linear(3, 2).state_dict(), spec)
    monkeypatch.setitem(archs.ARCHS, "own", lambda: nn.Sequential(nn.Linear(3, 2)))
    assert "0.weight" in _trained_state(spec).state
    monkeypatch.delitem(archs.ARCHS, "own")
    with pytest.raises(UsageError, match="architecture 'own'"):
        fits(nn.Linear(3, 2).state_dict(), spec)
