"""`netspace health`: what is damaged or copied on purpose is found, and nothing else."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from helpers import refused

from netspace.commands import copies
from netspace.commands import health as commands_health
from netspace.commands.health import health
from netspace.networks.spec import NetSpec
from netspace.networks.statistics import layer_norms
from netspace.results.health import Health
from netspace.zoo import Zoo
from netspace.zoo.writer import write


def rewritten(source: Path, path: Path, change: Callable[[np.ndarray, np.ndarray, NetSpec], None]) -> Path:
    """A copy of a zoo of one architecture, whose flat parameters (M, P) and table (M,) are changed."""
    with Zoo(source) as zoo:
        group, header = zoo.only(), zoo.header
        preps, members = group.read(range(len(group))).numpy(), group.members.copy()
        flat = preps.reshape(len(preps), -1)
        change(flat[:, : group.spec.num_parameters], members, group.spec)
        write(
            path,
            header,
            {group.id: group.spec},
            {group.id: group.size},
            {group.id: len(preps)},
            lambda _: [(preps, members)],
        )
    return path


def part(spec: NetSpec, name: str) -> slice:
    index = spec.names.index(name)
    return slice(spec.offsets[index], spec.offsets[index] + spec.sizes[index])


@pytest.fixture(scope="module")
def damaged(tiny_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def damage(flat: np.ndarray, members: np.ndarray, spec: NetSpec) -> None:
        members["run"] = np.arange(len(members))
        flat[1, 5] = np.nan
        flat[2, part(spec, "fc2.weight")] = flat[2, part(spec, "fc2.bias")] = 0
        flat[3, part(spec, "conv2.weight")] *= 40
        flat[4], members["status"][4], members["split"][4] = 0, b"diverged", b""
        flat[6] = flat[5]
        flat[8] = flat[7] * (1 + 0.004 * np.random.default_rng(0).standard_normal(flat.shape[1]))
        order = np.random.default_rng(0).permutation(len(flat[0, part(spec, "fc1.bias")]))
        flat[10] = flat[9]
        for name in ("fc1.weight", "fc1.bias"):
            rows = flat[9, part(spec, name)].reshape(len(order), -1)
            flat[10, part(spec, name)] = rows[order].reshape(-1)
        columns = flat[9, part(spec, "fc2.weight")].reshape(-1, len(order))
        flat[10, part(spec, "fc2.weight")] = columns[:, order].reshape(-1)
        flat[12], members["run"][12] = flat[11] * 1.001, members["run"][11]  # a snapshot of the same run
        flat[14], members["run"][14] = flat[13], members["run"][13]

    return rewritten(tiny_zoo, tmp_path_factory.mktemp("damaged") / "zoo.h5", damage)


@pytest.fixture(scope="module")
def figures(damaged: Path) -> Health:
    return health(damaged, inputs=32)


def name(row: int) -> str:
    return f"lenetlike/{row:04d}"


def test_what_is_damaged_is_found(figures: Health) -> None:
    found = {each.member: each.problems for each in figures.suspects}
    assert list(found) == [name(row) for row in (1, 2, 3, 4)]
    assert found[name(1)] == ["has values that are not finite"]
    assert "fc2 is zero" in found[name(2)] and "all units after fc2 are dead" in found[name(2)]
    assert len(found[name(3)]) == 1 and found[name(3)][0].startswith("the norm of conv2 is ")
    assert found[name(4)] == ["its training diverged"]
    arch = figures.archs["lenetlike"]
    assert (arch.members, arch.sound, arch.diverged) == (36, 34, 1)
    assert {each.layer: each.zero for each in arch.layers}["fc2"] == 1


def test_what_is_copied_is_found(figures: Health) -> None:
    found = {(each.first, each.second): each for each in figures.copies}
    relations = {pair: each.relation for pair, each in found.items()}
    assert relations == {
        (name(5), name(6)): "equal",
        (name(7), name(8)): "nearly equal",
        (name(9), name(10)): "equal up to permutation",
        (name(13), name(14)): "equal",
    }
    assert found[name(13), name(14)].same_run and not found[name(5), name(6)].same_run
    assert 0.003 < found[name(7), name(8)].distance < 0.005 and figures.unchecked == 0


def test_figures_are_those_of_members_one_by_one(damaged: Path, figures: Health) -> None:
    with Zoo(damaged) as zoo:
        group = zoo.only()
        rows = [row for row in range(len(group)) if row not in (1, 4)]
        flat = group.read(rows).flatten(1)[:, : group.spec.num_parameters]
        norms = layer_norms(flat, group.spec)[:, 1].tolist()
        weights = flat[:, part(group.spec, "conv2.weight")].double()
        shape = group.spec.shapes[group.spec.names.index("conv2.weight")]
    layer = figures.archs["lenetlike"].layers[1]
    assert layer.layer == "conv2" and layer.rank == min(shape[0], int(np.prod(shape[1:])))
    assert layer.norm.min == pytest.approx(min(norms)) and layer.norm.max == pytest.approx(max(norms))
    slow = [np.linalg.svd(each.view(shape[0], -1).numpy(), compute_uv=False) for each in weights]
    ranks = [float((each**2).sum() / each[0] ** 2) for each in slow]
    assert layer.stable_rank is not None and layer.stable_rank.max == pytest.approx(max(ranks))
    assert layer.stable_rank.median == pytest.approx(float(torch.tensor(ranks).median()))


def close(actual: Any, expected: Any) -> bool:
    """Whether two payloads are equal, but for the rounding of their numbers."""
    if isinstance(actual, dict):
        return actual.keys() == expected.keys() and all(close(actual[key], expected[key]) for key in actual)
    if isinstance(actual, list):
        return len(actual) == len(expected) and all(map(close, actual, expected))
    return bool(actual == (pytest.approx(expected, rel=1e-5) if isinstance(actual, float) else expected))


def test_chunks_change_nothing(damaged: Path, figures: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands_health, "CHUNK", 5)
    monkeypatch.setattr(copies, "CHUNK", 1)
    assert close(health(damaged, inputs=32).payload(), figures.payload())


def test_a_sound_zoo_has_nothing_to_report(tiny_zoo: Path, cli: Callable[..., Any]) -> None:
    done = cli("health", tiny_zoo, "--inputs", "16", "-o", "h.csv")
    assert done.code == 0 and "no member looks damaged" in done.out and "no two members are copies" in done.out
    with open("h.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 36 * 5 and rows[0]["member"] == name(0) and float(rows[0]["norm"]) > 0
    found = cli("health", tiny_zoo, "--inputs", "0", "--json").json
    assert (
        found["inputs"] is None and found["suspects"] == [] and "dead" not in found["archs"]["lenetlike"]["layers"][0]
    )


def test_a_member_that_cannot_be_read_is_a_suspect(zoo_copy: Path) -> None:
    with h5py.File(zoo_copy) as file:
        info = file["archs/lenetlike/preps"].id.get_chunk_info(7)
    raw = bytearray(zoo_copy.read_bytes())
    raw[info.byte_offset + info.size // 2] ^= 0x10
    zoo_copy.write_bytes(raw)
    found = health(zoo_copy, inputs=0)
    assert [(each.member, each.problems) for each in found.suspects] == [
        (name(7), ["cannot be read: its checksum does not match"])
    ]
    assert found.archs["lenetlike"].sound == 35


def test_several_architectures_and_signals_of_their_own(multi_zoo: Path, chairs_zoo: Path) -> None:
    multi = health(multi_zoo, inputs=16)
    assert list(multi.archs) == ["lenet", "vanilla", "resnet"] or len(multi.archs) == 3
    assert all(any(layer.dead is not None for layer in each.layers) for each in multi.archs.values())
    assert health(chairs_zoo, inputs=16).archs["siren"].layers[0].dead is not None


def test_norms_that_differ_little_are_no_damage(tiny_zoo: Path, tmp_path: Path) -> None:
    def grow(flat: np.ndarray, members: np.ndarray, spec: NetSpec) -> None:
        flat[1:] = flat[0] * (1 + 0.001 * np.random.default_rng(0).standard_normal((len(flat) - 1, 1)))
        flat[5] *= 1.5
        flat[6] *= 2.5

    found = health(rewritten(tiny_zoo, tmp_path / "zoo.h5", grow), inputs=0)
    assert [each.member for each in found.suspects] == [name(6)]


def test_limits_that_make_no_sense_are_refused(tiny_zoo: Path, cli: Callable[..., Any]) -> None:
    refused(cli("health", tiny_zoo, "--inputs", "-1"), 2, "--inputs", "-1")
    refused(cli("health", tiny_zoo, "--z", "0"), 2, "--z", "0")
    refused(cli("health", tiny_zoo, "-o", "a.txt"), 2, "CSV", ".txt")
    refused(cli("health", "gone.h5"), 1, "gone.h5 does not exist")
