"""Properties of signals told from their networks, and retrieval: a part of `netspace eval` for networks that hold signals.

Axes: M members, N training members, F features, E latent size, P parameters, B inputs, C outputs, K classes.

Each property is told by a linear model, which is the same whatever describes a network: its latent, its weights, its outputs
on inputs that all networks share, and the signal itself where inputs are shared. Models are fitted to training members, the
strength of their regularisation and the scaling of features are chosen on validation members, and figures are of the split
that is evaluated.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from netspace.metrics import r2
from netspace.networks.family import Networks
from netspace.networks.prep import unpack
from netspace.results.properties import Measure, Properties, Property, Retrieval, Sources
from netspace.space import Space
from netspace.tasks import Task
from netspace.training.setup import training_rows
from netspace.training.validation import network_outputs
from netspace.zoo import ArchGroup, Zoo

MAX_MEMBERS = 4096  # members of a split and an architecture that are looked at: the first ones
MAX_VALUES = 1 << 27  # parameters of all of them, so that memory stays bounded
MAX_INPUTS = 2000  # shared validation inputs on which networks' outputs are compared: the first ones
NEIGHBOURS = 10  # training members that are retrieved
ALPHAS = (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)  # weights of ridge regression's penalty
INVERSES = (1e-3, 1e-2, 1e-1, 1.0)  # inverse weights of logistic regression's penalty
MAX_ITERATIONS = 300  # of logistic regression: what has not converged by then is stopped early, which validation judges

Scaled = tuple[np.ndarray, ...]  # features (N, F), (V, F) and (M, F) of training, validation and test members


@dataclass(frozen=True)
class Described:
    """Members of a split, with what describes them and what is known of their signals."""

    features: dict[str, np.ndarray]  # (M, F) float32 by source
    labels: dict[str, np.ndarray]  # (M,) by name

    @property
    def count(self) -> int:
        """The number of members."""
        return len(self.features["latent"])


def properties(space: Space, zoo: Zoo, split: str, task: Task) -> Properties | None:
    """Tell what is known of the signals of a split's members from their networks, and retrieve training members.

    None where networks hold no signals, for training members, or if there are no validation members.
    """
    if split == "train" or not _have_signals(space, zoo, task):
        return None
    train, val, test = (_described(space, zoo, name, task) for name in ("train", "val", split))
    if train is None or val is None or test is None:
        return None
    return Properties(
        members=test.count,
        training_members=train.count,
        labels=_told(train, val, test) if train.labels else {},
        retrieval=retrieval(train, test),
    )


def _told(train: Described, val: Described, test: Described) -> dict[str, Property]:
    """Tell every property of test members from each source."""
    classes = {name: is_class(values) for name, values in train.labels.items()}
    figures: dict[str, dict[str, float]] = {name: {} for name in classes}
    for source, own in train.features.items():
        scaled = scalings(own, val.features[source], test.features[source])
        for name, values in train.labels.items():
            tell, measure = (classified, fraction_right) if classes[name] else (regressed, r2)
            figures[name][source] = measure(tell(scaled, values, val.labels[name]), test.labels[name])
    for name, values in train.labels.items():
        constant, measure = (commonest(values), fraction_right) if classes[name] else (values.mean(), r2)
        figures[name]["constant"] = measure(np.full(test.count, constant), test.labels[name])
    measures: dict[bool, Measure] = {True: "accuracy", False: "r2"}
    return {name: Property(measure=measures[each], **figures[name]) for name, each in classes.items()}


def _have_signals(space: Space, zoo: Zoo, task: Task) -> bool:
    """Return whether training members were fitted to signals that have names."""
    groups = [zoo.group(arch.id) for arch in space.family if arch.trained]
    seeds = [seed for group in groups for seed in group.seeds(group.rows("train")).tolist() if seed >= 0]
    return bool(seeds and task.member_name(seeds[0]))


def _described(space: Space, zoo: Zoo, split: str, task: Task) -> Described | None:
    """Describe the members of a split that were fitted to a signal; None if there are none."""
    parts = []
    for class_id, arch in enumerate(space.family):
        group = zoo.group(arch.id) if arch.trained else None
        if group is not None:
            rows = training_rows(space.recipe, zoo, group).numpy() if split == "train" else group.rows(split)
            rows = rows[group.seeds(rows).numpy() >= 0][: min(MAX_MEMBERS, MAX_VALUES // arch.parameters)]
            if len(rows):
                parts.append(_of_arch(space, class_id, group, rows, task))
    if not parts:
        return None
    sources = [name for name in parts[0].features if name != "weights" or not space.multi]  # weights differ in size
    return Described(
        {name: np.concatenate([part.features[name] for part in parts]) for name in sources},
        {name: np.concatenate([part.labels[name] for part in parts]) for name in parts[0].labels},
    )


def _of_arch(space: Space, class_id: int, group: ArchGroup, rows: np.ndarray, task: Task) -> Described:
    """Describe members of one architecture."""
    preps, seeds = group.read(rows).to(space.device), group.seeds(rows)
    flat = unpack(preps, space.family[class_id].parameters)
    limit = min(MAX_INPUTS, task.size("val"))
    outputs = network_outputs(Networks.of_class(space.family, class_id, flat), task, "val", None, limit)
    features = {"latent": space.encode_preps(preps, group.id), "weights": flat, "outputs": outputs}
    if task.own_targets and not task.own_inputs:
        features["signal"] = task.targets("val", slice(None), seeds)
    known = {name: np.asarray(values) for name, values in task.labels(seeds).items()}
    return Described({name: each.float().flatten(1).cpu().numpy() for name, each in features.items()}, known)


def is_class(labels: np.ndarray) -> bool:
    """Return whether labels (M,) are classes: names, integers, or 0 and 1; other numbers are quantities."""
    return labels.dtype.kind in "iubU" or bool(np.isin(labels, (0, 1)).all())


def classified(scaled: Sequence[Scaled], labels: np.ndarray, val_labels: np.ndarray) -> np.ndarray:
    """Return the classes (M,) that logistic regression tells for test members, chosen by validation accuracy.

    Features of training, validation and test members are as `scalings` gives them, labels (N,) and (V,).
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels)) < 2:
        return np.full(len(scaled[0][2]), labels[0])
    best, chosen = -1.0, labels[:0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for (train, val, test), inverse in product(scaled, INVERSES):
            model = LogisticRegression(C=inverse, max_iter=MAX_ITERATIONS).fit(train, labels)
            right = fraction_right(model.predict(val), val_labels)
            if right > best:
                best, chosen = right, model.predict(test)
    return chosen


def regressed(scaled: Sequence[Scaled], values: np.ndarray, val_values: np.ndarray) -> np.ndarray:
    """Return the numbers (M,) that ridge regression tells for test members, chosen by the validation error.

    Features of training, validation and test members are as `scalings` gives them, values (N,) and (V,).
    """
    from sklearn.linear_model import Ridge

    best, chosen = np.inf, values[:0]
    for (train, val, test), alpha in product(scaled, ALPHAS):
        model = Ridge(alpha=alpha).fit(train, values)
        error = float(np.square(model.predict(val) - val_values).mean())
        if error < best:
            best, chosen = error, model.predict(test)
    return chosen


def scalings(*features: np.ndarray) -> list[Scaled]:
    """Return features (., F) in units of each one's standard deviation in the first set (N, F), and in units of one for all.

    Where there are more features than members of the first set, they are turned to their N principal axes: linear models with
    an L2 penalty are the same there.
    """
    mean, each = features[0].mean(0, dtype=np.float64), features[0].std(0, dtype=np.float64)
    one = np.sqrt(np.square(each).mean())
    scales = (np.where(each > 0, each, 1.0), np.full_like(each, one or 1.0))
    return [_turned(*((values - mean) / scale for values in features)) for scale in scales]


def _turned(*features: np.ndarray) -> Scaled:
    """Return features (., F) along the N principal axes of the first (N, F) where F > N, else as they are."""
    first = features[0]
    if first.shape[1] <= first.shape[0]:
        return features
    values, vectors = np.linalg.eigh(first @ first.T)
    kept = values > values[-1] * 1e-12
    if not kept.any():
        return tuple(np.zeros((len(each), 1)) for each in features)
    axes = first.T @ (vectors[:, kept] / np.sqrt(values[kept]))  # (F, rank), orthonormal
    return tuple(each @ axes for each in features)


def retrieval(train: Described, test: Described) -> Retrieval:
    """Return how good the nearest training members of test members are, by each source."""
    from sklearn.neighbors import NearestNeighbors

    count = min(NEIGHBOURS, train.count)
    rows = {
        source: NearestNeighbors(n_neighbors=count, algorithm="brute").fit(own).kneighbors(test.features[source], return_distance=False)
        for source, own in train.features.items()
    }  # fmt: skip
    overlap = {
        source: float((near[:, :, None] == rows["outputs"][:, None, :]).any(2).mean())
        for source, near in rows.items()
        if source != "outputs"
    }
    classes = {name: values for name, values in train.labels.items() if is_class(values)}
    return Retrieval(
        neighbours=count,
        overlap=Sources(**overlap),
        chance=count / train.count,
        same={name: _same(rows, values, test.labels[name]) for name, values in classes.items()},
    )


def _same(rows: Mapping[str, np.ndarray], train: np.ndarray, test: np.ndarray) -> Sources:
    """Return the fraction of test members (M,) whose nearest training member has the same class, by source."""
    return Sources(**{source: fraction_right(train[near[:, 0]], test) for source, near in rows.items()})


def fraction_right(predicted: np.ndarray, target: np.ndarray) -> float:
    """Return the fraction of classes (M,) that are right."""
    return float((predicted == target).mean())


def commonest(labels: np.ndarray) -> Any:
    """Return the commonest of labels (N,), the first of several."""
    values, counts = np.unique(labels, return_counts=True)
    return values[counts.argmax()]
