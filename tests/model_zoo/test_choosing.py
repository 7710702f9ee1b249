"""How networks are trained, at once and in which precision and layout, is found by trying."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from model_zoo import builder, work
from model_zoo.builder import choose_way
from model_zoo.forward import Way
from model_zoo.recipe import ZooRecipe
from netspace.tasks import load


def chosen_way(
    recipe: ZooRecipe, monkeypatch: pytest.MonkeyPatch, wins: Callable[[list[str]], str]
) -> tuple[Way, list[list[str]]]:
    """What is chosen where `wins` says which of the ways that are tried is the fastest; and what was tried."""
    tried: list[list[str]] = []

    def fastest(subject: str, ways: dict[str, Callable[[], object]], repeats: int, work: dict[str, float]) -> str:
        tried.append(list(ways))
        assert work == {name: int(name.split()[0]) for name in ways}
        for way in ways.values():
            way()
        return wins(list(ways))

    monkeypatch.setattr(builder, "fastest", fastest)
    task = load(recipe.data)
    return choose_way(work.candidate("lenetlike", recipe.archs["lenetlike"], task, 128), recipe, task), tried


def test_width_precision_and_layout_are_chosen_by_trying(small: ZooRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small.model_copy(update={"fused": None})
    alone = ["1 at once, float32", "1 at once, float32, channels last", "1 at once, bf16, channels last"]
    stacked = ["8 at once, float32, channels last", "8 at once, float32, batch last"]
    found, tried = chosen_way(recipe, monkeypatch, lambda ways: ways[0])
    assert (found, tried) == (Way(8, "float32", "channels last"), [alone, [*stacked, alone[0]]])
    found, tried = chosen_way(recipe, monkeypatch, lambda ways: ways[-1])
    assert (found, tried) == (Way(1, "bf16", "channels last"), [alone, [*stacked, alone[2]]])
    found, tried = chosen_way(recipe.model_copy(update={"precision": "float32"}), monkeypatch, lambda ways: ways[1])
    assert (found, tried) == (Way(8, "float32", "batch last"), [alone[:2], [*stacked, alone[1]]])
    found, tried = chosen_way(small, monkeypatch, lambda ways: ways[0])
    assert found.fused == 2 and tried == [["2 at once, float32, channels last", "2 at once, float32, batch last"]]
    many = small.model_copy(update={"fused": 20})  # more than there are: 8 are tried
    monkeypatch.setattr(builder, "_ways", lambda *_: [Way(20), Way(20, "float32", "channels last")])
    assert chosen_way(many, monkeypatch, lambda ways: ways[1])[0] == Way(20, "float32", "channels last")


def test_compiling_is_not_timed_and_has_no_loops_of_ours(small: ZooRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiling is not timed"))
    recipe = small.model_copy(update={"fused": None, "compile": True})
    _, tried = chosen_way(recipe, monkeypatch, lambda ways: ways[0])
    assert tried[1] == ["8 at once, float32, channels last", "1 at once, float32"]


def test_gpus_have_more_to_choose_from() -> None:
    every = [(precision, layout) for precision in ("float32", "bf16") for layout in ("plain", "channels last")]
    for size in (1, 32):
        assert [(way.precision, way.layout) for way in builder._ways(size, "auto", False, True)] == every
    assert [str(way) for way in builder._ways(8, "bf16", True, True)] == ["8 at once, bf16, channels last"]
    assert [str(way) for way in builder._ways(8, "auto", True, False)] == ["8 at once, float32, channels last"]
