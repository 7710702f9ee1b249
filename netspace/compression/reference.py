"""The original beside a compressed file, and measures of other networks by it.

Networks are compared on the test images of a known task, and on pictures without labels or noise: as classifiers, or by the
relative error of whatever they give. Axes: B inputs, C outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call

from netspace.archs import ArchConfig
from netspace.compression.judging import MAX_OUTPUTS, batch_size, noise
from netspace.compression.originals import Pictures, check_same, comparable, find_original, run_module
from netspace.errors import UsageError
from netspace.metrics import accuracy, agreement, cosine, overlap
from netspace.models.coded import Coded
from netspace.models.compressed import Compressed
from netspace.networks.outputs import Compare, Outputs, relative_errors
from netspace.networks.state_dict import module_logits, run_types
from netspace.results.compressed import ImageComparison, NetworkFigures, NoiseComparison, OutputComparison
from netspace.tasks.readers import picture_batches

MAX_DECODED = 1 << 29  # bytes of decoded pictures that are in memory; more are decoded for each network


@dataclass(frozen=True)
class Unlabelled:
    """What both networks are run on besides a task's images, and which of their outputs are compared."""

    pictures: Pictures | None = None
    input_shape: tuple[int, ...] | None = None  # of one input of noise U[-1, 1]
    output: str | None = None  # a path or an index; None: all
    compare: Compare = "auto"

    def check(self) -> None:
        """Raise `UsageError` for options that do not go together."""
        if self.pictures is not None and self.input_shape is not None:
            raise UsageError("--images and --input-shape both say what the networks are run on: give one of them")
        if not self.any and (self.output is not None or self.compare != "auto"):
            raise UsageError(
                "--output and --compare are about what the networks give for --images or --input-shape: give one of these too"
            )

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of one input."""
        return self.input_shape if self.pictures is None else (3, self.pictures.size, self.pictures.size)

    @property
    def any(self) -> bool:
        """Whether there is anything to run networks on."""
        return self.pictures is not None or self.input_shape is not None


def check_named(model: str | None, arch: ArchConfig | None, unlabelled: Unlabelled, key: str | None = None) -> None:
    """Raise `UsageError` if an original is described that was not named."""
    if model is None and (arch is not None or key is not None or unlabelled.any):
        raise UsageError(
            "--arch, --key, --images and --input-shape are about the original beside the file: name it as MODEL"
        )


class Reference:
    """The original of a compressed file, and measures of other networks by it; `accuracy` is its own.

    Raises:
        UsageError: there is something to run networks on, but no module is known that runs them; as `Outputs.of`.
        NetspaceError: the file is of another network, or the network cannot be run on the inputs; as `Pictures.files`.
    """

    def __init__(
        self,
        compressed: Compressed | Coded,
        state: Mapping[str, Tensor],
        path: Path,
        model: str,
        zoo: Path | None,
        arch: ArchConfig | None = None,
        unlabelled: Unlabelled = Unlabelled(),
        key: str | None = None,
        input_shape: tuple[int, ...] | None = None,
    ) -> None:
        """Take a file and its network; `input_shape` is that of one input where nothing else says it."""
        unlabelled.check()
        self.files = [] if unlabelled.pictures is None else unlabelled.pictures.files()
        self.decoded: list[Tensor] = []  # batches of pictures (B, 3, S, S), if they are small
        self.original, _ = find_original(model, zoo, arch=arch, key=key)
        check_same(path, state, model, self.original)
        self.model, self.unlabelled, self.represented = model, unlabelled, compressed.represented
        self.original.input_shape = self.original.input_shape or unlabelled.shape or input_shape
        self.expected = comparable(self.original, compressed, model)  # what weights are compared with
        if unlabelled.any:
            self.outputs = self._outputs()
            self.shown_logits = self._logits(self.original.state) if self.outputs.logits else None
            self.given = [] if self.outputs.logits else self._given()  # the original's outputs by batches
        self.logits = self._test_logits(self.original.state)
        self.accuracy = self._accuracy(self.logits)

    def measure(self, state: dict[str, Tensor]) -> NetworkFigures:
        """Measure the network with a state dict by the original.

        The figures are the relative error of the represented weights; accuracy and agreement on the test images where they
        are known; and `images` or `noise`, how alike the outputs of both are for these, where there are any.
        """
        expected, given = self.represented(self.expected), self.represented(state)
        apart = (given - expected).norm()
        logits = self._test_logits(state)
        return NetworkFigures(
            relative_error=float(apart / expected.norm()) if apart else 0.0,  # a file of every weight as it is
            accuracy=self._accuracy(logits),
            agreement=None if logits is None or self.logits is None else float(agreement(self.logits, logits)),
            **self._compared(state),
        )

    def _outputs(self) -> Outputs:
        """Return what is compared of the network, by what it gives for one input."""
        module = self.original.module
        if module is None:
            what = "images are" if self.unlabelled.pictures is not None else "noise is"
            raise UsageError(
                f"{what} given to the network, and of {self.model} only the weights are known: give --arch"
            )
        module = copy.deepcopy(module).eval()
        module.load_state_dict(run_types(self.original.state, module), strict=False)
        given = run_module(module, next(self._batches())[:1], self.model)
        return Outputs.of(given, self.model, self.unlabelled.output, self.unlabelled.compare)

    def _compared(self, state: Mapping[str, Tensor]) -> dict[str, OutputComparison]:
        """Return how alike both networks are on inputs without labels, under the name of their kind."""
        unlabelled = self.unlabelled
        if not unlabelled.any:
            return {}
        figures = self._figures(state)
        if unlabelled.pictures is None:
            inputs = noise(unlabelled.input_shape or (), "test")
            return {"noise": NoiseComparison(count=len(inputs), input_shape=list(inputs.shape[1:]), **figures)}
        size, by = unlabelled.pictures.size, unlabelled.pictures.by
        return {"images": ImageComparison(count=len(self.files), size=size, **by.figures(), **figures)}

    def _figures(self, state: Mapping[str, Tensor]) -> dict[str, object]:
        """Return the figures of a network's outputs: of answers, or errors of values by the names of outputs."""
        if self.shown_logits is not None:
            logits = self._logits(state)
            return {
                "output": self.unlabelled.output,
                "agreement": float(agreement(self.shown_logits, logits)),
                "overlap_top5": float(overlap(self.shown_logits, logits)),
                "cosine": float(cosine(self.shown_logits, logits)),
            }
        theirs, mine = iter(self.given) if self.given else self._run(self.original.state), self._run(state)
        names: list[str] = []
        errors = relative_errors(_values(theirs, names), (list(each.values()) for each in mine))
        by_name = dict(zip(names, errors.tolist(), strict=True))
        outputs = {} if list(by_name) == [""] else by_name
        return {"output": self.unlabelled.output, "output_error": float(errors.mean()), "output_errors": outputs}

    def _given(self) -> list[dict[str, Tensor]]:
        """Return the original's outputs for each batch, or nothing if they are too large to be in memory."""
        given, size = list[dict[str, Tensor]](), 0
        for named in self._run(self.original.state):
            given.append(named)
            size += sum(each.numel() * each.element_size() for each in named.values())
            if size > MAX_OUTPUTS:
                return []
        return given

    def _logits(self, state: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([next(iter(each.values())).float() for each in self._run(state)])

    def _run(self, state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """Yield the compared outputs of a network by name, for each batch of inputs without labels."""
        module = self.original.module
        assert module is not None
        typed = run_types(state, module)
        for batch in self._batches():
            with torch.no_grad():  # not around the yield, where it would be the caller's too
                named = self.outputs.named(functional_call(module, typed, (batch,)))
            yield named

    def _batches(self) -> Iterator[Tensor]:
        pictures = self.unlabelled.pictures
        if pictures is None:
            inputs = noise(self.unlabelled.input_shape or (), "test")
            yield from inputs.split(batch_size(inputs))
            return
        if not self.decoded and 4 * 3 * pictures.size**2 * len(self.files) <= MAX_DECODED:
            self.decoded = list(picture_batches(self.files, pictures.size, by=pictures.by))
        yield from self.decoded or picture_batches(self.files, pictures.size, by=pictures.by)

    def _test_logits(self, state: dict[str, Tensor]) -> Tensor | None:
        module, task = self.original.module, self.original.task
        return None if module is None or task is None else module_logits(module, state, task, "test")

    def _accuracy(self, logits: Tensor | None) -> float | None:
        task = self.original.task
        return None if logits is None or task is None else float(accuracy(logits, task.test.labels))


def _values(batches: Iterator[dict[str, Tensor]], names: list[str]) -> Iterator[list[Tensor]]:
    """Yield the tensors of each batch, and put their names into `names`."""
    for each in batches:
        names[:] = each
        yield list(each.values())
