"""Networks of others into a zoo: which splits and runs they get, of which task they are, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import networks_that_go_wrong as networks
import numpy as np
import pytest
import torch
from helpers import refused
from safetensors.torch import save_file
from torch import Tensor, nn

from model_zoo.importer import Entry, import_members, read_table
from model_zoo.verify import verify
from netspace import archs
from netspace.errors import NetspaceError, UsageError
from netspace.tasks import DataConfig, load
from netspace.zoo import Zoo

HERE = "networks_that_go_wrong"
DIGITS = DataConfig(name="digits", limit=300)
Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def _trusted() -> None:
    archs.trust(
        *(f"{HERE}:{name}" for name in ("postact", "two_heads", "constant", "spectral", "index_table", "timmlike"))
    )


def lenets(count: int, seed: int = 0, classes: int = 10) -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(seed)
    make = [archs.build("lenetlike", channels=1, classes=classes, image_size=8, width=0.25) for _ in range(count)]
    return {f"net{seed}-{number}.pt": dict(module.state_dict()) for number, module in enumerate(make)}


def splits(path: Path) -> list[str]:
    with Zoo(path) as zoo:
        return [bytes(split).decode() for split in zoo.only().members["split"]]


def counted(path: Path) -> tuple[int, ...]:
    return tuple(splits(path).count(name) for name in ("train", "val", "test"))


@pytest.mark.parametrize(
    ("count", "wanted"), [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (6, (4, 1, 1)), (16, (12, 2, 2))]
)
def test_every_split_gets_a_network_where_there_are_enough(tmp_path: Path, count: int, wanted: tuple[int, ...]) -> None:
    result = import_members(tmp_path / "zoo.h5", lenets(count), "lenetlike", data=DIGITS, width=0.25, prep_width=128)
    assert counted(tmp_path / "zoo.h5") == wanted == tuple(result.splits.values())


def test_networks_that_come_one_at_a_time_fill_empty_splits_first(tmp_path: Path) -> None:
    for seed in range(5):
        import_members(
            tmp_path / "zoo.h5", lenets(1, seed), "lenetlike", **({} if seed else {"data": DIGITS, "width": 0.25})
        )
    assert splits(tmp_path / "zoo.h5") == ["train", "val", "test", "train", "train"]


def test_training_without_validation_members_is_told_what_helps(cli: Cli, recipes: Path, tmp_path: Path) -> None:
    import_members(tmp_path / "zoo.h5", lenets(2), "lenetlike", data=DIGITS, width=0.25, split="train", prep_width=128)
    done = cli("train", recipes / "space.yaml", "--zoo", "zoo.h5", "-o", "run")
    refused(done, 1, "zoo.h5 has no members in its val split", "`netspace zoo import --split val`")


def test_imports_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "zoo.h5"

    def one(given: dict[str, dict[str, Tensor]]) -> int:
        result = import_members(path, given, "lenetlike", data=DIGITS, width=0.25, prep_width=128)
        return int(result.imported)

    states = [lenets(2, seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, states)) == [2] * 4
    with Zoo(path) as zoo:
        assert len(zoo) == 8 and len(set(zoo.only().members["run"].tolist())) == 8
        assert zoo.only().rows("val").size and zoo.only().rows("test").size


# ---- tables


def test_a_table_keeps_checkpoints_of_one_training_in_one_split(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "nets"
    folder.mkdir()
    for number, state in enumerate(lenets(7).values()):
        torch.save(state, folder / f"{number}.pt")
    rows = [
        "0.pt,a,1,5,",
        "1.pt,a,1,10,",
        "2.pt,b,2,5,val",
        "3.pt,b,2,10,",
        "4.pt,c,3,5,",
        "5.pt,,,,",
        "6.pt,,,7,train",
    ]
    (folder / "all.csv").write_text("file,run,seed,epochs,split\n" + "\n".join(rows) + "\n")
    words = ("--arch", "lenetlike", "--width", 0.25, "--data", "digits", "--set", "data.limit=300", "--prep-width", 128)
    result = cli("zoo", "import", "new.h5", "--table", folder / "all.csv", *words, "--json").json
    assert (result["imported"], result["runs"]) == (7, 5)
    with Zoo("new.h5") as zoo:
        members = zoo.only().members
    assert members["run"].tolist() == [0, 0, 1, 1, 2, 3, 4] and members["seed"].tolist() == [1, 1, 2, 2, 3, 0, 0]
    assert members["epochs"].tolist() == [5, 10, 5, 10, 5, 0, 7]
    found = [bytes(split).decode() for split in members["split"]]
    assert found[0] == found[1] and found[2] == found[3] == "val" and found[6] == "train"
    assert set(found) == {"train", "val", "test"}
    assert verify(Path("new.h5")).ok


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,run,split\na.pt,r,train\nb.pt,r,val\n", r"puts networks of run r into train and val"),
        ("file,epoch\na.pt,3\n", r"unknown column of .* 'epoch': did you mean 'epochs'\?"),
        ("run,seed\nr,3\n", r"expected to name networks in a column 'file', but has none"),
        ("file\n", r"in a column 'file', but is empty"),
        ("", r"in a column 'file', but is empty"),
        ("file,seed\na.pt,x\n", r"setting seed in line 2 of .*integer"),
        ("file,split\na.pt,dev\n", r"setting split in line 2 of"),
        ("file,run\na.pt\n", r"line 2 of .* was expected to have 2 values"),
        ("file,run\na.pt,r,3\n", r"line 2 of .* was expected to have 2 values"),
        ("file\na.pt\na.pt\n", r"names a\.pt twice"),
        ("file;seed\na.pt;3\n", r"has semicolons between its columns, but commas were expected"),
        ("file\tseed\na.pt\t3\n", r"has tabs between its columns, but commas were expected"),
        ('file\n"a.pt\n', r"was expected to be a CSV file, but does not parse"),
    ],
)
def test_tables_that_cannot_be(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(NetspaceError, match=words):
        read_table(tmp_path / "t.csv")


def test_networks_of_signals_need_the_numbers_of_their_signals(tmp_path: Path) -> None:
    chairs, settings = DataConfig(name="chairs", points=64), {"arch": "siren", "width": 0.1}
    states = {f"{number}.pt": archs.build("siren", width=0.1).state_dict() for number in range(2)}
    out = tmp_path / "z.h5"
    with pytest.raises(
        UsageError, match=r"^each network of chairs was fitted to a signal .* but 2 networks have no seed: "
    ):
        import_members(out, states, **settings, data=chairs)
    entries = [Entry(file=Path(name)) for name in states]
    entries[0] = entries[0].model_copy(update={"seed": 3})
    with pytest.raises(UsageError, match=r"but 1 network has no seed: give state dicts by a --table with the columns"):
        import_members(out, states, **settings, data=chairs, table=entries)
    entries[1] = entries[1].model_copy(update={"seed": 2**32})
    with pytest.raises(UsageError, match=r"^chair number 4294967296 was asked for, but chairs are numbered from 0 to"):
        import_members(out, states, **settings, data=chairs, table=entries)
    entries[1] = entries[1].model_copy(update={"seed": 0})
    assert import_members(out, states, **settings, data=chairs, table=entries).imported == 2
    with Zoo(out) as zoo:
        assert zoo.only().members["seed"].tolist() == [3, 0]
        assert np.isfinite(zoo.only().members["accuracy_test"]).all()


def test_files_or_a_table(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,split\na.pt,val\n")
    refused(cli("zoo", "import", "z.h5", "--arch", "lenetlike"), 2, "FILEs or by a --table")
    refused(cli("zoo", "import", "z.h5", "a.pt", "--table", "t.csv", "--arch", "lenetlike"), 2, "give one of the two")
    refused(cli("zoo", "import", "z.h5", "--table", "gone.csv", "--arch", "lenetlike"), 2, "gone.csv does not exist")
    torch.save(lenets(1)["net0-0.pt"], "a.pt")
    done = cli("zoo", "import", "z.h5", "--table", "t.csv", "--arch", "lenetlike", "--data", "digits", "--split", "val")
    refused(done, 2, "splits were given twice")


# ---- the task


def test_networks_of_other_classes_are_refused(tmp_path: Path) -> None:
    archs.trust("torchvision.models:squeezenet1_1")
    for arch, kwargs, words in (
        ("lenetlike", {"classes": 4}, "classes=4 but meets 10 classes"),
        (f"{HERE}:postact", {"classes": 4}, "classes=4 but meets 10 classes"),
        (
            "torchvision.models:squeezenet1_1",
            {"num_classes": 4},
            r"outputs of \(4,\) in evaluation, but the task has 10",
        ),
    ):
        data = DataConfig(name="digits", limit=300, image_size=32, channels=3 if "vision" in arch else 1)
        with pytest.raises(NetspaceError, match=words):
            import_members(tmp_path / "z.h5", {"a": {"x": torch.ones(2)}}, arch, data=data, kwargs=kwargs)


def test_settings_of_a_new_architecture_and_of_its_data(cli: Cli, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = archs.build("lenetlike", channels=3, classes=10, image_size=12, width=0.25).eval()
    save_file(module.state_dict(), "a.safetensors")
    data = ("--data", "digits", "--set", "data.image_size=12", "--set", "data.channels=3", "--set", "data.limit=300")
    scale = ("--set", "data.mean=[0.5]", "--set", "data.std=[0.25, 0.5, 1.0]")
    words = ("--arch", "lenetlike", "--kwargs", '{"width": 0.25}', "--prep-width", 128)
    result = cli("zoo", "import", "z.h5", "a.safetensors", *words, *data, *scale, "--json").json
    assert (result["mean"], result["std"]) == ([0.5] * 3, [0.25, 0.5, 1.0])
    task = load(DataConfig(name="digits", image_size=12, channels=3, limit=300))
    images = (task.test.images / 255 - 0.5) / torch.tensor([0.25, 0.5, 1.0])[:, None, None]
    with torch.no_grad():
        right = (module(images).argmax(-1) == task.test.labels).double().mean().item()
    assert list(result["accuracy_test"].values()) == [pytest.approx(right, abs=1e-9)]
    assert verify(Path("z.h5")).ok
    done = cli("zoo", "import", "z.h5", "a.safetensors", "--arch", "lenetlike", "--kwargs", '{"width": 0.5}')
    refused(done, 2, "lenetlike of z.h5 was made with width=0.25, but width=0.5 was asked for")
    refused(cli("zoo", "import", "y.h5", "a.safetensors", *words, "--set", "data.image_sizes=3"), 2, "data.image_size")
    refused(cli("zoo", "import", "y.h5", "a.safetensors", *words, "--set", "data.std=[0]"), 2, "data.std")
    refused(
        cli("zoo", "import", "y.h5", "a.safetensors", *words, "--set", "data.mean=[0, 0]"), 2, "2 values", "1 channel"
    )
    refused(cli("zoo", "import", "y.h5", "a.safetensors", "--arch", "lenetlike", "--kwargs", "[1]"), 2, "JSON object")


def test_zoos_of_other_normalisations_are_not_merged(cli: Cli, tmp_path: Path) -> None:
    for name, mean in (("a", None), ("b", (0.0,))):
        data = DataConfig(name="digits", limit=300, mean=mean)
        import_members(tmp_path / f"{name}.h5", lenets(1), "lenetlike", data=data, width=0.25, prep_width=128)
    refused(cli("zoo", "merge", "c.h5", "a.h5", "b.h5"), 1, "b.h5", "another normalisation (data.mean)")


# ---- the networks


def test_one_state_dict_of_a_checkpoint_and_wrapped_names(cli: Cli, tmp_path: Path) -> None:
    first, second = (next(iter(lenets(1, seed).values())) for seed in (0, 1))
    torch.save({"model": first, "ema": {f"module.{name}": value for name, value in second.items()}}, "both.pt")
    words = ("--arch", "lenetlike", "--width", 0.25, "--data", "digits", "--prep-width", 128)
    refused(cli("zoo", "import", "z.h5", "both.pt", *words), 1, "both.pt", "2 of them (model, ema)", "--key")
    assert cli("zoo", "import", "z.h5", "both.pt", *words, "--key", "ema", "--json").json["imported"] == 1
    save_file(second, "second.safetensors")
    assert cli("zoo", "import", "z.h5", "second.safetensors", "--arch", "lenetlike", "--json").json["duplicates"] == 1


def statistics(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for _ in range(20):
        module.train()(torch.randn(32, 1, 8, 8) * 3)
    return module.eval()


def test_folded_or_not_is_told(cli: Cli, tmp_path: Path) -> None:
    module = statistics(networks.PostAct())
    torch.save({name: value.detach() for name, value in module.named_parameters()}, "alone.pt")
    torch.save(module.state_dict(), "whole.pt")
    words = ("--arch", f"{HERE}:postact", "--data", "digits", "--prep-width", 128, "--trust-arch", f"{HERE}:postact")
    done = cli("zoo", "import", "z.h5", "alone.pt", *words)
    refused(
        done, 1, "alone.pt cannot be imported", "lacks the statistics of its batch norm (b1.running_mean", "--folded"
    )
    whole = cli("zoo", "import", "z.h5", "whole.pt", *words, "--json").json["accuracy_test"]["whole.pt"]
    task = load("digits")
    with torch.no_grad():
        right = (module(task.normalise(task.test.images)).argmax(-1) == task.test.labels).double().mean().item()
    assert whole == pytest.approx(right, abs=1e-9)
    assert cli("zoo", "import", "y.h5", "alone.pt", *words, "--folded", "--json").json["imported"] == 1


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("two_heads", {"always": True}, r"two_heads gives a tuple of 2 in evaluation"),
        ("constant", {}, r"same parameters give different outputs.*\(table\)"),
        ("constant", {"kind": "buffer"}, r"same parameters give different outputs.*\(table\)"),
        ("spectral", {}, r"w of .*spectral holds complex64"),
    ],
)
def test_networks_that_cannot_be_members(tmp_path: Path, name: str, kwargs: dict[str, Any], words: str) -> None:
    arch = f"{HERE}:{name}"
    state = archs.build(arch, **kwargs).state_dict()
    with pytest.raises(NetspaceError, match=words):
        import_members(tmp_path / "z.h5", {"a.pt": state}, arch, data=DIGITS, kwargs=kwargs)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["TwoHeads", "IndexTable", "Timmlike"])
def test_networks_of_one_output_with_buffers_and_layers_of_their_own(tmp_path: Path, name: str) -> None:
    archs.trust(f"{HERE}:{name}")
    module = statistics(getattr(networks, name)())
    arch = f"{HERE}:{name}"
    result = import_members(tmp_path / "z.h5", {"a": module.state_dict()}, arch, data=DIGITS, prep_width=128)
    task = load(DIGITS)
    with torch.no_grad():
        right = (module(task.normalise(task.test.images)).argmax(-1) == task.test.labels).double().mean().item()
    assert result.accuracy_test["a"] == pytest.approx(right, abs=1e-9)
    assert verify(tmp_path / "z.h5").ok


def test_what_decode_writes_is_imported_again(cli: Cli, tiny_run: Path, zoo_copy: Path) -> None:
    assert cli("encode", "best", "--run", tiny_run, "--zoo", zoo_copy, "-o", "z.safetensors").code == 0
    assert cli("decode", "z.safetensors", "--run", tiny_run, "-o", "net.safetensors").code == 0
    assert cli("zoo", "import", zoo_copy, "net.safetensors", "--arch", "lenetlike", "--json").json["imported"] == 1
    assert splits(zoo_copy)[-1] == "train"
