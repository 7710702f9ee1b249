"""Networks that are shapes: their surfaces, predicted ones compared with their targets, and lines between shapes.

Axes: M members, R grid points along each side, S points of a line, E latent size, P parameters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from netspace.commands.baselines import aligned_mixtures
from netspace.distributed import distributed_map
from netspace.errors import UsageError
from netspace.files import write_bytes
from netspace.networks.family import Networks
from netspace.rendering import View
from netspace.report.drawing import styled, to_png
from netspace.report.strips import ROWS, strip
from netspace.results.shapes import LineBodies, ShapeLines, Shapes, Solidity
from netspace.space import Space
from netspace.streams import Stream, generator
from netspace.surfaces import Surface, bodies, chamfer, grid_values, iou, surface, valid, write_mesh, write_surfaces
from netspace.tasks import Task
from netspace.training.validation import slices

RESOLUTION = 64  # grid points along each side by which shapes are measured, and of meshes
SHOWN_RESOLUTION = 48  # of the shapes that are kept for the report
MAX_MEMBERS = 64  # whose shapes are measured
MAX_SHOWN = 4  # members whose shapes are kept
MAX_LINES = 10  # between test members
STEPS = 9  # of a line, its ends left out
TARGET = "target"
MESH = "glb"  # the format of meshes unless another is asked for
PART = 16  # networks whose values on a grid are in memory at once


Grids = Callable[[Tensor, int], Tensor]  # rows (M,) of members and a resolution R to values (M, R, R, R)


@dataclass(frozen=True)
class ShapeComparison:
    """How whole the shapes of networks are, and how they differ from others'."""

    iou: np.ndarray  # (M,) of the insides
    chamfer: np.ndarray  # (M,) in units of the cube [-1, 1]^3; NaN where one of the two is empty
    valid: np.ndarray  # (M,) whether there is one body, apart from specks, of a quarter of the target's area or more
    single_body: np.ndarray  # (M,) whether there is one body and no speck
    empty: np.ndarray  # (M,)

    def summary(self) -> dict[str, float | None]:
        """Return means over members; of the Chamfer distance over those where it is known."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        known = {name: each[np.isfinite(each)] for name, each in known.items()}
        return {name: float(each.mean()) if len(each) else None for name, each in known.items()}

    def among(self, rows: np.ndarray, count: int) -> ShapeComparison:
        """Return the comparison of `count` members, of which this is that of some rows (M,); NaN for others."""
        spread = [np.full(count, np.nan) for _ in fields(self)]
        for whole, field in zip(spread, fields(self), strict=True):
            whole[rows] = getattr(self, field.name)
        return ShapeComparison(*spread)


def shape_name(task: Task, seed: int, name: str) -> str:
    """Return the name of the shape that a network of a `seed` was fitted to, such as 'chair/0003', else the network's `name`."""
    return (task.member_name(seed) if seed >= 0 else "") or name


def require_shapes(task: Task, what: str) -> None:
    """Raise `UsageError` unless a task's networks are shapes; `what` begins the sentence and says what was asked for."""
    if not task.surfaces:
        raise UsageError(
            f"{what}, but networks of {task.name} are no shapes: a mesh is made of networks of signed distances alone"
        )


@torch.no_grad()
def values_of(networks: Networks, task: Task, resolution: int = RESOLUTION) -> Float32[Tensor, "M R R R"]:
    """Return the values of networks that are shapes on a grid over [-1, 1]^3, negative inside."""
    return networks.each(lambda nets, flat: grid_values(nets, flat, resolution))


def surfaces_of(networks: Networks, task: Task, resolution: int = RESOLUTION) -> list[Surface]:
    """Return the surfaces (M,) of networks that are shapes."""
    return [
        surface(values)
        for part in slices(len(networks), PART)
        for values in values_of(networks[part], task, resolution).numpy()
    ]


def compare_shapes(
    target: Networks, others: Mapping[str, Networks | Grids], task: Task, resolution: int = RESOLUTION
) -> dict[str, ShapeComparison]:
    """Compare the shapes of networks (M,) with those of others (M,), by name, and with themselves, as `TARGET`.

    Others are networks, or whatever gives values on a grid. Processes share the work.
    """

    def measures(rows: Tensor) -> Tensor:
        pieces = []
        for part in rows.split(PART):
            truth = values_of(target[part], task, resolution)
            wanted = [surface(values) for values in truth.numpy()]
            same = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(len(part), 2)
            compared = [torch.cat([same, _wholeness(wanted, [0.0] * len(wanted))], dim=1)]
            compared += [_measures(truth, wanted, each, part) for each in others.values()]
            pieces.append(torch.stack(compared, dim=1))
        return torch.cat(pieces)

    def _measures(truth: Tensor, wanted: list[Surface], other: Networks | Grids, part: Tensor) -> Tensor:
        if isinstance(other, Networks):
            values = values_of(other[part], task, resolution)
        else:
            values = other(part, resolution)
        shapes = [surface(each) for each in values.numpy()]
        areas = [float(each.areas.sum()) for each in wanted]
        distances = torch.tensor([chamfer(one, other) for one, other in zip(wanted, shapes, strict=True)])
        return torch.cat([iou(truth, values)[:, None], distances[:, None], _wholeness(shapes, areas)], dim=1)

    table = distributed_map(measures, torch.arange(len(target))).numpy()  # (M, 1 + others, 5)
    return {name: ShapeComparison(*table[:, index].T) for index, name in enumerate([TARGET, *others])}


def _wholeness(shapes: Iterable[Surface], expected: Sequence[float]) -> Tensor:
    """Return whether shapes (M,) of expected areas are valid, single bodies, and empty: (M, 3) in float64."""
    rows = [
        [valid(each, area), bodies(each).total == 1, each.empty] for each, area in zip(shapes, expected, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float64).view(-1, 3)


def line_networks(space: Space, ends: Networks, latents: Tensor, gamma: Tensor, task: Task) -> dict[str, Networks]:
    """Return networks (S,) on the line between two of one architecture, which have `latents` (2, E), at `gamma` (S,).

    `latent` are decoded from the line between latents, as the architectures that these stand for, `weights` mixed; `aligned`
    too, the first network's channels in the order of the second's, where its graph can be traced.
    """
    class_id, flat = int(ends.class_ids[0]), torch.stack([ends.flat(0), ends.flat(1)])
    lines = {
        "latent": space.decode_all(torch.lerp(latents[0], latents[1], gamma[:, None])),
        "weights": Networks.of_class(space.family, class_id, torch.lerp(flat[0], flat[1], gamma[:, None])),
    }
    weights = torch.stack([gamma, 1 - gamma], dim=1)
    aligned = aligned_mixtures(space.family[class_id].nets, flat.flip(0), weights, task)
    if aligned is not None:
        lines["aligned"] = Networks.of_class(space.family, class_id, aligned)
    return lines


def pairs_of(count: int) -> Tensor:
    """Return the rows (L, 2) of members whose lines are measured: pairs without a common member, at most `MAX_LINES`."""
    lines = min(MAX_LINES, count // 2)
    return torch.randperm(count, generator=generator(0, Stream.SHAPE_LINES))[: 2 * lines].view(lines, 2)


def smallest_area(ends: Sequence[Surface]) -> float:
    """Return the area that shapes on a line are expected to have: that of the smaller end."""
    return min(float(each.areas.sum()) for each in ends)


def shape_lines(space: Space, target: Networks, latents: Tensor, task: Task) -> ShapeLines | None:
    """Measure how whole shapes are on lines between members (M,), which have `latents` (M, E); None for fewer than two.

    Ends are left out, and between are `STEPS` shapes, evenly. Processes share the lines.
    """
    pairs = pairs_of(len(target))
    if not len(pairs):
        return None
    gamma = torch.linspace(0, 1, STEPS + 2, device=latents.device)[1:-1]

    def measures(rows: Tensor) -> Tensor:
        of_lines = []
        for pair in rows:
            lines = line_networks(space, target[pair], latents[pair.to(latents.device)], gamma, task)
            expected = [smallest_area(surfaces_of(target[pair], task))] * STEPS
            of_lines.append(torch.stack([_wholeness(surfaces_of(each, task), expected) for each in lines.values()]))
        return torch.stack(of_lines)

    table = distributed_map(measures, pairs)  # (L, kinds, S, 3)
    kinds = ("latent", "weights", "aligned")[: table.shape[1]]
    solid = {
        name: Solidity(
            valid=float(each[..., 0].mean()),
            single_body=float(each[..., 1].mean()),
            empty=float(each[..., 2].mean()),
            valid_lines=int(each[..., 0].all(1).sum()),
        )
        for name, each in zip(kinds, table.unbind(1), strict=True)
    }
    return ShapeLines(lines=len(pairs), steps=STEPS, **solid)


def evaluate_shapes(
    space: Space,
    target: Networks,
    predicted: Networks,
    latents: Tensor,
    task: Task,
    baselines: Mapping[str, Networks | Grids] | None = None,
    lines: bool = True,
) -> tuple[dict[str, Any], ShapeComparison]:
    """Return the figures of `netspace eval` on the shapes of members (M,), and the comparison by member, NaN where it was not made.

    At most `MAX_MEMBERS` are compared, evenly among all. `baselines` (M,) take the place of predicted networks; their figures
    are in those of the same name. Without `lines`, those between members are not measured.
    """
    rows = torch.linspace(0, len(target) - 1, min(MAX_MEMBERS, len(target))).round().long()
    others = {"predicted": predicted, **(baselines or {})}
    compared = compare_shapes(target[rows], {name: _of_rows(each, rows) for name, each in others.items()}, task)
    of_target = compared[TARGET].summary()
    shapes = Shapes(
        members=len(rows),
        resolution=RESOLUTION,
        target=Solidity(**{name: of_target[name] for name in ("valid", "single_body", "empty")}),
        lines=shape_lines(space, target, latents, task) if lines and not space.multi else None,
    )
    by_baseline = {name: compared[name].summary() for name in baselines or {}}
    figures = {**compared["predicted"].summary(), "shapes": shapes, "baselines": by_baseline}
    return figures, compared["predicted"].among(rows.numpy(), len(target))


def _of_rows(other: Networks | Grids, rows: Tensor) -> Networks | Grids:
    """Return what stands for the members in `rows` (N,)."""
    if isinstance(other, Networks):
        return other[rows]
    return lambda part, resolution: other(rows[part], resolution)


def shape_names(figures: dict[str, Any], task: Task) -> dict[str, Any]:
    """Return the measures of networks; of shapes also by the names that say what they are there."""
    if not task.surfaces:
        return figures
    names = {"score_target": "accuracy_target", "score_predicted": "accuracy_predicted", "within": "agreement"}
    return {**figures, **{name: figures[key] for name, key in names.items()}}


def write_shown(
    path: Path,
    space: Space,
    names: Sequence[str],
    target: Networks,
    predicted: Networks,
    latents: Tensor,
    overlap: np.ndarray,
    task: Task,
) -> None:
    """Write the surfaces that the report shows: of a few members, from the worst to the best predicted, and of one line."""
    order = np.argsort(overlap, kind="stable")[: np.isfinite(overlap).sum()]  # NaN comes last
    rows = order[np.unique(np.linspace(0, len(order) - 1, min(MAX_SHOWN, len(order))).round().astype(int))]
    chosen = torch.from_numpy(rows.copy())
    shown = {"target": target[chosen], "predicted": predicted[chosen]}
    notes = {"members": json.dumps([names[row] for row in rows]), "iou": json.dumps(overlap[rows].round(4).tolist())}
    pairs = pairs_of(len(target))
    if len(pairs) and not space.multi:
        gamma = torch.linspace(0, 1, STEPS + 2, device=latents.device)
        shown |= line_networks(space, target[pairs[0]], latents[pairs[0].to(latents.device)], gamma, task)
        first, last = (names[row] for row in pairs[0].tolist())
        notes |= line_notes(first, last, gamma)
    write_surfaces(path, named_surfaces(shown, task), upright=json.dumps(task.upright), **notes)


def line_notes(first: str, last: str, gamma: Tensor) -> dict[str, str]:
    """Return what a file of surfaces says of a line."""
    return {"from": first, "to": last, "gamma": json.dumps([round(value, 6) for value in gamma.tolist()])}


def named_surfaces(networks: Mapping[str, Networks], task: Task) -> dict[str, Surface]:
    """Return surfaces for the report by the name and the row of their network, such as 'latent.03'."""
    return {
        f"{name}.{row:02d}": each
        for name, of_kind in networks.items()
        for row, each in enumerate(surfaces_of(of_kind, task, SHOWN_RESOLUTION))
    }


def write_line(
    folder: Path, lines: Mapping[str, Networks], gamma: Tensor, ends: tuple[str, str], task: Task, mesh: str
) -> dict[str, Any]:
    """Write the shapes on the latent line (S,) as meshes, and a picture of all lines; return the fields of a result on them.

    An empty shape has no mesh.
    """
    shapes = {name: surfaces_of(networks, task) for name, networks in lines.items()}
    files = []
    for index, (value, each) in enumerate(zip(gamma.tolist(), shapes["latent"], strict=True)):
        if not each.empty:
            files.append(folder / f"{index:02d}-gamma-{value:.3f}.{mesh}")
            write_mesh(files[-1], each, task.upright)
    captions = [f"γ {value:.2f}" for value in gamma.tolist()]
    captions[0], captions[-1] = ends
    picture = folder / "line.png"
    with styled():
        drawn = strip({ROWS[name]: each for name, each in shapes.items()}, captions, View(*task.upright))
        write_bytes(picture, to_png(drawn))
    ends_known = shapes.get("weights", shapes["latent"])  # the networks themselves, if their weights are known
    expected = smallest_area([ends_known[0], ends_known[-1]])
    counts = {name: [bodies(each, expected).large for each in of_line] for name, of_line in shapes.items()}
    return {"bodies": LineBodies(**counts), "meshes": [str(file) for file in files], "picture": str(picture)}


def write_shown_line(
    path: Path, lines: Mapping[str, Networks], gamma: Tensor, ends: tuple[str, str], task: Task
) -> None:
    """Write the surfaces of lines (S,) that the report shows."""
    write_surfaces(path, named_surfaces(lines, task), upright=json.dumps(task.upright), **line_notes(*ends, gamma))
