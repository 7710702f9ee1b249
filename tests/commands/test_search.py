"""`netspace search`: the nearest members against a slow search, and an index that is built once and is never a wrong one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import refused

from netspace.commands import search as searches
from netspace.commands.collection import opened
from netspace.commands.convert import write_latent, write_network
from netspace.commands.search import Index, parse_target, search
from netspace.io import read_json
from netspace.space import Space
from netspace.zoo import Population, Zoo, write_zoo


def slow(values: torch.Tensor, query: int, count: int) -> list[int]:
    distances = [(float((row - values[query]).norm()), position) for position, row in enumerate(values)]
    return [position for _, position in sorted(distances) if position != query][:count]


@pytest.mark.parametrize("way", ["latents", "weights", "answers"])
def test_the_nearest_are_those_of_a_slow_search(run_copy: Path, tiny_zoo: Path, way: str) -> None:
    result = search(run_copy, like="lenetlike/0005", by=way, count=4)
    space = Space.load(run_copy)
    with Zoo(tiny_zoo) as zoo:
        group = zoo.only()
        preps = group.read(range(len(group)))
    flat = preps.flatten(1)[:, : group.spec.num_parameters].double()
    with opened(run_copy, None, "cpu") as members:
        images = members.task.inputs("val", slice(0, 51))
    nets = space.family[0].nets
    values = {
        "latents": lambda: space.encode_preps(preps).double(),
        "weights": lambda: flat,
        "answers": lambda: torch.stack(
            [nets(row[None].float(), images)[0].softmax(-1).flatten() for row in flat]
        ).double(),
    }[way]()
    expected = slow(values, 5, 4)
    assert [each.member for each in result.matches] == [f"lenetlike/{row:04d}" for row in expected]
    assert result.matches[0].distance == pytest.approx(float((values[expected[0]] - values[5]).norm()), rel=1e-4)
    assert result.matches[0].accuracy_test == pytest.approx(group.members["accuracy_test"][expected[0]])


def test_an_index_is_built_once_and_again_for_what_changed(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = search(run_copy, like="best"), search(run_copy, like="best")
    assert first.built and not second.built and first.index == second.index and first.matches == second.matches
    file = Path(str(first.index))
    assert file.parent == run_copy / "index" and [each.name for each in file.parent.iterdir()] == [file.name]
    file.write_bytes(file.read_bytes()[:200])  # cut short
    again = search(run_copy, like="best")
    assert again.built and again.matches == first.matches
    monkeypatch.setattr(searches, "VERSION", 2)
    assert search(run_copy, like="best").index != first.index


def test_a_zoo_that_cannot_be_written_next_to_has_its_index_in_the_cache(
    zoo_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETSPACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    result = search(zoo_copy, like="best")
    assert result.by == "answers" and Path(str(result.index)).parent == tmp_path / "cache" / "index"
    assert not zoo_copy.with_name("zoo.h5.index").exists()


def test_columns_are_searched_without_an_index(tiny_zoo: Path) -> None:
    result = search(tiny_zoo, target="accuracy=0.7", count=5)
    with Zoo(tiny_zoo) as zoo:
        accuracy = zoo.only().members["accuracy_test"]
    order = sorted(range(len(accuracy)), key=lambda row: (abs(accuracy[row] - 0.7), row))[:5]
    assert [each.member for each in result.matches] == [f"lenetlike/{row:04d}" for row in order]
    assert result.index is None and result.target == "accuracy_test"
    assert len(search(tiny_zoo, target="epochs=1", count=1000).matches) == 36
    assert parse_target(" epochs = 3".strip()) == ("epochs", 3.0)


def test_a_file_is_searched_for_and_sketches_find_it(
    run_copy: Path, tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Zoo(tiny_zoo) as zoo:
        group = zoo.only()
        flat = group.read([9]).flatten(1)[0, : group.spec.num_parameters]
    write_network(Path("net.safetensors"), flat + 1e-4, Space.load(run_copy).arch_class())
    monkeypatch.setattr(searches, "CANDIDATES", 2)
    result = search(run_copy, like="net.safetensors", by="weights", count=1)
    assert [each.member for each in result.matches] == ["lenetlike/0009"]
    assert result.matches[0].distance == pytest.approx(1e-4 * np.sqrt(group.spec.num_parameters), rel=1e-3)


def test_several_architectures_are_searched_by_answers_and_one_by_weights(multi_zoo: Path) -> None:
    with opened(multi_zoo, None, "cpu") as members:
        count = members.count
    everyone = search(multi_zoo, like="vanilla/0001", by="answers", count=1000)
    assert len(everyone.matches) == count - 1
    alike = search(multi_zoo, like="vanilla/0001", by="weights", count=1000)
    assert {each.member.split("/")[0] for each in alike.matches} == {"vanilla"} and len(alike.matches) == 8
    for each in Path(str(alike.index)).parent.iterdir():
        each.unlink()


def test_the_command_prints_a_table_and_one_object(run_copy: Path, cli: Callable[..., Any]) -> None:
    done = cli("search", run_copy, "--like", "best", "--count", "3")
    assert done.code == 0 and "built now" in done.out and done.out.count("lenetlike/") == 4
    found = cli("search", run_copy, "--target", "accuracy=0.9", "--json").json
    assert len(found["matches"]) == 10 and found["value"] == 0.9 and "like" not in found


def test_distances_beyond_float32_squares_are_found(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    values[1] *= 1e25
    values[2] = values[0] + np.float32(0)
    values[3] = values[0] * 1e-25
    values[4] = 0
    for query in (values[0], values[1], np.zeros(7, np.float32)):
        expected = [
            float(np.sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(row, query, strict=True)))) for row in values
        ]
        assert Index(tmp_path, values, False).distances(query).tolist() == pytest.approx(expected, rel=1e-6)


def test_a_latent_file_and_a_zoo_that_has_moved_are_named(run_copy: Path, cli: Callable[..., Any]) -> None:
    write_latent(Path("z.safetensors"), torch.zeros(64))
    refused(cli("search", run_copy, "--like", "z.safetensors"), 1, "holds a latent", "netspace decode")
    provenance = read_json(run_copy / "provenance.json", dict[str, Any])
    (run_copy / "provenance.json").write_text(json.dumps({**provenance, "zoo": "/nowhere/zoo.h5"}))
    refused(cli("search", run_copy, "--like", "best"), 1, "/nowhere/zoo.h5", "if it has moved", "--zoo")
    assert cli("search", run_copy, "--like", "best", "--zoo", provenance["zoo"]).code == 0


def test_the_only_member_has_no_neighbours(tiny_zoo: Path, cli: Callable[..., Any]) -> None:
    with Zoo(tiny_zoo) as zoo:
        group = zoo.only()
        one = Population(group.spec, group.read([0]).numpy(), group.members[:1].copy())
        write_zoo(Path("one.h5"), zoo.header, {group.id: one})
    done = cli("search", "one.h5", "--like", "lenetlike/0000")
    assert (
        done.code == 0
        and done.out == "one.h5 has no other member that lenetlike/0000 by answers could be compared with\n"
    )
    assert ", 1 member (" in cli("zoo", "info", "one.h5").out and ": 1 member;" in cli("health", "one.h5").out


def test_what_cannot_be_searched_is_one_sentence(tiny_zoo: Path, cli: Callable[..., Any]) -> None:
    refused(cli("search", tiny_zoo), 2, "--like A", "--target")
    refused(cli("search", tiny_zoo, "--like", "best", "--target", "epochs=1"), 2, "one of them")
    refused(cli("search", tiny_zoo, "--target", "accuracy"), 2, "accuracy=0.9")
    refused(cli("search", tiny_zoo, "--target", "beauty=1"), 2, "beauty", "accuracy_test")
    refused(cli("search", tiny_zoo, "--like", "best", "--by", "latents"), 2, "run of a space")
    refused(cli("search", tiny_zoo, "--like", "best", "--by", "name"), 2, "name", "answers")
    refused(cli("search", tiny_zoo, "--like", "best", "--count", "0"), 2, "--count", "0")
    refused(cli("search", tiny_zoo, "--like", "gone.pt"), 2, "gone.pt does not exist")
    Path("net.pt").mkdir()
    refused(cli("search", tiny_zoo, "--like", "net.pt"), 2, "net.pt is a folder, not a file")
