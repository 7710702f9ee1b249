"""Shapes completed from points on their surfaces: the prior, the loss and the search; files, errors, the measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from netspace.commands import complete as completion
from netspace.commands.complete import CompleteConfig, Completer, LatentPrior, complete, prior_scale, surface_clouds
from netspace.commands.completions import completions, true_grids
from netspace.commands.convert import read_latent
from netspace.errors import UsageError
from netspace.io import read_json
from netspace.networks.state_dict import read_state_dict
from netspace.results.shapes import Completion
from netspace.space import Space
from netspace.tasks import load
from netspace.tasks.base import DataConfig
from netspace.tasks.chairs import chair
from netspace.tasks.shapes import SignedDistances
from netspace.training.setup import task_of
from netspace.training.surface_fit import SurfaceFitConfig
from netspace.zoo import Zoo

QUICK = CompleteConfig(nearest=2, random=1, steps=10, scale=0.01)


@pytest.fixture
def zoo(chairs_zoo: Path) -> Iterator[Zoo]:
    with Zoo(chairs_zoo) as opened:
        yield opened


def completer(run: Path, zoo: Zoo, config: CompleteConfig = QUICK) -> Completer:
    space = Space.load(run)
    return Completer(space, zoo, space.arch_class(), config)


def clouds_of(zoo: Zoo, split: str, count: int) -> torch.Tensor:
    task, group = task_of(zoo, "cpu"), zoo.only()
    assert isinstance(task, SignedDistances)
    return surface_clouds(task, group.seeds(group.rows(split)), count)


def test_whitened_latents_have_the_unit_covariance() -> None:
    """Directions in which latents do not vary stay as they are."""
    mixed = torch.randn(50, 4) @ torch.randn(4, 6) + 3.0  # of rank 4
    prior = LatentPrior.of(mixed)
    white = prior.whitened(mixed).double()
    covariance = white.T @ white / 49
    values = torch.linalg.eigvalsh(covariance)
    assert torch.allclose(values, torch.tensor([0, 0, 1, 1, 1, 1.0]).double(), atol=1e-3)
    assert torch.allclose(prior.latents(prior.whitened(mixed)), mixed, atol=1e-4)
    assert torch.allclose(prior.latents(torch.zeros(6)), mixed.mean(0))


def test_clouds_are_on_the_surfaces_of_their_shapes(zoo: Zoo) -> None:
    clouds = clouds_of(zoo, "test", 16)
    seeds = zoo.only().seeds(zoo.only().rows("test")).tolist()
    assert clouds.shape == (2, 16, 3)
    for cloud, seed in zip(clouds, seeds, strict=True):
        assert np.abs(chair(seed).distances(cloud.double().numpy())).max() < 1e-6
    assert torch.equal(clouds, clouds_of(zoo, "test", 16))


@torch.no_grad()
def test_distances_are_clamped_means(chairs_run: Path, zoo: Zoo) -> None:
    of, clouds = completer(chairs_run, zoo), clouds_of(zoo, "test", 16)
    actual = of.distances(of.networks[:3], clouds)
    assert actual.shape == (3, 2)
    for row in range(3):
        for column in range(2):
            values = of.arch.nets(of.networks[row : row + 1], clouds[column])
            assert float(actual[row, column]) == pytest.approx(float(values.abs().clamp_max(0.1).mean()), rel=1e-4)


def test_the_best_start_wins_by_the_loss(chairs_run: Path, zoo: Zoo) -> None:
    """Its loss is that of the equation, and not above what the search began with; clouds do not depend on each other."""
    of, clouds = (
        completer(chairs_run, zoo, QUICK.model_copy(update={"random": 0, "steps": 40})),
        clouds_of(zoo, "test", 16),
    )
    found = of.complete(clouds, 0.02)
    white = of.prior.whitened(found.latents)
    with torch.no_grad():
        values = of.arch.nets(of.decode(found.latents), clouds, shared=False)
        begun = of.distances(of.decode(of.known), clouds)
    distance = values.abs().clamp_max(0.1).mean((1, 2))
    prior = 0.02 / (2 * 16) * white.square().sum(1)
    assert torch.allclose(found.distance, distance, rtol=1e-3)
    assert torch.allclose(found.loss, distance + prior, rtol=1e-3)
    start = begun + 0.02 / (2 * 16) * of.prior.whitened(of.known).square().sum(1)[:, None]
    assert (found.loss < start.min(0).values).all()
    alone = of.complete(clouds[1:], 0.02)
    assert float(alone.loss[0]) == pytest.approx(float(found.loss[1]), rel=0.02)
    stored = of.distances(of.networks, clouds)
    assert torch.equal(found.nearest, stored.argmin(0))


def test_a_strong_prior_keeps_latents_at_the_mean(chairs_run: Path, zoo: Zoo) -> None:
    of, clouds = completer(chairs_run, zoo, QUICK.model_copy(update={"steps": 100})), clouds_of(zoo, "test", 16)
    lengths = [of.prior.whitened(of.complete(clouds, scale).latents).norm(dim=1).max() for scale in (1e-4, 100.0)]
    assert float(lengths[1]) < 0.1
    assert float(lengths[1]) < float(lengths[0])


def test_the_prior_is_chosen_on_validation_members_and_kept(
    chairs_copy: Path, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(zoo, "cpu")
    assert isinstance(task, SignedDistances)
    of = completer(chairs_copy, zoo, QUICK.model_copy(update={"scale": None}))
    chosen = prior_scale(of, zoo, task, 16)
    record = read_json(chairs_copy / completion.PRIOR, dict[str, Any])
    assert record["scale"] == chosen == record["scales"][int(np.argmin(record["errors"]))]
    assert len(record["errors"]) == len(completion.SCALES)
    assert record["members"] == 2
    seeds = zoo.only().seeds(zoo.only().rows("val"))
    found = of.complete(surface_clouds(task, seeds, 16), completion.SCALES[1])
    with torch.no_grad():
        values = of.arch.nets(of.decode(found.latents), task.inputs("val", slice(None), seeds), shared=False)
    error = float((values - task.targets("val", slice(None), seeds)).abs().mean())
    assert record["errors"][1] == pytest.approx(error, rel=1e-3)
    monkeypatch.setattr(Completer, "complete", lambda *_: pytest.fail("chosen again"))
    assert prior_scale(of, zoo, task, 16) == chosen
    with pytest.raises(pytest.fail.Exception, match="chosen again"):
        prior_scale(of, zoo, task, 17)


def test_a_cloud_becomes_a_latent_a_network_and_a_mesh(chairs_copy: Path, tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    np.save(tmp_path / "cloud.npy", chair(11).surface(32, np.random.RandomState(0)))
    result = complete(chairs_copy, tmp_path / "cloud.npy", tmp_path / "out", QUICK)
    space = Space.load(chairs_copy)
    latent = read_latent(Path(result.latent), space)
    state, expected = read_state_dict(Path(result.network)), space.decode(latent).state_dict()
    assert all(torch.allclose(state[name], value, atol=1e-5) for name, value in expected.items())
    assert (result.points, result.factor, result.middle, result.scale) == (32, 1.0, [0.0] * 3, 0.01)
    assert result.distance is not None and 0 <= result.distance <= 0.1
    assert Completion.read(tmp_path / "out" / "completion.json") == result
    assert (result.mesh is not None) == bool(result.bodies)
    with pytest.raises(UsageError, match="out holds an optimisation already: choose another --out"):
        complete(chairs_copy, tmp_path / "cloud.npy", tmp_path / "out", QUICK)


def test_points_outside_the_frame_are_refused_or_normalised(chairs_copy: Path, tmp_path: Path) -> None:
    points = chair(11).surface(32, np.random.RandomState(0))
    np.save(tmp_path / "far.npy", 5 * points + 3)
    with pytest.raises(
        UsageError, match=r"points as far as .* shapes of a space lie in \[-1, 1\]\^3: give --normalise"
    ):
        complete(chairs_copy, tmp_path / "far.npy", tmp_path / "out", QUICK)
    assert not (tmp_path / "out").exists()
    result = complete(chairs_copy, tmp_path / "far.npy", tmp_path / "out", QUICK, normalise=True)
    assert np.abs((5 * points + 3 - result.middle) * result.factor).max() <= 0.95 + 1e-9


def test_other_tasks_are_refused_in_a_sentence(run_copy: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    np.save(tmp_path / "cloud.npy", chair(11).surface(32, np.random.RandomState(0)))
    done = cli("optimize", run_copy, "--points", tmp_path / "cloud.npy")
    assert done.code == 2
    assert "but networks of digits give" in done.sentence
    assert "shapes are completed in spaces of signed distances" in done.sentence
    done = cli("eval", run_copy, "--completion", 64)
    assert done.code == 2 and "--completion 64 was asked for, but networks of digits" in done.sentence
    done = cli("optimize", "--points", tmp_path / "cloud.npy", "--from", "best", "--run", run_copy)
    assert done.code == 2 and "--points was given with --from" in done.sentence
    done = cli("optimize", run_copy, "--normalise", "--from", "best")
    assert done.code == 2 and "--normalise was given without --points" in done.sentence
    occupancy = load(DataConfig(name="chairs", field="occupancy"))
    with pytest.raises(UsageError, match="networks of chairs give occupancies"):
        completion.require_distances(occupancy, "x was to be completed")


def test_the_command_says_what_it_found(chairs_copy: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    np.save(tmp_path / "cloud.npy", chair(11).surface(32, np.random.RandomState(0)))
    words = ["optimize", chairs_copy, "--points", tmp_path / "cloud.npy", "--steps", 5, "--set", "scale=0.01"]
    done = cli(*words, "--json")
    assert done.code == 0, done.err
    assert done.json["cloud"].endswith("cloud.npy")
    assert Path(done.json["latent"]).parent == chairs_copy / "optimized" / "points-cloud"
    done = cli(*words, "-o", tmp_path / "other")
    assert done.code == 0, done.err
    assert "for 32 points, which are" in done.out


def test_completions_are_measured_against_true_shapes(chairs_copy: Path, zoo: Zoo) -> None:
    space, task = Space.load(chairs_copy), task_of(zoo, "cpu")
    scratch = SurfaceFitConfig(steps=10, ball_steps=10, points=32)
    figures = completions(space, zoo, task, space.arch_class(), "test", 32, QUICK, scratch)
    assert (figures.points, figures.members, figures.resolution, figures.scale) == (32, 2, 64, 0.01)
    overlaps = [figures.iou, figures.iou_scratch, figures.iou_nearest, figures.iou_target, figures.iou_predicted]
    assert all(each is not None and 0 <= each <= 1 for each in overlaps)
    assert figures.eikonal in (0.01, 0.1, 1.0)
    with pytest.raises(UsageError, match="--completion 7 was asked for, but at least 8 points are needed"):
        completions(space, zoo, task, space.arch_class(), "test", 7)


def test_true_grids_are_distances_on_the_grid_of_networks() -> None:
    task = load(DataConfig(name="chairs"))
    assert isinstance(task, SignedDistances)
    grid = true_grids(task, torch.tensor([4, 2]), 9)
    point = np.array([[-1 + 2 * 3 / 8, -1 + 2 * 7 / 8, -1 + 2 * 1 / 8]])
    assert grid.shape == (2, 9, 9, 9)
    assert float(grid[1, 3, 7, 1]) == pytest.approx(chair(2).distances(point)[0], abs=1e-6)
