"""The network that a command is about: its weights, what runs it where that is known, and others beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netspace import archs
from netspace.apps.likeness import Likeness
from netspace.archs import ArchConfig
from netspace.archs.identity import drawn_constants
from netspace.compressed import NOTE, Compressed
from netspace.data.pictures import pictures
from netspace.errors import NetspaceError, UsageError
from netspace.folding.checks import listed
from netspace.metrics import accuracy, agreement
from netspace.prep import unflatten, unpack
from netspace.spec import NetSpec
from netspace.states import FILES, StateDict, fits, metadata_spec, read_state_dict
from netspace.store import Zoo
from netspace.training.nern import Original, answers_of
from netspace.training.setting import task_of


def find_original(
    model: str, zoo_path: Path | None, device: torch.device | str = "cpu", arch: ArchConfig | None = None
) -> tuple[Original, NetSpec | None]:
    """The network that `model` names, with its module and data where they are known.

    With an `arch` a state-dict file is of that architecture, batch norm and all. Raises `UsageError` for a member without
    a zoo or with an `arch`, `NetspaceError` where the file does not fit the `arch`, and as `read_state_dict`, `Zoo.find` and
    `archs.build`.
    """
    path = Path(model)
    if path.suffix in FILES:
        state = read_state_dict(path)
        _check_values(path, state)
        spec = _spec(state) if arch is None else None
        module = None if spec is None else archs.skeleton(spec.arch, spec.settings, spec.input_shape)
        if arch is not None:
            module = _built(arch, state, path)
        task = None
        if zoo_path is not None:
            with Zoo(zoo_path) as zoo:
                task = task_of(zoo, device)
        shape = None if spec is None else spec.input_shape
        return Original(state, module, task if module is not None else None, shape), spec
    if arch is not None:
        raise UsageError(
            f"--arch says what a state-dict file is of, but {model!r} names a zoo's member, whose architecture is known: "
            "leave --arch out"
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


def _check_values(path: Path, state: StateDict) -> None:
    """Refuses a compressed network and values that no network runs with; -inf is a mask's."""
    if NOTE in state.metadata:
        raise UsageError(
            f"{path} is a compressed network: give a network, or what `netspace compress reconstruct` makes of it"
        )
    for name, value in state.items():
        if value.is_floating_point() and not (value < float("inf")).all():
            raise NetspaceError(f"{name} of {path} holds values that are not finite")


def _built(arch: ArchConfig, state: dict[str, Tensor], path: Path) -> nn.Module:
    """The module of an architecture that a state dict fits in every name and shape, in eval mode."""
    settings = {**arch.kwargs, **({} if arch.width is None else {"width": arch.width})}
    with torch.random.fork_rng(devices=()):
        try:
            module, other = (archs.build(arch.arch, **settings).eval() for _ in range(2))
        except (TypeError, ValueError, RuntimeError) as error:  # whatever a factory of others raises
            raise UsageError(f"{arch.arch} cannot be built with {settings}: {error}; change --kwargs") from None
    wanted, found = (
        {name: tuple(value.shape) for name, value in each.items()} for each in (module.state_dict(), state)
    )
    if drawn := drawn_constants(module, other, set(wanted)):
        raise NetspaceError(
            f"{arch.arch} draws constants ({listed(drawn)}) that its state dict does not hold, so {path} does not say which "
            "network it is: make them persistent buffers, or fix them"
        )
    for name in [*wanted, *found]:
        if wanted.get(name) != found.get(name):
            told = [f"of shape {shapes[name]}" if name in shapes else "absent" for shapes in (wanted, found)]
            raise NetspaceError(
                f"{path} does not fit {arch.arch} with {settings}: {name} is {told[0]} in the architecture and {told[1]} in the "
                "file; name the architecture it was saved from, and its settings by --kwargs"
            )
    return module


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
    """A folder of pictures without labels, and the side at which they are shown."""

    folder: Path
    size: int = 224

    def files(self) -> list[Path]:
        """As `netspace.data.pictures.pictures`, which see."""
        return pictures(self.folder)


def check_named(model: str | None, arch: ArchConfig | None, pictures: Pictures | None) -> None:
    """Raises `UsageError` where an original is described that was not named."""
    if model is None and (arch is not None or pictures is not None):
        raise UsageError("--arch and --images are about the original beside the file: name it as MODEL")


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
    ) -> None:
        files = [] if pictures is None else pictures.files()
        original, _ = find_original(model, zoo, arch=arch)
        check_same(path, state, model, original)
        self.original, self.kernels = original, compressed.kernels
        self.likeness = None if pictures is None else Likeness(original, files, pictures.size, model)
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


def _spec(state: StateDict) -> NetSpec | None:
    """What a file of netspace's says of its network; None for other files."""
    spec = metadata_spec(state.metadata)
    return None if spec is None or not fits(state, spec) else spec
