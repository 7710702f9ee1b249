"""Data sets by name, real where they come along and else miniatures written here; what a missing one says."""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from netspace.commands.recipes import schema
from netspace.errors import NetspaceError, UsageError
from netspace.tasks import DATASETS, DataConfig, load
from netspace.tasks import data_sets as sets
from netspace.tasks import readers as cifar
from netspace.tasks import readers as idx

RANDOM = np.random.RandomState(0)


@pytest.fixture(autouse=True)
def _no_data_but_what_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: Any) -> None:
    if "real" not in request.node.name:
        monkeypatch.setenv("NETSPACE_DATA", str(tmp_path / "data"))


def noise(*shape: int) -> np.ndarray:
    return RANDOM.randint(0, 256, shape, dtype=np.uint8)


# digits and generated


def test_digits() -> None:
    data = load("digits")
    assert (len(data.train), len(data.val), len(data.test)) == (1000, 297, 500)
    assert data.input_shape == (1, 8, 8) and data.classes == tuple("0123456789")
    assert data.train.images.max() == 255 and data.train.images.unique().numel() == 17
    assert (data.crop_padding, data.flip) == (0, False)
    rows = torch.cat([split.images for split in (data.train, data.val, data.test)]).flatten(1)
    from sklearn.datasets import load_digits

    real = torch.from_numpy(load_digits().data)
    assert torch.equal((rows.double() * 16 / 255).round().unique(dim=0), real.unique(dim=0))


def test_digits_are_stratified() -> None:
    data = load("digits")
    total = sum(split.labels.bincount() for split in (data.train, data.val, data.test))
    for split in (data.train, data.val, data.test):
        assert (split.labels.bincount() - total * len(split) / 1797).abs().max() <= 2


def test_the_same_configuration_is_the_same_data() -> None:
    data = load("digits")
    assert data.split_hash == load(DataConfig()).split_hash == DIGITS
    assert torch.equal(data.train.images, load("digits").train.images)
    assert load(DataConfig(split_seed=1)).split_hash != data.split_hash


# Recorded once: zoos name their data by it.
DIGITS = "a04ad9ab553e24610edc3fa17d51b9343c06e871207a9c88acbd7a20c783fcb0"


def test_limit_takes_the_first_training_images_and_stays_stratified() -> None:
    whole, few = load("digits"), load(DataConfig(limit=50))
    assert torch.equal(few.train.images, whole.train.images[:50])
    assert torch.equal(few.test.images, whole.test.images)
    assert few.train.labels.bincount().tolist() == [5] * 10
    assert len(load(DataConfig(limit=5000)).train) == 1000


def test_size_channels_and_augmentation_settings() -> None:
    data = load(DataConfig(image_size=12, channels=3, crop_padding=2, flip=True))
    assert data.input_shape == (3, 12, 12) and data.mean.shape == (3,)
    assert (data.crop_padding, data.flip) == (2, True)
    assert torch.equal(data.val.images[:, 0], data.val.images[:, 2])


def test_generated() -> None:
    config = DataConfig(name="generated", image_size=7, channels=1, classes=4, split_seed=2)
    data = load(config)
    assert data.input_shape == (1, 7, 7) and data.num_outputs == 4
    assert len(data.train) == 2000 and data.train.labels.unique().tolist() == [0, 1, 2, 3]
    assert data.split_hash == load(config).split_hash
    assert load("generated").input_shape == (3, 32, 32)
    assert "tests and benchmarks" in (sets.read_generated.__doc__ or "")


# IDX


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder: Path, train: int = 60, test: int = 20, packed: bool = True) -> None:
    folder.mkdir(parents=True)
    for key, count in (("train", train), ("test", test)):
        arrays = (noise(count, 28, 28), np.arange(count, dtype=np.uint8) % 10)
        for name, array in zip(idx.IDX_FILES[key], arrays, strict=True):
            data = idx_bytes(array)
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(data))
            else:
                (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("name", "place", "packed"),
    [
        ("mnist", "mnist", True),
        ("mnist", "MNIST/raw", False),
        ("fashion-mnist", "fashion-mnist", False),
        ("fashion-mnist", "FashionMNIST/raw", True),
    ],
)
def test_idx_miniature(tmp_path: Path, name: str, place: str, packed: bool) -> None:
    write_mnist(tmp_path / place, packed=packed)
    read: Any = DATASETS[name].read
    splits = read(DataConfig(name=name, root=tmp_path), sizes=(50, 10, 20))
    assert [len(split) for split in splits[:3]] == [50, 10, 20]
    assert splits.train.images.shape == (50, 1, 28, 28) and len(splits.classes) == 10
    assert splits.train.labels.bincount().tolist() == [5] * 10 and splits.val.labels.bincount().tolist() == [1] * 10
    assert splits.test.labels.tolist() == [*range(10)] * 2


def test_idx_values_survive(tmp_path: Path) -> None:
    array = noise(3, 4, 5)
    (tmp_path / "plain").write_bytes(idx_bytes(array))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(idx_bytes(array)))
    for name in ("plain", "packed.gz"):
        assert torch.equal(idx.read_idx(tmp_path / name, 3), torch.from_numpy(array))


def broken_files() -> dict[str, tuple[str, bytes, str]]:
    good = idx_bytes(noise(3, 4, 5))
    return {
        "another magic": ("a", b"PK\3\4" + good[4:], r"3 axes.*found first bytes \[80, 75, 3, 4\]"),
        "other axes": ("a", idx_bytes(noise(3)), r"found first bytes \[0, 0, 8, 1\]"),
        "empty": ("a", b"", r"found first bytes \[\]"),
        "no sizes": ("a", good[:9], "expected 3 sizes, found the end of the file"),
        "truncated": ("a", good[:-1], r"expected 60 values for its sizes \(3, 4, 5\), found only 59"),
        "too long": ("a", good + b"x", "60 values .* found more"),
        "endless": ("a", good[:4] + b"\xff" * 12, "at most"),
        "not gzip": ("a.gz", good, "readable IDX file, found Not a gzipped file"),
        "truncated gzip": ("a.gz", gzip.compress(good)[:-12], "readable IDX file, found .*end"),
        "damaged gzip": ("a.gz", gzip.compress(good)[:12] + b"\0" * 40, "readable IDX file"),
    }


@pytest.mark.parametrize("case", broken_files())
def test_broken_idx(tmp_path: Path, case: str) -> None:
    name, data, words = broken_files()[case]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(NetspaceError, match=words) as caught:
        idx.read_idx(path, 3)
    assert str(caught.value).startswith(f"{path} is broken") and "\n" not in str(caught.value)


def test_idx_labels_and_sizes_fit(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist")
    with pytest.raises(NetspaceError, match="has 60000 training and 10000 test images, but 60 and 20 were found"):
        load(DataConfig(name="mnist", root=tmp_path))
    labels = tmp_path / "mnist" / f"{idx.IDX_FILES['train'][1]}.gz"
    labels.write_bytes(gzip.compress(idx_bytes(noise(59))))
    with pytest.raises(NetspaceError, match="expected 60 labels, one for each image, found 59"):
        load(DataConfig(name="mnist", root=tmp_path))


def test_real_fashion_mnist() -> None:
    try:
        data = load("fashion-mnist")
    except NetspaceError as error:
        pytest.skip(str(error))
    assert (len(data.train), len(data.val), len(data.test)) == (50_000, 10_000, 10_000)
    assert data.input_shape == (1, 28, 28)
    assert data.train.labels.bincount().tolist() == [5000] * 10
    assert data.test.labels[:8].tolist() == [9, 2, 1, 1, 6, 1, 4, 6]
    assert data.mean.item() == pytest.approx(0.2860, abs=1e-3) and data.std.item() == pytest.approx(0.353, abs=1e-3)
    assert data.classes[9] == "ankle boot"


# CIFAR


def write_cifar(root: Path, layout: cifar.Layout, classes: int, each: int) -> dict[str, np.ndarray]:
    folder = root / layout.folder
    folder.mkdir(parents=True)
    (folder / layout.names).write_text("".join(f"kind{n}\n" for n in range(classes)) + "\n")
    records = {}
    for file in (*layout.train, layout.test):
        labels = np.stack([np.full(each, 255 if k < layout.labels - 1 else 0) for k in range(layout.labels)], 1)
        labels[:, -1] = np.arange(each) % classes
        records[file] = np.concatenate([labels.astype(np.uint8), noise(each, 3072)], 1)
        records[file].tofile(folder / file)
    return records


@pytest.mark.parametrize(("name", "layout"), [("cifar10", cifar.CIFAR10), ("cifar100", cifar.CIFAR100)])
def test_cifar_miniature(tmp_path: Path, name: str, layout: cifar.Layout) -> None:
    classes, each = (10, 20) if name == "cifar10" else (100, 200)
    total = each * len(layout.train)
    records = write_cifar(tmp_path, layout, classes, each)
    read: Any = DATASETS[name].read
    config = DataConfig(name=name, root=tmp_path)
    splits = read(config, sizes=(total // 2, total // 2, each))
    assert splits.classes == tuple(f"kind{n}" for n in range(classes))
    assert splits.train.images.shape == (total // 2, 3, 32, 32)
    assert splits.train.labels.bincount().unique().tolist() == [total // 2 // classes]
    test = records[layout.test]
    assert torch.equal(splits.test.images.flatten(1), torch.from_numpy(test[:, layout.labels :]))
    assert splits.test.labels.tolist() == test[:, -3073].tolist()
    both = torch.cat([splits.train.images, splits.val.images]).flatten(1)
    pool = np.concatenate([records[file][:, layout.labels :] for file in layout.train])
    assert torch.equal(both.unique(dim=0), torch.from_numpy(pool).unique(dim=0))
    with pytest.raises(NetspaceError, match=f"50000 training and 10000 test images, but {total} and {each}"):
        load(config)
    assert (DATASETS[name].crop_padding, DATASETS[name].flip) == (4, True)


def test_broken_cifar(tmp_path: Path) -> None:
    write_cifar(tmp_path, cifar.CIFAR10, 10, 10)
    path = tmp_path / cifar.CIFAR10.folder / "data_batch_3.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(
        NetspaceError, match=r"data_batch_3.bin is broken: expected whole records of 3073 bytes, found 30729"
    ):
        load(DataConfig(name="cifar10", root=tmp_path))
    path.write_bytes(b"\x0a" + whole[1:])
    with pytest.raises(NetspaceError, match="expected labels below 10, the number of class names, found label 10"):
        load(DataConfig(name="cifar10", root=tmp_path))


def test_the_pickled_cifar_is_not_opened(tmp_path: Path) -> None:
    python = tmp_path / "cifar-10-batches-py"
    python.mkdir()
    (python / "data_batch_1").write_bytes(b"cos\nsystem\n(S'touch run'\ntR.")
    with pytest.raises(NetspaceError, match="the Python version is a pickle and is not opened"):
        load(DataConfig(name="cifar10", root=tmp_path))
    assert not Path("run").exists()


# Names, settings, missing sets


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "tiny-imagenet"])
def test_a_missing_set_says_where_and_how(name: str, tmp_path: Path) -> None:
    with pytest.raises(NetspaceError) as caught:
        load(name)
    text = str(caught.value)
    assert text.startswith(f"data set '{name}' is not on this machine: looked in {tmp_path / 'data'}")
    assert f"`netspace data fetch {name}`" in text and "NETSPACE_DATA" in text and "\n" not in text


def test_a_missing_fashion_mnist_names_every_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "find", lambda folder, name: None)  # even where Debian's package is installed
    with pytest.raises(NetspaceError) as caught:
        load("fashion-mnist")
    for place in (
        tmp_path / "data/fashion-mnist",
        tmp_path / "data/FashionMNIST/raw",
        "/usr/share/datasets/",
    ):
        assert str(place) in str(caught.value)
    assert "`apt-get install dataset-fashion-mnist`" in str(caught.value)


def test_root_setting_variable_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NetspaceError, match=re.escape(str(tmp_path / "other" / "cifar-10-batches-bin"))):
        load(DataConfig(name="cifar10", root=tmp_path / "other"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NETSPACE_DATA")
    with pytest.raises(NetspaceError, match=re.escape(str(tmp_path / "home" / ".cache/netspace/data"))):
        load("cifar10")


def test_unknown_name_and_settings() -> None:
    with pytest.raises(UsageError, match="unknown data set 'cifar': did you mean 'cifar10'"):
        load("cifar")
    with pytest.raises(UsageError, match=r"'digits' has its own classes, but classes=3 was asked for"):
        load(DataConfig(classes=3))
    for wrong in ({"nam": "digits"}, {"channels": 2}, {"image_size": 0}, {"split_seed": -1}, {"limit": 0}):
        with pytest.raises(ValidationError):
            DataConfig(**wrong)
    helps = [setting.help for setting in schema("zoo") if setting.name.startswith("data.")]
    assert len(helps) == len(DataConfig.model_fields) and all(helps)


def test_a_set_of_one_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = sets.DataSet(lambda config: sets.read_generated(config, sizes=(4, 3, 2)), "mine", flip=True)
    monkeypatch.setitem(DATASETS, "mine", mine)
    data = load("mine")
    assert (len(data.train), len(data.val), len(data.test), data.flip) == (4, 3, 2, True)
