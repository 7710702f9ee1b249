"""`netspace eval --completion N`: shapes of members completed from N points on their surfaces, against the true shapes.

Axes: M members, V validation members, N points of each, B points in the volume, R grid points along each side.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from netspace.commands.complete import VALIDATED, CompleteConfig, Completer, prior_scale, require_distances
from netspace.commands.complete import surface_clouds as clouds_of
from netspace.commands.shapes import RESOLUTION
from netspace.errors import UsageError
from netspace.networks.family import ArchClass
from netspace.point_clouds import MIN_POINTS
from netspace.results.shapes import Completions
from netspace.space import Space
from netspace.surfaces import grid_values, iou
from netspace.tasks import Task
from netspace.tasks.shapes import SignedDistances
from netspace.training.surface_fit import SurfaceFitConfig, fit_surfaces
from netspace.training.validation import slices
from netspace.zoo import ArchGroup, Zoo

MAX_MEMBERS = 32  # whose shapes are completed: the first ones
PART = 8  # shapes whose values on a grid are in memory at once
EIKONAL = (0.01, 0.1, 1.0)  # weights of which fits from scratch take the best on validation members


def completions(
    space: Space,
    zoo: Zoo,
    task: Task,
    arch: ArchClass,
    split: str,
    points: int,
    config: CompleteConfig | None = None,
    scratch: SurfaceFitConfig | None = None,
) -> Completions:
    """Complete the shapes of members of an architecture, and compare them with the true shapes on a grid.

    Beside them stand networks fitted to the same points from scratch, and the training networks nearest to the points by
    their own distances there. What has to be chosen is chosen on validation members.

    Raises `UsageError` as `require_completion`.
    """
    known = require_completion(task, points)
    group = zoo.group(arch.id)
    rows = group.rows(split)[:MAX_MEMBERS]
    seeds, preps = group.seeds(rows), group.read(rows).to(space.device)
    clouds = clouds_of(known, seeds, points)
    completer = Completer(space, zoo, arch, config or CompleteConfig())
    scale = prior_scale(completer, zoo, known, points)
    found = completer.complete(clouds, scale)
    scratch = _chosen(scratch or SurfaceFitConfig(), arch, group, known, points)
    with torch.no_grad():
        networks = {
            "iou": completer.decode(found.latents),
            "iou_scratch": fit_surfaces_of(arch, clouds, scratch),
            "iou_nearest": completer.networks[found.nearest],
            "iou_target": space.networks(preps, arch.id).preps.flatten(1)[:, : arch.parameters],
            "iou_predicted": completer.decode(space.encode_preps(preps, arch.id)),
        }
    overlaps = _overlaps(arch, networks, known, seeds)
    return Completions(
        points=points,
        members=len(rows),
        resolution=RESOLUTION,
        **{name: float(each.mean()) for name, each in overlaps.items()},
        distance=float(found.distance.mean()),
        distance_nearest=float(found.started_near.mean()),
        scale=scale,
        eikonal=scratch.eikonal,
    )


def require_completion(task: Task, points: int) -> SignedDistances:
    """Return a task of signed distances. Raises `UsageError` for another, and for too few points."""
    if points < MIN_POINTS:
        raise UsageError(
            f"--completion {points} was asked for, but at least {MIN_POINTS} points are needed to tell a shape"
        )
    return require_distances(task, f"--completion {points} was asked for")


def fit_surfaces_of(arch: ArchClass, clouds: Tensor, config: SurfaceFitConfig) -> Tensor:
    """Return networks (M, P) of an architecture fitted to points on surfaces from scratch."""
    with torch.enable_grad():
        return fit_surfaces(arch.nets, clouds, config)


def _chosen(
    config: SurfaceFitConfig, arch: ArchClass, group: ArchGroup, task: SignedDistances, points: int
) -> SurfaceFitConfig:
    """Return the settings with the weight of the eikonal term that is best on validation members, if there are any.

    Best is the least mean |f - true distance| at points of the validation split, as for the prior of completion.
    """
    seeds = group.seeds(group.rows("val")[:VALIDATED])
    if not len(seeds):
        return config
    clouds = clouds_of(task, seeds, points)
    anywhere, true = (each("val", slice(None), seeds) for each in (task.inputs, task.targets))
    errors = []
    for weight in EIKONAL:
        flat = fit_surfaces(arch.nets, clouds, config.model_copy(update={"eikonal": weight}))
        with torch.no_grad():
            errors.append(float((arch.nets(flat, anywhere, shared=False) - true).abs().mean()))
    return config.model_copy(update={"eikonal": EIKONAL[int(np.argmin(errors))]})


def _overlaps(arch: ArchClass, networks: dict[str, Tensor], task: SignedDistances, seeds: Tensor) -> dict[str, Tensor]:
    """Return intersection over union (M,) of networks' insides (M, P) and those of the true shapes, by name."""
    found: dict[str, list[Tensor]] = {name: [] for name in networks}
    for part in slices(len(seeds), PART):
        true = true_grids(task, seeds[part], RESOLUTION)
        for name, flat in networks.items():
            found[name].append(iou(true, grid_values(arch.nets, flat[part], RESOLUTION)))
    return {name: torch.cat(each) for name, each in found.items()}


def true_grids(task: SignedDistances, seeds: Tensor, resolution: int) -> Float32[Tensor, "M R R R"]:
    """Return the true distances of shapes on the grid of `netspace.surfaces.grid_values`."""
    side = np.linspace(-1, 1, resolution)
    points = np.stack(np.meshgrid(side, side, side, indexing="ij"), axis=-1).reshape(-1, 3)
    values = [task.shapes.shape(seed).distances(points) for seed in seeds.tolist()]
    return torch.from_numpy(np.stack(values)).float().view(-1, *(resolution,) * 3)
