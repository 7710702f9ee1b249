"""`netspace interpolate`: networks along lines through the latent space, and between architectures (NetSpace, Sec. IV)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from netspace.commands.baselines import AUTOMATIC_STEPS, aligned_mixtures, distilled, learnt_part_off
from netspace.commands.convert import Named, resolve, write_network, zoo_of
from netspace.errors import UsageError
from netspace.metrics import linear_r2, spearman
from netspace.networks.family import Networks
from netspace.results.spaces import Between, ClassLine, Interpolation, MeanLine
from netspace.space import Space
from netspace.tasks import Task
from netspace.training.setup import Teacher, task_of, teacher
from netspace.training.validation import accuracies, between_ends
from netspace.zoo import ArchGroup, MemberRef, Zoo

PAIRS = 8  # lines that the figure of one architecture is averaged over


ENDS = 32  # pairs of a smallest and a largest network that each class between is measured on, at most


POINTS = 10  # of the drawn line, from one class to the next


def lines(
    space: Space, group: ArchGroup, rows: np.ndarray, target: Networks, latents: Tensor, task: Task, steps: int = 11
) -> MeanLine:
    """Accuracy along lines to the best member from others of the lower half, in the latent space and in the weights.

    For members of one architecture. Best and lower half go by accuracy on validation images; starts are spread evenly over
    the lower half. Rank correlations and the R2 of a straight line through the accuracies are means over lines.
    `end_differences`: decoded minus target accuracy at the start (the mean over lines) and at the end; `end_distances`: the
    same of absolute differences.
    """
    order = np.argsort(group.merit(rows), kind="stable")
    if len(order) < 4:
        none = ("spearman_latent", "spearman_weights", "linear_r2_latent", "linear_r2_weights")
        return MeanLine(pairs=0, **dict.fromkeys((*none, "end_differences", "end_distances")))
    best = int(order[-1])
    lower = order[: len(order) // 2]
    starts = np.unique(np.linspace(0, len(lower) - 1, min(PAIRS, len(lower))).round().astype(int))
    gamma = torch.linspace(0, 1, steps, device=latents.device)[:, None]
    ids, seeds = target.class_ids[:1].expand(steps), group.seeds(rows)
    curves: dict[str, list[list[float]]] = {"latent": [], "weights": []}
    aligned: list[list[float]] = []
    for start in (int(lower[place]) for place in starts):
        between = torch.lerp(latents[start], latents[best], gamma)
        own, last = (seeds[[row]].expand(steps) for row in (start, best))
        truth = task.targets_between("test", own, last, gamma[:, 0])
        curves["latent"].append(accuracies(space.decode_all(between, ids), task, "test", targets=truth).tolist())
        mixed = torch.lerp(target.preps[start], target.preps[best], gamma[:, :, None])
        curves["weights"].append(accuracies(Networks(space.family, mixed, ids), task, "test", targets=truth).tolist())
        pair = torch.stack([target.flat(start), target.flat(best)])
        if (found := _aligned(space, int(ids[0]), pair, gamma[:, 0], task)) is not None:
            aligned.append(accuracies(found, task, "test", targets=truth).tolist())
    factors = gamma[:, 0].cpu().numpy()
    measured = {
        f"{measure.__name__}_{name}": _mean([measure(factors, np.array(curve)) for curve in found])
        for measure in (spearman, linear_r2)
        for name, found in curves.items()
    }
    ends = np.array(curves["latent"])[:, [0, -1]] - np.array(curves["weights"])[:, [0, -1]]  # (pairs, 2)
    return MeanLine(
        pairs=len(starts),
        gamma=factors.tolist(),
        **measured,
        end_differences=ends.mean(0).tolist(),
        end_distances=np.abs(ends).mean(0).tolist(),
        latent_accuracy=np.mean(curves["latent"], 0).tolist(),
        weight_accuracy=np.mean(curves["weights"], 0).tolist(),
        aligned_accuracy=np.mean(aligned, 0).tolist() if aligned else None,
    )


def _aligned(space: Space, class_id: int, ends: Tensor, gamma: Tensor, task: Task) -> Networks | None:
    """Networks on the line (S,) between the weights of two (2, P), the first one aligned to the second; None without a graph."""
    weights = torch.stack([gamma, 1 - gamma], 1)
    mixed = aligned_mixtures(space.family[class_id].nets, ends.flip(0), weights, task)
    return None if mixed is None else Networks.of_class(space.family, class_id, mixed)


def between(
    space: Space, zoo: Zoo, latents: Mapping[int, Tensor], task: Task, distil: bool | None = None
) -> dict[str, Between]:
    """What lies at the factors of Eq. 12, by architecture, beside the zoo's own test members of it.

    `latents` (M, E) by ClassId; the i-th of the smallest architecture is paired with the i-th of the largest.
    `classid_accuracy`: the share that the head takes for the architecture; `accuracy`: of networks as the head decodes them,
    on test images; `accuracy_zoo`: of normally trained ones; `ratio`: the former to the latter.

    Two controls: `accuracy_scale_zero`, of networks that are decoded from the same latents with the decoder's learnt part
    off; and for architectures never shown `accuracy_distilled`, of a network that learns from the space's teacher for
    `distilled_steps`, as many as the space. None where there is no teacher, or where `distil` is False; with `distil` None
    it is trained where that takes at most `AUTOMATIC_STEPS`.
    """
    master = _teacher(space, zoo, task, distil)
    found: dict[str, Between] = {}
    for class_id in space.family.between:
        arch = space.family[class_id]
        points = between_ends(latents, space.family, class_id, ENDS)
        networks = space.decode_all(points)
        accuracy = accuracies(networks, task, "test")
        with learnt_part_off(space) as off:
            reference = accuracies(space.decode_all(points), task, "test") if off else None
        taught = None if master is None or arch.shown else distilled(space, arch, master, task)
        own = None
        if arch.id in zoo.archs:
            group = zoo.group(arch.id)
            own = (
                float(np.mean(group.members["accuracy_test"][group.rows("test")])) if len(group.rows("test")) else None
            )
        found[arch.id] = Between(
            gamma=space.family.factor(class_id),
            shown=arch.shown,
            pairs=len(networks),
            classid_accuracy=float((networks.class_ids == class_id).double().mean()),
            accuracy=float(accuracy.mean()),
            accuracy_least=float(accuracy.min()),
            accuracy_zoo=own,
            ratio=float(accuracy.mean()) / own if own else None,
            accuracy_scale_zero=None if reference is None else float(reference.mean()),
            accuracy_distilled=taught,
            distilled_steps=None if taught is None else space.recipe.steps,
        )
    return found


def _teacher(space: Space, zoo: Zoo, task: Task, distil: bool | None) -> Teacher | None:
    """The space's teacher, where a network is to learn from it."""
    multi, steps = space.recipe.multi, space.recipe.steps
    unseen = any(not space.family[class_id].shown for class_id in space.family.between)
    if multi is None or not unseen or not (steps <= AUTOMATIC_STEPS if distil is None else distil):
        return None
    try:
        return teacher(multi.teacher, zoo, task)
    except UsageError:
        if distil:
            raise
        return None


def line_of_classes(
    space: Space,
    zoo: Zoo,
    rows: Mapping[int, Sequence[int] | np.ndarray],
    latents: Mapping[int, Tensor],
    task: Task,
) -> ClassLine:
    """The line from the best network of the smallest architecture to the best of the largest (NetSpace, Fig. 5, centre).

    Of the members in `rows`, by ClassId, with `latents` (M, E); the best go by accuracy on validation images.
    """
    last, ends, names, targets = len(space.family) - 1, [], [], []
    for class_id in (0, last):
        group = zoo.group(space.family[class_id].id)
        best = int(np.argmax(group.merit(np.asarray(rows[class_id]))))
        ends.append(latents[class_id][best])
        names.append(str(MemberRef(group.id, int(rows[class_id][best]))))
        targets.append(float(group.members["accuracy_test"][rows[class_id][best]]))
    gamma = torch.linspace(0, 1, POINTS * last + 1, device=latents[0].device)
    networks = space.decode_all(torch.lerp(ends[0], ends[1], gamma[:, None]))
    accuracy = accuracies(networks, task, "test")
    return ClassLine(
        start=names[0],
        end=names[1],
        gamma=[round(float(value), 6) for value in gamma],
        arch=[space.family[int(class_id)].id for class_id in networks.class_ids],
        accuracy=accuracy.tolist(),
        end_differences=(float(accuracy[0]) - targets[0], float(accuracy[-1]) - targets[1]),
        factors=[space.family.factor(class_id) for class_id in space.family.between],
    )


def _mean(ranks: list[float]) -> float | None:
    """The mean over lines on which accuracy varies; None if there are none."""
    known = [rank for rank in ranks if not np.isnan(rank)]
    return float(np.mean(known)) if known else None


def interpolate(
    run: Path,
    start: str,
    end: str,
    steps: int = 11,
    save: Path | None = None,
    zoo_path: Path | None = None,
    device: str = "cpu",
) -> Interpolation:
    """Accuracy on the test images along the latent line, beside the direct interpolation of weights.

    Between networks of different architectures, latents say of which each network is (NetSpace, Fig. 5). `save` is a folder
    for the decoded networks, as safetensors. `weight_accuracy` is None where an end has no weights (a latent file) or the
    ends' weights cannot be mixed (two architectures). `linear_r2` is that of a straight line through the accuracies;
    `end_differences` are decoded minus target accuracy at start and end, None at a latent file. The figures are kept in the
    run's `interpolations/`.

    >>> result = interpolate(run, "worst", "best", steps=3, save=folder)  # networks are named as on the command line
    >>> len(list(folder.glob("*.safetensors")))
    3
    """
    if steps < 2:
        raise UsageError(f"an interpolation has at least 2 steps (its ends), not {steps}")
    space = Space.load(run, device)
    with zoo_of(run, zoo_path) as zoo:
        first, last = resolve(start, space, zoo), resolve(end, space, zoo)
        task = task_of(zoo, space.device)
    gamma = torch.linspace(0, 1, steps, device=space.device)
    networks = space.decode_all(torch.lerp(first.latent, last.latent, gamma[:, None]))
    one, other = (torch.tensor([each.seed]).expand(steps) for each in (first, last))
    truth = task.targets_between("test", one, other, gamma)
    found = accuracies(networks, task, "test", targets=truth)
    direct = aligned = None
    if first.flat is not None and last.flat is not None and first.class_id == last.class_id:
        mixed = torch.lerp(first.flat, last.flat, gamma[:, None])  # (S, P)
        direct = accuracies(Networks.of_class(space.family, first.class_id, mixed), task, "test", targets=truth)
        line = _aligned(space, first.class_id, torch.stack([first.flat, last.flat]), gamma, task)
        aligned = None if line is None else accuracies(line, task, "test", targets=truth)
    factors = gamma.cpu().numpy()
    files: dict[str, list[str]] = {}  # the key is absent where nothing is saved
    if save is not None:
        names = [save / f"{place:02d}-gamma-{value:.3f}.safetensors" for place, value in enumerate(factors)]
        for place, (name, value, right) in enumerate(zip(names, factors, found, strict=True)):
            notes = {"gamma": f"{value:.6f}", "from": first.name, "to": last.name, "accuracy_test": f"{right:.6f}"}
            arch = space.family[int(networks.class_ids[place])]
            write_network(name, networks.flat(place), arch, **notes)
        files = {"networks": [str(name) for name in names]}
    first_end, last_end = _targets(space, (first, last), task)
    result = Interpolation(
        run=str(run),
        start=first.name,
        end=last.name,
        gamma=[round(float(value), 6) for value in factors],
        arch=[space.family[int(class_id)].id for class_id in networks.class_ids],
        latent_accuracy=found.tolist(),
        weight_accuracy=None if direct is None else direct.tolist(),
        aligned_accuracy=None if aligned is None else aligned.tolist(),
        spearman=_number(spearman(factors, found)),
        weight_spearman=None if direct is None else _number(spearman(factors, direct)),
        linear_r2=_number(linear_r2(factors, found)),
        weight_linear_r2=None if direct is None else _number(linear_r2(factors, direct)),
        end_differences=(
            None if first_end is None else float(found[0]) - first_end,
            None if last_end is None else float(found[-1]) - last_end,
        ),
        **files,
        **({"score": task.score_metadata()} if task.score_metadata() else {}),
    )
    result.write(run / "interpolations" / f"{_plain(first.name)}--{_plain(last.name)}.json")
    return result


def _targets(space: Space, ends: tuple[Named, Named], task: Task) -> list[float | None]:
    """Test accuracy of the networks that the ends were encoded from; None where only a latent was given."""
    return [
        None
        if end.flat is None
        else float(
            accuracies(
                Networks.of_class(space.family, end.class_id, end.flat[None]), task, "test", torch.tensor([end.seed])
            )[0]
        )
        for end in ends
    ]


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
