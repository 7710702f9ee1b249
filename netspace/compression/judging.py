"""What other networks are judged by when one is chosen: accuracy, answers or outputs like the original's, errors of the weights.

One half of what is known chooses, the other half is reported: validation and test images of a task, or pictures and noise
in parts. Axes: B inputs, C outputs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from netspace.compression.originals import Pictures, run_module
from netspace.errors import UsageError
from netspace.metrics import accuracy, agreement, divergence
from netspace.models.compressed import bytes_of
from netspace.networks.outputs import Compare, Outputs, relative_errors
from netspace.networks.state_dict import map_tensors, run_types
from netspace.results.budget import Measured
from netspace.streams import Stream, generator
from netspace.tasks.images import Split
from netspace.tasks.readers import picture_batches
from netspace.training.fit import Original

Kind = Literal["task", "pictures", "noise", "weights"]
Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")
MIN_PICTURES = 4  # one to choose by, one to report on, two to learn from
MAX_PICTURES = 2048  # they are in memory
NOISE = {"train": 2048, "val": 256, "test": 256}  # inputs
MAX_NOISE = 1 << 28  # bytes of the noise of a part, which is in memory
BATCH = 256  # inputs at once
BATCH_VALUES = 1 << 22  # of a batch of inputs, by which it is smaller for large inputs
MAX_OUTPUTS = 1 << 29  # bytes of the original's outputs that are kept
MAX_CHOOSING = 4096  # validation images at most that networks are chosen by, drawn once


@dataclass(frozen=True)
class Inputs:
    """What a network is run on, where no task is known: (B, ...) each to learn from, to choose by and to report on."""

    kind: Kind
    train: Tensor | None = None
    val: Tensor | None = None
    test: Tensor | None = None

    @classmethod
    def of(
        cls, original: Original, model: str, pictures: Pictures | None, shape: tuple[int, ...] | None, seed: int = 0
    ) -> Inputs:
        """Return the task's, else pictures, else noise U[-1, 1] of a shape, else none.

        Half of the pictures are there to learn from, a quarter to choose by and a quarter to report on, drawn by the seed.

        Raises:
            UsageError: both pictures and a shape are given, or one of them for a network whose task or module decides.
        """
        if pictures is not None and shape is not None:
            raise UsageError("--images and --input-shape both say what the network is run on: give one of them")
        if original.task is not None and original.module is not None:
            if pictures is not None:
                raise UsageError(
                    f"the task of {model} is known, whose images decide: leave --images out, or --zoo to do without its data"
                )
            return cls("task")
        if original.module is None:
            if pictures is not None or shape is not None:
                option = "--input-shape" if pictures is None else "--images"
                raise UsageError(
                    f"{option} is about running the network, and of {model} only the weights are known: give --arch"
                )
            return cls("weights")
        if pictures is not None:
            return cls("pictures", *_split_pictures(pictures, seed))
        if shape is not None:
            return cls("noise", *(noise(shape, part, seed) for part in PARTS))
        return cls("weights")

    def part(self, name: Part) -> Tensor | None:
        """Return the inputs (B, ...) of a part."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]


def noise(shape: tuple[int, ...], part: Part, seed: int = 0) -> Tensor:
    """Return the noise U[-1, 1] of a part, (B, *shape), fewer of large inputs; the parts of one seed are drawn apart."""
    random = generator(seed, Stream.BUDGET_INPUTS, PARTS.index(part))
    count = max(1, min(NOISE[part], MAX_NOISE // (4 * max(1, math.prod(shape)))))
    return 2 * torch.rand((count, *shape), generator=random) - 1


def _split_pictures(pictures: Pictures, seed: int) -> list[Tensor]:
    files = pictures.files()
    if len(files) < MIN_PICTURES:
        raise UsageError(
            f"{pictures.folder} has {len(files)} pictures, and a fit learns from some, chooses by some and reports on the "
            f"rest: give {MIN_PICTURES} or more"
        )
    order = torch.randperm(len(files), generator=generator(seed, Stream.BUDGET_INPUTS))[:MAX_PICTURES].tolist()
    quarter = max(1, len(order) // 4)
    parts = order[2 * quarter :], order[:quarter], order[quarter : 2 * quarter]
    return [
        torch.cat(list(picture_batches([files[index] for index in sorted(part)], pictures.size, by=pictures.by)))
        for part in parts
    ]


class Judge:
    """Measures state dicts by the original, on what is there to choose by ('val') or to report on ('test')."""

    def __init__(
        self,
        original: Original,
        inputs: Inputs,
        model: str,
        output: str | None = None,
        compare: Compare = "auto",
        device: torch.device | str = "cpu",
    ) -> None:
        """Take the network, and which of its outputs (a path or an index; None: all) is compared, and how.

        Networks are run on the device; state dicts come from the CPU.

        Raises:
            UsageError: an output is picked, and nothing is known to run the network on; as `Outputs.of`.
            NetspaceError: the network cannot be run on the inputs, or labels are known and it gives no logits.
        """
        self.original, self.inputs, self.model, self.device = original, inputs, model, torch.device(device)
        self.module = None if original.module is None else copy.deepcopy(original.module).eval().to(self.device)
        self.represented = [
            name for name, value in original.state.items() if value.is_floating_point() and value.dim() > 1
        ]
        self.bytes = bytes_of(original.state)
        self.logits: dict[Part, Tensor] = {}
        self.expected: dict[Part, list[list[Tensor]]] = {}  # the original's outputs by batches, if they are small
        self.outputs = self._outputs(output, compare)

    def _outputs(self, output: str | None, compare: Compare) -> Outputs:
        """Return what is compared of the network, by what it gives for one input."""
        if not self.runs or self.module is None:
            if output is not None or compare != "auto":
                raise UsageError(
                    f"--output is about running the network, and nothing is known to run {self.model} on: give --images or "
                    "--input-shape, with --arch"
                )
            return Outputs()
        labelled = self.inputs.kind == "task"
        if labelled and compare == "outputs":
            raise UsageError(
                f"compare=outputs does without labels, and those of {self.model} are known: leave it out, or --zoo"
            )
        self.module.load_state_dict(run_types(self.original.state, self.module), strict=False)
        example = next(self._batches("val"))[:1]
        given = run_module(self.module, example, self.model)
        return Outputs.of(given, self.model, output, "answers" if labelled else compare)

    @property
    def runs(self) -> bool:
        """Whether networks are run."""
        return self.inputs.kind != "weights"

    @cached_property
    def trainable(self) -> bool:
        """Whether networks are run, and gradients pass from what is compared to their parameters."""
        if not self.runs or self.module is None:
            return False
        state = map_tensors(run_types(self.original.state, self.module), lambda value: value.detach().to(self.device))
        for name, _ in self.module.named_parameters(remove_duplicate=False):
            if name in state and state[name].is_floating_point():
                state[name].requires_grad_()
        given = functional_call(self.module, state, (next(self._batches("val"))[:1],))
        return any(each.requires_grad for each in self.outputs.read(given))

    def measure(
        self,
        state: Mapping[str, Tensor],
        part: Part = "val",
        module: nn.Module | None = None,
        reference: Mapping[str, Tensor] | None = None,
    ) -> Measured:
        """Return the figures of a network with a state dict.

        Its weights are compared with those of `reference`, by default the original. A network of another shape has a
        `module` of its own, and its weights are not compared.
        """
        error = None if module is not None else self._relative_error(state, reference or self.original.state)
        if not self.runs:
            return Measured(relative_error=error)
        if not self.outputs.logits:
            return Measured(output_error=self._output_error(state, part, module), relative_error=error)
        if part not in self.logits:
            self.logits[part] = self._run(self.original.state, part, self.module)
        expected = logits = self.logits[part]
        if state is not self.original.state or module is not None:
            logits = self._run(state, part, module or self.module)
        task = self.original.task
        labels = None if self.inputs.kind != "task" or task is None else self._images(part).labels.cpu()
        return Measured(
            accuracy=None if labels is None else float(accuracy(logits, labels)),
            agreement=float(agreement(expected, logits)),
            divergence=float(divergence(logits, expected)),
            relative_error=error,
        )

    def _relative_error(self, state: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
        """Return the norm of the difference over the norm, of all weights with more than one axis."""
        apart = whole = 0.0
        for name in self.represented:
            value = reference[name].float()
            apart += float((state[name].float() - value).square().sum())
            whole += float(value.square().sum())
        return (apart / whole) ** 0.5 if whole else 0.0

    @torch.no_grad()
    def _run(self, state: Mapping[str, Tensor], part: Part, module: nn.Module | None) -> Tensor:
        return torch.cat([logits.float().cpu() for (logits,) in self._read(state, part, module)])

    def _read(self, state: Mapping[str, Tensor], part: Part, module: nn.Module | None) -> Iterator[list[Tensor]]:
        """Yield the compared outputs of a network for each batch of a part."""
        assert module is not None
        module = module.to(self.device)
        typed = map_tensors(run_types(state, module), lambda value: value.to(self.device))
        outputs = self.outputs if module is self.module else Outputs()  # a student gives logits alone
        for batch in self._batches(part):
            yield outputs.read(functional_call(module, typed, (batch,)))

    @torch.no_grad()
    def _output_error(self, state: Mapping[str, Tensor], part: Part, module: nn.Module | None) -> float:
        """Return the norm of the difference of outputs over the norm of the original's, as a mean over tensors."""
        if part not in self.expected:
            self.expected[part] = self._kept_outputs(part)
        expected: Iterable[list[Tensor]]
        expected = self.expected[part] or self._read(self.original.state, part, self.module)
        return float(relative_errors(expected, self._read(state, part, module or self.module)).mean())

    def _kept_outputs(self, part: Part) -> list[list[Tensor]]:
        """Return the original's outputs for each batch, or nothing if they are too large to be kept."""
        kept, size = list[list[Tensor]](), 0
        for tensors in self._read(self.original.state, part, self.module):
            kept.append(tensors)
            size += sum(each.numel() * each.element_size() for each in tensors)
            if size > MAX_OUTPUTS:
                return []
        return kept

    def _images(self, part: Part) -> Split:
        """Return the images of a part of the task; of many validation images those that choose."""
        task = self.original.task
        assert task is not None
        images = task.split(part)
        if part != "val" or len(images) <= MAX_CHOOSING:
            return images
        drawn = torch.randperm(len(images), generator=generator(0, Stream.BUDGET_INPUTS, len(PARTS)))
        return images.take(drawn[:MAX_CHOOSING].sort().values)

    def _batches(self, part: Part) -> Iterator[Tensor]:
        task = self.original.task
        if self.inputs.kind == "task":
            assert task is not None
            yield from (task.normalise(pixels) for pixels, _ in task.batches(self._images(part), 2 * BATCH))
        else:
            inputs = self.inputs.part(part)
            assert inputs is not None
            yield from (batch.to(self.device) for batch in inputs.split(batch_size(inputs)))


def batch_size(inputs: Tensor) -> int:
    """Return how many of the inputs (B, ...) are run at once."""
    return max(1, min(BATCH, BATCH_VALUES // max(1, inputs[0].numel())))


def merit(figures: Measured) -> tuple[float, float, float]:
    """Return what networks of one size are chosen by, more is better: accuracy, answers alike, small differences (negative)."""
    known = [-1.0 if value is None else value for value in (figures.accuracy, figures.agreement)]
    return known[0], known[1], likeness(figures)


def likeness(figures: Measured) -> float:
    """Return how like the original's a network's answers are, more is better: the negative KL divergence or error.

    What two files of one way are chosen by: it counts every input, where accuracies of few inputs differ by chance.
    """
    fars = (figures.divergence, figures.output_error, figures.relative_error)
    far = next((each for each in fars if each is not None), None)
    return -(1e9 if far is None or far != far else far)
