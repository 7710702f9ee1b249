"""The ways that need no training, against slow searches; the coordinate network's file; channels in order; corrections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from budgets import NET_ARCH, net, net_file, settings
from torch.func import functional_call

from netspace.compression.analyse import importance
from netspace.compression.coordinate import way_of
from netspace.compression.correct import correct
from netspace.compression.fit import evaluate, reconstruct
from netspace.compression.judging import Inputs, Judge
from netspace.compression.originals import channel_order, find_original
from netspace.compression.shrink import quantise
from netspace.compression.ways import UNTRAINED, finest
from netspace.compression.work import CannotFit, Work, short_types
from netspace.errors import NetspaceError, UsageError
from netspace.models.coded import Coded
from netspace.models.coded_predictor import CodedPredictor, load_any
from netspace.networks.rounding import Codes, round_step
from netspace.training.fit import Original


@pytest.fixture
def work(tmp_path: Path) -> Callable[..., Work]:
    """The search of `net`, run on noise if a shape is given."""

    def make(shape: tuple[int, ...] | None = None) -> Work:
        original, spec = find_original(net_file(tmp_path), None, arch=NET_ARCH if shape else None)
        original.input_shape = shape
        judge = Judge(original, Inputs.of(original, "net", None, shape), "net")
        return Work("net", original, spec, judge, settings(), tmp_path)

    return make


def test_rounded_takes_the_most_bits_that_fit(work: Callable[..., Work], tmp_path: Path) -> None:
    whole, sizes = work(), {}
    for limit in range(1_600, 6_000, 300):
        try:
            bits = int(UNTRAINED["rounded"](whole, limit, tmp_path / "r.safetensors").split()[0])
        except CannotFit as refused:
            assert refused.least is not None and refused.least > limit
            continue
        size = (tmp_path / "r.safetensors").stat().st_size
        assert size <= limit and sizes.setdefault(bits, size) == size
    assert sorted(sizes) == list(range(2, 9))
    weights = sum(value.numel() for value in whole.matrices().values())
    for bits in range(2, 8):  # and no lower bits are taken while more fit
        assert abs(sizes[bits + 1] - sizes[bits] - weights / 8) < 16


def test_the_finest_steps_that_fit(work: Callable[..., Work], tmp_path: Path) -> None:
    weights = work().matrices()

    def make(log_step: float) -> Coded:
        codes = {name: round_step(value, 2**log_step * 0.1) for name, value in weights.items()}
        return Coded.of(dict(weights), codes)

    by_hand = {float(step): make(float(step)).file_bytes() for step in np.arange(-5, 4, 0.1)}
    for limit in (900, 2_000, 4_000):
        found, log_step = finest(make, limit)
        assert limit - max(0.01 * limit, 16) < found.file_bytes() <= limit
        assert log_step <= min(step for step, size in by_hand.items() if size <= limit) + 0.02
    with pytest.raises(CannotFit, match=r"even without any weight left the file takes"):
        finest(make, 100)


def test_pruned_weights_are_zero(work: Callable[..., Work], tmp_path: Path) -> None:
    setting = UNTRAINED["pruned"](work(), 2_000, tmp_path / "p.safetensors")
    zeros = {
        name: value for name, value in load_any(tmp_path / "p.safetensors").reconstruct().items() if value.dim() > 1
    }
    share = sum(int((value == 0).sum()) for value in zeros.values()) / sum(value.numel() for value in zeros.values())
    assert share >= float(setting.split()[0]) / 100 - 1e-3


def test_corrections_are_better_answers_in_as_many_bytes(work: Callable[..., Work], tmp_path: Path) -> None:
    whole = work((3, 8, 8))
    UNTRAINED["rounded"](whole, 1_900, tmp_path / "with.safetensors")
    plain = replace(whole, judge=Judge(whole.original, Inputs("weights"), "net"))
    UNTRAINED["rounded"](plain, 1_900, tmp_path / "without.safetensors")
    states = [load_any(tmp_path / f"{name}.safetensors").reconstruct() for name in ("with", "without")]
    assert whole.score(states[0]) > whole.score(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in whole.matrices())
    assert (tmp_path / "with.safetensors").stat().st_size <= 1_900


def test_sixteen_bits_are_taken_where_they_hold_values() -> None:
    state = {
        "good": torch.tensor([0.1, -3.0, 0.0]),
        "tiny": torch.tensor([1e-7, 1.0]),
        "large": torch.tensor([1e6]),
        "whole": torch.tensor([3]),
        "short": torch.tensor([0.5]).half(),
        "none": torch.empty(0),
    }
    assert short_types(state) == {"good": "half"}


@pytest.mark.parametrize("order", ["none", "in-filter", "cross-filter", "channel"])
def test_a_coordinate_network_in_a_coded_file(
    work: Callable[..., Work], tmp_path: Path, order: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, path = work((3, 8, 8)), tmp_path / f"{order}.safetensors"
    setting = way_of(order)(whole, 4_500, path)  # type: ignore[arg-type]
    assert setting.startswith(f"{order}, width ") and path.stat().st_size <= 4_500
    loaded = load_any(path)
    assert isinstance(loaded, CodedPredictor) and (loaded.channels is None) == (order != "channel")
    state = loaded.reconstruct()
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    expected = channel_order(whole.original, 0, "net") if order == "channel" else whole.original.state
    names = [layer.name for layer in loaded.kernels.layers]
    apart = sum(float((state[name] - expected[name]).square().sum()) for name in names)
    full = sum(float(expected[name].square().sum()) for name in names)
    if order != "channel":  # the command has no shape of inputs, by which channels are found
        figures = evaluate(path, str(tmp_path / "net.safetensors"), arch=NET_ARCH)
        assert figures.relative_error == pytest.approx((apart / full) ** 0.5, rel=1e-4)
        assert figures.parameters_predictor and figures.bits and figures.bits < 16
    assert (apart / full) ** 0.5 < 1.3
    reconstruct(path, tmp_path / "net2.safetensors")
    with pytest.raises(UsageError, match=r"is quantised to \d+ bits already"):
        quantise(path, tmp_path / "q.safetensors", 8)
    with pytest.raises(CannotFit, match=r"a predictor of width 4 with all that it needs takes"):
        way_of(order)(whole, 700, tmp_path / "x.safetensors")  # type: ignore[arg-type]


def test_pointwise_convolutions_among_large_kernels_are_cut_in_tiles(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {"a.weight": torch.randn(8, 1, 7, 7), "b.weight": torch.randn(64, 64, 1, 1)}
    original = Original(state)
    judge = Judge(original, Inputs.of(original, "net", None, None), "net")
    work, path = Work("net", original, None, judge, settings(), tmp_path), tmp_path / "c.safetensors"
    way_of("none")(work, 8_000, path)
    loaded = load_any(path)
    assert isinstance(loaded, CodedPredictor) and path.stat().st_size <= 8_000
    assert [layer.tiled for layer in loaded.kernels.layers] == [False, True]
    assert {name: value.shape for name, value in loaded.reconstruct().items()} == {
        name: value.shape for name, value in state.items()
    }


def test_channels_in_another_order_give_the_same_answers(work: Callable[..., Work]) -> None:
    original = work((3, 8, 8)).original
    moved = channel_order(original, 0, "net")
    assert not torch.equal(moved["0.weight"], original.state["0.weight"])
    inputs = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    module = net().double().eval()
    answers = []
    for state in (original.state, moved):
        exact = {name: value.double() if value.is_floating_point() else value for name, value in state.items()}
        answers.append(functional_call(module, exact, (inputs,)))
    torch.testing.assert_close(*answers, rtol=1e-9, atol=1e-9)


def test_a_file_of_coded_weights_is_corrected(work: Callable[..., Work], tmp_path: Path) -> None:
    plain, path = work(), tmp_path / "r.safetensors"
    UNTRAINED["rounded"](plain, 1_900, path)
    result = correct(
        path, tmp_path / "better.safetensors", str(tmp_path / "net.safetensors"), None, NET_ARCH, None, (3, 8, 8)
    )
    assert {"1.running_mean", "1.running_var", "3.bias", "6.bias"} <= set(result.corrected)
    sizes = [(tmp_path / name).stat().st_size for name in ("r.safetensors", "better.safetensors")]
    assert [result.bytes_before, result.bytes_after] == sizes and sizes[0] < sizes[1]
    before, after = load_any(path), load_any(tmp_path / "better.safetensors")
    assert isinstance(before, Coded) and isinstance(after, Coded)
    for name, entry in before.entries.items():
        assert isinstance(entry.value, Codes) == (name in plain.matrices())
        same = torch.equal(before.reconstruct()[name], after.reconstruct()[name])
        assert same == (name not in result.corrected)
    judged = work((3, 8, 8))
    assert judged.score(after.reconstruct()) > judged.score(before.reconstruct())
    with pytest.raises(UsageError, match=r"is a network of coded weights, and this is about coordinate networks"):
        importance(path, str(tmp_path / "net.safetensors"))


def test_coded_coordinate_networks_that_are_cut_or_altered(work: Callable[..., Work], tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    way_of("none")(work(), 4_500, path)
    whole = path.read_bytes()
    for end in (0, 9, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:end])
        with pytest.raises(NetspaceError, match=r"cut.safetensors"):
            load_any(tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    with pytest.raises(NetspaceError, match=r"is not as netspace wrote it: its hash does not match"):
        load_any(tmp_path / "cut.safetensors")
    loaded = load_any(path)
    assert isinstance(loaded, CodedPredictor)
    coded = loaded.coded()
    replace(coded, notes={**coded.notes, "netspace_compressed": {"version": "3"}}).save(tmp_path / "odd.safetensors")
    with pytest.raises(
        NetspaceError, match=r"odd.safetensors was expected to be a network in a coded coordinate network"
    ):
        load_any(tmp_path / "odd.safetensors")
