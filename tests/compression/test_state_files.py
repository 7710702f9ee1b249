"""`compress` on state dicts of every kind: types are kept, tied weights are one, and what cannot be a network is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from fits import settings, state_of
from foreign import LayerNorm3, Tied, weight_norm
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from netspace import archs
from netspace.archs import ArchConfig
from netspace.compression.analyse import analyse, features
from netspace.compression.correct import correct
from netspace.compression.fit import evaluate, fit, reconstruct
from netspace.compression.originals import find_original, read_network
from netspace.compression.shrink import prune, quantise
from netspace.errors import NetspaceError, UsageError
from netspace.io import hash_tensors, write_tensors
from netspace.models.compressed import Compressed
from netspace.networks.spec import NetSpec
from netspace.networks.state_dict import folded_metadata, run_with_maps

NOISE = {"steps": 2, "kernels": 64, "images": 4, "distillation": 1.0, "features": 0.1, "inputs": "noise"}


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archs, "_TRUSTED", {f"foreign:{name}" for name in ("LayerNorm3", "Tied", "weight_norm")})


def there_and_back(path: Path, arch: str | None = None, **changes: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The figures of a short fit, and what `reconstruct` writes."""
    config = settings(**changes)
    arched = None if arch is None else ArchConfig(arch=f"foreign:{arch}")
    figures = fit(str(path), Path("c"), config, arch=arched, input_shape=(1, 8, 8))
    reconstruct(Path("c/compressed.safetensors"), Path("back.safetensors"))
    return figures, load_file("back.safetensors")


def same_kinds(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    kinds = [{name: (value.dtype, value.shape) for name, value in each.items()} for each in (state, other)]
    return kinds[0] == kinds[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
def test_types_are_kept_and_bytes_are_those_of_what_was_given(dtype: torch.dtype) -> None:
    state = {name: value.to(dtype) for name, value in state_of().items()}
    torch.save(state, "net.pt")
    figures, back = there_and_back(Path("net.pt"), precision="bf16")
    assert figures.bytes_original == sum(value.numel() for value in state.values()) * dtype.itemsize
    assert same_kinds(state, back) and torch.equal(back["0.bias"].float(), state["0.bias"].float())
    file = Path("c/compressed.safetensors")
    row = quantise(file, Path("q.safetensors"), 8, "net.pt").networks
    assert row["original"].payload() == {
        "bytes": figures.bytes_original,
        "relative_error": 0,
        "accuracy": None,
        "agreement": None,
    }
    assert row["original_quantised"].relative_error < (0.02 if dtype.itemsize > 1 else 0.05)
    assert prune(file, "net.pt", shares=[0.0]).original[0].relative_error == 0
    assert analyse(file, "net.pt").singular_ratio.original[0] > 0
    assert evaluate(Path("q.safetensors")).bytes_original == figures.bytes_original


def test_a_network_of_16_bits_is_run_in_the_types_of_its_module() -> None:
    torch.manual_seed(0)
    module = LayerNorm3()
    state = {name: value.bfloat16() for name, value in module.state_dict().items()}
    torch.save(state, "net.pt")
    figures, back = there_and_back(Path("net.pt"), "LayerNorm3", stages=[NOISE])
    assert figures.parameters_represented == 72 and same_kinds(state, back)
    arch = ArchConfig(arch="foreign:LayerNorm3")
    file = Path("c/compressed.safetensors")
    changed = correct(file, Path("d.safetensors"), "net.pt", arch=arch, input_shape=(1, 8, 8)).corrected
    assert changed == ["c.bias"] and Compressed.load(Path("d.safetensors")).rest["c.bias"].dtype == torch.bfloat16


@pytest.mark.parametrize("arch", [None, "Tied"])
def test_tied_weights_are_one(arch: str | None) -> None:
    torch.manual_seed(0)
    module = Tied()
    torch.save(module.state_dict(), "net.pt")
    changes = {"layers": ("*.weight",), **({"stages": [NOISE], "predictor_precision": "bf16"} if arch else {})}
    figures, back = there_and_back(Path("net.pt"), arch, **changes)
    assert figures.parameters_represented == 72 + 576 + 512 * 32 + 320
    assert figures.parameters_original == sum(value.numel() for value in module.parameters())
    assert figures.bytes_original == 4 * figures.parameters_original
    assert list(back) == sorted(module.state_dict()) and torch.equal(back["e.weight"], back["d.weight"])
    module.load_state_dict(back)
    file, arched = Path("c/compressed.safetensors"), None if arch is None else ArchConfig(arch="foreign:Tied")
    stored = Compressed.load(file).reconstruct()
    assert stored["up.weight"] is stored["down.weight"] and list(stored) == list(module.state_dict())
    rows = quantise(file, Path("q.safetensors"), 8, "net.pt", arch=arched).networks
    assert rows["original_quantised"].bytes < 0.4 * rows["original"].bytes
    fit("net.pt", Path("c"), settings(**changes), resume=True, arch=arched, input_shape=(1, 8, 8))


def test_tied_weights_that_differ_are_refused() -> None:
    state = {name: value.clone() for name, value in Tied().state_dict().items()}
    torch.save(state, "net.pt")
    arch = ArchConfig(arch="foreign:Tied")
    read_network(Path("net.pt"), arch)
    save_file({name: value for name, value in state.items() if name != "up.weight"}, "once.safetensors")
    assert (
        "up.weight" not in read_network(Path("once.safetensors"), arch)[0]
    )  # as safetensors' save_model leaves it out
    state["up.weight"] += 1
    torch.save(state, "net.pt")
    with pytest.raises(
        NetspaceError, match=r"up.weight and down.weight are one tensor in the architecture, but differ in"
    ):
        read_network(Path("net.pt"), arch)


def test_the_outputs_of_parametrised_layers_are_compared() -> None:
    torch.manual_seed(0)
    module, inputs = weight_norm().eval(), torch.randn(3, 1, 8, 8)
    torch.save(module.state_dict(), "net.pt")
    original, _ = find_original("net.pt", None, arch=ArchConfig(arch="foreign:weight_norm"))
    figures, back = there_and_back(Path("net.pt"), "weight_norm", stages=[NOISE])
    assert figures.parameters_represented == 72 + 576 and same_kinds(module.state_dict(), back)
    layers = Compressed.load(Path("c/compressed.safetensors")).kernels.layers
    assert original.module is not None
    with torch.no_grad():
        logits, maps = run_with_maps(original.module, original.state, inputs, layers)
        first = module[0](inputs)
        expected = [first, module[2](first.relu())]
        assert torch.equal(logits, module(inputs)) and len(maps) == 2
        assert all(torch.equal(one, two) for one, two in zip(maps, expected, strict=True))
        seen = features(original.module, original.state, inputs, layers)
    assert [each.shape for each in seen.values()] == [(3, 8 * 16), (3, 8 * 16)]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in original.module.modules())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_prefixes_of_wrappers_stay_in_the_names(prefix: str) -> None:
    torch.manual_seed(0)
    module, inputs = (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)).eval(),
        torch.randn(2, 1, 8, 8),
    )
    counted = {f"{prefix}{name}": value for name, value in module.state_dict().items()}
    state = {name: value for name, value in counted.items() if "num_batches" not in name}
    torch.save({"n_averaged": torch.tensor(3), **state} if prefix == "module." else state, "net.pt")
    factories = {
        "foreign:prefixed": lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)
        )
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archs, "ARCHS", {**archs.ARCHS, **factories})
        actual, wrapped, _ = read_network(Path("net.pt"), ArchConfig(arch="foreign:prefixed"))
    assert wrapped is not None and actual.keys() <= wrapped.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(run_with_maps(wrapped, actual, inputs, ())[0], module(inputs))


def test_one_state_dict_of_a_checkpoint_is_named_by_its_key() -> None:
    torch.save({"model": state_of(0), "ema": state_of(1), "epoch": 3}, "net.pt")
    assert torch.equal(read_network(Path("net.pt"), key="ema")[0]["0.weight"], state_of(1)["0.weight"])
    with pytest.raises(NetspaceError, match=r"holds 2 of them \(model, ema\): name one of them by --key"):
        read_network(Path("net.pt"))
    with pytest.raises(UsageError, match="did you mean 'ema'"):
        read_network(Path("net.pt"), key="emma")


@pytest.mark.parametrize(
    ("metadata"),
    [
        {"arch": "resnet50", "settings": "lr=0.1"},
        {"arch": "resnet8", "settings": "{}"},
        {"arch": "a:b", "settings": "[1]"},
        {"arch": "unknown", "settings": '{"channels": 1, "image_size": 8}'},
        {"arch": "a:b", "settings": '{"channels": 1, "image_size": 8}'},
    ],
)
def test_metadata_of_other_tools_are_not_believed(metadata: dict[str, str]) -> None:
    save_file(state_of(), "net.safetensors", metadata)
    _, module, spec = read_network(Path("net.safetensors"))
    assert module is None and spec is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"0.weight": torch.randn(6, 2, 3, 3).to_sparse()}, r"0.weight of net.pt is not dense \(sparse_coo\)"),
        ({"0.weight": torch.zeros(6, 2, 3, 3, dtype=torch.cfloat)}, "0.weight of net.pt holds complex64 values"),
        ({"0.weight": torch.zeros(6, 2, 3, 3, dtype=torch.int8)}, "0.weight of net.pt holds int8 values"),
        ({7: torch.ones(2)}, "holds tensors whose names are of type int"),
        (
            {"0.weight": torch.zeros(6, 2, 3, 3), "2.weight": torch.zeros(4, 6, 3, 3)},
            "all values of 0.weight, 2.weight are 0",
        ),
    ],
)
def test_what_cannot_be_a_network_is_refused(change: dict[Any, Tensor], words: str) -> None:
    torch.save({**state_of(), **change}, "net.pt")
    with pytest.raises(NetspaceError, match=words):
        fit("net.pt", Path("c"), settings())
    assert not Path("c").exists()


def test_layouts_do_not_matter_and_a_single_weight_is_exact() -> None:
    state = {
        **state_of(),
        "s.weight": torch.randn(16, 24).t(),
        "u.weight": torch.randn(64, 128).t(),
        "t.weight": torch.randn(4, 6, 3, 3).transpose(0, 1),
    }
    torch.save(state, "net.pt")
    figures, back = there_and_back(Path("net.pt"), layers=("*.weight",))
    assert same_kinds(state, back) and figures.relative_error > 0
    whole = {name: value.contiguous() for name, value in state.items()}
    assert hash_tensors(*state.values()) == hash_tensors(*whole.values())
    assert prune(Path("c/compressed.safetensors"), "net.pt", shares=[0.0]).original[0].relative_error == 0
    torch.save({"a.weight": torch.full((1, 1, 1, 1), -2.5)}, "one.pt")
    assert fit("one.pt", Path("d"), settings()).relative_error == 0
    torch.save({"a.weight": torch.cat([torch.zeros(1, 2, 3, 3), torch.randn(2, 2, 3, 3)])}, "zero.pt")
    assert 0 < fit("zero.pt", Path("e"), settings()).relative_error < 3


def test_buffers_of_an_architecture_may_stand_in_a_file_of_netspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archs, "_TRUSTED", {"networks_that_go_wrong:with_position", "networks_that_go_wrong:timmlike"})
    for name in ("with_position", "timmlike"):
        spec = NetSpec.from_module(
            archs.skeleton(f"networks_that_go_wrong:{name}", {}, (1, 8, 8)),
            f"networks_that_go_wrong:{name}",
            {},
            (1, 8, 8),
        )
        module = archs.skeleton(spec.arch, {}, spec.input_shape)
        state = {key: value.detach().clone() for key, value in module.state_dict().items()}
        few = {key: value.detach().clone() for key, value in module.named_parameters()}
        for each in (state, few):
            write_tensors(Path("net.safetensors"), each, **folded_metadata(spec))
            actual, known, described = read_network(Path("net.safetensors"))
            assert known is not None and described == spec and actual.keys() == each.keys()
    write_tensors(Path("net.safetensors"), {**state, "more": torch.ones(2)}, **folded_metadata(spec))
    assert read_network(Path("net.safetensors"))[1:] == (None, None)
    monkeypatch.setattr(archs, "_TRUSTED", set())
    with pytest.raises(UsageError, match="trust it with --trust-arch networks_that_go_wrong:timmlike"):
        read_network(Path("net.safetensors"))


@pytest.mark.parametrize(
    ("kwargs", "why"),
    [({"depth": 5}, "depth must be below 3"), ({"size": "x"}, "KeyError 'x'"), ({"depth": -1}, "AssertionError")],
)
def test_a_factory_that_refuses_its_settings_is_one_sentence(kwargs: dict[str, Any], why: str, tmp_path: Path) -> None:
    archs.trust(f"{Path(__file__).stem}:picky")
    save_file(picky().state_dict(), tmp_path / "net.safetensors")
    with pytest.raises(UsageError, match=rf"picky cannot be built with .*: {why}; change --kwargs"):
        read_network(tmp_path / "net.safetensors", ArchConfig(arch=f"{Path(__file__).stem}:picky", kwargs=kwargs))


def picky(depth: int = 1, size: str = "s") -> nn.Module:
    """Return a layer for some depths and sizes."""
    if depth < 0:
        raise AssertionError
    assert depth < 3, "depth must be below 3"
    return nn.Linear(2, {"s": 2}[size])
