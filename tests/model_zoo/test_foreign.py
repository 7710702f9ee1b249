"""Zoos of other programs: small files of each format, and what is wrong with them."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model_zoo import foreign_import
from model_zoo.foreign import CHUNK, open_foreign
from model_zoo.foreign_import import ForeignImport, import_foreign
from model_zoo.verify import verify
from netspace import archs
from netspace.errors import NetspaceError, UsageError
from netspace.networks.prep import unflatten, unpack
from netspace.results.zoos import ZooImport
from netspace.tasks import DataConfig
from netspace.zoo import Zoo

DIGITS = DataConfig(name="digits", limit=100)
SMALL = {"padding": 1, "activation": "tanh"}
LAYERS = {
    "conv1": "sequential/conv2d",
    "conv2": "sequential/conv2d_1",
    "conv3": "sequential/conv2d_2",
    "fc": "sequential/dense",
}


def networks(count: int, arch: str = "small_cnn", **settings: Any) -> list[dict[str, torch.Tensor]]:
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(archs.build(arch, channels=1, image_size=8, **settings).state_dict())
    return made


def turned(value: torch.Tensor) -> np.ndarray:
    """A weight in the order of axes of TensorFlow and Flax, element by element."""
    if value.dim() == 1:
        return value.numpy()
    out = np.empty((*value.shape[2:], value.shape[1], value.shape[0]), np.float32)
    for index in np.ndindex(*value.shape):
        out[(*index[2:], index[1], index[0])] = value[index]
    return out


@pytest.fixture(scope="module")
def states() -> list[dict[str, torch.Tensor]]:
    return networks(6, **SMALL)


@pytest.fixture
def small_cnn(tmp_path: Path, states: list[dict[str, torch.Tensor]]) -> Path:
    """A zoo of two trainings of three checkpoints; its rows have the last layer first and biases before kernels."""
    folder = tmp_path / "cifar10"
    folder.mkdir()
    names = [(layer, kind) for layer in ("fc", "conv3", "conv1", "conv2") for kind in ("bias", "weight")]
    layout, start = [["varname", "start_idx", "end_idx", "size", "shape"]], 0
    for layer, kind in names:
        value = turned(states[0][f"{layer}.{kind}"])
        name = f"{LAYERS[layer]}/{'kernel' if kind == 'weight' else 'bias'}:0"
        layout.append([name, start, start + value.size, value.size, str(value.shape)])
        start += value.size
    table(folder / "layout.csv", layout)
    np.save(
        folder / "weights.npy",
        np.stack([np.concatenate([turned(state[f"{a}.{b}"]).ravel() for a, b in names]) for state in states]),
    )
    rows: list[list[Any]] = [
        ["config.activation", "config.learning_rate", "modeldir", "step", "test_accuracy", "train_accuracy"]
    ]
    rows += [
        ["tanh", 0.001 * (1 + i // 3), f"/tmp/{9 - i // 3}", [0, 20, 86][i % 3], 0.1 * i, 0.15 * i] for i in range(6)
    ]
    table(folder / "metrics.csv", rows)
    return folder


def table(path: Path, rows: list[list[Any]]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


def into(tmp_path: Path, source: Path, arch: str = "small_cnn", **changes: Any) -> ZooImport:
    wanted = ForeignImport(source, arch, data=DIGITS, kwargs=SMALL if arch == "small_cnn" else {})
    return import_foreign(tmp_path / "zoo.h5", replace(wanted, **changes))


def refused(tmp_path: Path, source: Path, **changes: Any) -> str:
    with pytest.raises((NetspaceError, UsageError)) as caught:
        into(tmp_path, source, **changes)
    assert not (tmp_path / "zoo.h5").exists() and "\n" not in str(caught.value)
    return str(caught.value)


def check_states(path: Path, states: list[dict[str, torch.Tensor]]) -> None:
    with Zoo(path) as zoo:
        group = zoo.only()
        flat = unpack(group.read(range(len(group))), group.spec.num_parameters)
        for row, state in zip(flat, states, strict=True):
            for name, value in unflatten(row, group.spec).items():
                assert torch.equal(value, state[name]), name


def test_the_small_cnn_zoo(tmp_path: Path, small_cnn: Path, states: list[dict[str, torch.Tensor]]) -> None:
    result = into(tmp_path, small_cnn)
    assert (result.imported, result.runs, result.format, result.diverged) == (6, 2, "small-cnn", 0)
    check_states(tmp_path / "zoo.h5", states)
    with Zoo(tmp_path / "zoo.h5") as zoo:
        members = zoo.only().members
        assert members["run"].tolist() == [0, 0, 0, 1, 1, 1] and members["epochs"].tolist() == [0, 20, 86] * 2
        np.testing.assert_allclose(members["accuracy_test"], 0.1 * np.arange(6))
        np.testing.assert_allclose(members["accuracy_train"], 0.15 * np.arange(6))
        assert np.isnan(members["accuracy_val"]).all() and members["source"][0] == b"cifar10//tmp/9"
        np.testing.assert_allclose(members["learning_rate"], [0.001] * 3 + [0.002] * 3)
        assert all(len(set(members["split"][members["run"] == run])) == 1 for run in (0, 1))
    problems = verify(tmp_path / "zoo.h5").problems  # the figures were invented, and what is not known is no problem
    assert problems and all("accuracy on t" in problem for problem in problems)


def test_rows_that_are_chosen_or_diverged(
    tmp_path: Path, small_cnn: Path, states: list[dict[str, torch.Tensor]]
) -> None:
    matrix = np.load(small_cnn / "weights.npy")
    matrix[3, 7] = np.nan
    np.save(small_cnn / "weights.npy", matrix.astype(np.float64))
    raw = (small_cnn / "metrics.csv").read_text().replace("tanh", "relu", 2)
    with gzip.open(small_cnn / "metrics.csv.gz", "wt") as file:
        file.write(raw)
    (small_cnn / "metrics.csv").unlink()
    assert (
        "config.activation is relu, tanh), which are no one architecture: choose one by --only config.activation=relu"
        in (refused(tmp_path, small_cnn))
    )
    result = into(tmp_path, small_cnn, only={"config.activation": "tanh"}, split="train")
    assert (result.imported, result.diverged, result.splits) == (4, 1, {"train": 3, "val": 0, "test": 0})
    check_states(tmp_path / "zoo.h5", [states[2], {k: 0 * v for k, v in states[3].items()}, *states[4:]])


def test_a_matrix_is_read_in_pieces(tmp_path: Path, small_cnn: Path) -> None:
    count = 2 * CHUNK + 5
    matrix = np.arange(count * 4970, dtype=np.float32).reshape(count, 4970)
    np.save(small_cnn / "weights.npy", matrix)
    table(
        small_cnn / "metrics.csv",
        [["modeldir", "step", "test_accuracy", "train_accuracy"], *[[i, 1, 0.5, 0.5] for i in range(count)]],
    )
    zoo = open_foreign(small_cnn)
    assert zoo.rows is not None
    index = np.flatnonzero(np.arange(count) % 3 != 1)
    pieces = list(zoo.rows(index))
    assert len(pieces) > 1 and max(map(len, pieces)) <= CHUNK
    np.testing.assert_array_equal(np.concatenate(pieces), matrix[index])


def test_of_rows_that_are_chosen_the_others_are_not_read(
    tmp_path: Path, small_cnn: Path, states: list[dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fromfile, values = np.fromfile, list[int]()

    def counted(file: Any, dtype: np.dtype[Any], count: int) -> np.ndarray:
        values.append(count)
        return fromfile(file, dtype, count)

    monkeypatch.setattr(np, "fromfile", counted)
    into(tmp_path, small_cnn, only={"step": "20"})
    check_states(tmp_path / "zoo.h5", [states[1], states[4]])
    assert values == [4970, 4970]


def test_layouts_that_do_not_fit_are_one_sentence(tmp_path: Path, small_cnn: Path) -> None:
    (tmp_path / "zoo.h5").unlink(missing_ok=True)
    assert refused(tmp_path, small_cnn, arch="lenetlike").startswith(
        f"the layout of {small_cnn} (4,970 values) is not that of 'lenetlike' ("
    )
    assert "sequential/conv2d/kernel:0 is (16, 1, 3, 3) where conv1.weight has (8, 1, 3, 3)" in refused(
        tmp_path, small_cnn, width=0.5
    )
    whole = {file.name: file.read_bytes() for file in small_cnn.iterdir()}

    def change(name: str, content: bytes) -> str:
        (small_cnn / name).write_bytes(content)
        message = refused(tmp_path, small_cnn)
        (small_cnn / name).write_bytes(whole[name])
        return message

    assert "was expected to have the columns modeldir, step, train_accuracy, test_accuracy, but lacks step" in change(
        "metrics.csv", whole["metrics.csv"].replace(b"step", b"steps")
    )
    assert "weights.npy has 6 rows, but" in change("metrics.csv", whole["metrics.csv"].rsplit(b"\r\n", 2)[0] + b"\r\n")
    assert "line 3 of" in change("metrics.csv", whole["metrics.csv"].replace(b"/tmp/9,20", b"/tmp/9,20,1"))
    assert "accuracy_test of network 5 of" in change("metrics.csv", whole["metrics.csv"].replace(b",0.5,", b",5.0,"))
    assert "but the shape (3, 3, 1, 15)" in change("layout.csv", whole["layout.csv"].replace(b"1, 16)", b"1, 15)"))
    assert "does not describe the 4,970 columns" in change("layout.csv", whole["layout.csv"].rsplit(b"\r\n", 2)[0])
    shifted = whole["layout.csv"].replace(
        b",0,10,10,", b",10,20,10,"
    )  # over columns of another tensor: sums are as before
    assert shifted != whole["layout.csv"] and "does not describe the 4,970 columns" in change("layout.csv", shifted)
    beyond = whole["layout.csv"].replace(b",0,10,10,", b",4970,4980,10,")
    assert "does not describe the 4,970 columns" in change("layout.csv", beyond)
    assert "is shorter than its 6 rows" in change("weights.npy", whole["weights.npy"][:-4])
    assert "was expected to be of the format small-cnn, but it is not" in change("weights.npy", b"no numpy file")
    np.save(tmp_path / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    assert "was expected to be a matrix of floating-point rows" in change(
        "weights.npy", (tmp_path / "objects.npy").read_bytes()
    )
    (small_cnn / "metrics.csv").unlink()
    assert "metrics.csv was expected, but it is not there" in refused(tmp_path, small_cnn)


def flax(
    path: Path, states: list[dict[str, torch.Tensor]], change: Callable[[Any], Any] = lambda config: config
) -> Path:
    """A file of fit-a-nef: names in alphabetical order, so the eleventh layer comes before the third."""
    layers = {f"Dense_{index}": f"{2 * index}" for index in range(12)}
    names = sorted(
        (f"params.{layer}.{kind}", number) for layer, number in layers.items() for kind in ("bias", "kernel")
    )
    config, rows = [], []
    for name, number in names:
        kind = "bias" if name.endswith("bias") else "weight"
        config.append([name, list(turned(states[0][f"{number}.{kind}"]).shape)])
    for state in states:
        rows.append(
            np.concatenate(
                [turned(state[f"{n}.{'bias' if m.endswith('bias') else 'weight'}"]).ravel() for m, n in names]
            )
        )
    with h5py.File(path, "w") as file:
        file["params"] = np.stack(rows)
        file.create_dataset("param_config", data=[json.dumps(change(config))], dtype=h5py.string_dtype())
    return path


def deep(channels: int = 1, classes: int = 10, image_size: int = 8) -> torch.nn.Module:
    layers: list[torch.nn.Module] = []
    for index in range(12):
        layers += [torch.nn.Linear(64 if index == 0 else 8, 8 if index < 11 else classes), torch.nn.Tanh()]
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Sequential(*layers[:-1]))


def test_a_file_of_fit_a_nef(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(archs.ARCHS, "deep", deep)
    states = []
    for seed in range(3):
        torch.manual_seed(seed)
        states.append({name.removeprefix("1."): value for name, value in deep().state_dict().items()})
    path = flax(tmp_path / "nefs.hdf5", states)
    result = into(tmp_path, path, "deep")
    assert (result.imported, result.runs, result.format) == (3, 3, "fit-a-nef")
    check_states(tmp_path / "zoo.h5", [{f"1.{name}": value for name, value in state.items()} for state in states])
    assert verify(tmp_path / "zoo.h5").ok  # no accuracies are in the file: they were measured here
    (tmp_path / "zoo.h5").unlink()
    assert "describes 1,2" in refused(tmp_path, flax(path, states, lambda c: c[:-1]), arch="deep", kwargs={})
    assert "was expected to be of the format fit-a-nef" in refused(
        tmp_path, flax(path, states, lambda c: [1, 2]), arch="deep", kwargs={}
    )


def test_a_zoo_of_hsg(tmp_path: Path) -> None:
    states, folder = networks(4, "lenetlike", width=0.25), tmp_path / "tune"
    for index, state in enumerate(states):
        model, epoch = folder / f"NN_tune_{10 - index // 2}", 1 + 9 * (index % 2)
        checkpoint = model / f"checkpoint_{epoch:06d}"
        checkpoint.mkdir(parents=True)
        torch.save(state, checkpoint / "checkpoints")
        (model / "params.json").write_text(json.dumps({"seed": 40 + index, "optim::lr": 0.01}))
        lines = [{"training_iteration": e, "test_acc": e / 20, "train_acc": e / 10} for e in range(11)]
        (model / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = into(tmp_path, folder, "lenetlike", width=0.25)
    assert (result.imported, result.runs, result.format) == (4, 2, "hsg")
    check_states(tmp_path / "zoo.h5", [states[2], states[3], states[0], states[1]])
    with Zoo(tmp_path / "zoo.h5") as zoo:
        members = zoo.only().members
        assert members["accuracy_test"].tolist() == [0.05, 0.5] * 2 and members["epochs"].tolist() == [1, 10] * 2
        assert members["seed"].tolist() == [43, 43, 41, 41] and members["source"][0] == b"tune/NN_tune_9"
    (tmp_path / "zoo.h5").unlink()
    torch.save({"a": deep}, folder / "NN_tune_9" / "checkpoint_000001" / "checkpoints")
    assert "cannot be read safely" in refused(tmp_path, folder, arch="lenetlike", kwargs={}, width=0.25)
    torch.save(torch.zeros(3), folder / "NN_tune_9" / "checkpoint_000001" / "checkpoints")
    assert "was expected to hold a state dict" in refused(tmp_path, folder, arch="lenetlike", kwargs={}, width=0.25)
    (folder / "NN_tune_9" / "checkpoint_000001" / "checkpoints").unlink()
    assert "was expected to hold the file 'checkpoints'" in refused(tmp_path, folder, arch="lenetlike", width=0.25)


def test_networks_of_signals_without_their_numbers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text("{}")
    words = refused(tmp_path, tmp_path / "hub", arch="siren", kwargs={}, data=DataConfig(name="chairs", points=64))
    assert (
        words.startswith("each network of chairs was fitted to a signal of its own, ")
        and "1 network has no seed" in words
    )


def test_folders_of_a_hub(tmp_path: Path) -> None:
    states, folder = networks(3, "lenetlike", width=0.25), tmp_path / "hub"
    for index, state in enumerate(states):
        (each := folder / f"user--net-{index}").mkdir(parents=True)
        named = {"architectures": ["Net"]} if index else {"architecture": "Net"}
        (each / "config.json").write_text(json.dumps({**named, "num_classes": 10}))
        save_file(state, each / "model.safetensors")
    halves = {"a.safetensors": dict(list(states[2].items())[:3]), "b.safetensors": dict(list(states[2].items())[3:])}
    last = folder / "user--net-2"
    (last / "model.safetensors").unlink()
    for name, half in halves.items():
        save_file(half, last / name)
    index_file = last / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"weight_map": {key: name for name, half in halves.items() for key in half}}))
    result = into(tmp_path, folder, "lenetlike", width=0.25)
    assert (result.imported, result.runs, result.format) == (3, 3, "hub")
    check_states(tmp_path / "zoo.h5", states)
    assert verify(tmp_path / "zoo.h5").ok
    (tmp_path / "zoo.h5").unlink()
    index_file.write_text(json.dumps({"weight_map": {"x": "../../elsewhere.safetensors"}}))
    assert "which is no file next to it" in refused(tmp_path, folder, arch="lenetlike", width=0.25)
    assert "hub/user--net-0 cannot be imported" in refused(tmp_path, folder, arch="lenetlike", width=0.5)
    (last / "config.json").write_text(json.dumps({"architectures": ["Other"]}))
    assert "architecture is Net, Other" in refused(tmp_path, folder, arch="lenetlike", width=0.25)
    assert into(tmp_path, folder, "lenetlike", width=0.25, only={"architecture": "Net"}).imported == 2


def test_a_zoo_that_another_import_wrote_meanwhile_stays(
    tmp_path: Path, small_cnn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, lock = tmp_path / "zoo.h5", foreign_import.zoo_lock

    def late(path: Path) -> Any:
        path.write_bytes(b"of another import")
        return lock(path)

    monkeypatch.setattr(foreign_import, "zoo_lock", late)
    with pytest.raises(UsageError, match="exists already: import into a new zoo"):
        into(tmp_path, small_cnn)
    assert out.read_bytes() == b"of another import"


def test_what_cannot_be_begun_is_one_sentence(tmp_path: Path, small_cnn: Path) -> None:
    assert "does not exist" in refused(tmp_path, tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "is of no format that is known here (small-cnn, fit-a-nef, hsg, hub)" in refused(
        tmp_path, tmp_path / "empty"
    )
    assert "holds no network of the format hsg" in refused(tmp_path, tmp_path / "empty", format="hsg")
    assert "format" in refused(tmp_path, small_cnn, format="small")
    assert "no network of" in refused(tmp_path, small_cnn, only={"step": "7"})
    assert "column of" in refused(tmp_path, small_cnn, only={"colour": "7"})
    assert "split 'tset' was asked for" in refused(tmp_path, small_cnn, split="tset")
    into(tmp_path, small_cnn)
    with pytest.raises(UsageError, match=r"zoo\.h5 exists already: import into a new zoo"):
        into(tmp_path, small_cnn)
