"""`evaluate` against a slow calculation on networks run one by one; `interpolate`'s ends; names of networks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from netspace import archs
from netspace.apps.codes import decode, encode
from netspace.apps.evaluate import evaluate
from netspace.apps.interpolate import interpolate
from netspace.apps.networks import resolve, zoo_of
from netspace.data import TaskData
from netspace.errors import NetspaceError
from netspace.prep import unflatten, unpack
from netspace.space import Space
from netspace.store import Zoo
from netspace.training.setting import task_of


@pytest.fixture
def zoo(tiny_zoo: Path) -> Iterator[Zoo]:
    with Zoo(tiny_zoo) as opened:
        yield opened


def answers(space: Space, flat: torch.Tensor, task: TaskData) -> torch.Tensor:
    """Logits of one network for the test images, by the plain architecture."""
    network = archs.build(space.spec.arch, **space.spec.settings).eval()
    network.load_state_dict({name: value.clone() for name, value in unflatten(flat, space.spec).items()})
    with torch.no_grad():
        return network(task.normalise(task.test.images))  # type: ignore[no-any-return]


def test_the_figures_are_those_of_networks_run_alone(run_copy: Path, zoo: Zoo) -> None:
    told = evaluate(run_copy, "test")
    space, task, group = Space.load(run_copy), task_of(zoo, "cpu"), zoo.only()
    labels, rows = task.test.labels, group.rows("test")
    found: dict[str, list[float]] = {name: [] for name in ("target", "predicted", "agreement", "kl")}
    predicted = []
    for row in rows:
        prep = group.read([row])[0]
        flat = space.decode_flat(space.encode(prep)[None])[0]
        predicted.append(flat)
        first, second = answers(space, unpack(prep, 1477), task), answers(space, flat, task)
        found["target"].append(float((first.argmax(-1) == labels).double().mean()))
        found["predicted"].append(float((second.argmax(-1) == labels).double().mean()))
        found["agreement"].append(float((first.argmax(-1) == second.argmax(-1)).double().mean()))
        log_t, log_p = F.log_softmax(first.double(), -1), F.log_softmax(second.double(), -1)
        found["kl"].append(float((log_t.exp() * (log_t - log_p)).sum(-1).mean()))
    detail = json.loads((run_copy / "eval-test.json").read_text())["detail"]
    image = 1.5 / len(labels)  # a tie may be rounded the other way
    np.testing.assert_allclose(detail["accuracy_target"], found["target"], atol=1e-9)
    np.testing.assert_allclose(detail["accuracy_predicted"], found["predicted"], atol=image)
    np.testing.assert_allclose(detail["agreement"], found["agreement"], atol=image)
    np.testing.assert_allclose(detail["kl"], found["kl"], rtol=1e-3)
    target, answer = np.array(detail["accuracy_target"]), np.array(detail["accuracy_predicted"])
    assert told["mae"] == pytest.approx(np.abs(target - answer).mean())
    assert told["r2"] == pytest.approx(1 - ((target - answer) ** 2).sum() / ((target - target.mean()) ** 2).sum())
    assert told["accuracy_target"] == pytest.approx(group.members["accuracy_test"][rows].mean())
    pairs = [(predicted[a] - predicted[b]).norm().item() for a in range(6) for b in range(a)]
    assert told["diversity"] == pytest.approx(np.mean(pairs), rel=1e-3)
    assert told["compression"] == pytest.approx(64 / 1477) and told["classid_accuracy"] is None


def test_baselines_answer_with_training_networks(run_copy: Path, zoo: Zoo) -> None:
    told = evaluate(run_copy, "test")["baselines"]
    space, task, group = Space.load(run_copy), task_of(zoo, "cpu"), zoo.only()
    bank = unpack(group.read(group.rows("train")), 1477)
    target = unpack(group.read(group.rows("test")), 1477)
    near = [int((bank - row).norm(dim=1).argmin()) for row in target]
    scores = group.members["accuracy_test"][group.rows("train")][near]
    assert told["nearest"]["accuracy_predicted"] == pytest.approx(scores.mean(), abs=1e-9)
    average = (answers(space, bank.mean(0), task).argmax(-1) == task.test.labels).double().mean().item()
    assert told["average"]["accuracy_predicted"] == pytest.approx(average, abs=1.5 / 500)
    assert told["noise"]["scale"] in (0.01, 0.03, 0.1, 0.3)
    assert told.keys() == {"nearest", "nearest_latent", "noise", "average"}


def test_even_a_tiny_space_beats_the_average_network(run_copy: Path) -> None:
    told = evaluate(run_copy, "test")
    assert told["agreement"] > told["baselines"]["average"]["agreement"]
    assert told["kl"] < told["baselines"]["average"]["kl"]


def test_the_same_figures_again_and_on_other_splits(run_copy: Path) -> None:
    first = evaluate(run_copy, "test")
    assert evaluate(run_copy, "test") == first
    train = evaluate(run_copy, "train")
    assert (train["split"], train["members"], train["baselines"]["nearest"]["agreement"]) == ("train", 24, 1.0)
    kept = load_file(run_copy / "eval-train.safetensors")
    assert kept["latents"].shape == (24, 64) and kept["preps"].shape == kept["decoded"].shape == (4, 12, 128)
    with pytest.raises(NetspaceError, match="tset"):
        evaluate(run_copy, "tset")


def test_a_lines_ends_are_the_decoded_ends(run_copy: Path, zoo: Zoo, tmp_path: Path) -> None:
    ends = ["lenetlike/0031", "lenetlike/0035"]
    told = interpolate(run_copy, *ends, steps=3, save=tmp_path / "line")
    assert (told["from"], told["to"]) == tuple(ends)
    space, group = Space.load(run_copy), zoo.only()
    for place, row in ((0, 31), (2, 35)):
        encode(run_copy, f"lenetlike/{row:04d}", tmp_path / "z.safetensors")
        scored = decode(run_copy, tmp_path / "z.safetensors", tmp_path / "net.safetensors")
        assert told["latent_accuracy"][place] == pytest.approx(scored["accuracy_test"], abs=1.5 / 500)
        assert told["weight_accuracy"][place] == pytest.approx(group.members["accuracy_test"][row], abs=1e-9)
        alone, on_line = load_file(tmp_path / "net.safetensors"), load_file(told["networks"][place])
        for name in space.spec.names:
            torch.testing.assert_close(on_line[name], alone[name], rtol=1e-4, atol=1e-5)
    middle = torch.lerp(*(space.encode(group.read([row])[0]) for row in (31, 35)), 0.5)
    wanted = space.decode(middle).state_dict()
    for name, value in load_file(told["networks"][1]).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-5)
    assert len(list((run_copy / "interpolations").glob("*.json"))) == 1


def test_names_of_networks(run_copy: Path, zoo: Zoo, tmp_path: Path) -> None:
    space = Space.load(run_copy)
    val = zoo.only().members["accuracy_val"]
    for word, row in (("best", int(val.argmax())), ("worst:lenetlike", int(val.argmin()))):
        assert val[int(resolve(word, space, zoo).name.split("/")[1])] == val[row]
    member: Any = resolve("lenetlike/0002", space, zoo)
    assert torch.equal(member.flat, unpack(zoo.only().read([2])[0], 1477))
    assert torch.equal(member.latent, space.encode(zoo.only().read([2])[0]))
    with pytest.raises(NetspaceError, match="--zoo"):
        resolve("best", space, None)


def test_the_zoo_of_a_run(run_copy: Path, zoo_copy: Path, tiny_zoo: Path) -> None:
    with zoo_of(run_copy) as found, zoo_of(run_copy, zoo_copy) as moved:
        assert found.path == tiny_zoo and moved.path == zoo_copy


def test_files_need_no_zoo(run_copy: Path, tmp_path: Path) -> None:
    encode(run_copy, "best", tmp_path / "z.safetensors")
    told = json.loads((run_copy / "provenance.json").read_text())
    (run_copy / "provenance.json").write_text(json.dumps({**told, "zoo": "/gone/zoo.h5"}))
    decoded = decode(run_copy, tmp_path / "z.safetensors", tmp_path / "net.safetensors")
    assert decoded["accuracy_test"] is None and (tmp_path / "net.safetensors").is_file()
    again = encode(run_copy, str(tmp_path / "net.safetensors"), tmp_path / "y.safetensors")
    assert again["latent"] == 64
    with pytest.raises(NetspaceError, match="zoo"):
        encode(run_copy, "best", tmp_path / "x.safetensors")
