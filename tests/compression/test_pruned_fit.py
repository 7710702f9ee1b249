"""A pruned network in a coordinate network has exactly its zeros again; nothing is spent on them; damaged masks are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from budgets import net
from budgets import settings as search
from fits import MEMBER, loss_of, settings, state_of, stepping
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from netspace.compression import coordinate
from netspace.compression.analyse import analyse
from netspace.compression.budget import fit_budget
from netspace.compression.correct import correct
from netspace.compression.fit import begin, evaluate, fit, reconstruct
from netspace.compression.shrink import pruned, quantise
from netspace.errors import NetspaceError
from netspace.io import read_tensors, write_tensors
from netspace.models.coded_predictor import CodedPredictor, load_any
from netspace.models.compressed import Compressed
from netspace.training.fit import Original

CONVOLUTIONS = ("0.weight", "2.weight")


def pruned_state(share: float = 0.6) -> dict[str, Tensor]:
    """Return `state_of` with its smallest convolution weights at zero, and a whole filter."""
    state = state_of()
    state = state | pruned({name: state[name] for name in CONVOLUTIONS}, share)
    state["0.weight"][2] = 0
    return state


def zeros_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: state[name] == 0 for name in CONVOLUTIONS}


@pytest.mark.parametrize(
    "changes",
    [{}, {"order": "none"}, {"norms": False}, {"order": "in-filter", "layers": ("*.weight",)}],
    ids=["default", "none", "no norms", "in-filter and a matrix"],
)
def test_a_pruned_network_has_exactly_its_zeros_again(tmp_path: Path, changes: dict[str, Any]) -> None:
    state = pruned_state()
    save_file(state, tmp_path / "pruned.safetensors")
    figures = fit(str(tmp_path / "pruned.safetensors"), tmp_path / "c", settings(**changes))
    file = tmp_path / "c" / "compressed.safetensors"
    reconstruct(file, tmp_path / "net.safetensors")
    written, count = load_file(tmp_path / "net.safetensors"), 0
    for name, zeros in zeros_of(state).items():
        assert torch.equal(written[name] == 0, zeros), name
        count += int(zeros.sum())
    assert (figures.zeros, figures.bytes_file) == (count, file.stat().st_size)
    assert figures.bytes_zeros is not None and 0 < figures.bytes_zeros < 324 / 8 + 16
    assert evaluate(file, str(tmp_path / "pruned.safetensors")).zeros == count
    assert figures.curve[-1].relative_error < 0.97 * figures.curve[0].relative_error
    without = fit(str(tmp_path / "pruned.safetensors"), tmp_path / "without", settings(zeros=False, **changes))
    assert without.zeros == without.bytes_zeros == 0
    assert not load_any(tmp_path / "without" / "compressed.safetensors").reconstruct()["0.weight"].eq(0).any()
    assert figures.relative_error < without.relative_error


def test_files_of_networks_that_are_not_pruned_are_as_before(tmp_path: Path) -> None:
    compressed = begin(state_of(), settings(), None)
    compressed.save(tmp_path / "c.safetensors")
    with safe_open(tmp_path / "c.safetensors", "pt") as file:
        note = json.loads(file.metadata()["netspace_compressed"])
        assert note["version"] == "3" and "zeros" not in note and "zeros" not in file.keys()  # noqa: SIM118
    assert compressed.sizes()["zeros"] == compressed.sizes()["bytes_zeros"] == 0


def test_weights_are_those_of_a_slow_mask_and_pass_no_gradient_at_zeros() -> None:
    state = {name: value.double() for name, value in pruned_state().items()}
    compressed = begin(state, settings(order="none", norms=False), None)
    values = torch.randn(len(compressed.places), 9, dtype=torch.float64, requires_grad=True)
    weights = compressed.weights(values)
    expected = torch.cat([state[name].flatten() for name in CONVOLUTIONS]) != 0
    slow = values.detach().flatten() * expected
    torch.testing.assert_close(torch.cat([weights[name].flatten() for name in CONVOLUTIONS]), slow, rtol=1e-12, atol=0)
    torch.cat([weights[name].flatten() for name in CONVOLUTIONS]).sum().backward()
    assert torch.equal(values.grad, expected.double().view(-1, 9))
    assert torch.equal(compressed.mask(), expected.view(-1, 9))


def test_nothing_is_spent_on_zeros() -> None:
    state = pruned_state()
    config = settings(stages=[{"steps": 30, "kernels": 20, "sampling": "uniform"}])
    step = stepping(config, begin(state, config, None), Original(state))
    whole = step.compressed.mask()
    assert step.num_weights == int(whole.sum()) == sum(int((state[name] != 0).sum()) for name in CONVOLUTIONS)
    for number in range(10):  # kernels without a weight are not drawn
        chosen = step.chosen(number)
        assert chosen is not None and bool(whole[chosen].any(dim=1).all())
    before = loss_of(step, 0)
    step.target = torch.where(whole, step.target, 100.0)
    assert torch.equal(loss_of(step, 0), before)
    predicted = step.all()[whole]
    targets = step.kernels[whole]
    torch.testing.assert_close(predicted.mean(), targets.mean(), rtol=0, atol=1e-5)
    torch.testing.assert_close(predicted.std(), targets.std(), rtol=1e-4, atol=0)


def test_a_layer_without_any_weight_is_trained_past() -> None:
    state = pruned_state()
    state["0.weight"].zero_()
    config = settings(stages=[{"steps": 30, "sampling": "layer"}])
    step = stepping(config, begin(state, config, None), Original(state))
    for number in range(6):
        step.predictor.zero_grad()
        loss = loss_of(step, number)
        loss.backward()
        assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in step.predictor.parameters())


def test_zeros_survive_quantising_correcting_and_analysis(multi_zoo: Path, tmp_path: Path) -> None:
    from netspace.compression.originals import find_original
    from netspace.networks.state_dict import folded_metadata

    original, spec = find_original(MEMBER, multi_zoo)
    names = [name for name, value in original.state.items() if value.dim() == 4]
    state = original.state | pruned({name: original.state[name] for name in names}, 0.5)
    assert spec is not None
    write_tensors(tmp_path / "pruned.safetensors", state, **folded_metadata(spec))
    stage = {"steps": 4, "kernels": 64, "distillation": 1.0, "images": 8}
    figures = fit(str(tmp_path / "pruned.safetensors"), tmp_path / "c", settings(stages=[stage]), multi_zoo)
    file, zeros = tmp_path / "c" / "compressed.safetensors", {name: state[name] == 0 for name in names}
    assert figures.zeros and figures.accuracy_reconstructed is not None
    analyse(file, str(tmp_path / "pruned.safetensors"), multi_zoo)
    quantise(file, tmp_path / "q.safetensors", 8)
    correct(file, tmp_path / "corrected.safetensors", str(tmp_path / "pruned.safetensors"), multi_zoo)
    for path in (file, tmp_path / "q.safetensors", tmp_path / "corrected.safetensors"):
        loaded = Compressed.load(path)
        given = loaded.reconstruct()
        assert len(loaded.zeros) >= 2 and all(torch.equal(given[name] == 0, zeros[name]) for name in loaded.zeros)


@pytest.mark.parametrize("kept", [True, False])
def test_zeros_in_a_number_of_bytes(tmp_path: Path, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    state = net().state_dict()
    state |= pruned({name: value for name, value in state.items() if value.dim() == 4}, 0.5)
    save_file(state, tmp_path / "pruned.safetensors")
    monkeypatch.setattr(coordinate, "MAX_ZEROS", 0.5 if kept else 0.01)
    config = search(4_500, way="coordinate", short_steps=0, steps=0)
    found = fit_budget(str(tmp_path / "pruned.safetensors"), tmp_path / "out", config)
    loaded = load_any(tmp_path / "out" / "compressed.safetensors")
    assert isinstance(loaded, CodedPredictor) and found.bytes_file is not None and found.bytes_file <= 4_500
    assert bool(found.zeros) is bool(loaded.zeros) is kept
    (row,) = [row for row in found.table if row.chosen]
    assert str(row.setting).endswith(", zeros kept") is kept
    given = loaded.reconstruct()
    for name in loaded.zeros:
        assert torch.equal(given[name] == 0, state[name] == 0)
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == Path(found.file).read_bytes()


@pytest.mark.parametrize(
    ("names", "data", "words"),
    [
        (["0.weight", "0.weight"], None, "it keeps the zeros of a layer twice, or of one that it does not represent"),
        (["4.weight"], None, "it keeps the zeros of a layer twice, or of one that it does not represent"),
        (None, torch.ones(3), "its zeros are torch.float32 of shape"),
        (None, torch.tensor([1, 2, 3], dtype=torch.uint8), "its zeros cannot be read"),
        (None, torch.empty(0), "it has no 'zeros'"),
    ],
)
def test_zeros_that_cannot_be(tmp_path: Path, names: list[str] | None, data: Tensor | None, words: str) -> None:
    path = tmp_path / "c.safetensors"
    begin(pruned_state(), settings(), None).save(path)
    tensors, metadata = read_tensors(path)
    note = json.loads(metadata["netspace_compressed"])
    assert note["version"] == "4" and note["zeros"] == list(CONVOLUTIONS)
    note["zeros"] = note["zeros"] if names is None else names
    if data is not None:
        tensors.pop("zeros")
        tensors |= {"zeros": data} if len(data) else {}
    write_tensors(path, tensors, **{**metadata, "netspace_compressed": json.dumps(note)})
    with pytest.raises(NetspaceError, match=words):
        Compressed.load(path)
