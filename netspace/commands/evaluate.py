"""`netspace eval`: how well a space reconstructs the networks of a zoo, compared with baselines.

Axes: M members, E latent size, A architectures, B inputs, C outputs. Accuracies are fractions of the task's test images.
Whatever has to be chosen is chosen on validation members; test members are only reported. Reconstructed are networks of
architectures that the space was trained on; others are measured by points between (`netspace.commands.interpolate`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netspace import distributed as ranks
from netspace.commands.baselines import Baselines
from netspace.commands.completions import completions, require_completion
from netspace.commands.convert import zoo_of
from netspace.commands.deepsdf import Bank, FittedFields, check_deepsdf, deepsdf
from netspace.commands.evaluated import DIVERSITIES, Part, diversities, identities, parts_of
from netspace.commands.interpolate import between, line_of_classes, lines
from netspace.commands.properties import properties
from netspace.commands.refine import Answers, check_refine, descent, refine, refine_weights
from netspace.commands.shapes import Grids, ShapeComparison, evaluate_shapes, shape_name, shape_names, write_shown
from netspace.errors import UsageError
from netspace.io import write_tensors
from netspace.metrics import Identity
from netspace.networks.family import Networks
from netspace.results.properties import Measured
from netspace.results.shapes import SHAPE_NAMES
from netspace.results.spaces import Evaluation, MemberFigures, SavedEvaluation
from netspace.run_folder import package_version
from netspace.space import Space
from netspace.tasks import Task
from netspace.training.deepsdf import DeepSdfConfig
from netspace.training.descent import DescentConfig
from netspace.training.setup import task_of
from netspace.training.validation import Comparison, compare_outputs, network_outputs
from netspace.zoo import Zoo

MAX_PREPS = 4  # members whose PReps are written for the report
REFINED = "refined"


def evaluate(
    run: Path,
    split: str = "test",
    zoo_path: Path | None = None,
    device: str = "cpu",
    distil: bool | None = None,
    baselines: bool = True,
    auto_decoder: DeepSdfConfig | None = None,
    completion: int | None = None,
    refined: int | None = None,
    images: int | None = None,
    space: Space | None = None,
) -> Evaluation:
    """Return the figures of `netspace eval --json`; write them with those of each member to the run folder.

    Args:
        run: folder of the run.
        split: of the members that are reconstructed.
        zoo_path: the zoo of the run, if it has moved.
        device: on which networks are run.
        distil: whether networks of architectures not seen in training are distilled from the space's teacher, as a
            control; None: if that takes few steps.
        baselines: whether there are baselines; the nearest training network of a training member is the member itself.
        auto_decoder: of a space of shapes, the settings of the baseline `deepsdf`; None: leave it out.
        completion: of a space of shapes of one architecture, complete members from so many points; None: do not.
        refined: measure latents after so many steps of descent, too (`netspace.commands.refine`).
        images: compare networks on so many validation and test images, the first ones; None: all.
        space: that of the run, if it is loaded; latents of training members that it has read are not read again.

    Under `accelerate launch` the processes share the networks that are run, and all return the figures.

    Raises:
        UsageError: `auto_decoder` or `completion` is given, but the networks are no shapes; or `refined` is under 1.
        NetspaceError: the run has no space, the zoo is another, or the split has no members.

    >>> result = evaluate(run, "test")  # the folder of a run
    >>> (run / "eval-test.json").is_file()
    True
    """
    ranks.begin()
    space = space or Space.load(run, device)
    space.precision = ranks.chosen_by_main(lambda: space.precision)  # processes that time it may choose others
    with zoo_of(run, zoo_path) as zoo:
        task = task_of(zoo, space.device)
        task = task if images is None else task.first(images)
        _check_shapes(space, task, auto_decoder, completion, refined)
        parts = parts_of(space, zoo, split)
        latents, seeds = (torch.cat([getattr(part, name) for part in parts]) for name in ("latents", "seeds"))
        target, predicted = Networks.concatenate([part.target for part in parts]), space.decode_all(latents)
        target_logits, logits = (network_outputs(each, task, "test", seeds) for each in (target, predicted))
        comparison = compare_outputs(target_logits, logits, task, "test", seeds)
        common = (logits, target_logits)  # on inputs on which networks can be compared with each other
        if task.own_inputs:
            common = network_outputs(predicted, task, "test"), network_outputs(target, task, "test")
        own = identities(parts, target_logits, *common, task)
        per_class = _per_class(space, parts, target, predicted, comparison, own)
        of_baselines, stand_ins = _baselines(space, zoo, parts, target_logits, task) if baselines else ({}, {})
        if auto_decoder is not None:
            fields = _deepsdf(space, zoo, parts, task, split, auto_decoder)
            compared = compare_outputs(target_logits, fields.outputs(task, "test", seeds), task, "test", seeds)
            sizes = {"parameters": fields.parameters, "steps": fields.steps}
            of_baselines["deepsdf"], stand_ins["deepsdf"] = {**compared.summary(), **sizes}, fields.grid
        if refined is not None:
            near = stand_ins.get("nearest_answers")
            start = near if isinstance(near, Networks) and not task.surfaces else None
            compared_with = target_logits, common[1]
            of_refined, of_weights, better = _refined(
                space, zoo, parts, compared_with, start, task, descent(task, refined, auto_decoder)
            )
            of_baselines |= {} if of_weights is None else {"distilled": of_weights}
            of_baselines[REFINED], stand_ins[REFINED] = of_refined, better
        mean_parameters = float(np.mean([each.parameters for each in space.family]))
        figures: dict[str, Any] = {
            "run": str(run),
            "decoder": type(space.model.decoder).__name__,
            "encoder": type(space.model.encoder).__name__,
            "precision": space.precision,
            "split": split,
            "images": None if images is None else min(images, task.size("test")),
            "members": len(target),
            **shape_names(comparison.summary(), task),
            "identity": Identity.concatenate(own).summary(),
            "classid_accuracy": float((predicted.class_ids == target.class_ids).double().mean())
            if space.multi
            else None,
            **{name: _mean(each[name] for each in per_class.values()) for name in DIVERSITIES},
            "compression": space.latent / mean_parameters,
            "latent": space.latent,
            "parameters": round(mean_parameters),  # the mean of several architectures
            "per_class": per_class,
            "baselines": of_baselines,
        }
        if space.multi:
            figures |= _between_architectures(space, zoo, parts, target, predicted, task, distil)
        else:
            (part,) = parts
            if completion is not None:
                arch = space.family[part.class_id]
                figures["completion"] = completions(space, zoo, task, arch, split, completion)
            figures["interpolation"] = lines(space, part.group, part.rows, target, latents, task)
        shapes: ShapeComparison | None = None
        if task.surfaces:
            of_shapes, shapes = evaluate_shapes(
                space, target, predicted, latents, task, stand_ins, lines=split != "train"
            )
            for name, of_baseline in of_shapes.pop("baselines").items():
                figures["baselines"][name] = shape_names(figures["baselines"][name] | of_baseline, task)
            named = {new: figures["baselines"][name] for name, new in SHAPE_NAMES.items() if name in of_baselines}
            figures["baselines"] |= named
            figures |= of_shapes
        if refined is not None:
            figures["refined"] = figures["baselines"].pop(REFINED)  # the space's own, and no baseline
        if (told := properties(space, zoo, split, task)) is not None:
            figures["properties"] = told
        if measures := _measures(task, target_logits, logits, seeds):
            figures["measures"] = measures
        versions = {name: package_version(name) for name in ("netspace", "torch")}
        result = Evaluation(**figures, **task.score_field(), versions=versions)
    if ranks.is_main():
        names = [
            shape_name(task, seed, name)
            for part in parts
            for seed, name in zip(part.seeds.tolist(), part.names, strict=True)
        ]
        _save(run, result, comparison, parts, names, target, predicted, shapes)
        if shapes is not None:
            file = run / f"eval-{split}-shapes.safetensors"
            write_shown(file, space, names, target, predicted, latents, shapes.iou, task)
    return result


def _check_shapes(
    space: Space, task: Task, auto_decoder: DeepSdfConfig | None, completion: int | None, refined: int | None
) -> None:
    """Raise `UsageError` for what only spaces of shapes have."""
    if refined is not None:
        check_refine(refined)
    if auto_decoder is not None:
        check_deepsdf(task)
    if completion is not None:
        require_completion(task, completion)
        if space.multi:
            raise UsageError(
                f"--completion {completion} was asked for, but this space holds networks of {space.family.names}: shapes are "
                "completed in spaces of one architecture"
            )


def _per_class(
    space: Space,
    parts: list[Part],
    target: Networks,
    predicted: Networks,
    comparison: Comparison,
    own: list[Identity],
) -> dict[str, Any]:
    """Return figures by the architecture of the targets."""
    figures: dict[str, Any] = {}
    for part, identity in zip(parts, own, strict=True):
        mine = target.class_ids == part.class_id
        right = mine & (predicted.class_ids == part.class_id)
        arch = space.family[part.class_id]
        figures[arch.id] = {
            "class_id": part.class_id,
            "members": len(part.rows),
            "parameters": arch.parameters,
            "compression": space.latent / arch.parameters,
            **comparison.select(mine.numpy()).summary(),
            "identity": identity.summary(),
            "classid_accuracy": float(right.sum() / mine.sum()) if space.multi else None,
            **diversities(part, target, predicted),
        }
    return figures


def _measures(task: Task, target: Tensor, predicted: Tensor, seeds: Tensor) -> dict[str, Measured]:
    """Return further measures of target and predicted networks, of their outputs (M, B, C) on test inputs."""
    truth = task.targets("test", slice(None), seeds).cpu()
    measured = [task.measures(outputs, truth) for outputs in (target, predicted)]
    return {
        name: Measured(target=float(measured[0][name].mean()), predicted=float(measured[1][name].mean()))
        for name in measured[0]
    }


def _baselines(
    space: Space, zoo: Zoo, parts: list[Part], target_logits: Tensor, task: Task
) -> tuple[dict[str, Any], dict[str, Networks | Grids]]:
    """Return the figures of each baseline over all members, and the networks (M,) of some; they are of the member's own architecture."""
    networks: dict[str, list[Networks]] = {}
    comparisons: dict[str, list[Comparison]] = {}
    scales = []
    for part, logits in zip(parts, target_logits.split([len(part.rows) for part in parts]), strict=True):
        flat = part.target.preps.flatten(1)[:, : space.family[part.class_id].parameters]
        of_part = Baselines(space, zoo, part.class_id)
        compared, scale, chosen = of_part.compare(flat, part.latents, logits, task, part.seeds)
        scales.append(scale)
        for name, rows in chosen.items():
            networks.setdefault(name, []).append(Networks.of_class(space.family, part.class_id, rows))
        for name, each in compared.items():
            comparisons.setdefault(name, []).append(each)
    summaries: dict[str, Any] = {name: Comparison.concatenate(each).summary() for name, each in comparisons.items()}
    summaries["noise"]["scale"] = scales[0] if len(scales) == 1 else scales
    whole = {name for name, each in comparisons.items() if len(each) == len(parts)}  # of every architecture
    figures = {"aligned_average": None} | {name: each if name in whole else None for name, each in summaries.items()}
    return figures, {name: Networks.concatenate(each) for name, each in networks.items()}


def _refined(
    space: Space,
    zoo: Zoo,
    parts: list[Part],
    outputs: tuple[Tensor, Tensor],
    start: Networks | None,
    task: Task,
    config: DescentConfig,
) -> tuple[dict[str, Any], dict[str, Any] | None, Networks]:
    """Return figures of refined latents, those of `start` (M,) with refined weights if it is given, and the networks of the former.

    `parts` are the members; `outputs` their networks' test outputs (M, B, C), for inputs of their own and for such that networks
    are compared on with each other (the same tensor where there is no difference).
    """
    latents, seeds = (torch.cat([getattr(part, name) for part in parts]) for name in ("latents", "seeds"))
    target = Networks.concatenate([part.target for part in parts])
    answers = Answers(target, seeds, task, config)
    latents = refine(space, zoo, target, seeds, latents, task, config, answers)
    with torch.no_grad():
        networks = space.decode_all(latents, target.class_ids)

    def compared(others: Networks) -> tuple[dict[str, Any], Tensor]:
        logits = network_outputs(others, task, "test", seeds)
        summary = compare_outputs(outputs[0], logits, task, "test", seeds).summary()
        return {**summary, "steps": config.steps}, logits

    figures, logits = compared(networks)
    common = network_outputs(networks, task, "test") if task.own_inputs else logits
    figures["identity"] = Identity.concatenate(identities(parts, outputs[0], common, outputs[1], task)).summary()
    apart = [diversities(part, target, networks) for part in parts]
    figures |= {name: _mean(each[name] for each in apart) for name in DIVERSITIES}
    if not space.multi and not task.surfaces:
        (part,) = parts
        figures["interpolation"] = lines(space, part.group, part.rows, target, latents, task)
    of_weights = None
    if start is not None:
        of_weights = compared(refine_weights(space, target, seeds, start, task, config, answers))[0]
    return figures, of_weights, networks


def _deepsdf(space: Space, zoo: Zoo, parts: list[Part], task: Task, split: str, config: DeepSdfConfig) -> FittedFields:
    """Return the auto-decoder of the networks that the space was trained on, with the latents of the members of a split."""
    banks = [Baselines(space, zoo, part.class_id) for part in parts]
    train = [Networks.of_class(space.family, part.class_id, each.bank) for part, each in zip(parts, banks, strict=True)]
    bank = Bank(
        train=Networks.concatenate(train),
        train_seeds=torch.cat([each.seeds for each in banks]),
        members=Networks.concatenate([part.target for part in parts]),
        member_seeds=torch.cat([part.seeds for part in parts]),
    )
    return deepsdf(space, bank, task, zoo.content_hash, split, config)


def _between_architectures(
    space: Space,
    zoo: Zoo,
    parts: list[Part],
    target: Networks,
    predicted: Networks,
    task: Task,
    distil: bool | None,
) -> dict[str, Any]:
    """Return the confusion of ClassIds, and the figures of points between architectures (NetSpace, Fig. 5)."""
    count = len(space.family)
    confusion = torch.zeros(count, count, dtype=torch.int64)
    confusion.index_put_((target.class_ids, predicted.class_ids), torch.tensor(1), accumulate=True)
    figures: dict[str, Any] = {"archs": [each.id for each in space.family], "confusion": confusion.tolist()}
    latents, rows = {part.class_id: part.latents for part in parts}, {part.class_id: part.rows for part in parts}
    if 0 in latents and count - 1 in latents:
        figures["between"] = between(space, zoo, latents, task, distil)
        figures["line"] = line_of_classes(space, zoo, rows, latents, task)
    return figures


def _save(
    run: Path,
    result: Evaluation,
    comparison: Comparison,
    parts: list[Part],
    names: list[str],
    target: Networks,
    predicted: Networks,
    shapes: ShapeComparison | None,
) -> None:
    """Write the figures, those of each member, all latents, and the PReps of a few members of the largest architecture.

    `names` (M,) are those of the signals that members were fitted to, if they were, else the members' own.
    """
    more: dict[str, Any] = {}
    if shapes is not None:
        more = {name: _known(getattr(shapes, name)) for name in ("iou", "chamfer")}
    members = [name for part in parts for name in part.names]
    if names != members:
        more["signal"] = names
    detail = MemberFigures(
        member=members,
        arch=target.archs,
        arch_predicted=predicted.archs,
        accuracy_target=comparison.accuracy_target.tolist(),
        accuracy_predicted=comparison.accuracy_predicted.tolist(),
        agreement=comparison.agreement.tolist(),
        kl=comparison.kl.tolist(),
        **more,
    )
    result.extended(SavedEvaluation, detail=detail).write(run / f"eval-{result.split}.json")
    largest = np.flatnonzero(target.class_ids.numpy() == parts[-1].class_id)
    order = largest[np.argsort(comparison.accuracy_target[largest])]
    evenly = np.linspace(0, len(order) - 1, min(MAX_PREPS, len(order))).round().astype(int)
    rows = torch.from_numpy(order[evenly].copy())
    latents = torch.cat([part.latents for part in parts])
    tensors = {"latents": latents, "shown": rows, "preps": target.preps[rows], "decoded": predicted.preps[rows]}
    write_tensors(run / f"eval-{result.split}.safetensors", tensors)


def _known(values: np.ndarray) -> list[float | None]:
    """Return values with None for those that are not known."""
    return [value if np.isfinite(value) else None for value in values.tolist()]


def _mean(values: Any) -> float:
    """Return the mean of the values that are numbers; NaN if none is."""
    numbers = [value for value in values if not np.isnan(value)]
    return float(np.mean(numbers)) if numbers else float("nan")
