"""Predictors in small integers: what is in the file and read back, figures against their definitions, mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from netspace.compression.analyse import importance
from netspace.compression.fit import begin, evaluate, reconstruct
from netspace.compression.shrink import quantise
from netspace.errors import NetspaceError, UsageError
from netspace.io import write_tensors
from netspace.models.compressed import Compressed, pack4, restore
from netspace.models.compressed import quantise as coded
from netspace.results.compressed import Quantisation
from netspace.training.recipe import FitConfig
from netspace.zoo import Zoo


@pytest.fixture
def network() -> Path:
    torch.manual_seed(0)
    save_file(nn.Sequential(nn.Conv2d(2, 6, 3), nn.Conv2d(6, 4, 1), nn.Linear(4, 3)).state_dict(), "any.safetensors")
    return Path("any.safetensors")


@pytest.fixture
def file(network: Path) -> Path:
    torch.manual_seed(1)
    compressed = begin(load_file(network), FitConfig.model_validate({"predictor": {"hidden": 15}}), None)
    compressed.save(Path("c/compressed.safetensors"))
    return Path("c/compressed.safetensors")


@pytest.mark.parametrize("bits", [8, 4])
def test_matrices_are_codes_and_scales_and_all_else_is_as_it_was(file: Path, network: Path, bits: int) -> None:
    result = quantise(file, Path("small.safetensors"), bits)
    before, after = load_file(file), load_file("small.safetensors")
    weights = Compressed.load(Path("small.safetensors")).predictor.state_dict()
    for name, value in before.items():
        if not name.startswith("predictor.") or value.dim() != 2:
            assert torch.equal(after.pop(name), value)
            continue
        codes, scales = coded(value, bits)
        assert torch.equal(after.pop(f"{name}.codes"), codes if bits == 8 else pack4(codes))
        assert torch.equal(after.pop(f"{name}.scales"), scales)
        assert torch.equal(weights[name.removeprefix("predictor.")], restore(codes, scales))
    assert not after
    reconstruct(Path("small.safetensors"), Path("net.safetensors"))
    whole, coarse = Compressed.load(file), Compressed.load(Path("small.safetensors"))
    first, second = (each.kernels.gather(each.reconstruct()) for each in (whole, coarse))
    assert result.relative_change == pytest.approx(float((first - second).norm() / first.norm()))
    assert 0 < result.relative_change < (0.05 if bits == 8 else 0.7)
    given = load_file("net.safetensors")
    assert all(torch.equal(value, given[name]) for name, value in coarse.reconstruct().items())
    assert evaluate(Path("small.safetensors")).bits == bits and evaluate(file).bits == 32
    errors = [each.relative_error for each in importance(Path("small.safetensors"), str(network)).filters]
    assert len(errors) == 10
    sizes = {name: each.bytes for name, each in result.networks.items()}
    assert sizes == {"reconstructed": file.stat().st_size, "quantised": Path("small.safetensors").stat().st_size}
    assert Quantisation.read(Path(f"c/quantise-{bits}-alone.json")) == result


@pytest.mark.parametrize("bits", [8, 4])
def test_what_was_read_quantised_is_saved_so(file: Path, bits: int) -> None:
    quantise(file, Path("small.safetensors"), bits)
    Compressed.load(Path("small.safetensors")).save(Path("again.safetensors"))
    first, second = load_file("small.safetensors"), load_file("again.safetensors")
    assert first.keys() == second.keys()
    for name, value in first.items():
        if name.endswith(".scales"):
            torch.testing.assert_close(second[name], value, rtol=3e-7, atol=0)
        else:
            assert torch.equal(second[name], value), name


@pytest.mark.parametrize("bits", [8, 4])
def test_a_member_is_compared_with_its_own_weights_as_coarse(multi_zoo: Path, bits: int) -> None:
    with Zoo(multi_zoo) as zoo:
        spec = zoo.group("resnet").spec
    from netspace.compression.originals import find_original

    state = find_original("best:resnet", multi_zoo)[0].state
    compressed = begin(state, FitConfig.model_validate({"predictor": {"hidden": 15}}), spec)
    compressed.save(Path("c.safetensors"))
    networks = quantise(Path("c.safetensors"), Path("small.safetensors"), bits, "best:resnet", multi_zoo).networks
    for name, path in (("reconstructed", "c.safetensors"), ("quantised", "small.safetensors")):
        expected = evaluate(Path(path), "best:resnet", multi_zoo)
        keys = {"bytes": "bytes_file", "accuracy": "accuracy_reconstructed"}
        assert networks[name].payload() == {
            key: getattr(expected, keys.get(key, key)) for key in networks[name].payload()
        }
    assert networks["original"].relative_error == 0 and networks["original"].agreement == 1

    coarse, size = dict(state), 0
    for name, value in state.items():
        if value.dim() != 4:
            size += 4 * value.numel()
            continue
        codes, scales = coded(value.flatten(1), bits)
        coarse[name] = restore(codes, scales).view(value.shape)
        size += -(-codes.numel() * bits // 8) + 4 * len(scales)
    save_file(coarse, "coarse.safetensors")
    away, norm = (
        torch.cat([each.flatten() for each in actual]).norm()
        for actual in (
            [coarse[layer.name] - state[layer.name] for layer in compressed.kernels.layers],
            [state[layer.name] for layer in compressed.kernels.layers],
        )
    )
    actual = networks["original_quantised"]
    assert actual.bytes == size and actual.relative_error == pytest.approx(float(away / norm), rel=1e-5)
    assert 0 < actual.accuracy <= 1 and actual.agreement <= 1


def test_mistakes_are_told_and_nothing_is_written(file: Path, multi_zoo: Path) -> None:
    out, before = Path("small.safetensors"), file.read_bytes()
    for bits in (0, 3, 16, 32):
        with pytest.raises(UsageError, match=f"weights of {bits} bits were asked for.*give --bits 8 or 4"):
            quantise(file, out, bits)
    with pytest.raises(UsageError, match="exists already: choose another --out"):
        quantise(file, Path("c/../c/compressed.safetensors"), 8)
    with pytest.raises(NetspaceError, match="holds another network than lenet/0000"):
        quantise(file, out, 8, "lenet/0000", multi_zoo)
    assert (
        not out.exists()
        and file.read_bytes() == before
        and [each.name for each in file.parent.iterdir()] == [file.name]
    )
    quantise(file, out, 8)
    with pytest.raises(UsageError, match="is quantised to 8 bits already: give the file that it was made of"):
        quantise(out, Path("smaller.safetensors"), 4)
    with safe_open(out, "pt") as stored:
        notes = stored.metadata()
    cut = {
        name: value[:-1] if name.endswith("linears.0.weight.codes") else value for name, value in load_file(out).items()
    }
    write_tensors(Path("cut.safetensors"), cut, **notes)
    with pytest.raises(NetspaceError, match=r"cut\.safetensors was expected to be a compressed network"):
        Compressed.load(Path("cut.safetensors"))
