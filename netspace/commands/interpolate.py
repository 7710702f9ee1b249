"""`netspace interpolate`: networks along lines through the latent space, and between architectures (NetSpace, Sec. IV).

Axes: S points of a line, M members, P parameters, E latent size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netspace.commands.baselines import AUTOMATIC_STEPS, aligned_mixtures, distilled, learnt_part_off
from netspace.commands.convert import resolve, target_accuracy, write_network, zoo_of
from netspace.commands.shapes import MESH, require_shapes, write_line, write_shown_line
from netspace.errors import UsageError
from netspace.metrics import linear_r2, spearman
from netspace.networks.family import Networks
from netspace.results.spaces import Between, ClassLine, Interpolation, MeanLine
from netspace.space import Space
from netspace.surfaces import check_mesh_path
from netspace.tasks import Task
from netspace.training.setup import Teacher, task_of, teacher
from netspace.training.validation import accuracies, accuracies_between, between_ends
from netspace.zoo import ArchGroup, MemberRef, Zoo

MAX_LINES = 8  # over which the figures of one architecture are means
MAX_PAIRS = 32  # of a smallest and a largest network, between which an architecture is measured
POINTS = 10  # of the line between architectures, from one ClassId to the next


def lines(
    space: Space, group: ArchGroup, rows: np.ndarray, target: Networks, latents: Tensor, task: Task, steps: int = 11
) -> MeanLine:
    """Measure accuracy along lines from members of the lower half to the best one, in the latent space and in the weights.

    `rows` are members of one architecture, `target` they themselves and `latents` (M, E) theirs. They are ranked by accuracy
    on validation images; starts are spread evenly over the lower half. Rank correlations and the R2 of a straight line through
    the accuracies (NetSpace, Fig. 3 b and d) are means over lines. `end_differences` are decoded minus target accuracy at the
    start (the mean over lines) and at the end; `end_distances` the same of absolute differences.
    """
    order = np.argsort(group.merit(rows), kind="stable")
    if len(order) < 4:
        none = ("spearman_latent", "spearman_weights", "linear_r2_latent", "linear_r2_weights")
        return MeanLine(pairs=0, **dict.fromkeys((*none, "end_differences", "end_distances")))
    best = int(order[-1])
    lower = order[: len(order) // 2]
    starts = lower[np.unique(np.linspace(0, len(lower) - 1, min(MAX_LINES, len(lower))).round().astype(int))]
    gamma = torch.linspace(0, 1, steps, device=latents.device)[:, None]
    ids, seeds = target.class_ids[:1].expand(steps), group.seeds(rows)
    curves: dict[str, list[list[float]]] = {"latent": [], "weights": []}
    aligned: list[list[float]] = []
    for start in starts.tolist():
        points = torch.lerp(latents[start], latents[best], gamma)
        own, last = (seeds[[row]].expand(steps) for row in (start, best))
        score = partial(accuracies_between, task=task, split="test", first=own, second=last, gamma=gamma[:, 0])
        curves["latent"].append(score(space.decode_all(points, ids)).tolist())
        mixed = torch.lerp(target.preps[start], target.preps[best], gamma[:, :, None])
        curves["weights"].append(score(Networks(space.family, mixed, ids)).tolist())
        pair = torch.stack([target.flat(start), target.flat(best)])
        if (networks := _aligned(space, int(ids[0]), pair, gamma[:, 0], task)) is not None:
            aligned.append(score(networks).tolist())
    factors = gamma[:, 0].cpu().numpy()
    measured = {
        f"{measure.__name__}_{name}": _mean([measure(factors, np.array(curve)) for curve in of_lines])
        for measure in (spearman, linear_r2)
        for name, of_lines in curves.items()
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
    """Return networks on the line (S,) between the weights of two (2, P), the first aligned to the second; None without a graph."""
    weights = torch.stack([gamma, 1 - gamma], 1)
    mixed = aligned_mixtures(space.family[class_id].nets, ends.flip(0), weights, task)
    return None if mixed is None else Networks.of_class(space.family, class_id, mixed)


def between(
    space: Space, zoo: Zoo, latents: Mapping[int, Tensor], task: Task, distil: bool | None = None
) -> dict[str, Between]:
    """Measure each architecture between the smallest and the largest at its factor gamma (NetSpace, Eq. 12).

    `latents` (M, E) are by ClassId; the i-th of the smallest architecture is paired with the i-th of the largest.
    `classid_accuracy` is the fraction of points that the head takes for the architecture; `accuracy` the mean on test images of
    networks decoded as the head says; `accuracy_zoo` that of the zoo's test members; `ratio` the former over the latter.

    There are two controls: `accuracy_scale_zero`, with the decoder's learnt part off; and for architectures not seen in
    training `accuracy_distilled`, of a network distilled from the space's teacher for `distilled_steps`, as many as the space
    was trained. The latter is None without a teacher and if `distil` is False; with `distil` None a network is trained if that
    takes at most `AUTOMATIC_STEPS`.
    """
    master = _teacher(space, zoo, task, distil)
    figures: dict[str, Between] = {}
    for class_id in space.family.between:
        arch = space.family[class_id]
        points = between_ends(latents, space.family, class_id, MAX_PAIRS)
        networks = space.decode_all(points)
        accuracy = accuracies(networks, task, "test")
        with learnt_part_off(space) as off:
            reference = accuracies(space.decode_all(points), task, "test") if off else None
        control = None if master is None or arch.shown else distilled(space, arch, master, task)
        own = None
        if arch.id in zoo.archs and len(rows := zoo.group(arch.id).rows("test")):
            own = float(np.mean(zoo.group(arch.id).members["accuracy_test"][rows]))
        figures[arch.id] = Between(
            gamma=space.family.factor(class_id),
            shown=arch.shown,
            pairs=len(networks),
            classid_accuracy=float((networks.class_ids == class_id).double().mean()),
            accuracy=float(accuracy.mean()),
            accuracy_least=float(task.merit(task.merit(accuracy).min())),
            accuracy_zoo=own,
            ratio=float(accuracy.mean()) / own if own else None,
            accuracy_scale_zero=None if reference is None else float(reference.mean()),
            accuracy_distilled=control,
            distilled_steps=None if control is None else space.recipe.steps,
        )
    return figures


def _teacher(space: Space, zoo: Zoo, task: Task, distil: bool | None) -> Teacher | None:
    """Return the space's teacher if networks are to be distilled from it."""
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
    """Measure the line from the best network of the smallest architecture to the best of the largest (NetSpace, Fig. 5, centre).

    The two are the best on validation images among the members in `rows`, by ClassId, with `latents` (M, E).
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


def _mean(values: list[float]) -> float | None:
    """Return the mean over lines on which accuracy varies; None if there are none."""
    numbers = [value for value in values if not np.isnan(value)]
    return float(np.mean(numbers)) if numbers else None


def interpolate(
    run: Path,
    start: str,
    end: str,
    steps: int = 11,
    save: Path | None = None,
    zoo_path: Path | None = None,
    device: str = "cpu",
    mesh: str | None = None,
) -> Interpolation:
    """Measure accuracy on the test images along the latent line, and along the line between the weights.

    Between networks of different architectures, latents say of which each network is (NetSpace, Fig. 5). `save` is a folder
    for the decoded networks, as safetensors. `weight_accuracy` is None if an end has no weights (a latent file) or the
    ends' weights cannot be mixed (two architectures). `linear_r2` is that of a straight line through the accuracies;
    `end_differences` are decoded minus target accuracy at start and end, None at a latent file. The figures are also written to
    the run's `interpolations/`.

    In a space of shapes, the shapes on the latent line are written as meshes (`mesh`: 'glb', the default, or 'ply') with a
    picture of all lines (NetSpace, Fig. 4) to `save`, or to a folder of the run's `interpolations/`.

    Raises:
        UsageError: there are fewer than 2 steps, an end names no network of the space, or meshes were asked for where
            networks are no shapes.
        NetspaceError: the run has no space, or the zoo is another.

    >>> result = interpolate(run, "worst", "best", steps=3, save=folder)  # networks are named as on the command line
    >>> len(list(folder.glob("*.safetensors")))
    3
    """
    if steps < 2:
        raise UsageError(f"an interpolation has at least 2 steps (its ends), not {steps}")
    space = Space.load(run, device)
    with zoo_of(run, zoo_path) as zoo:
        task = task_of(zoo, space.device)
        if mesh is not None:
            require_shapes(task, f"meshes ({mesh}) were asked for")
            check_mesh_path(Path(f"shape.{mesh}"))
        first, last = resolve(start, space, zoo), resolve(end, space, zoo)
    gamma = torch.linspace(0, 1, steps, device=space.device)
    networks = space.decode_all(torch.lerp(first.latent, last.latent, gamma[:, None]))
    one, other = (torch.tensor([each.seed]).expand(steps) for each in (first, last))
    score = partial(accuracies_between, task=task, split="test", first=one, second=other, gamma=gamma)
    latent = score(networks)
    direct = aligned = None
    lines = {"latent": networks}
    if first.flat is not None and last.flat is not None and first.class_id == last.class_id:
        mixed = torch.lerp(first.flat, last.flat, gamma[:, None])  # (S, P)
        lines["weights"] = Networks.of_class(space.family, first.class_id, mixed)
        direct = score(lines["weights"])
        line = _aligned(space, first.class_id, torch.stack([first.flat, last.flat]), gamma, task)
        if line is not None:
            lines["aligned"], aligned = line, score(line)
    factors = gamma.cpu().numpy()
    name = f"{_plain(first.name)}--{_plain(last.name)}"
    files: dict[str, Any] = {}  # a key is absent if nothing is saved
    if save is not None:
        paths = [save / f"{index:02d}-gamma-{value:.3f}.safetensors" for index, value in enumerate(factors)]
        for index, (path, value, accuracy) in enumerate(zip(paths, factors, latent, strict=True)):
            notes = {"gamma": f"{value:.6f}", "from": first.name, "to": last.name, "accuracy_test": f"{accuracy:.6f}"}
            arch = space.family[int(networks.class_ids[index])]
            write_network(path, networks.flat(index), arch, **notes)
        files["networks"] = [str(path) for path in paths]
    if task.surfaces:
        folder = run / "interpolations" / name
        files |= write_line(save or folder, lines, gamma, (first.name, last.name), task, mesh or MESH)
        write_shown_line(folder.with_suffix(".safetensors"), lines, gamma, (first.name, last.name), task)
    targets = [target_accuracy(space, end, task) for end in (first, last)]
    result = Interpolation(
        run=str(run),
        start=first.name,
        end=last.name,
        gamma=[round(float(value), 6) for value in factors],
        arch=[space.family[int(class_id)].id for class_id in networks.class_ids],
        latent_accuracy=latent.tolist(),
        weight_accuracy=None if direct is None else direct.tolist(),
        aligned_accuracy=None if aligned is None else aligned.tolist(),
        spearman=_number(spearman(factors, latent)),
        weight_spearman=None if direct is None else _number(spearman(factors, direct)),
        linear_r2=_number(linear_r2(factors, latent)),
        weight_linear_r2=None if direct is None else _number(linear_r2(factors, direct)),
        end_differences=(
            None if targets[0] is None else float(latent[0]) - targets[0],
            None if targets[1] is None else float(latent[-1]) - targets[1],
        ),
        **files,
        **task.score_field(),
    )
    result.write(run / "interpolations" / f"{name}.json")
    return result


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
