"""What is found once: decoded pictures, the original's outputs, sizes of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from budgets import NET_ARCH, net_file, settings
from PIL import Image
from torch import Tensor, nn

from netspace.compression import reference, ways
from netspace.compression.analyse import FACTORS, scale_small, small_scaler
from netspace.compression.fit import begin
from netspace.compression.judging import Inputs, Judge
from netspace.compression.originals import Pictures, find_original
from netspace.compression.reference import Reference, Unlabelled
from netspace.compression.search import Search
from netspace.compression.shrink import prune
from netspace.compression.trained import first_codes
from netspace.compression.work import CannotFit, Work
from netspace.models.coded import Coded
from netspace.models.compressed import Compressed
from netspace.networks.rounding import Codes, round_rows
from netspace.training.recipe import FitConfig


@pytest.fixture
def work(tmp_path: Path) -> Work:
    original, spec = find_original(net_file(tmp_path), None, arch=NET_ARCH)
    original.input_shape = (3, 8, 8)
    judge = Judge(original, Inputs.of(original, "net", None, (3, 8, 8)), "net")
    return Work("net", original, spec, judge, settings(), tmp_path)


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    (tmp_path / "pictures").mkdir()
    for shade in range(5):
        Image.new("RGB", (9, 9), (50 * shade, 0, 200)).save(tmp_path / "pictures" / f"{shade}.png")
    return Pictures(tmp_path / "pictures", 8)


def predictor_file(folder: Path) -> Path:
    state = find_original(net_file(folder), None, arch=NET_ARCH)[0].state
    begin(state, FitConfig.model_validate({"predictor": {"hidden": 8}}), None).save(folder / "c.safetensors")
    return folder / "c.safetensors"


@pytest.mark.parametrize(("limit", "times"), [(1 << 29, 1), (1, 6)])
def test_pictures_are_decoded_once_if_they_are_small(
    limit: int, times: int, tmp_path: Path, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, decoded, decode = predictor_file(tmp_path), list[Any](), reference.picture_batches

    def counted(files: list[Path], *more: Any, **named: Any) -> Any:
        decoded.append(files)
        return decode(files, *more, **named)

    monkeypatch.setattr(reference, "MAX_DECODED", limit)
    monkeypatch.setattr(reference, "picture_batches", counted)
    prune(file, str(tmp_path / "net.safetensors"), shares=[0.0, 0.5], arch=NET_ARCH, pictures=pictures)
    assert [len(each) for each in decoded] == [5] * times


@pytest.mark.parametrize(("limit", "times"), [(1 << 29, 0), (1, 2)])
def test_outputs_of_the_original_are_found_once_if_they_are_small(
    limit: int, times: int, tmp_path: Path, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, model = predictor_file(tmp_path), str(tmp_path / "net.safetensors")
    compressed = Compressed.load(file)
    state = compressed.reconstruct()
    monkeypatch.setattr(reference, "MAX_OUTPUTS", limit)
    unlabelled = Unlabelled(pictures, compare="outputs")
    made = Reference(compressed, state, file, model, None, NET_ARCH, unlabelled)
    expected, run, states = made.measure(state), made._run, list[Any]()
    monkeypatch.setattr(made, "_run", lambda state: states.append(state) or run(state))
    assert made.measure(state) == made.measure(state) == expected
    assert sum(each is made.original.state for each in states) == times


def test_the_original_is_run_once_for_each_part(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    judge, run, states = work.judge, work.judge._run, list[Any]()

    def counted(state: Any, part: Any, module: nn.Module | None) -> Tensor:
        states.append(state)
        return run(state, part, module)

    monkeypatch.setattr(judge, "_run", counted)
    for _ in range(3):
        assert judge.measure(work.original.state).agreement == 1.0
    judge.measure({**work.original.state})
    assert len(states) == 2


def test_files_of_every_weight_are_made_once(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    made, of = list[Any](), Coded.of
    search = Search(work)
    monkeypatch.setattr(
        Coded, "of", lambda state, codes, *more, **named: made.append(codes) or of(state, codes, *more, **named)
    )
    search.check()
    search.least()
    assert search.lossless == of(work.original.state, {}, spec=work.spec).file_bytes()
    assert sum(not codes for codes in made) == 1


def test_bits_that_are_too_large_are_not_tried_again(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    rounded = list[int]()
    monkeypatch.setattr(ways, "round_rows", lambda value, bits: rounded.append(bits) or round_rows(value, bits))
    matrices = len(work.matrices())
    with pytest.raises(CannotFit, match=r"rounding to 2 bits takes ([\d,]+) bytes") as first:
        ways.rounded_file(work, 0)
    assert len(rounded) == 7 * matrices
    with pytest.raises(CannotFit) as second:
        ways.rounded_file(work, 0)
    assert len(rounded) == 7 * matrices and str(first.value) == str(second.value)
    made, bits = ways.rounded_file(work, 3_000)
    assert rounded[7 * matrices :] == [bits] * matrices and made.file_bytes() <= 3_000
    codes, words = first_codes(work, "rounded", 3_000, 0)
    expected = {name: round_rows(value, bits) for name, value in work.matrices().items()}
    assert words == f"{bits} bits" and codes.keys() == expected.keys()
    for name, each in codes.items():
        assert isinstance(each, Codes) and torch.equal(each.values, expected[name].values)


def test_weights_are_decomposed_once_for_all_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, calls, decompose = torch.randn(8, 4, 3, 3), list[int](), torch.linalg.svd
    monkeypatch.setattr(
        torch.linalg, "svd", lambda *matrices, **named: calls.append(1) or decompose(*matrices, **named)
    )
    scaled = small_scaler(weight)
    results = [scaled(factor) for factor in FACTORS]
    assert len(calls) == 1
    for factor, result in zip(FACTORS, results, strict=True):
        assert torch.equal(result, scale_small(weight, factor))
    torch.testing.assert_close(results[0], weight)
