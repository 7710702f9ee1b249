"""Columns that a zoo has of its own: written, read, merged, aligned, in shards, imported from a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers import refused
from safetensors.torch import save_file
from zoo_files import LARGE, population, zoo_at

from netspace.errors import NetspaceError
from netspace.zoo import Zoo, merge
from netspace.zoo.columns import parse_column

Cli = Callable[..., Any]
LOSS = np.arange(6) / 10
NOTE = np.array([f"é{row}".encode() for row in range(6)], dtype="S160")


def with_columns(path: Path, seed: int = 0, **columns: np.ndarray) -> Path:
    return zoo_at(path, tiny=replace(population(seed=seed), columns=columns), large=population(LARGE, 2, seed + 7))


def test_they_are_columns_as_any_other(tmp_path: Path) -> None:
    with Zoo(with_columns(tmp_path / "z.h5", loss=LOSS, note=NOTE)) as zoo:
        member = zoo["tiny/0003"]
        assert (member.loss, member.note, member.row["loss"]) == (LOSS[3], "é3", LOSS[3])
        assert "loss" not in zoo["large/0001"].row
        assert zoo.members.columns[-2:] == ("loss", "note")
        np.testing.assert_array_equal(zoo.members.column("loss"), [*LOSS, np.nan, np.nan])
        assert zoo.members.column("note").tolist() == [*(f"é{row}" for row in range(6)), "", ""]
        assert zoo.filter(where="loss > 0.35 or note == 'é1'").names == ["tiny/0001", "tiny/0004", "tiny/0005"]
        assert zoo.to_pandas().loss.notna().sum() == 6
        with_hash = zoo.content_hash
    with Zoo(with_columns(tmp_path / "plain.h5")) as zoo:
        assert zoo.content_hash == with_hash  # the same networks


def test_merged_zoos_keep_the_columns_of_both(tmp_path: Path) -> None:
    first = with_columns(tmp_path / "a.h5", loss=LOSS, note=NOTE)
    second = with_columns(tmp_path / "b.h5", seed=1, loss=-LOSS, rate=LOSS + 1)
    merge(tmp_path / "c.h5", [first, second, first])
    with Zoo(tmp_path / "c.h5") as zoo:
        tiny = zoo.filter(arch="tiny")
        np.testing.assert_array_equal(tiny.column("loss"), [*LOSS, *-LOSS])
        np.testing.assert_array_equal(tiny.column("rate"), [*np.full(6, np.nan), *LOSS + 1])
        assert tiny.column("note").tolist() == [*(f"é{row}" for row in range(6)), *[""] * 6]


def test_texts_win_over_numbers(tmp_path: Path) -> None:
    first = with_columns(tmp_path / "a.h5", note=NOTE)
    second = with_columns(tmp_path / "b.h5", seed=1, note=np.array([0.5, np.nan, 1, 2, 3, 4]))
    merge(tmp_path / "c.h5", [first, second])
    with Zoo(tmp_path / "c.h5") as zoo:
        assert zoo.filter(arch="tiny").column("note").tolist()[5:9] == ["é5", "0.5", "", "1"]


def test_a_folder_of_zoos_is_one_table(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    with_columns(tmp_path / "shards" / "a.h5", loss=LOSS)
    zoo_at(tmp_path / "shards" / "b.h5", tiny=population(seed=3))
    with Zoo(tmp_path / "shards") as zoo:
        np.testing.assert_array_equal(zoo.filter(arch="tiny").column("loss"), [*LOSS, *np.full(6, np.nan)])


@pytest.mark.parametrize("values", [np.arange(5.0), np.arange(6), np.zeros((6, 2))])
def test_what_is_no_column_is_refused(tmp_path: Path, values: np.ndarray) -> None:
    path = with_columns(tmp_path / "z.h5", loss=LOSS)
    with h5py.File(path, "a") as file:
        file["archs/tiny/columns/bad"] = values
    with pytest.raises(NetspaceError, match="its column 'bad' is no column of 6 numbers or texts"):
        Zoo(path)


def test_a_text_that_is_no_number_makes_a_column_of_texts() -> None:
    np.testing.assert_array_equal(parse_column(["1e-3", " ", "-2"]), [1e-3, np.nan, -2])
    assert parse_column(["sgd ", ""]).tolist() == [b"sgd", b""]


def test_a_table_keeps_its_columns(cli: Cli, tiny_zoo: Path, zoo_copy: Path, tmp_path: Path) -> None:
    with Zoo(tiny_zoo) as zoo:
        for row in range(3):
            state = {name: value + 0.01 for name, value in zoo[row].state_dict().items()}
            save_file(state, tmp_path / f"{row}.safetensors")
    before = zoo_copy.read_bytes()
    table = tmp_path / "nets.csv"
    words = ("zoo", "import", zoo_copy, "--arch", "lenetlike", "--table", table)
    table.write_text("file,run,split,weight_decay\n0.safetensors,a,train,0.1\n1.safetensors,a,val,0.2\n")
    assert "puts networks of run a into train and val" in refused(cli(*words), 2)
    table.write_text("file,run,epochs\n0.safetensors,a,3\n1.safetensors,b,many\n")
    assert "line 3 of" in refused(cli(*words), 2)
    table.write_text("file,split,epoch\n0.safetensors,train,3\n")
    assert "unknown column of" in refused(cli(*words), 2)
    table.write_text("file,accuracy\n0.safetensors,0.5\n")
    assert "is called 'accuracy', but a column to be kept has a name" in refused(cli(*words), 2)
    table.write_text("file,note,note\n0.safetensors,1,2\n")
    assert "has two columns 'note'" in refused(cli(*words), 2)
    table.write_text("file,learning_rate\n0.safetensors,fast\n")
    assert "learning rates of a table were expected to be numbers" in refused(cli(*words), 2)
    assert zoo_copy.read_bytes() == before
    table.write_text(
        "file,split,learning_rate,weight_decay,optimiser\n0.safetensors,train,0.5,0.1,sgd\n1.safetensors,train,,,adam\n"
        "2.safetensors,test,1,0.3,\n"
    )
    assert cli(*words, "--json").json["imported"] == 3
    with Zoo(zoo_copy) as zoo:
        new = zoo[36:]
        np.testing.assert_array_equal(new.column("weight_decay"), [0.1, np.nan, 0.3])
        np.testing.assert_array_equal(new.column("learning_rate"), [0.5, np.nan, 1])
        assert new.column("optimiser").tolist() == ["sgd", "adam", ""] and np.isnan(zoo[0].weight_decay)
    listed = cli("zoo", "list", zoo_copy, "--filter", "optimiser == 'adam'", "--json").json
    assert [each["weight_decay"] for each in listed["members"]] == [None] and {*listed["columns"][-2:]} == {
        "optimiser",
        "weight_decay",
    }
