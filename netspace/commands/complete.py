"""`netspace optimize --points`: a latent, and so a network and a shape, from points on a surface.

Axes: T clouds of N points each, S starts of each, M training members, E latent size, P parameters, R grid points along each
side. The space is frozen; latents are optimised so that distances at the points are 0 and latents stay likely.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from netspace.commands.convert import write_latent, write_network, zoo_of
from netspace.commands.sample import known_latents, known_networks
from netspace.commands.shapes import RESOLUTION
from netspace.config import Seed, Settings
from netspace.errors import NetspaceError, NetspaceWarning, UsageError
from netspace.files import locked
from netspace.io import Record, hash_tensors, read_json, write_json
from netspace.networks.family import ArchClass
from netspace.point_clouds import normalised_points, read_points
from netspace.results.shapes import Completion
from netspace.space import Space
from netspace.streams import Stream, generator
from netspace.surfaces import bodies, grid_values, surface, write_mesh
from netspace.tasks import Task
from netspace.tasks.chairs import RADIUS
from netspace.tasks.shapes import Occupancies, SignedDistances
from netspace.training.optimizers import OptimizerConfig
from netspace.training.setup import task_of
from netspace.training.validation import slices
from netspace.zoo import Zoo

PRIOR = "completion-prior.json"  # in the run folder
SCALES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # of which the best on validation members is the prior's
DEFAULT_SCALE = 0.03  # where there are no validation members
VALIDATED = 8  # validation members that it is chosen on
MAX_POINTS = 4096  # of a cloud: of more, so many are drawn
AT_ONCE = 1 << 19  # starts x points that are optimised at once, so that memory stays bounded
VALUES = 1 << 24  # of all training networks at points of clouds that are in memory at once
RELATIVE = 1e-6  # variances below so much of the largest one are 0


class CompleteConfig(Settings):
    """How latents are found for points."""

    nearest: int = Field(4, ge=1)  # starts: training latents with the smallest loss
    random: int = Field(4, ge=0)  # starts: drawn from the Gaussian of the training latents
    steps: int = Field(200, ge=1)  # of Adam, with a cosine schedule
    learning_rate: float = Field(0.1, gt=0)  # in units of the latents' standard deviations along their principal axes
    clamp: float = Field(0.1, gt=0)  # distances beyond count as this one (DeepSDF, Eq. 4)
    # typical distance of the decoded surface from the points, in units of the cube: the smaller, the less the prior counts;
    # none: the best on validation members
    scale: float | None = Field(None, gt=0)
    seed: Seed = 0


@dataclass(frozen=True, eq=False)
class LatentPrior:
    """The Gaussian of training latents, in whitened coordinates: z = mean + axes w, with w ~ N(0, 1)."""

    mean: Float[Tensor, " E"]
    axes: Float[Tensor, "E E"]  # columns: principal axes times their standard deviations; 0 where latents do not vary
    inverse: Float[Tensor, "E E"]  # w = inverse (z - mean)

    @classmethod
    def of(cls, latents: Float[Tensor, "M E"]) -> LatentPrior:
        """Return the Gaussian of the mean and the covariance of latents."""
        centred = latents.double() - latents.double().mean(0)
        values, vectors = torch.linalg.eigh(centred.T @ centred / max(len(latents) - 1, 1))
        spread = torch.where(values > RELATIVE * values.max(), values.clamp_min(0).sqrt(), 0.0)
        reciprocal = torch.where(spread > 0, 1 / spread, 0.0)
        return cls(latents.mean(0), (vectors * spread).float(), (vectors * reciprocal).T.float())

    def latents(self, white: Float[Tensor, "*S E"]) -> Float[Tensor, "*S E"]:
        """Return the latents of whitened ones."""
        return self.mean + white @ self.axes.T

    def whitened(self, latents: Float[Tensor, "*S E"]) -> Float[Tensor, "*S E"]:
        """Return whitened latents."""
        return (latents - self.mean) @ self.inverse.T


@dataclass(frozen=True, eq=False)
class Completed:
    """The best latents for some clouds."""

    latents: Float[Tensor, "T E"]
    loss: Float[Tensor, " T"]
    distance: Float[Tensor, " T"]  # mean |f| at the points, clamped
    started_near: Float[Tensor, " T"]  # the same of the nearest training network
    nearest: Tensor  # (T,) that network's row among the training members


class Completer:
    """Finds latents of one architecture of a space for points on surfaces."""

    def __init__(self, space: Space, zoo: Zoo, arch: ArchClass, config: CompleteConfig) -> None:
        """Raises `NetspaceError` if the zoo has no training members of the architecture."""
        networks = known_networks(space, zoo, arch)
        if networks is None:
            raise NetspaceError(f"{zoo.path} has no networks of {arch.id}, whose latents completion starts from")
        self.space, self.arch, self.config, self.networks = space, arch, config, networks
        self.known = known_latents(space, zoo, arch)
        self.prior = LatentPrior.of(self.known)

    def distances(self, flat: Float[Tensor, "M P"], clouds: Float[Tensor, "T N 3"]) -> Float[Tensor, "M T"]:
        """Return the mean clamped distance from the points of each cloud to the surface of each network."""
        found = []
        for part in slices(len(clouds), max(VALUES // (len(flat) * clouds.shape[1]), 1)):
            values = self.arch.nets(flat, clouds[part].flatten(0, 1)).abs().clamp_max(self.config.clamp)
            found.append(values.view(len(flat), -1, clouds.shape[1]).mean(2))
        return torch.cat(found, dim=1)

    def decode(self, latents: Float[Tensor, "S E"]) -> Float[Tensor, "S P"]:
        """Return the parameters of latents."""
        return self.space.decode_flat(latents, self.arch.id)

    def complete(self, clouds: Float[Tensor, "T N 3"], scale: float) -> Completed:
        """Return the best latent for each cloud: the one with the smallest loss over all starts.

        The loss is that of a Laplace distribution of distances with `scale` b and the Gaussian prior, over their number:
        mean |f(p)| + b / (2 N) |w|^2, w being the whitened latent.
        """
        config, weight = self.config, scale / (2 * clouds.shape[1])
        with torch.no_grad():
            near = self.distances(self.decode(self.known), clouds)  # (M, T)
            white = self.prior.whitened(self.known)
            loss = near + weight * white.square().sum(1)[:, None]
            rows = loss.topk(min(config.nearest, len(loss)), dim=0, largest=False).indices.T  # (T, S)
            stored = self.distances(self.networks, clouds)
        random = generator(config.seed, Stream.COMPLETION_STARTS)
        drawn = torch.randn(len(clouds), config.random, white.shape[1], generator=random).to(white.device)
        starts = torch.cat([white[rows], drawn], dim=1)  # (T, S, E)
        parts = slices(len(clouds), max(AT_ONCE // (starts.shape[1] * clouds.shape[1]), 1))
        found = [self._search(starts[part], clouds[part], weight) for part in parts]
        latents, losses, distances = (torch.cat(each) for each in zip(*found, strict=True))
        least = stored.min(0)
        return Completed(latents, losses, distances, least.values, least.indices)

    def _search(self, starts: Float[Tensor, "T S E"], clouds: Tensor, weight: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best latents (T, E) of these starts after all steps, their losses and their distances (T,)."""
        config, schedule = self.config, OptimizerConfig(schedule="cosine")
        white = starts.flatten(0, 1).clone().requires_grad_()
        points = clouds.repeat_interleave(starts.shape[1], 0)

        def terms() -> tuple[Tensor, Tensor]:
            flat = self.decode(self.prior.latents(white))
            values = self.arch.nets(flat, points, shared=False).abs().clamp_max(config.clamp)
            return values.mean((1, 2)), weight * white.square().sum(1)

        optimizer = torch.optim.Adam([white])
        for number in range(config.steps):
            distance, prior = terms()
            (white.grad,) = torch.autograd.grad((distance + prior).sum(), white)  # of nothing else: the space is frozen
            optimizer.param_groups[0]["lr"] = config.learning_rate * schedule.factor(number, config.steps)
            optimizer.step()
        with torch.no_grad():
            distance, prior = (each.view(starts.shape[:2]) for each in terms())
        loss = torch.nan_to_num(distance + prior, nan=torch.inf)
        best = loss.argmin(1, keepdim=True)
        chosen = white.detach().view(starts.shape).take_along_dim(best[..., None], 1)[:, 0]
        return self.prior.latents(chosen), loss.take_along_dim(best, 1)[:, 0], distance.take_along_dim(best, 1)[:, 0]


class PriorRecord(Record):
    """What the run folder keeps of the choice of the prior's scale."""

    run_hash: str
    zoo_hash: str
    arch: str
    settings: dict[str, float]
    points: int  # of each cloud
    members: int  # on which it was chosen
    scales: tuple[float, ...]
    errors: tuple[float, ...]  # mean |f - true distance| at validation points, by scale
    scale: float  # with the smallest


def require_distances(task: Task, what: str) -> SignedDistances:
    """Return a task of signed distances; raise `UsageError` for another. `what` says what was asked for."""
    if isinstance(task, SignedDistances) and not isinstance(task, Occupancies):
        return task
    raise UsageError(
        f"{what}, but networks of {task.name} give {task.output_noun}: shapes are completed in spaces of signed distances"
    )


def surface_clouds(task: SignedDistances, seeds: Tensor, count: int) -> Float[Tensor, "T N 3"]:
    """Return points on the surfaces of shapes, uniform by area, the same on every machine."""
    clouds = []
    for seed in seeds.tolist():
        random = np.random.RandomState([seed, count, Stream.COMPLETION_POINTS])
        clouds.append(task.shapes.shape(seed).surface(count, random))
    return torch.from_numpy(np.stack(clouds)).float().to(task.device)


def prior_scale(completer: Completer, zoo: Zoo, task: SignedDistances, points: int) -> float:
    """Return the scale of the prior: that of the settings, or the best of `SCALES` on validation members.

    Best is the least mean |f - true distance| at points of the validation split. The choice is kept in the run folder.
    """
    space, arch, config = completer.space, completer.arch, completer.config
    if config.scale is not None:
        return config.scale
    group = zoo.group(arch.id)
    seeds = group.seeds(group.rows("val")[:VALIDATED])
    if not len(seeds):
        return DEFAULT_SCALE
    origin = {
        "run_hash": hash_tensors(*space.model.state_dict().values()),
        "zoo_hash": zoo.content_hash,
        "arch": arch.id,
        "settings": {name: float(value) for name, value in config.model_dump(exclude={"scale"}).items()},
        "points": points,
        "members": len(seeds),
        "scales": SCALES,
    }
    path = None if space.run is None else space.run / PRIOR
    if path is not None and path.exists():
        with suppress(NetspaceError):  # a damaged choice is made again
            before = read_json(path, PriorRecord)
            if all(getattr(before, name) == value for name, value in origin.items()):
                return before.scale
    clouds = surface_clouds(task, seeds, points)
    anywhere, true = (each("val", slice(None), seeds) for each in (task.inputs, task.targets))
    errors = []
    for scale in SCALES:
        flat = completer.decode(completer.complete(clouds, scale).latents)
        with torch.no_grad():
            errors.append(float((arch.nets(flat, anywhere, shared=False) - true).abs().mean()))
    best = SCALES[int(np.argmin(errors))]
    if path is not None:
        with suppress(NetspaceError):  # of a folder that cannot be written: the choice is made again next time
            write_json(path, PriorRecord.model_validate({**origin, "errors": errors, "scale": best}).model_dump())
    return best


def complete(
    run: Path,
    cloud: Path,
    out: Path,
    config: CompleteConfig | None = None,
    arch: str | None = None,
    normalise: bool = False,
    zoo_path: Path | None = None,
    device: str = "cpu",
) -> Completion:
    """Find the latent whose shape goes through the points of a file; write it, its network and a mesh to the folder `out`.

    Points are in the space's frame, the cube [-1, 1]^3, or with `normalise` moved and scaled to it, which is right for
    points from all over a shape. The mesh is in the space's frame.

    Raises:
        UsageError: the space is none of signed distances, the points are outside the cube, or the folder is in use.
        NetspaceError: the file does not hold points, the run has no space, or the zoo is another.

    >>> corners = 0.4 * np.array(list(np.ndindex(2, 2, 2))) - 0.2
    >>> np.save(folder / "cloud.npy", corners)
    >>> settings = CompleteConfig(steps=2, scale=0.01)
    >>> result = complete(chairs_run, folder / "cloud.npy", folder / "whole", settings)  # the folder of a run
    >>> (folder / "whole" / "network.safetensors").is_file()
    True
    """
    config = config or CompleteConfig()
    points, middle, factor = read_points(cloud), np.zeros(3), 1.0
    if normalise:
        points, middle, factor = normalised_points(points, RADIUS)
    elif (reach := float(np.abs(points).max())) > 1:
        raise UsageError(
            f"{cloud} has points as far as {reach:.3g} along an axis, but shapes of a space lie in [-1, 1]^3: give "
            "--normalise to move and scale them into it, or do it yourself"
        )
    space = Space.load(run, device)
    with zoo_of(run, zoo_path) as zoo:
        task = require_distances(task_of(zoo, space.device), f"{cloud} was to be completed")
        completer = Completer(space, zoo, space.arch_class(arch), config)
        random = np.random.RandomState([config.seed, Stream.COMPLETION_POINTS])
        used = random.permutation(len(points))[:MAX_POINTS]
        scale = prior_scale(completer, zoo, task, min(len(points), MAX_POINTS))
        found = completer.complete(torch.from_numpy(points[used]).float().to(space.device)[None], scale)
    with locked(out / ".lock", f"{out} is being written by another process"):
        if (out / "completion.json").exists() or (out / "config.yaml").exists():
            raise UsageError(f"{out} holds an optimisation already: choose another --out")
        return _write(out, run, cloud, completer, task, found, scale, (middle.tolist(), factor), len(points))


def _write(
    out: Path,
    run: Path,
    cloud: Path,
    completer: Completer,
    task: SignedDistances,
    found: Completed,
    scale: float,
    frame: tuple[list[float], float],
    points: int,
) -> Completion:
    """Write latent, network, mesh and the result; return it."""
    arch = completer.arch
    with torch.no_grad():
        flat = completer.decode(found.latents)
        values = grid_values(arch.nets, flat, RESOLUTION)[0]
    notes = {"run": str(run), "points": str(cloud)}
    write_latent(out / "latent.safetensors", found.latents[0], arch=arch.id, **notes)
    write_network(out / "network.safetensors", flat[0], arch, **notes)
    mesh: Path | None = None
    count: int | None = None
    try:
        shape = surface(values)
        count = bodies(shape).large
        write_mesh(out / "mesh.glb", shape, task.upright)
        mesh = out / "mesh.glb"
    except NetspaceError as error:  # scikit-image or trimesh is missing, or the shape is empty
        warnings.warn(f"no mesh was written: {error}", NetspaceWarning, stacklevel=3)
    result = Completion(
        run=str(run),
        cloud=str(cloud),
        points=points,
        arch=arch.id,
        middle=frame[0],
        factor=frame[1],
        scale=scale,
        loss=float(found.loss[0]),
        distance=float(found.distance[0]),
        distance_nearest=float(found.started_near[0]),
        bodies=count,
        latent=str(out / "latent.safetensors"),
        network=str(out / "network.safetensors"),
        mesh=None if mesh is None else str(mesh),
    )
    result.write(out / "completion.json")
    return result
