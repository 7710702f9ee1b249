"""Commands on networks that are shapes, and what they refuse: balls, which are known in closed form."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import balls
import numpy as np
import pytest
import torch
from helpers import refused

from model_zoo.builder import build
from model_zoo.recipe import ZooRecipe
from netspace import archs
from netspace.commands import shapes
from netspace.commands.evaluate import evaluate
from netspace.commands.interpolate import interpolate
from netspace.commands.shapes import compare_shapes, pairs_of, write_line
from netspace.networks.family import Networks
from netspace.networks.prep import unpack
from netspace.results.spaces import Evaluation
from netspace.space import Space
from netspace.surfaces import read_surfaces, surface
from netspace.tasks import TASKS, load
from netspace.training.latent_space import train
from netspace.training.recipe import SpaceRecipe
from netspace.zoo import Zoo


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "balls", balls.Balls)
        patch.setattr(archs, "_TRUSTED", {balls.ARCH})
        yield


@pytest.fixture(scope="module")
def zoo(_registered: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ZooRecipe.model_validate(balls.ZOO), tmp_path_factory.mktemp("balls") / "balls.h5", workers=1)


@pytest.fixture(scope="module")
def trained(zoo: Path) -> Path:
    return train(SpaceRecipe.model_validate(balls.SPACE), zoo, zoo.parent / "run")


@pytest.fixture(scope="module")
def figures(trained: Path) -> Evaluation:
    """Of the test members, which `trained` keeps."""
    return evaluate(trained)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def values(network: torch.nn.Module, resolution: int) -> torch.Tensor:
    side = torch.linspace(-1, 1, resolution)
    points = torch.stack(torch.meshgrid(side, side, side, indexing="ij"), dim=-1)
    with torch.no_grad():
        return network(points)[..., 0]


def ball_of(flat: torch.Tensor) -> torch.nn.Module:
    network = balls.Ball()
    network.centre.data, network.radius.data = flat[:3], flat[3]
    return network


def test_evaluation_measures_shapes(trained: Path, figures: Evaluation, zoo: Path) -> None:
    """Intersection over union is that of decoded and stored networks, run one by one; the file has it by member."""
    with Zoo(zoo) as opened:
        group = opened.only()
        rows = group.rows("test")
        preps = group.read(rows)
    space, expected = Space.load(trained), []
    for prep in preps:
        one, other = values(ball_of(prep.flatten()[:4]), 64) < 0, values(space.decode(space.encode(prep)), 64) < 0
        expected.append(float((one & other).sum() / (one | other).sum()))
    detail = json.loads((trained / "eval-test.json").read_text())["detail"]
    assert detail["iou"] == pytest.approx(expected, abs=1e-6)
    assert figures.iou == pytest.approx(np.mean(expected), abs=1e-6) and 0.1 < figures.iou < 1
    assert figures.chamfer == pytest.approx(np.mean(detail["chamfer"])) and 0 < figures.chamfer < 0.5
    assert (figures.valid, figures.single_body, figures.empty) == (1, 1, 0)
    assert figures.shapes is not None and figures.shapes.resolution == 64
    assert figures.shapes.members == 6
    assert figures.shapes.target.payload() == {"valid": 1, "single_body": 1, "empty": 0}


def test_training_networks_are_measured_in_place_of_predicted_ones(figures: Evaluation, zoo: Path) -> None:
    """The nearest by its outputs and the mean of all, by the same measure."""
    with Zoo(zoo) as opened:
        group = opened.only()
        members, known = (unpack(group.read(group.rows(split)), 4) for split in ("test", "train"))
    mean = values(ball_of(known.mean(0)), 64) < 0
    expected = []
    for member in members:
        own = values(ball_of(member), 64) < 0
        expected.append(float((own & mean).sum() / (own | mean).sum()))
    assert figures.baselines["average"] and figures.baselines["average"].iou == pytest.approx(
        np.mean(expected), abs=1e-3
    )
    near, average, constant = (figures.baselines[name] for name in ("nearest_answers", "average", "constant"))
    assert near is not None and average is not None and constant is not None
    assert near.iou and average.iou and near.iou > average.iou and near.valid == 1 and constant.iou is None


def test_at_most_some_members_are_measured(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evenly among all; the others have no figure of their own, and are not shown."""
    monkeypatch.setattr(shapes, "MAX_MEMBERS", 3)
    figures = evaluate(run, "train", baselines=False)
    assert figures.shapes is not None and figures.shapes.members == 3 and figures.shapes.lines is None
    detail = json.loads((run / "eval-train.json").read_text())["detail"]
    known = [row for row, value in enumerate(detail["iou"]) if value is not None]
    assert known == [0, 8, 15] and figures.iou == pytest.approx(np.mean([detail["iou"][row] for row in known]))
    _, notes = read_surfaces(run / "eval-train-shapes.safetensors")
    assert sorted(json.loads(notes["members"])) == sorted(detail["member"][row] for row in known)


def test_lines_of_balls_are_balls(figures: Evaluation) -> None:
    """Mixed weights of balls are balls: the one kind of network of which that is known."""
    assert figures.shapes is not None and figures.shapes.lines is not None
    lines = figures.shapes.lines
    assert (lines.lines, lines.steps) == (3, 9)
    assert lines.weights.payload() == {"valid": 1, "single_body": 1, "empty": 0, "valid_lines": 3}


def test_pairs_have_no_member_in_common() -> None:
    assert pairs_of(1).shape == (0, 2) and pairs_of(100).shape == (10, 2)
    assert sorted(pairs_of(7).flatten().tolist()) == sorted(set(pairs_of(7).flatten().tolist()))


def test_empty_shapes_and_several_bodies_are_seen(run: Path) -> None:
    """A ball of a negative radius is empty: it has no distance, and overlaps nothing."""
    space, task = Space.load(run), load("balls")
    flat = torch.tensor([[0.0, 0, 0, 0.5], [0, 0, 0, 0.5]])
    target, others = (Networks.of_class(space.family, 0, each) for each in (flat, flat * torch.tensor([[1.0], [-1]])))
    compared = compare_shapes(target, {"others": others}, task, resolution=24)["others"]
    assert compared.iou.tolist() == [1, 0] and compared.empty.tolist() == [0, 1] and compared.valid.tolist() == [1, 0]
    assert np.isfinite(compared.chamfer).tolist() == [True, False]
    assert compared.summary()["chamfer"] == compared.chamfer[0]


def test_a_line_without_a_shape_at_its_end(run: Path, tmp_path: Path) -> None:
    """What is empty has no mesh and no body, and a cell in the picture that says so."""
    space, task = Space.load(run), load("balls")
    flat = torch.tensor([[0.0, 0, 0, 0.5], [0, 0, 0, -0.5]])
    line = {"latent": Networks.of_class(space.family, 0, flat)}
    told = write_line(tmp_path / "line", line, torch.tensor([0.0, 1.0]), ("one", "other"), task, "ply")
    assert told["bodies"].payload() == {"latent": [1, 0]}
    assert [Path(name).name for name in told["meshes"]] == ["00-gamma-0.000.ply"]
    assert Path(told["picture"]).read_bytes().startswith(b"\x89PNG")


def test_interpolation_writes_meshes_and_a_picture(run: Path, cli: Callable[..., Any], zoo: Path) -> None:
    import trimesh

    words = ["interpolate", "--from", "ball/0020", "--to", "ball/0021", "--steps", 5, "--run", run, "--zoo", zoo]
    told = cli(*words, "--json").json
    folder = run / "interpolations" / "ball-0020--ball-0021"
    assert [Path(name) for name in told["meshes"]] == [
        folder / f"{index:02d}-gamma-{index / 4:.3f}.glb" for index in range(5)
    ]
    assert told["picture"] == str(folder / "line.png")
    assert told["bodies"] == dict.fromkeys(("latent", "weights", "aligned"), [1] * 5)
    space = Space.load(run)
    with Zoo(zoo) as opened:
        ends = opened.only().read([20, 21])
    network = space.decode(space.encode_preps(ends).mean(0))
    mesh = trimesh.load(told["meshes"][2], force="mesh")
    with torch.no_grad():
        assert network(torch.from_numpy(np.asarray(mesh.vertices, np.float32))).abs().max() < 0.005
    kept, notes = read_surfaces(folder.with_suffix(".safetensors"))
    assert notes["from"] == "ball/0020" and len(kept) == 15
    table = cli(*words, "--mesh", "ply", "--save", run / "saved").out
    assert "bodies at gamma" in table and str(run / "saved" / "line.png") in table
    assert len(list((run / "saved").glob("*.ply"))) == len(list((run / "saved").glob("*.safetensors"))) == 5


def test_a_latent_becomes_a_mesh(run: Path, zoo: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    import trimesh

    latent, mesh = tmp_path / "z.safetensors", tmp_path / "ball.glb"
    assert cli("encode", "best", "-o", latent, "--run", run, "--zoo", zoo).code == 0
    told = cli("decode", latent, "-o", mesh, "--run", run, "--zoo", zoo)
    assert told.code == 0 and "a mesh of 1 body" in told.out
    space = Space.load(run)
    with Zoo(zoo) as opened:
        best = opened.find("best")
        network = space.decode(space.encode(opened.only().read([best.index])[0]))
    expected = surface(values(network, 64))
    assert trimesh.load(mesh, force="mesh").area == pytest.approx(expected.areas.sum(), rel=1e-5)


def test_eval_prints_a_table_of_shapes(run: Path, zoo: Path, cli: Callable[..., Any]) -> None:
    told = cli("eval", run, "--zoo", zoo)
    assert "IoU" in told.out and "9 shapes on each of 3 lines" in told.out and "3 of 3" in told.out


def test_meshes_are_refused_where_networks_are_no_shapes(
    tiny_run: Path, tiny_zoo: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    latent = tmp_path / "z.safetensors"
    assert cli("encode", "best", "-o", latent, "--run", tiny_run, "--zoo", tiny_zoo).code == 0
    why = "but networks of digits are no shapes: a mesh is made of networks of signed distances alone"
    mesh = tmp_path / "digit.glb"
    told = cli("decode", latent, "-o", mesh, "--run", tiny_run, "--zoo", tiny_zoo)
    assert refused(told, 2) == f"{mesh} was to hold a mesh, {why}"
    words = ["interpolate", "--from", "worst", "--to", "best", "--run", tiny_run, "--zoo", tiny_zoo]
    assert refused(cli(*words, "--mesh", "ply"), 2) == f"meshes (ply) were asked for, {why}"
    assert not mesh.exists()


def test_meshes_of_other_kinds_are_refused(run: Path, zoo: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    latent, other = tmp_path / "z.safetensors", tmp_path / "ball.stl"
    assert cli("encode", "best", "-o", latent, "--run", run, "--zoo", zoo).code == 0
    told = cli("decode", latent, "-o", other, "--run", run, "--zoo", zoo)
    assert refused(told, 2) == f"{other} was to hold a mesh, but a '.stl' file cannot: name it .glb or .ply"
    told = cli("decode", latent, "-o", tmp_path / "ball.glb", "--batch-norm", "--run", run, "--zoo", zoo)
    refused(told, 2, "--batch-norm is for state dicts", "ball.glb is a mesh")
    told = cli("interpolate", "--from", "worst", "--to", "best", "--mesh", "obj", "--run", run, "--zoo", zoo)
    refused(told, 2, "a '.obj' file cannot: name it .glb or .ply")


def test_a_mesh_needs_the_zoo(run: Path, zoo: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    """Which alone says what the networks' values mean."""
    latent = tmp_path / "z.safetensors"
    assert cli("encode", "best", "-o", latent, "--run", run, "--zoo", zoo).code == 0
    told = cli("decode", latent, "-o", tmp_path / "ball.glb", "--run", run, "--zoo", tmp_path / "none.h5")
    refused(told, 1, "none.h5 does not exist")


def test_the_figures_are_not_those_of_images(tiny_run: Path, tmp_path: Path) -> None:
    """An evaluation of networks that are no shapes has none of the keys, and writes no file of shapes."""
    copy = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    told = evaluate(copy).payload()
    assert not {"iou", "chamfer", "valid", "single_body", "empty", "shapes"} & told.keys()
    assert not list(copy.glob("*-shapes.safetensors"))


def test_interpolation_without_the_command_line(run: Path) -> None:
    result = interpolate(run, "worst", "best", steps=3)
    assert result.picture is not None and result.bodies is not None and len(result.meshes) == 3
