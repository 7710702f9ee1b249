"""What lies on lines through a latent space: between networks of one architecture, and from the smallest to the largest.

Axes: M members, S points of a line, E latent size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netspace.apps.controls import AUTOMATIC_STEPS, distilled, learnt_part_off
from netspace.data import TaskData
from netspace.errors import UsageError
from netspace.family import Networks
from netspace.metrics import linear_r2, spearman
from netspace.space import Space
from netspace.store import ArchGroup, MemberRef, Zoo
from netspace.training.teachers import Teacher, teacher
from netspace.training.validation import accuracies, between_ends

PAIRS = 8  # lines that the figure of one architecture is averaged over
ENDS = 32  # pairs of a smallest and a largest network that each class between is measured on, at most
POINTS = 10  # of the drawn line, from one class to the next


def lines(
    space: Space, group: ArchGroup, rows: np.ndarray, target: Networks, latents: Tensor, task: TaskData, steps: int = 11
) -> dict[str, Any]:
    """Accuracy along lines to the best member from others of the lower half, in the latent space and in the weights.

    For members of one architecture. Best and lower half go by accuracy on validation images; starts are spread evenly over
    the lower half. Rank correlations and the R2 of a straight line through the accuracies are means over lines.
    `end_differences`: decoded minus target accuracy at the start (the mean over lines) and at the end; `end_distances`: the
    same of absolute differences.
    """
    order = np.argsort(group.members["accuracy_val"][rows], kind="stable")
    if len(order) < 4:
        none = ("spearman_latent", "spearman_weights", "linear_r2_latent", "linear_r2_weights")
        return {"pairs": 0, **dict.fromkeys((*none, "end_differences", "end_distances"))}
    best = int(order[-1])
    lower = order[: len(order) // 2]
    starts = np.unique(np.linspace(0, len(lower) - 1, min(PAIRS, len(lower))).round().astype(int))
    gamma = torch.linspace(0, 1, steps, device=latents.device)[:, None]
    ids = target.class_ids[:1].expand(steps)
    curves: dict[str, list[list[float]]] = {"latent": [], "weights": []}
    for start in (int(lower[place]) for place in starts):
        between = torch.lerp(latents[start], latents[best], gamma)
        curves["latent"].append(accuracies(space.decode_all(between, ids), task, "test").tolist())
        mixed = torch.lerp(target.preps[start], target.preps[best], gamma[:, :, None])
        curves["weights"].append(accuracies(Networks(space.family, mixed, ids), task, "test").tolist())
    factors = gamma[:, 0].cpu().numpy()
    measured = {
        f"{measure.__name__}_{name}": _mean([measure(factors, np.array(curve)) for curve in found])
        for measure in (spearman, linear_r2)
        for name, found in curves.items()
    }
    ends = np.array(curves["latent"])[:, [0, -1]] - np.array(curves["weights"])[:, [0, -1]]  # (pairs, 2)
    return {
        "pairs": len(starts),
        "gamma": factors.tolist(),
        **measured,
        "end_differences": ends.mean(0).tolist(),
        "end_distances": np.abs(ends).mean(0).tolist(),
        "latent_accuracy": np.mean(curves["latent"], 0).tolist(),
        "weight_accuracy": np.mean(curves["weights"], 0).tolist(),
    }


def between(
    space: Space, zoo: Zoo, latents: Mapping[int, Tensor], task: TaskData, distil: bool | None = None
) -> dict[str, dict[str, Any]]:
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
    found: dict[str, dict[str, Any]] = {}
    for class_id in space.family.between:
        arch = space.family[class_id]
        points = between_ends(latents, space.family, class_id, ENDS)
        networks = space.decode_all(points)
        accuracy = accuracies(networks, task, "test")
        with learnt_part_off(space):
            reference = accuracies(space.decode_all(points), task, "test")
        taught = None if master is None or arch.shown else distilled(space, arch, master, task)
        own = None
        if arch.id in zoo.archs:
            group = zoo.group(arch.id)
            own = (
                float(np.mean(group.members["accuracy_test"][group.rows("test")])) if len(group.rows("test")) else None
            )
        found[arch.id] = {
            "gamma": space.family.factor(class_id),
            "shown": arch.shown,
            "pairs": len(networks),
            "classid_accuracy": float((networks.class_ids == class_id).double().mean()),
            "accuracy": float(accuracy.mean()),
            "accuracy_least": float(accuracy.min()),
            "accuracy_zoo": own,
            "ratio": float(accuracy.mean()) / own if own else None,
            "accuracy_scale_zero": float(reference.mean()),
            "accuracy_distilled": taught,
            "distilled_steps": None if taught is None else space.recipe.steps,
        }
    return found


def _teacher(space: Space, zoo: Zoo, task: TaskData, distil: bool | None) -> Teacher | None:
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
    task: TaskData,
) -> dict[str, Any]:
    """The line from the best network of the smallest architecture to the best of the largest (NetSpace, Fig. 5, centre).

    Of the members in `rows`, by ClassId, with `latents` (M, E); the best go by accuracy on validation images.
    """
    last, ends, names, targets = len(space.family) - 1, [], [], []
    for class_id in (0, last):
        group = zoo.group(space.family[class_id].id)
        best = int(np.argmax(group.members["accuracy_val"][rows[class_id]]))
        ends.append(latents[class_id][best])
        names.append(str(MemberRef(group.id, int(rows[class_id][best]))))
        targets.append(float(group.members["accuracy_test"][rows[class_id][best]]))
    gamma = torch.linspace(0, 1, POINTS * last + 1, device=latents[0].device)
    networks = space.decode_all(torch.lerp(ends[0], ends[1], gamma[:, None]))
    accuracy = accuracies(networks, task, "test")
    return {
        "from": names[0],
        "to": names[1],
        "gamma": [round(float(value), 6) for value in gamma],
        "arch": [space.family[int(class_id)].id for class_id in networks.class_ids],
        "accuracy": accuracy.tolist(),
        "end_differences": [float(accuracy[0]) - targets[0], float(accuracy[-1]) - targets[1]],
        "factors": [space.family.factor(class_id) for class_id in space.family.between],
    }


def _mean(ranks: list[float]) -> float | None:
    """The mean over lines on which accuracy varies; None if there are none."""
    known = [rank for rank in ranks if not np.isnan(rank)]
    return float(np.mean(known)) if known else None
