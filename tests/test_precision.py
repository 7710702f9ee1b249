"""Precisions are chosen by trials: of the device first, then of the work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from netspace import precision

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETSPACE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float]], list[str]]:
    """Calls of `fastest` answer from given seconds, by name of a way; returns the list of ways that were in the race."""
    raced: list[str] = []

    def install(times: dict[str, float]) -> list[str]:
        def fastest(_subject: str, ways: dict[str, Callable[[], object]], **_more: object) -> str:
            for way in ways.values():
                way()
            raced.extend(ways)
            return min(ways, key=lambda name: times[name])

        monkeypatch.setattr(precision, "fastest", fastest)
        return raced

    return install


def test_the_faster_of_all_combinations_is_taken(seconds: Callable[[dict[str, float]], list[str]]) -> None:
    times = {"float32": 2, "bf16": 1, "float32 float32": 4, "float32 bf16": 3, "bf16 float32": 1, "bf16 bf16": 2}
    raced, tried = seconds(times), []
    chosen = precision.choose("work", {"a": "auto", "b": "auto"}, lambda way: tried.append(dict(way)), CPU)
    assert chosen == {"a": "bf16", "b": "float32"}
    assert raced == list(times) and len(tried) == 4 and {"a": "float32", "b": "bf16"} in tried


def test_work_is_not_tried_where_products_are_slow_in_bf16(seconds: Callable[[dict[str, float]], list[str]]) -> None:
    seconds({"float32": 1, "bf16": 40})
    chosen = precision.choose("work", {"a": "auto", "b": "auto"}, lambda _way: pytest.fail("tried"), CPU)
    assert chosen == {"a": "float32", "b": "float32"}


def test_a_named_precision_is_obeyed_and_a_slow_one_is_pointed_out(
    seconds: Callable[[dict[str, float]], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seconds({"float32": 1, "bf16": 40})
    monkeypatch.setattr(precision, "matrix_rates", lambda _device: {"float32": 40.0, "bf16": 1.0})
    assert precision.choose("work", {"precision": "bf16", "b": "float32"}, lambda _way: None, CPU) == {
        "precision": "bf16",
        "b": "float32",
    }
    assert capsys.readouterr().err == (
        "precision: bf16 was asked for, but products of matrices take 40 times as long in it as in float32 on this "
        "processor: `--set precision=auto` takes the faster\n"
    )
    monkeypatch.setattr(precision, "matrix_rates", lambda _device: {"float32": 1.4, "bf16": 1.0})
    precision.choose("work", {"precision": "bf16"}, lambda _way: None, CPU)
    assert capsys.readouterr().err == ""


def test_a_choice_is_remembered_for_the_processors_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert precision.bf16_is_fast(CPU) in (True, False)
    (key,) = precision._read(precision.calibration_file())
    monkeypatch.setattr(precision, "instructions", lambda: "others")
    precision.bf16_is_fast(CPU)
    assert len({key, *precision._read(precision.calibration_file())}) == 2


def test_instructions_name_what_torch_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    precision.instructions.cache_clear()
    before = precision.instructions()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    precision.instructions.cache_clear()
    after = precision.instructions()
    precision.instructions.cache_clear()
    assert before != after and torch.backends.cpu.get_cpu_capability() in before


def test_rates_are_above_zero() -> None:
    assert all(rate > 0 for rate in precision.matrix_rates(CPU).values())
