"""`netspace diff`: two networks compared by their weights, layer by layer, before and after alignment, and by their answers.

Axes: N inputs, C outputs, K classes, P parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call

from netspace.archs import ArchConfig
from netspace.commands.any_network import AnyNetwork, comparable, load_network
from netspace.compression.originals import Pictures, logits_of
from netspace.errors import NetspaceError, UsageError
from netspace.files import write_bytes
from netspace.networks.alignment import align, check_same_function
from netspace.networks.channels import channel_groups
from netspace.networks.graph import batch_norms
from netspace.networks.prep import flatten, unflatten
from netspace.networks.spec import NetSpec
from netspace.networks.state_dict import run_types
from netspace.report.drawing import to_png
from netspace.report.figures_diff import draw_difference
from netspace.results.diffs import (
    Answers,
    ChangedAnswer,
    ClassDifference,
    Difference,
    LayerDifference,
    UnmatchedLayer,
)
from netspace.streams import generator
from netspace.tasks import Classification, Task
from netspace.tasks.readers import picture_batches
from netspace.training.setup import task_of
from netspace.zoo import Zoo

MAX_EXAMPLES = 20  # changed answers that are listed
CHECKED_INPUTS = 2  # on which the aligned network is checked to compute the same function
NO_MODULE = "only the weights of {name} are known: name its architecture by --arch"
NO_INPUTS = "no inputs are known: give --zoo, whose task they are for, or --images"


@dataclass(frozen=True)
class Layers:
    """Two networks by layer: the float64 values (P_l,) of those that both have, and the shapes of the others."""

    first: dict[str, Tensor]
    second: dict[str, Tensor]
    unmatched: list[UnmatchedLayer]


def diff(
    first: str,
    second: str,
    zoo_path: Path | None = None,
    arch: ArchConfig | None = None,
    key: str | None = None,
    pictures: Pictures | None = None,
    input_shape: tuple[int, ...] | None = None,
    output: Path | None = None,
    device: str = "cpu",
) -> Difference:
    """Compare two networks by their weights and by their answers.

    A network is a member of the zoo, a state-dict file, a compressed network, or the folder of a `compress fit` or a
    `morph fit` (its network of full width). Batch norm is folded where the architecture is known. Answers are compared on
    the test inputs of the zoo's task, or on `pictures`; `output` is a PNG file for one picture of all.

    Raises:
        UsageError: A name names no network, the two have nothing in common that could be compared, or `output` is no PNG.
        NetspaceError: A file is damaged, a member diverged in training, or a network cannot be run.

    >>> result = diff("best", "worst", zoo, output=folder / "diff.png")
    >>> result.answers.agreement < 1 and result.aligned <= result.distance
    True
    """
    if output is not None and output.suffix.lower() != ".png":
        raise UsageError(
            f"the picture is written as PNG, not as {output.suffix or 'a file without suffix'}: name it *.png"
        )
    zoo = None if zoo_path is None else Zoo(zoo_path)
    try:
        loaded = [load_network(text, zoo, arch, key) for text in (first, second)]
        task = _task(zoo, loaded, device)
    finally:
        if zoo is not None:
            zoo.close()
    shape = input_shape or (None if task is None else tuple(task.input_shape))
    if shape is None and pictures is not None:
        shape = (3, pictures.size, pictures.size)
    one, other = comparable(loaded[0], loaded[1], shape)
    layers = common_layers(one.state, other.state)
    answers, no_answers = _answers(one, other, task, pictures, device)
    if not layers.first and answers is None:
        raise UsageError(
            f"{one.name} and {other.name} have no layer in common, and their answers cannot be compared: {no_answers}"
        )
    aligned, groups, reason = aligned_state(one, other)
    result = Difference(
        first=one.name,
        second=other.name,
        parameters_first=one.parameters,
        parameters_second=other.parameters,
        folded=any(before.state.keys() != after.state.keys() for before, after in zip(loaded, (one, other), strict=True)),
        layers=differences(layers, None if aligned is None else common_layers(one.state, aligned).second),
        unmatched=layers.unmatched,
        **_total(layers.first, layers.second, ("distance", "relative")),
        **_total(layers.first, None if aligned is None else common_layers(one.state, aligned).second, ("aligned", "aligned_relative")),
        groups=groups,
        not_aligned=reason,
        answers=answers,
        no_answers=no_answers,
        **({} if output is None else {"picture": str(output)}),
        **({} if task is None or answers is None or pictures is not None else task.score_field()),
    )  # fmt: skip
    if output is not None:
        write_bytes(output, to_png(draw_difference(result)))
    return result


def _task(zoo: Zoo | None, networks: list[AnyNetwork], device: str) -> Task | None:
    """Return the task of the zoo, else of a morph; None if there is neither."""
    if zoo is not None:
        return task_of(zoo, device)
    morphs = [each.morph for each in networks if each.morph is not None and each.morph.data is not None]
    return morphs[0].task(device) if morphs else None


# --- weights ---


def common_layers(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Layers:
    """Return the layers that two state dicts have in common, by names and shapes, in the first one's order.

    A bias that only one of them has is compared with zeros.
    """
    by_layer = [_by_layer(state) for state in (first, second)]
    common: dict[str, tuple[Tensor, Tensor]] = {}
    unmatched = []
    for layer in dict.fromkeys([*by_layer[0], *by_layer[1]]):
        both = _with_biases([each.get(layer) for each in by_layer])
        shapes = [None if each is None else {name: tuple(value.shape) for name, value in each.items()} for each in both]
        if both[0] is not None and both[1] is not None and shapes[0] == shapes[1]:
            names = list(both[0])
            common[layer] = tuple(torch.cat([each[name].double().flatten() for name in names]) for each in both)  # type: ignore[index, assignment]
        else:
            largest = [None if not each else tuple(max(each.values(), key=Tensor.numel).shape) for each in both]
            unmatched.append(UnmatchedLayer(layer=layer, first=largest[0], second=largest[1]))
    return Layers(
        {name: pair[0] for name, pair in common.items()}, {name: pair[1] for name, pair in common.items()}, unmatched
    )


def _with_biases(both: list[dict[str, Tensor] | None]) -> list[dict[str, Tensor] | None]:
    """Return the tensors of a layer in two networks, with zeros for a bias that one of them lacks."""
    one, other = both
    if one is None or other is None:
        return both
    return [
        {**{name: torch.zeros_like(value) for name, value in twin.items() if name.endswith("bias")}, **each}
        for each, twin in ((one, other), (other, one))
    ]


def _by_layer(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    layers: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if value.is_floating_point() and value.numel():
            layers.setdefault(name.rpartition(".")[0] or name, {})[name] = value.detach().cpu()
    return layers


def differences(layers: Layers, aligned: Mapping[str, Tensor] | None) -> list[LayerDifference]:
    """Return distances and cosines of layers, also of the second network's when `aligned`."""
    rows = []
    for name, one in layers.first.items():
        other, norm = layers.second[name], float(one.norm())
        distance = float((other - one).norm())
        after = None if aligned is None else aligned[name]
        moved = None if after is None else float((after - one).norm())
        rows.append(
            LayerDifference(
                layer=name,
                values=one.numel(),
                norm=norm,
                distance=distance,
                relative=_ratio(distance, norm),
                cosine=_cosine(one, other),
                aligned=moved,
                aligned_relative=None if moved is None else _ratio(moved, norm),
                aligned_cosine=None if after is None else _cosine(one, after),
            )
        )
    return rows


def _total(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor] | None, names: tuple[str, str]
) -> dict[str, float | None]:
    """Return the distance over all layers, and the same as a fraction of the first network's norm."""
    if not first or second is None:
        return dict.fromkeys(names)
    one, other = torch.cat(list(first.values())), torch.cat([second[name] for name in first])
    distance = float((other - one).norm())
    return {names[0]: distance, names[1]: _ratio(distance, float(one.norm()))}


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _cosine(one: Tensor, other: Tensor) -> float | None:
    norms = float(one.norm() * other.norm())
    return float(one @ other) / norms if norms else None


def aligned_state(first: AnyNetwork, second: AnyNetwork) -> tuple[dict[str, Tensor] | None, int | None, str | None]:
    """Return the second state dict with its channels near the first's, the number of groups, and why there is none.

    Channels are matched in float64, and the permuted network is checked to compute the same function.
    """
    shape = first.input_shape or second.input_shape
    if first.shapes != second.shapes:
        return None, None, "the two have other names or shapes"
    if first.module is None:
        return None, None, NO_MODULE.format(name=first.name)
    if shape is None:
        return None, None, "the shape of an input is not known: give --input-shape, --zoo or --images"
    if batch_norms(first.module):
        return None, None, "their batch norm could not be folded"
    module = copy.deepcopy(first.module).float()
    try:
        spec = NetSpec.from_module(module, first.name, {}, shape)
        groups = channel_groups(module, torch.zeros(2, *shape), first.name)
        states = [{name: each.state[name].detach().double() for name in spec.names} for each in (first, second)]
        one, other = (flatten(each, spec) for each in states)
        moved = align(one, other[None], spec, groups)
        inputs = torch.randn(CHECKED_INPUTS, *shape, generator=generator(0))
        check_same_function(module, spec, other[None], moved, inputs)
    except (NetspaceError, RuntimeError, KeyError) as error:  # tied parameters, a forward that cannot be traced, ...
        return None, None, str(error).splitlines()[0]
    return {**second.state, **unflatten(moved[0], spec)}, len(groups), None


# --- answers ---


def _answers(
    one: AnyNetwork, other: AnyNetwork, task: Task | None, pictures: Pictures | None, device: str
) -> tuple[Answers | None, str | None]:
    """Return how both answer pictures, or the test inputs of the task; or why they cannot be compared."""
    for each in (one, other):
        if each.module is None:
            return None, NO_MODULE.format(name=each.name)
    if pictures is not None:
        return _on_pictures(one, other, pictures), None
    if task is None:
        return None, NO_INPUTS
    for each in (one, other):
        if each.input_shape is not None and tuple(each.input_shape) != tuple(task.input_shape):
            return None, f"{each.name} takes inputs of {tuple(each.input_shape)}, but those of {task.name} are {tuple(task.input_shape)}"  # fmt: skip
    seed = one.seed if one.seed >= 0 else other.seed
    outputs, scores = zip(*(run_on_task(each, task, seed, device) for each in (one, other)), strict=True)
    if outputs[0].shape != outputs[1].shape:
        return None, f"they give {outputs[0].shape[-1]} and {outputs[1].shape[-1]} outputs"
    source = f"test split of {task.name}"
    if isinstance(task, Classification) and outputs[0].shape[-1] == len(task.classes):
        predicted = [each.argmax(-1) for each in outputs]
        return compare_classes(predicted[0], predicted[1], task.test.labels.cpu(), task.classes, source), None
    score = float(task.agreement(outputs[0], outputs[1]))
    return Answers(inputs=len(outputs[0]), source=source, agreement=score, score_first=scores[0], score_second=scores[1]), None  # fmt: skip


@torch.no_grad()
def run_on_task(network: AnyNetwork, task: Task, seed: int, device: str) -> tuple[Tensor, float]:
    """Return the outputs (N, C) of a network for the test inputs, and its score; `seed` says whose inputs, where each has its own.

    Raises `NetspaceError` if the network cannot be run on them.
    """
    assert network.module is not None
    module = copy.deepcopy(network.module).to(device).eval()
    state = {name: value.to(device) for name, value in run_types(network.state, module).items()}
    outputs = []

    def run(inputs: Tensor) -> Tensor:
        batch = inputs[0] if task.own_inputs else inputs
        try:
            output = functional_call(module, state, (batch,)).float().flatten(1)
        except (RuntimeError, TypeError, ValueError) as error:
            raise NetspaceError(
                f"{network.name} cannot be run on the inputs of {task.name}: {str(error).splitlines()[0]}"
            ) from None
        outputs.append(output.cpu())
        return output[None]

    score = task.evaluate(run, "test", torch.tensor([seed]))
    return torch.cat(outputs), float(score[0])


def compare_classes(first: Tensor, second: Tensor, labels: Tensor, names: tuple[str, ...], source: str) -> Answers:
    """Compare two networks' classes (N,) of inputs with labels (N,): all inputs, and class by class."""
    changed, right, still = first != second, first == labels, second == labels
    classes = []
    for label, name in enumerate(names):
        rows = labels == label
        if not bool(rows.any()):
            continue
        pairs = torch.bincount(first[rows & changed] * len(names) + second[rows & changed], minlength=len(names) ** 2)
        top = int(pairs.argmax())
        classes.append(
            ClassDifference(
                name=name,
                inputs=int(rows.sum()),
                accuracy_first=float(right[rows].double().mean()),
                accuracy_second=float(still[rows].double().mean()),
                changed=float(changed[rows].double().mean()),
                most_changed=f"{names[top // len(names)]} -> {names[top % len(names)]}" if int(pairs[top]) else None,
            )
        )
    examples = [
        ChangedAnswer(input=str(row), target=names[int(labels[row])], first=names[int(first[row])], second=names[int(second[row])])
        for row in changed.nonzero()[:MAX_EXAMPLES, 0].tolist()
    ]  # fmt: skip
    return Answers(
        inputs=len(labels),
        source=source,
        agreement=float((~changed).double().mean()),
        score_first=float(right.double().mean()),
        score_second=float(still.double().mean()),
        changed=int(changed.sum()),
        lost=int((right & ~still).sum()),
        gained=int((~right & still).sum()),
        both_wrong=int((changed & ~right & ~still).sum()),
        classes=classes,
        examples=examples,
    )


@torch.no_grad()
def _on_pictures(one: AnyNetwork, other: AnyNetwork, pictures: Pictures) -> Answers:
    """Compare two networks' classes of pictures without labels, by the numbers of classes."""
    files, predicted = pictures.files(), []
    for each in (one, other):
        module = copy.deepcopy(each.module)
        assert module is not None
        module.load_state_dict(run_types(each.state, module), strict=False)
        batches = picture_batches(files, pictures.size, by=pictures.by)
        predicted.append(torch.cat([logits_of(module.eval(), batch, each.name) for batch in batches]).argmax(-1))
    changed = predicted[0] != predicted[1]
    examples = [
        ChangedAnswer(input=files[row].name, target=None, first=str(int(predicted[0][row])), second=str(int(predicted[1][row])))
        for row in changed.nonzero()[:MAX_EXAMPLES, 0].tolist()
    ]  # fmt: skip
    agreement = float((~changed).double().mean())
    return Answers(
        inputs=len(files),
        source=str(pictures.folder),
        agreement=agreement,
        changed=int(changed.sum()),
        examples=examples,
    )
