"""Networks of signed distances fitted from scratch to points on surfaces alone: what completion is compared with.

Axes: T networks, N points on each surface, B points anywhere, P parameters.

A point cloud says where the distance is 0, and nothing of the rest. Distances change by 1 for each unit of length, so the
gradient has norm 1 (the eikonal term of IGR, Gropp et al. 2020), and are 0 on the surface alone (the off-surface term of
SIREN, Sitzmann et al. 2020). Networks begin as balls (IGR, Sec. 3), which makes inside negative.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from netspace import archs
from netspace.config import Seed, Settings
from netspace.networks.batch import NetBatch
from netspace.networks.prep import flatten
from netspace.streams import Stream, generator
from netspace.training.optimizers import OptimizerConfig


class SurfaceFitConfig(Settings):
    """How networks are fitted to points on surfaces."""

    steps: int = Field(1000, ge=1)  # of Adam on the terms
    ball_steps: int = Field(200, ge=0)  # before these, towards a ball about the points
    points: int = Field(256, ge=1)  # anywhere in the cube, in each step
    learning_rate: float = Field(1e-3, gt=0)  # of Adam, with a cosine schedule
    eikonal: float = Field(0.1, ge=0)  # weight of (|gradient| - 1)^2 (IGR: 0.1)
    off_surface: float = Field(0.03, ge=0)  # weight of exp(-sharpness |f|) off the surface (SIREN: 1e2 beside 3e3)
    sharpness: float = Field(100.0, gt=0)  # of that
    seed: Seed = 0


def fresh_networks(nets: NetBatch, count: int, seed: int) -> Float[Tensor, "T P"]:
    """Return untrained networks of an architecture."""
    rows = []
    spec = nets.spec
    with torch.random.fork_rng(devices=[]):
        for number in range(count):
            torch.manual_seed(generator(seed, Stream.SCRATCH_NETWORKS, number).initial_seed())
            network = archs.skeleton(spec.arch, spec.settings, spec.input_shape)
            rows.append(flatten({name: value.detach() for name, value in network.named_parameters()}, spec))
    return torch.stack(rows)


def fit_surfaces(nets: NetBatch, clouds: Float[Tensor, "T N 3"], config: SurfaceFitConfig) -> Float[Tensor, "T P"]:
    """Return networks that are fitted to points on surfaces, all at once."""
    flat = fresh_networks(nets, len(clouds), config.seed).to(clouds.device).requires_grad_()
    schedule = OptimizerConfig(schedule="cosine")
    for start, steps in ((True, config.ball_steps), (False, config.steps)):
        optimizer = torch.optim.Adam([flat])
        for number in range(steps):
            random = generator(config.seed, Stream.SCRATCH_POINTS, int(start), number)
            anywhere = (2 * torch.rand(len(clouds), config.points, 3, generator=random) - 1).to(clouds.device)
            losses = (
                ball_loss(nets, flat, clouds, anywhere) if start else surface_loss(nets, flat, clouds, anywhere, config)
            )
            (flat.grad,) = torch.autograd.grad(losses.sum(), flat)
            optimizer.param_groups[0]["lr"] = config.learning_rate * schedule.factor(number, steps)
            optimizer.step()
    return flat.detach()


def ball_loss(nets: NetBatch, flat: Tensor, clouds: Tensor, anywhere: Float[Tensor, "T B 3"]) -> Float[Tensor, " T"]:
    """Return the mean squared difference from a ball about each cloud's mean, with its points' mean distance as radius."""
    centre = clouds.mean(1, keepdim=True)
    radius = (clouds - centre).norm(dim=2, keepdim=True).mean(1, keepdim=True)
    ball = (anywhere - centre).norm(dim=2, keepdim=True) - radius
    return (nets(flat, anywhere, shared=False) - ball).square().mean((1, 2))


def surface_loss(
    nets: NetBatch, flat: Tensor, clouds: Tensor, anywhere: Float[Tensor, "T B 3"], config: SurfaceFitConfig
) -> Float[Tensor, " T"]:
    """Return each network's loss: mean |f| on the surface, and the eikonal and the off-surface term."""
    points = torch.cat([clouds, anywhere], dim=1).requires_grad_()
    values = nets(flat, points, shared=False)
    (slopes,) = torch.autograd.grad(values.sum(), points, create_graph=True)
    on, off = values[..., 0].split([clouds.shape[1], anywhere.shape[1]], dim=1)
    eikonal = (slopes.norm(dim=2) - 1).square().mean(1)
    away = torch.exp(-config.sharpness * off.abs()).mean(1)
    return on.abs().mean(1) + config.eikonal * eikonal + config.off_surface * away
