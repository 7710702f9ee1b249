"""docs/other-zoos.md: its blocks run word for word, on small files of each format."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_foreign import LAYERS, flax, networks, table, turned

from netspace.tasks import data_sets
from netspace.zoo import Zoo

PAGE = Path(__file__).parents[2] / "docs" / "other-zoos.md"
MINE = """
import torch
from netspace import archs

def network(channels=1, classes=10, image_size=28):
    return archs.build("lenetlike", channels=channels, classes=classes, image_size=image_size, width=0.25)

def field(inputs=2, outputs=1):
    layers = [torch.nn.Flatten()]
    for index in range(12):
        layers += [torch.nn.Linear(inputs if index == 0 else 8, 8 if index < 11 else outputs), torch.nn.Tanh()]
    return torch.nn.Sequential(*layers[:-1])
"""


def blocks() -> list[list[str]]:
    """The commands of the page, as words."""
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"^    (netspace .+)$", text, re.MULTILINE)]


def small_cnn(folder: Path) -> None:
    """Six networks, of which the first four are those with relu, as files of the Small CNN Zoo."""
    states = networks(6)
    folder.mkdir(parents=True)
    names = [(layer, kind) for layer in LAYERS for kind in ("weight", "bias")]
    layout: list[list[Any]] = [["varname", "start_idx", "end_idx", "size", "shape"]]
    start = 0
    for layer, kind in names:
        value = turned(states[0][f"{layer}.{kind}"])
        name = f"{LAYERS[layer]}/{'kernel' if kind == 'weight' else 'bias'}:0"
        layout.append([name, start, start + value.size, value.size, str(value.shape)])
        start += value.size
    table(folder / "layout.csv", layout)
    rows = [np.concatenate([turned(state[f"{a}.{b}"]).ravel() for a, b in names]) for state in states]
    np.save(folder / "weights.npy", np.stack(rows))
    lines = [[["relu", "tanh"][row // 4], f"/tmp/{row}", 86, 0.9, 0.9] for row in range(6)]
    table(
        folder / "metrics.csv",
        [["config.activation", "modeldir", "step", "test_accuracy", "train_accuracy"], *lines],
    )


def hsg(folder: Path, states: list[dict[str, torch.Tensor]]) -> None:
    """A training of each network, with two checkpoints."""
    for index, state in enumerate(states):
        model = folder / f"NN_tune_{index}"
        for epoch in (0, 10):
            (checkpoint := model / f"checkpoint_{epoch:06d}").mkdir(parents=True)
            torch.save({name: value + epoch for name, value in state.items()}, checkpoint / "checkpoints")
        (model / "params.json").write_text(json.dumps({"seed": index, "optim::lr": 0.01}))
        lines = [{"training_iteration": e, "test_acc": 0.1, "train_acc": 0.1} for e in (0, 10)]
        (model / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def hub(folder: Path, states: list[dict[str, torch.Tensor]]) -> None:
    """A folder of each network."""
    for index, state in enumerate(states):
        (each := folder / f"user--net-{index}").mkdir(parents=True)
        (each / "config.json").write_text(json.dumps({"architectures": ["Net"]}))
        save_file(state, each / "model.safetensors")


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the page names, and a small data set in place of MNIST, which is not on every machine."""
    digits = data_sets.read_digits

    def read(config: Any) -> data_sets.Splits:
        return digits(config.model_copy(update={"name": "digits"}))

    monkeypatch.setitem(data_sets.DATASETS, "mnist", replace(data_sets.DATASETS["mnist"], read=read))
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    small_cnn(tmp_path / "smallcnnzoo" / "mnist")
    import mine  # type: ignore[import-not-found]

    (tmp_path / "nefs").mkdir()
    fields = [mine.field().state_dict() for _ in range(3)]
    numbers = {name: f"{int(name.split('.')[0]) - 1}.{name.split('.')[1]}" for name in fields[0]}
    flax(
        tmp_path / "nefs" / "mnist.hdf5",
        [{numbers[name]: value for name, value in each.items()} for each in fields],
    )
    states = networks(3, "lenetlike", width=0.25)
    hsg(tmp_path / "hsg" / "tune_zoo_mnist", states)
    hub(tmp_path / "models", states)


def test_the_page_is_true_word_for_word(cli: Callable[..., Any], sources: None) -> None:
    imported = {}
    for words in blocks():
        done = cli(*words[1:], "--json")
        if words[2] == "verify":  # the accuracies were invented, and it says so
            assert done.code == 1 and "accuracy" in done.json["problems"][0]
            continue
        assert done.code == 0, done.err
        imported[done.json["format"]] = done.json["imported"]
        with Zoo(done.json["path"]) as zoo:
            assert len(zoo) == done.json["imported"]
    assert imported == {"small-cnn": 4, "fit-a-nef": 3, "hsg": 6, "hub": 3}
    formats = re.findall(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert formats == list(imported)
