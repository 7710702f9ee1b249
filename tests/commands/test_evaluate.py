"""`evaluate` against a slow calculation on networks run one by one; `interpolate`'s ends; names of networks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from netspace import archs
from netspace.commands import baselines
from netspace.commands.convert import decode, resolve, zoo_of
from netspace.commands.encode import encode
from netspace.commands.evaluate import evaluate
from netspace.commands.interpolate import interpolate
from netspace.errors import NetspaceError
from netspace.io import read_json
from netspace.metrics import identity, linear_r2
from netspace.networks.alignment import align, reset_statistics
from netspace.networks.channels import channel_groups
from netspace.networks.prep import unflatten, unpack
from netspace.progress import Progress
from netspace.space import Space
from netspace.tasks import Classification
from netspace.training.setup import task_of
from netspace.zoo import Zoo


@pytest.fixture
def zoo(tiny_zoo: Path) -> Iterator[Zoo]:
    with Zoo(tiny_zoo) as opened:
        yield opened


def answers(space: Space, flat: torch.Tensor, task: Classification, images: str = "test") -> torch.Tensor:
    """Logits of one network for the images of a split, by the plain architecture."""
    network = archs.build(space.spec.arch, **space.spec.settings).eval()
    network.load_state_dict({name: value.clone() for name, value in unflatten(flat, space.spec).items()})
    with torch.no_grad():
        return network(task.normalise(task.split(images).images))  # type: ignore[no-any-return]


def test_the_figures_are_those_of_networks_run_alone(run_copy: Path, zoo: Zoo) -> None:
    result = evaluate(run_copy, "test")
    space, task, group = Space.load(run_copy), task_of(zoo, "cpu"), zoo.only()
    labels, rows = task.test.labels, group.rows("test")
    actual: dict[str, list[float]] = {name: [] for name in ("target", "predicted", "agreement", "kl")}
    predicted = []
    for row in rows:
        prep = group.read([row])[0]
        flat = space.decode_flat(space.encode(prep)[None])[0]
        predicted.append(flat)
        first, second = answers(space, unpack(prep, 1477), task), answers(space, flat, task)
        actual["target"].append(float((first.argmax(-1) == labels).double().mean()))
        actual["predicted"].append(float((second.argmax(-1) == labels).double().mean()))
        actual["agreement"].append(float((first.argmax(-1) == second.argmax(-1)).double().mean()))
        log_t, log_p = F.log_softmax(first.double(), -1), F.log_softmax(second.double(), -1)
        actual["kl"].append(float((log_t.exp() * (log_t - log_p)).sum(-1).mean()))
    detail = read_json((run_copy / "eval-test.json"), dict[str, Any])["detail"]
    image = 1.5 / len(labels)  # a tie may be rounded the other way
    np.testing.assert_allclose(detail["accuracy_target"], actual["target"], atol=1e-9)
    np.testing.assert_allclose(detail["accuracy_predicted"], actual["predicted"], atol=image)
    np.testing.assert_allclose(detail["agreement"], actual["agreement"], atol=image)
    np.testing.assert_allclose(detail["kl"], actual["kl"], rtol=1e-3)
    target, answer = np.array(detail["accuracy_target"]), np.array(detail["accuracy_predicted"])
    assert result.mae == pytest.approx(np.abs(target - answer).mean())
    assert result.r2 == pytest.approx(1 - ((target - answer) ** 2).sum() / ((target - target.mean()) ** 2).sum())
    assert result.accuracy_target == pytest.approx(group.members["accuracy_test"][rows].mean())
    pairs = [(predicted[a] - predicted[b]).norm().item() for a in range(6) for b in range(a)]
    assert result.diversity == pytest.approx(np.mean(pairs), rel=1e-3)
    assert result.compression == pytest.approx(64 / 1477) and result.classid_accuracy is None


def test_networks_are_compared_on_the_first_images_where_one_asks(run_copy: Path, zoo: Zoo, cli: Any) -> None:
    space, task, group = Space.load(run_copy), task_of(zoo, "cpu"), zoo.only()
    done = cli("eval", run_copy, "--images", 40, "--json").json
    assert done["images"] == 40 and "distilled" not in done["baselines"] and done["baselines"]["five_nearest"]
    expected = [
        float(
            (answers(space, unpack(group.read([row])[0], 1477), task)[:40].argmax(-1) == task.test.labels[:40])
            .double()
            .mean()
        )
        for row in group.rows("test")
    ]
    detail = read_json((run_copy / "eval-test.json"), dict[str, Any])["detail"]
    np.testing.assert_allclose(detail["accuracy_target"], expected, atol=1e-9)
    few = task.first(40)
    assert (few.size("train"), few.size("val"), few.size("test")) == (task.size("train"), 40, 40)
    assert few.split_hash != task.split_hash and task.first(10**6).split_hash == task.split_hash
    assert evaluate(run_copy, baselines=False, images=10**6).images == task.size("test")
    assert "on the first 40 test images" in cli("eval", run_copy, "--images", 40).out


def test_shapes_are_compared_on_all_of_their_points(chairs_copy: Path, cli: Any) -> None:
    told = cli("eval", chairs_copy, "--images", 40)
    assert told.code == 2 and "evaluated on all of its points: leave --images out" in told.sentence


def test_baselines_answer_with_training_networks(run_copy: Path, zoo: Zoo) -> None:
    result = evaluate(run_copy, "test").baselines
    space, task, group = Space.load(run_copy), task_of(zoo, "cpu"), zoo.only()
    bank = unpack(group.read(group.rows("train")), 1477)
    target = unpack(group.read(group.rows("test")), 1477)
    near = [int((bank - row).norm(dim=1).argmin()) for row in target]
    scores = group.members["accuracy_test"][group.rows("train")][near]
    assert result["nearest"].accuracy_predicted == pytest.approx(scores.mean(), abs=1e-9)
    average = (answers(space, bank.mean(0), task).argmax(-1) == task.test.labels).double().mean().item()
    assert result["average"].accuracy_predicted == pytest.approx(average, abs=1.5 / 500)
    assert result["noise"].scale in (0.01, 0.03, 0.1, 0.3)
    chosen = {"same_accuracy", "nearest_answers", "nearest_agreement", "five_nearest", "constant", "ensemble"}
    assert result.keys() == {"nearest", "nearest_latent", "noise", "average", "aligned_average"} | chosen
    rows = group.rows("train")
    best = sorted(rows, key=lambda row: -group.members["accuracy_val"][row])[:10]  # ties by their rows
    spec, skeleton = group.spec, archs.skeleton(group.spec.arch, group.spec.settings, group.spec.input_shape)
    groups = channel_groups(skeleton, torch.zeros(1, *spec.input_shape), "it")
    sources = align(unpack(group.read(best), 1477)[0], unpack(group.read(best), 1477), spec, groups)
    weights, images = torch.full((1, 10), 0.1), task.normalise(task.train.images[:1000])
    aligned = reset_statistics(skeleton, spec, groups, sources.mean(0, keepdim=True), sources, weights, images)
    expected = (answers(space, aligned[0], task).argmax(-1) == task.test.labels).double().mean().item()
    assert result["aligned_average"].accuracy_predicted == pytest.approx(expected, abs=2.5 / 500)


def test_without_a_graph_there_is_no_aligned_average(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise NetspaceError("cannot be traced")

    monkeypatch.setattr(baselines, "channel_groups", refused)
    assert evaluate(run_copy, "test").baselines["aligned_average"] is None


def test_baselines_by_answers_are_those_of_a_slow_search(
    run_copy: Path, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks run alone, their answers compared in float64; the bank is taken in parts of unequal size."""
    monkeypatch.setattr(baselines, "MAX_LOGITS", 7 * 500 * 10)
    actual = evaluate(run_copy, "test").baselines
    space, task, group = Space.load(run_copy), task_of(zoo, "cpu"), zoo.only()
    logits = {
        (split, images): torch.stack(
            [answers(space, unpack(prep, 1477), task, images).double() for prep in group.read(group.rows(split))]
        )
        for split in ("train", "val", "test")
        for images in ("val", "test")
    }
    log_p = {key: value.log_softmax(-1) for key, value in logits.items()}
    classes = {key: value.argmax(-1) for key, value in logits.items()}
    bank, kl, agreement = log_p["train", "val"], [], []
    for member in range(6):
        own = log_p["test", "val"][member]
        kl.append([float((own.exp() * (own - other)).sum(-1).mean()) for other in bank])
        same = [int((classes["test", "val"][member] == other).sum()) for other in classes["train", "val"]]
        agreement.append(min((-count, kl[-1][row], row) for row, count in enumerate(same))[2])
    nearest = np.array(kl).argsort(1)
    popular = [sum(int((row == judge).sum()) for judge in classes["val", "val"]) for row in classes["train", "val"]]
    probabilities = log_p["train", "test"].exp()
    expected = {
        "nearest_answers": probabilities[nearest[:, 0]],
        "nearest_agreement": probabilities[agreement],
        "five_nearest": probabilities[torch.from_numpy(nearest[:, :5])].mean(1),
        "constant": probabilities[[int(np.argmax(popular))] * 6],
        "ensemble": probabilities.mean(0, keepdim=True).expand(6, -1, -1),
    }
    target, labels = log_p["test", "test"], task.test.labels
    accuracies = (target.argmax(-1) == labels).double().mean(1).numpy()
    for name, mean in expected.items():
        scores = (mean.argmax(-1) == labels).double().mean(1).numpy()
        assert actual[name].accuracy_predicted == pytest.approx(scores.mean(), abs=1.5 / 500), name
        assert actual[name].bias == pytest.approx((scores - accuracies).mean(), abs=1.5 / 500), name
        assert actual[name].mae == pytest.approx(np.abs(scores - accuracies).mean(), abs=1.5 / 500), name
        same_class = (mean.argmax(-1) == target.argmax(-1)).double().mean()
        assert actual[name].agreement == pytest.approx(float(same_class), abs=1.5 / 500), name
        divergence = (target.exp() * (target - mean.log())).sum(-1).mean()
        assert actual[name].kl == pytest.approx(float(divergence), rel=1e-3), name


def test_a_random_network_of_the_same_accuracy() -> None:
    """Each of the nearest is drawn, none that is further away; the same every time."""
    distance = torch.tensor([[0.10, 0.1005, 0.10, 0.102, 0.3]]).double().expand(200, -1)
    drawn = baselines._random_tie(distance)
    assert set(drawn.tolist()) == {0, 1, 2}
    assert torch.equal(drawn, baselines._random_tie(distance))


def test_same_accuracy_is_as_accurate_on_validation_images(run_copy: Path, zoo: Zoo) -> None:
    space, task, group = Space.load(run_copy), task_of(zoo, "cpu"), zoo.only()
    target = unpack(group.read(group.rows("test")), 1477)
    latents = space.encode_preps(group.read(group.rows("test")))
    rows = (
        baselines.Baselines(space, zoo, 0)
        ._choose(target, latents, task, torch.full((len(target),), -1), Progress("baselines", 1, "networks"))
        .single["same_accuracy"]
    )
    bank, own = (group.members["accuracy_val"][group.rows(split)] for split in ("train", "test"))
    for member, row in enumerate(rows.tolist()):
        distances = np.abs(bank - own[member])
        assert distances[row] <= distances.min() + baselines.SAME_ACCURACY + 1e-9


def test_identity_is_that_of_the_kept_answers(run_copy: Path, zoo: Zoo) -> None:
    actual = evaluate(run_copy, "test")
    space, task, group = Space.load(run_copy), task_of(zoo, "cpu"), zoo.only()
    preps = group.read(group.rows("test"))
    target = torch.stack([answers(space, unpack(prep, 1477), task).argmax(-1) for prep in preps])
    decoded = space.decode_flat(space.encode_preps(preps))
    predicted = torch.stack([answers(space, flat, task).argmax(-1) for flat in decoded])
    slow = identity(predicted, target, task.test.labels).summary()
    assert actual.identity.without_peers == slow["without_peers"]
    for name in ("own_minus_peers", "jaccard_own", "jaccard_peers"):
        assert getattr(actual.identity, name) == pytest.approx(slow[name], abs=0.01)
    assert actual.per_class["lenetlike"].identity == actual.identity
    assert actual.bias == pytest.approx(actual.accuracy_predicted - actual.accuracy_target)
    assert actual.diversity_ratio == pytest.approx(actual.diversity / actual.zoo_diversity)


def test_lines_say_how_straight_they_are_and_how_far_their_ends_are_from_their_targets(
    run_copy: Path, zoo: Zoo
) -> None:
    line = evaluate(run_copy, "test").interpolation
    detail = json.loads((run_copy / "eval-test.json").read_text())["detail"]
    differences = np.array(detail["accuracy_predicted"]) - np.array(detail["accuracy_target"])
    rows = zoo.only().rows("test")
    order = np.argsort(zoo.only().members["accuracy_val"][rows], kind="stable")
    starts = differences[order[:3]]  # the lower half of six
    assert line.pairs == 3
    assert line.end_differences == pytest.approx((starts.mean(), differences[order[-1]]), abs=1.5 / 500)
    assert line.end_distances == pytest.approx((np.abs(starts).mean(), abs(differences[order[-1]])), abs=1.5 / 500)
    ends = [0, -1]
    assert np.array(line.aligned_accuracy)[ends] == pytest.approx(np.array(line.weight_accuracy)[ends], abs=1.5 / 500)
    assert 0 <= line.linear_r2_latent <= 1 and 0 <= line.linear_r2_weights <= 1


def test_even_a_tiny_space_beats_the_average_network(run_copy: Path) -> None:
    result = evaluate(run_copy, "test")
    assert result.agreement > result.baselines["average"].agreement
    assert result.kl < result.baselines["average"].kl


def test_the_same_figures_again_and_on_other_splits(run_copy: Path) -> None:
    first = evaluate(run_copy, "test")
    assert evaluate(run_copy, "test") == first
    train = evaluate(run_copy, "train")
    assert (train.split, train.members, train.baselines["nearest"].agreement) == ("train", 24, 1.0)
    kept = load_file(run_copy / "eval-train.safetensors")
    assert kept["latents"].shape == (24, 64) and kept["preps"].shape == kept["decoded"].shape == (4, 12, 128)
    with pytest.raises(NetspaceError, match="tset"):
        evaluate(run_copy, "tset")


def test_a_lines_ends_are_the_decoded_ends(run_copy: Path, zoo: Zoo, tmp_path: Path) -> None:
    ends = ["lenetlike/0031", "lenetlike/0035"]
    result = interpolate(run_copy, *ends, steps=3, save=tmp_path / "line")
    assert (result.start, result.end) == tuple(ends)
    space, group = Space.load(run_copy), zoo.only()
    for index, row in ((0, 31), (2, 35)):
        encode(run_copy, f"lenetlike/{row:04d}", tmp_path / "z.safetensors")
        scored = decode(run_copy, tmp_path / "z.safetensors", tmp_path / "net.safetensors")
        assert result.latent_accuracy[index] == pytest.approx(scored.accuracy_test, abs=1.5 / 500)
        assert result.weight_accuracy[index] == pytest.approx(group.members["accuracy_test"][row], abs=1e-9)
        assert result.aligned_accuracy[index] == pytest.approx(result.weight_accuracy[index], abs=1.5 / 500)
        alone, on_line = load_file(tmp_path / "net.safetensors"), load_file(result.networks[index])
        for name in space.spec.names:
            torch.testing.assert_close(on_line[name], alone[name], rtol=1e-4, atol=1e-5)
        assert result.end_differences[min(index, 1)] == pytest.approx(
            result.latent_accuracy[index] - result.weight_accuracy[index]
        )
    assert result.aligned_accuracy[1] != result.weight_accuracy[1]
    gamma = np.array(result.gamma)
    assert result.linear_r2 == pytest.approx(linear_r2(gamma, np.array(result.latent_accuracy)))
    assert result.weight_linear_r2 == pytest.approx(linear_r2(gamma, np.array(result.weight_accuracy)))
    latent_only = interpolate(run_copy, str(tmp_path / "z.safetensors"), ends[0], steps=2)
    assert latent_only.end_differences[0] is None
    assert latent_only.end_differences[1] == pytest.approx(result.end_differences[0])
    middle = torch.lerp(*(space.encode(group.read([row])[0]) for row in (31, 35)), 0.5)
    expected = space.decode(middle).state_dict()
    for name, value in load_file(result.networks[1]).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
    assert len(list((run_copy / "interpolations").glob("*.json"))) == 2


def test_names_of_networks(run_copy: Path, zoo: Zoo, tmp_path: Path) -> None:
    space = Space.load(run_copy)
    val = zoo.only().members["accuracy_val"]
    for word, row in (("best", int(val.argmax())), ("worst:lenetlike", int(val.argmin()))):
        assert val[int(resolve(word, space, zoo).name.split("/")[1])] == val[row]
    member: Any = resolve("lenetlike/0002", space, zoo)
    assert torch.equal(member.flat, unpack(zoo.only().read([2])[0], 1477))
    assert torch.equal(member.latent, space.encode(zoo.only().read([2])[0]))
    with pytest.raises(NetspaceError, match="--zoo"):
        resolve("best", space, None)


def test_the_zoo_of_a_run(run_copy: Path, zoo_copy: Path, tiny_zoo: Path) -> None:
    with zoo_of(run_copy) as actual, zoo_of(run_copy, zoo_copy) as moved:
        assert actual.path == tiny_zoo and moved.path == zoo_copy


def test_files_need_no_zoo(run_copy: Path, tmp_path: Path) -> None:
    encode(run_copy, "best", tmp_path / "z.safetensors")
    result = read_json((run_copy / "provenance.json"), dict[str, Any])
    (run_copy / "provenance.json").write_text(json.dumps({**result, "zoo": "/gone/zoo.h5"}))
    decoded = decode(run_copy, tmp_path / "z.safetensors", tmp_path / "net.safetensors")
    assert decoded.accuracy_test is None and (tmp_path / "net.safetensors").is_file()
    again = encode(run_copy, str(tmp_path / "net.safetensors"), tmp_path / "y.safetensors")
    assert again.latent == 64
    with pytest.raises(NetspaceError, match="zoo"):
        encode(run_copy, "best", tmp_path / "x.safetensors")
