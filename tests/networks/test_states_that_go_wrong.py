"""State dicts that would be misread: lacking statistics, of types that no parameter has, of wrappers, of other tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from networks_that_go_wrong import Constant, IndexTable, PostAct, Spectral
from safetensors.torch import save_file
from torch import Tensor, nn

from netspace import archs
from netspace.errors import NetspaceError, UsageError
from netspace.io import write_tensors
from netspace.networks.prep import unflatten
from netspace.networks.spec import NetSpec
from netspace.networks.state_dict import (
    StateDict,
    check_tensors,
    flat_parameters,
    folded_metadata,
    metadata_spec,
    read_state_dict,
)

HERE = "networks_that_go_wrong"
SHAPE = (1, 8, 8)


@pytest.fixture(autouse=True)
def _trusted() -> None:
    archs.trust(*(f"{HERE}:{name}" for name in ("postact", "constant", "index_table", "spectral")))


def spec_of(name: str, **settings: Any) -> NetSpec:
    skeleton = archs.skeleton(f"{HERE}:{name}", settings, SHAPE)
    return NetSpec.from_module(skeleton, f"{HERE}:{name}", settings, SHAPE)


def trained(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for _ in range(20):
        module.train()(torch.randn(32, *SHAPE) * 3)
    return module.eval()


def test_parameters_without_the_statistics_are_refused_and_the_statistics_named() -> None:
    module, spec = trained(PostAct()), spec_of("postact")
    alone = {name: value.detach() for name, value in module.named_parameters()}
    with pytest.raises(NetspaceError) as caught:
        flat_parameters(alone, spec)
    assert str(caught.value) == (
        "this state dict of 'networks_that_go_wrong:postact' lacks the statistics of its batch norm (b1.running_mean, "
        "b1.running_var), and nothing says that they are folded into its parameters: give the whole state dict, or say "
        "that it is folded (`--folded`, `folded=True`)"
    )
    images = torch.randn(8, *SHAPE)
    skeleton = archs.skeleton(spec.arch, {}, SHAPE)
    flat = flat_parameters(module.state_dict(), spec)
    skeleton.load_state_dict(unflatten(flat, spec))
    with torch.no_grad():
        torch.testing.assert_close(skeleton(images), module(images), rtol=1e-4, atol=1e-5)
    folded = {name: value.clone() for name, value in unflatten(flat, spec).items()}
    assert torch.equal(flat_parameters(folded, spec, folded=True), flat)


@pytest.mark.parametrize("metadata", ["new", "old"])
def test_a_file_of_netspace_says_that_it_is_folded(tmp_path: Path, metadata: str) -> None:
    spec = spec_of("postact")
    told = folded_metadata(spec)
    if metadata == "old":  # as files were written once, of architectures that know their image
        told = {"arch": told["arch"], "settings": json.dumps({"channels": 1, "image_size": 8})}
    state = archs.skeleton(spec.arch, {}, SHAPE).state_dict()
    write_tensors(tmp_path / "net.safetensors", state, **told)
    read = read_state_dict(tmp_path / "net.safetensors")
    assert read.folded and torch.equal(flat_parameters(read, spec), flat_parameters(state, spec, folded=True))
    with pytest.raises(NetspaceError, match="lacks the statistics"):
        flat_parameters(dict(read), spec)


def test_metadata_name_an_architecture_of_any_input(tmp_path: Path) -> None:
    spec = spec_of("postact", width=6)
    assert metadata_spec(folded_metadata(spec)) == spec
    for broken in (
        {},
        {"arch": "resnet8", "settings": "[]"},
        {"arch": "resnet8", "settings": "{}", "input_shape": "3"},
    ):
        assert metadata_spec(broken) is None
    assert metadata_spec({**folded_metadata(spec), "settings": "[" * 100_000}) is None


def test_a_module_says_itself_whether_it_is_folded(tiny_run: Path) -> None:
    from netspace import Space

    space = Space.load(tiny_run)
    latent = torch.randn(64, generator=torch.Generator().manual_seed(0))
    network = space.decode(latent)
    assert torch.equal(space.encode(network), space.encode(network.state_dict()))


FLOATS = [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn]


@pytest.mark.parametrize("kind", FLOATS)
def test_dense_floats_of_any_kind_are_converted(kind: torch.dtype) -> None:
    spec = spec_of("postact")
    state = {
        name: value.to(kind) if value.is_floating_point() else value for name, value in PostAct().state_dict().items()
    }
    state["fc.weight"] = state["fc.weight"].t().contiguous().t()
    exact = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    flat = flat_parameters(state, spec)
    assert flat.dtype == torch.float32 and torch.equal(flat, flat_parameters(exact, spec))


def damaged(kind: str) -> Tensor:
    value = torch.randn(10, 64)
    made = {
        "complex64": lambda: value.to(torch.complex64),
        "int8": lambda: value.to(torch.int8),
        "int64": lambda: value.to(torch.int64),
        "bool": lambda: value > 0,
        "sparse_coo": lambda: value.to_sparse(),
        "nested": lambda: torch.nested.nested_tensor([value, value]),
        "meta": lambda: value.to("meta"),
    }
    return made[kind]()


@pytest.mark.filterwarnings("ignore:.*nested tensors.*")
@pytest.mark.parametrize("kind", ["complex64", "int8", "int64", "bool", "sparse_coo", "nested", "meta"])
def test_tensors_that_no_parameter_can_be_are_refused(kind: str) -> None:
    spec, state = spec_of("postact"), PostAct().state_dict()
    state["fc.weight"] = damaged(kind)
    for check in (lambda: flat_parameters(state, spec), lambda: check_tensors(state, "net.pt")):
        with pytest.raises(NetspaceError, match=rf"^fc\.weight of .*{kind}.* convert it before saving it$"):
            check()


@pytest.mark.filterwarnings("ignore:.*quantize.*")
@pytest.mark.filterwarnings("ignore:.*TypedStorage.*")
def test_quantised_tensors_are_refused() -> None:
    value = torch.quantize_per_tensor(torch.randn(10, 64), 0.1, 0, torch.qint8)
    with pytest.raises(NetspaceError, match=r"fc\.weight of net\.pt is quantised \(qint8\)"):
        check_tensors({"fc.weight": value}, "net.pt")


def test_integers_are_buffers_where_no_parameter_is() -> None:
    check_tensors({"order": torch.arange(3), "b.num_batches_tracked": torch.tensor(3), "fc.weight": torch.ones(2)}, "x")
    with pytest.raises(NetspaceError, match="order of x holds int64"):
        check_tensors({"order": torch.arange(3)}, "x", {"order"})


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_taken_off(prefix: str) -> None:
    module, spec = trained(PostAct()), spec_of("postact")
    state = {prefix + name: value for name, value in module.state_dict().items()}
    assert torch.equal(flat_parameters(state, spec), flat_parameters(module.state_dict(), spec))
    averaged = {**state, "n_averaged": torch.tensor(3)}
    assert torch.equal(flat_parameters(averaged, spec), flat_parameters(module.state_dict(), spec))
    with pytest.raises(NetspaceError, match="first: c1"):
        flat_parameters({**state, "head.weight": torch.ones(2)}, spec)


def test_counters_of_batches_may_be_missing() -> None:
    module, spec = trained(PostAct()), spec_of("postact")
    state = {name: value for name, value in module.state_dict().items() if "num_batches" not in name}
    assert torch.equal(flat_parameters(state, spec), flat_parameters(module.state_dict(), spec))


def test_buffers_are_the_architectures_own() -> None:
    spec, state = spec_of("index_table"), IndexTable().state_dict()
    assert flat_parameters(state, spec).shape == (spec.num_parameters,)
    assert torch.equal(
        flat_parameters({n: v for n, v in state.items() if n != "order"}, spec), flat_parameters(state, spec)
    )
    with pytest.raises(
        NetspaceError, match=r"order of this state dict .* differs from the one that the architecture makes"
    ):
        flat_parameters({**state, "order": torch.arange(64)}, spec)


def test_one_of_several_state_dicts_is_named(tmp_path: Path) -> None:
    first, second = nn.Linear(2, 3).state_dict(), nn.Linear(2, 3).state_dict()
    torch.save({"model": first, "ema": second, "step": 4}, tmp_path / "two.pt")
    assert torch.equal(read_state_dict(tmp_path / "two.pt", "ema")["weight"], second["weight"])
    with pytest.raises(
        UsageError, match=r"unknown state dict in .*two\.pt 'em': did you mean 'ema'\? There are: model, ema"
    ):
        read_state_dict(tmp_path / "two.pt", "em")
    save_file(first, tmp_path / "one.safetensors")
    with pytest.raises(UsageError, match="leave the key 'ema' out"):
        read_state_dict(tmp_path / "one.safetensors", "ema")
    assert isinstance(read_state_dict(tmp_path / "one.safetensors"), StateDict)


def test_complex_parameters_of_an_architecture() -> None:
    with pytest.raises(NetspaceError, match=r"w .*complex64"):
        spec_of("spectral")
    assert Spectral().w.is_complex() and Constant().fc1.weight.is_floating_point()


def test_missing_statistics_of_a_norm_that_folds_away_are_named_too() -> None:
    settings = {"width": 0.25, "channels": 1, "image_size": 8, "classes": 10}
    skeleton = archs.skeleton("resnet8", settings, SHAPE)
    spec = NetSpec.from_module(skeleton, "resnet8", settings, SHAPE)
    alone = {name: value.detach() for name, value in archs.build("resnet8", **settings).named_parameters()}
    with pytest.raises(
        NetspaceError,
        match=r"^this state dict of 'resnet8' has all parameters and lacks the statistics of its batch norm \(.*running_mean, .*\): "
        r"give the whole state dict, `model.state_dict\(\)`$",
    ):
        flat_parameters(alone, spec)
