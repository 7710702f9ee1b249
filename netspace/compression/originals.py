"""The network that a compression is compared with: how it is found, what runs it, and how alike both answer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netspace import archs
from netspace.archs import ArchConfig
from netspace.compression.state_files import read_network
from netspace.errors import NetspaceError, UsageError, first_line, ran_out
from netspace.metrics import accuracy, agreement, cosine, overlap
from netspace.models.compressed import Compressed
from netspace.networks.kernels import Kernels
from netspace.networks.prep import unflatten, unpack
from netspace.networks.spec import NetSpec
from netspace.networks.state_dict import FILES, module_logits
from netspace.results.compressed import ImageLikeness, KernelSamples, NetworkFigures
from netspace.tasks.readers import IMAGENET, Normalisation, picture_batches, picture_files
from netspace.training.fit import Original
from netspace.training.setup import images_of
from netspace.zoo import Zoo


class Likeness:
    """Measures states of the network called `model` beside the original, on pictures shown at `size` x `size`.

    Raises `UsageError` where no module is known, `NetspaceError` where it does not map the pictures to logits (B, C).
    """

    def __init__(self, original: Original, files: list[Path], size: int, model: str, by: Normalisation) -> None:
        if original.module is None:
            raise UsageError(f"images are shown to the network, and of {model} only the weights are known: give --arch")
        self.module, self.files, self.size, self.model = copy.deepcopy(original.module), files, size, model
        self.by = by
        self.answers = self._answers(original.state)

    def measure(self, state: Mapping[str, Tensor]) -> ImageLikeness:
        """What a state of the network answers, beside what the original does."""
        found = self._answers(state)
        return ImageLikeness(
            count=len(self.files),
            size=self.size,
            **self.by.figures(),
            agreement=float(agreement(self.answers, found)),
            overlap_top5=float(overlap(self.answers, found)),
            cosine=float(cosine(self.answers, found)),
        )

    @torch.no_grad()
    def _answers(self, state: Mapping[str, Tensor]) -> Tensor:
        self.module.load_state_dict(state, strict=False)  # all but buffers that the architecture makes
        return torch.cat(
            [logits_of(self.module, batch, self.model) for batch in picture_batches(self.files, self.size, by=self.by)]
        )


def logits_of(module: nn.Module, batch: Tensor, model: str) -> Tensor:
    """Return the logits (B, C) of the module of `model` for images. Raises `NetspaceError` where it gives none."""
    logits = run_module(module, batch, model)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        given = f"a tensor of {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise NetspaceError(f"{model} was expected to answer images with logits (B, C), but gave {given}")
    return logits


@torch.no_grad()
def run_module(module: nn.Module, batch: Tensor, model: str) -> Any:
    """Return what the module of `model` gives for inputs (B, ...). Raises `NetspaceError` where it cannot be run on them."""
    try:
        return module(batch)
    except Exception as error:  # whatever a module of others raises
        if ran_out(error):
            raise
        sides = " x ".join(str(side) for side in batch.shape[1:])
        raise NetspaceError(
            f"{model} cannot be run on images of {sides}: {first_line(error)}; change --size or --input-shape"
        ) from None


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
                task = images_of(zoo, device)
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
        spec, task = group.spec, images_of(zoo, device)
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
        """As `netspace.tasks.readers.picture_files`, which see."""
        return picture_files(self.folder)


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

    def measure(self, state: dict[str, Tensor]) -> NetworkFigures:
        """The relative error of the represented weights; accuracy and agreement on the test images, where they are known.

        `images` says how alike both answer on pictures, where there are any.
        """
        wanted, found = self.kernels.gather(self.original.state), self.kernels.gather(state)
        answers = self._answers(state)
        return NetworkFigures(
            relative_error=float((found - wanted).norm() / wanted.norm()),
            accuracy=self._accuracy(answers),
            agreement=None if answers is None or self.answers is None else float(agreement(self.answers, answers)),
            **({} if self.likeness is None else {"images": self.likeness.measure(state)}),
        )

    def _answers(self, state: dict[str, Tensor]) -> Tensor | None:
        module, task = self.original.module, self.original.task
        return None if module is None or task is None else module_logits(module, state, task, "test")

    def _accuracy(self, answers: Tensor | None) -> float | None:
        task = self.original.task
        return None if answers is None or task is None else float(accuracy(answers, task.test.labels))


KEPT = 64  # kernels at most: as many as can be told apart on a telephone


def keep_kernels(
    folder: Path, kernels: Kernels, original: Mapping[str, Tensor], reconstructed: Mapping[str, Tensor]
) -> None:
    """Writes `kernels.json`: the first kernels (N, h, w) of one layer in both state dicts, filter by filter.

    The layer is the median by the relative error of its weights, the better one of two: neither the best nor the worst.
    """
    errors = []
    for layer in kernels.layers:
        wanted, found = original[layer.name].float(), reconstructed[layer.name].float()
        errors.append(float((found - wanted).norm() / wanted.norm().clamp_min(1e-12)))
    place = sorted(range(len(errors)), key=errors.__getitem__)[(len(errors) - 1) // 2]
    layer, start = kernels.layers[place], sum(kernels.counts[:place])
    rows, columns = layer.window(kernels.side)
    chosen = slice(start, start + min(KEPT, kernels.counts[place]))
    samples = KernelSamples(
        layer=layer.name,
        layers=len(errors),
        relative_error=errors[place],
        count=kernels.counts[place],
        original=kernels.gather(original)[chosen, rows, columns].tolist(),
        reconstructed=kernels.gather(reconstructed)[chosen, rows, columns].tolist(),
    )
    samples.write(folder / "kernels.json")
