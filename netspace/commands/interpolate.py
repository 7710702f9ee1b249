"""`netspace interpolate`: networks along lines through the latent space, and between architectures (NetSpace, Sec. IV).

Axes: S points of a line, M members, P parameters, E latent size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netspace.commands.baselines import AUTOMATIC_STEPS, distilled, learnt_part_off
from netspace.commands.convert import resolve, target_accuracy, write_network, zoo_of
from netspace.commands.refine import check_refine, refined
from netspace.commands.shapes import MESH, line_networks, require_shapes, shape_name, write_line, write_shown_line
from netspace.errors import UsageError
from netspace.hardware import NETWORK_COPIES, require_memory
from netspace.metrics import linear_r2, spearman
from netspace.networks.family import Networks
from netspace.results.lines import Between, ClassLine, Interpolation, MeanLine
from netspace.space import Space
from netspace.surfaces import check_mesh_path
from netspace.tasks import Task
from netspace.training.setup import Teacher, task_of, teacher
from netspace.training.validation import accuracies, accuracies_between, between_ends
from netspace.zoo import ArchGroup, MemberRef, Zoo

MAX_LINES = 8  # over which the figures of one architecture are means
MAX_PAIRS = 32  # of a smallest and a largest network, between which an architecture is measured
POINTS = 10  # of the line between architectures, from one ClassId to the next


def along(
    space: Space, latents: Tensor, seeds: Tensor, gamma: Tensor, task: Task, ends: Networks | None = None
) -> tuple[dict[str, Networks], dict[str, np.ndarray]]:
    """Return networks (S,) along the line between two, by name as `line_networks`, and their scores on test inputs (S,).

    The two have `latents` (2, E) and `seeds` (2,). Without `ends`, they themselves, weights are not mixed.
    """
    if ends is None:
        networks = {"latent": space.decode_all(torch.lerp(latents[0], latents[1], gamma[:, None]))}
    else:
        networks = line_networks(space, ends, latents, gamma, task)
    first, second = (seed.expand(len(gamma)) for seed in seeds)
    score = partial(accuracies_between, task=task, split="test", first=first, second=second, gamma=gamma)
    return networks, {name: score(each) for name, each in networks.items()}


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
    lower = order[: len(order) // 2]
    starts = lower[np.unique(np.linspace(0, len(lower) - 1, min(MAX_LINES, len(lower))).round().astype(int))]
    gamma, seeds = torch.linspace(0, 1, steps, device=latents.device), group.seeds(rows)
    pairs = torch.tensor([[start, order[-1]] for start in starts])
    scores = [along(space, latents[pair], seeds[pair], gamma, task, target[pair])[1] for pair in pairs]
    latent, weights = (np.array([each[name] for each in scores]) for name in ("latent", "weights"))  # (pairs, S)
    aligned = [each["aligned"] for each in scores if "aligned" in each]
    factors = gamma.cpu().numpy()
    measured = {
        f"{measure.__name__}_{name}": _mean([measure(factors, curve) for curve in of_lines])
        for measure in (spearman, linear_r2)
        for name, of_lines in (("latent", latent), ("weights", weights))
    }
    ends = (latent - weights)[:, [0, -1]]  # (pairs, 2)
    return MeanLine(
        pairs=len(starts),
        gamma=factors.tolist(),
        **measured,
        end_differences=ends.mean(0).tolist(),
        end_distances=np.abs(ends).mean(0).tolist(),
        latent_accuracy=latent.mean(0).tolist(),
        weight_accuracy=weights.mean(0).tolist(),
        aligned_accuracy=np.mean(aligned, 0).tolist() if aligned else None,
    )


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
        control = None if master is None or arch.trained else distilled(space, arch, master, task)
        own = None
        if arch.id in zoo.archs and len(rows := zoo.group(arch.id).rows("test")):
            own = float(np.mean(zoo.group(arch.id).members["accuracy_test"][rows]))
        figures[arch.id] = Between(
            gamma=space.family.factor(class_id),
            shown=arch.trained,
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
    unseen = any(not space.family[class_id].trained for class_id in space.family.between)
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
    networks, scores = along(space, torch.stack(ends), torch.full((2,), -1), gamma, task)
    accuracy = scores["latent"].tolist()
    return ClassLine(
        start=names[0],
        end=names[1],
        gamma=_rounded(gamma),
        arch=networks["latent"].archs,
        accuracy=accuracy,
        end_differences=(accuracy[0] - targets[0], accuracy[-1] - targets[1]),
        factors=[space.family.factor(class_id) for class_id in space.family.between],
    )


def _rounded(gamma: Tensor) -> list[float]:
    return [round(float(value), 6) for value in gamma]


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
    refine: int | None = None,
    space: Space | None = None,
) -> Interpolation:
    """Measure accuracy on the test images along the latent line, and along the line between the weights.

    Between networks of different architectures, latents say of which each network is (NetSpace, Fig. 5). `save` is a folder
    for the decoded networks, as safetensors. `weight_accuracy` is None if an end has no weights (a latent file) or the
    ends' weights cannot be mixed (two architectures). `linear_r2` is that of a straight line through the accuracies;
    `end_differences` are decoded minus target accuracy at start and end, None at a latent file. The figures are also written to
    the run's `interpolations/`. With `refine` the ends' latents go on by so many steps of descent on what the networks answer
    (`netspace.commands.refine`). `space` is the run's space, if it is loaded already.

    In a space of shapes, the shapes on the latent line are written as meshes (`mesh`: 'glb', the default, or 'ply') with a
    picture of all lines (NetSpace, Fig. 4) to `save`, or to a folder of the run's `interpolations/`.

    Raises:
        UsageError: there are fewer than 2 steps, or more than fit into memory, an end names no network of the space, or meshes were asked for where
            networks are no shapes.
        NetspaceError: the run has no space, or the zoo is another.

    >>> result = interpolate(run, "worst", "best", steps=3, save=folder)  # networks are named as on the command line
    >>> len(list(folder.glob("*.safetensors")))
    3
    """
    if steps < 2:
        raise UsageError(f"an interpolation has at least 2 steps (its ends), not {steps}")
    if refine is not None:
        check_refine(refine)
    space = space or Space.load(run, device)
    largest = max(each.parameters for each in space.family)
    require_memory(steps, 2 * NETWORK_COPIES * largest, f"--steps {steps}", space.device)  # in latents and in weights
    with zoo_of(run, zoo_path) as zoo:
        task = task_of(zoo, space.device)
        if mesh is not None:
            require_shapes(task, f"meshes ({mesh}) were asked for")
            check_mesh_path(Path(f"shape.{mesh}"))
        first, last = resolve(start, space, zoo), resolve(end, space, zoo)
        if refine is not None:
            first, last = refined(space, zoo, [first, last], task, refine)
    gamma = torch.linspace(0, 1, steps, device=space.device)
    latents, seeds = torch.stack([first.latent, last.latent]), torch.tensor([first.seed, last.seed])
    ends = None
    if first.flat is not None and last.flat is not None and first.class_id == last.class_id:
        ends = Networks.of_class(space.family, first.class_id, torch.stack([first.flat, last.flat]))
    networks, scores = along(space, latents, seeds, gamma, task, ends)
    decoded, factors = networks["latent"], gamma.cpu().numpy()
    latent, weights, aligned = scores["latent"], scores.get("weights"), scores.get("aligned")
    name = f"{_plain(first.name)}--{_plain(last.name)}"
    titles = shape_name(task, first.seed, first.name), shape_name(task, last.seed, last.name)
    files: dict[str, Any] = {}  # a key is absent if nothing is saved
    if refine is not None:
        name, files["refined"] = f"{name}-refined", refine
    if save is not None:
        paths = [save / f"{index:02d}-gamma-{value:.3f}.safetensors" for index, value in enumerate(factors)]
        for index, (path, value, accuracy) in enumerate(zip(paths, factors, latent, strict=True)):
            notes = {"gamma": f"{value:.6f}", "from": first.name, "to": last.name, "accuracy_test": f"{accuracy:.6f}"}
            write_network(path, decoded.flat(index), space.family[int(decoded.class_ids[index])], **notes)
        files["networks"] = [str(path) for path in paths]
    if task.surfaces:
        folder = run / "interpolations" / name
        files |= write_line(save or folder, networks, gamma, titles, task, mesh or MESH)
        write_shown_line(run / "interpolations" / f"{name}.safetensors", networks, gamma, titles, task)
    if titles != (first.name, last.name):
        files["signals"] = titles
    targets = [target_accuracy(space, end, task) for end in (first, last)]
    result = Interpolation(
        run=str(run),
        start=first.name,
        end=last.name,
        gamma=_rounded(gamma),
        arch=decoded.archs,
        latent_accuracy=latent.tolist(),
        weight_accuracy=None if weights is None else weights.tolist(),
        aligned_accuracy=None if aligned is None else aligned.tolist(),
        spearman=_measured(spearman, factors, latent),
        weight_spearman=_measured(spearman, factors, weights),
        linear_r2=_measured(linear_r2, factors, latent),
        weight_linear_r2=_measured(linear_r2, factors, weights),
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


def _measured(measure: Callable[..., float], gamma: np.ndarray, scores: np.ndarray | None) -> float | None:
    """Return a measure of scores over gamma; None without scores, and where they do not vary."""
    value = np.nan if scores is None else measure(gamma, scores)
    return None if np.isnan(value) else value
