"""Networks fitted to points on spheres from scratch: the terms on balls, whose distances are known, and a fit."""

from __future__ import annotations

import balls
import pytest
import torch

from netspace import archs
from netspace.networks.batch import NetBatch
from netspace.networks.spec import NetSpec
from netspace.streams import generator
from netspace.training.surface_fit import SurfaceFitConfig, ball_loss, fit_surfaces, fresh_networks, surface_loss


def nets(arch: str, **settings: float) -> NetBatch:
    skeleton = archs.build(arch, **settings)
    return NetBatch(skeleton, NetSpec.from_module(skeleton, arch, settings, (3,)), mode="loop")


def sphere(centre: torch.Tensor, radius: torch.Tensor, count: int) -> torch.Tensor:
    """Points (T, N, 3) on spheres."""
    draws = torch.randn(len(radius), count, 3, generator=generator(0, 1), dtype=radius.dtype)
    return centre[:, None] + radius[:, None, None] * draws / draws.norm(dim=2, keepdim=True)


def test_the_terms_of_balls_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a distance has norm 1, so that the eikonal term is 0; half the distance has (1 / 2)^2."""
    monkeypatch.setattr(archs, "_TRUSTED", {balls.ARCH})
    batch = nets(balls.ARCH)
    flat = torch.tensor([[0.1, 0.0, 0.0, 0.5], [0.0, 0.2, 0.0, 0.4]], dtype=torch.float64)
    clouds = sphere(torch.zeros(2, 3).double(), torch.tensor([0.5, 0.6]).double(), 12)
    anywhere = 2 * torch.rand(2, 9, 3, generator=generator(0, 2)).double() - 1
    config = SurfaceFitConfig(eikonal=0.7, off_surface=0.2, sharpness=5.0)
    actual = surface_loss(batch, flat, clouds, anywhere, config).detach()
    for row in range(2):
        on, off = (((each[row] - flat[row, :3]).norm(dim=1) - flat[row, 3]).abs() for each in (clouds, anywhere))
        assert float(actual[row]) == pytest.approx(float(on.mean() + 0.2 * torch.exp(-5 * off).mean()), abs=1e-9)

    class Half:
        def __call__(self, *arguments: torch.Tensor, shared: bool) -> torch.Tensor:
            return batch(*arguments, shared=shared) / 2

    half = surface_loss(Half(), flat, clouds, anywhere, SurfaceFitConfig(eikonal=1.0, off_surface=0.0))  # type: ignore[arg-type]
    on = surface_loss(batch, flat, clouds, anywhere, SurfaceFitConfig(eikonal=0.0, off_surface=0.0)) / 2
    assert torch.allclose((half - on).detach(), torch.full_like(on, 0.25))


def test_a_ball_about_the_points_is_where_fits_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archs, "_TRUSTED", {balls.ARCH})
    batch = nets(balls.ARCH)
    clouds = sphere(torch.zeros(1, 3).double(), torch.tensor([0.6]).double(), 6)
    clouds = torch.cat([clouds, -clouds], dim=1)  # whose mean is the centre
    anywhere = torch.rand(1, 9, 3, generator=generator(0, 2)).double()
    same = torch.tensor([[0, 0, 0, 0.6]], dtype=torch.float64)
    assert float(ball_loss(batch, same, clouds, anywhere)) == pytest.approx(0, abs=1e-12)
    assert float(ball_loss(batch, same + torch.tensor([0, 0, 0, 0.1]), clouds, anywhere)) == pytest.approx(0.01)


def test_spheres_are_fitted_inside_negative() -> None:
    batch = nets("siren", width=0.0625, frequency=5.0)
    clouds = sphere(torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.0, -0.1]]), torch.tensor([0.5, 0.7]), 64)
    flat = fit_surfaces(batch, clouds, SurfaceFitConfig(steps=60, ball_steps=60, points=64, learning_rate=3e-3))
    with torch.no_grad():
        assert float(batch(flat, clouds, shared=False).abs().mean((1, 2)).max()) < 0.05
        centre = batch(flat, torch.tensor([[[0.0, 0, 0]], [[0.1, 0, -0.1]]]), shared=False)
        corner = batch(flat, torch.ones(2, 1, 3), shared=False)
    assert float(centre.max()) < -0.1
    assert float(corner.min()) > 0.1


def test_networks_start_fresh_each_with_its_own_weights() -> None:
    batch = nets("siren", width=0.0625)
    first, again = fresh_networks(batch, 3, 0), fresh_networks(batch, 2, 0)
    assert torch.equal(first[:2], again)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(fresh_networks(batch, 1, 1)[0], first[0])
