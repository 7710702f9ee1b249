"""The network that a command is about: its weights, what runs it where that is known, and others beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netspace import archs
from netspace.apps.likeness import Likeness
from netspace.apps.state_files import read_network
from netspace.archs import ArchConfig
from netspace.compressed import Compressed
from netspace.data.pictures import IMAGENET, Normalisation, pictures
from netspace.errors import NetspaceError, UsageError
from netspace.metrics import accuracy, agreement
from netspace.prep import unflatten, unpack
from netspace.spec import NetSpec
from netspace.states import FILES
from netspace.store import Zoo
from netspace.training.nern import Original
from netspace.training.running import answers_of
from netspace.training.setting import task_of


def find_original(
    model: str,
    zoo_path: Path | None,
    device: torch.device | str = "cpu",
    arch: ArchConfig | None = None,
    key: str | None = None,
) -> tuple[Original, NetSpec | None]:
    """The network that `model` names, with its module and data where they are known.

    With an `arch` a state-dict file is of that architecture, batch norm and all; `key` names the state dict of a checkpoint
    that holds several. Raises `UsageError` for a member without a zoo or with an `arch` or a `key`, and as `read_network` and
    `Zoo.find`.
    """
    path = Path(model)
    if path.suffix in FILES:
        state, module, spec = read_network(path, arch, key)
        task = None
        if zoo_path is not None:
            with Zoo(zoo_path) as zoo:
                task = task_of(zoo, device)
        shape = None if spec is None else spec.input_shape
        return Original(state, module, task if module is not None else None, shape), spec
    for option, given, what in (("--arch", arch, "of"), ("--key", key, "read from")):
        if given is not None:
            raise UsageError(
                f"{option} says what a state-dict file is {what}, but {model!r} names a zoo's member, whose architecture is "
                f"known: leave {option} out"
            )
    if zoo_path is None:
        raise UsageError(
            f"{model!r} names a zoo's member, but no zoo is at hand: give --zoo, or a state-dict file ({', '.join(FILES)})"
        )
    with Zoo(zoo_path) as zoo:
        member = zoo.find(model)
        group = zoo.group(member.arch)
        flat = unpack(group.read([member.index]), group.spec.num_parameters)[0]
        spec, task = group.spec, task_of(zoo, device)
    named = {name: value.clone() for name, value in unflatten(flat, spec).items()}
    return Original(named, archs.skeleton(spec.arch, spec.settings, spec.input_shape), task, spec.input_shape), spec


def check_same(path: Path, state: Mapping[str, Tensor], model: str, original: Original) -> None:
    """Raises `NetspaceError` where what the file `path` gives back has other names or shapes than the original, `model`."""
    shapes = [{name: value.shape for name, value in each.items()} for each in (original.state, state)]
    for name in [*shapes[0], *shapes[1]]:
        if shapes[0].get(name) != shapes[1].get(name):
            raise NetspaceError(
                f"{path} holds another network than {model}: {name} differs; name the network that the file was fitted to"
            )


@dataclass(frozen=True)
class Pictures:
    """A folder of pictures without labels, the side at which they are shown, and how they are normalised."""

    folder: Path
    size: int = 224
    by: Normalisation = IMAGENET

    def files(self) -> list[Path]:
        """As `netspace.data.pictures.pictures`, which see."""
        return pictures(self.folder)


def check_named(model: str | None, arch: ArchConfig | None, pictures: Pictures | None, key: str | None = None) -> None:
    """Raises `UsageError` where an original is described that was not named."""
    if model is None and any(each is not None for each in (arch, pictures, key)):
        raise UsageError("--arch, --key and --images are about the original beside the file: name it as MODEL")


def check_new(out: Path) -> None:
    """Raises `UsageError` if something lies at a file that is to be written."""
    if out.exists():
        raise UsageError(f"{out} exists already: choose another --out, so that nothing is lost")


class Beside:
    """Measures networks beside the original, whose file must hold the same tensors; `accuracy` is the original's own.

    Raises `NetspaceError` for another network, and as `Pictures.files` and `Likeness`.
    """

    def __init__(
        self,
        compressed: Compressed,
        state: Mapping[str, Tensor],
        path: Path,
        model: str,
        zoo: Path | None,
        arch: ArchConfig | None = None,
        pictures: Pictures | None = None,
        key: str | None = None,
    ) -> None:
        files = [] if pictures is None else pictures.files()
        original, _ = find_original(model, zoo, arch=arch, key=key)
        check_same(path, state, model, original)
        self.original, self.kernels = original, compressed.kernels
        self.likeness = None if pictures is None else Likeness(original, files, pictures.size, model, pictures.by)
        self.answers = self._answers(original.state)
        self.accuracy = self._accuracy(self.answers)

    def measure(self, state: dict[str, Tensor]) -> dict[str, Any]:
        """The relative error of the represented weights; accuracy and agreement on the test images, where they are known.

        `images` says how alike both answer on pictures, where there are any.
        """
        wanted, found = self.kernels.gather(self.original.state), self.kernels.gather(state)
        answers = self._answers(state)
        return {
            "relative_error": float((found - wanted).norm() / wanted.norm()),
            "accuracy": self._accuracy(answers),
            "agreement": None if answers is None or self.answers is None else float(agreement(self.answers, answers)),
            **({} if self.likeness is None else {"images": self.likeness.measure(state)}),
        }

    def _answers(self, state: dict[str, Tensor]) -> Tensor | None:
        module, task = self.original.module, self.original.task
        return None if module is None or task is None else answers_of(module, state, task, "test")

    def _accuracy(self, answers: Tensor | None) -> float | None:
        task = self.original.task
        return None if answers is None or task is None else float(accuracy(answers, task.test.labels))
