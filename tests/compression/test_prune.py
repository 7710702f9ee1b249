"""Pruning by magnitude: exactly the smallest, figures against those of `eval`, mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from netspace.compression.fit import begin, evaluate
from netspace.compression.originals import find_original
from netspace.compression.shrink import prune, pruned
from netspace.errors import NetspaceError, UsageError
from netspace.models.compressed import Compressed
from netspace.results.compressed import Pruning
from netspace.training.recipe import FitConfig

FILE = Path("c/compressed.safetensors")


@pytest.fixture
def held(multi_zoo: Path) -> Compressed:
    original, spec = find_original("best:resnet", multi_zoo)
    torch.manual_seed(0)
    compressed = begin(original.state, FitConfig.model_validate({"predictor": {"hidden": 15}}), spec)
    compressed.save(FILE)
    return compressed


@given(share=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 99), coarse=st.booleans())
def test_the_smallest_of_all_tensors_go(share: float, seed: int, coarse: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    weights = {"a": torch.randn(3, 5, generator=draw), "b": 3 * torch.randn(2, 2, 1, 1, generator=draw) + 0.1}
    if coarse:  # magnitudes that are equal
        weights = {name: value.sign() + 0.5 for name, value in weights.items()}
    kept = {name: value.clone() for name, value in weights.items()}
    actual = pruned(weights, share)
    flat, was = (torch.cat([each.flatten() for each in group.values()]) for group in (actual, weights))
    gone = flat == 0
    assert int(gone.sum()) == round(share * 19) and torch.equal(flat[~gone], was[~gone])
    assert gone.all() or not gone.any() or was[gone].abs().max() <= was[~gone].abs().min()
    assert all(torch.equal(weights[name], kept[name]) and actual[name].shape == kept[name].shape for name in kept)


def test_rows_are_what_eval_says_of_pruned_files(held: Compressed, multi_zoo: Path) -> None:
    before = FILE.read_bytes()
    result = prune(FILE, "best:resnet", multi_zoo, (0.0, 0.3, 0.9))
    assert FILE.read_bytes() == before and Pruning.read(Path("c/prune.json")) == result
    state = held.predictor.state_dict()
    matrices = {name: value for name, value in state.items() if name.endswith("weight")}
    count = sum(value.numel() for value in matrices.values())
    for row, share in zip(result.predictor, (0.0, 0.3, 0.9), strict=True):
        held.predictor.load_state_dict({**state, **pruned(matrices, share)})
        held.save(Path("pruned.safetensors"))
        expected = evaluate(Path("pruned.safetensors"), "best:resnet", multi_zoo)
        assert row.payload() == {
            "share": share,
            "weights": count - round(share * count),
            "relative_error": expected.relative_error,
            "accuracy": expected.accuracy_reconstructed,
            "agreement": expected.agreement,
        }
        held.predictor.load_state_dict(state)


def test_the_original_is_pruned_beside(held: Compressed, multi_zoo: Path) -> None:
    result = prune(FILE, "best:resnet", multi_zoo, (0.0, 0.5))
    first, second = result.original
    assert (first.relative_error, first.agreement) == (0, 1) and first.accuracy == result.accuracy_original
    state = find_original("best:resnet", multi_zoo)[0].state
    flat = torch.cat([state[layer.name].flatten() for layer in held.kernels.layers]).abs().sort().values
    half = round(0.5 * len(flat))
    assert second.relative_error == pytest.approx(float(flat[:half].norm() / flat.norm()), rel=1e-5)
    assert first.weights == len(flat) and second.weights == len(flat) - half


def test_mistakes_are_told(held: Compressed, multi_zoo: Path) -> None:
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(
            UsageError, match=f"a share of {share:g} of the weights was to be pruned: give shares from 0"
        ):
            prune(FILE, "best:resnet", multi_zoo, (0.5, share))
    with pytest.raises(NetspaceError, match="holds another network than lenet/0000"):
        prune(FILE, "lenet/0000", multi_zoo)
    assert not Path("c/prune.json").exists()
